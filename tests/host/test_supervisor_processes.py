"""What every process of a daemon is and holds, as /proc tells it; and what happens when one is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qre.ipc.messages import Party
from qre.ipc.roles import ROLES
from tests.support.daemons import children, threads, wait_for
from tests.support.lone_daemon import Lone, LoneDaemon, client, server

pytestmark = pytest.mark.root


@pytest.fixture(scope="module", params=["server", "client"])
def lone(request: pytest.FixtureRequest) -> Iterator[Lone]:
    with (server if request.param == "server" else client)() as made:
        made.daemon.start().wait_ready()
        yield made


def links(pid: int) -> dict[int, str]:
    """Descriptor -> what it is, of a process. The one that coverage is written to is the tests' own."""
    found = {}
    coverage = os.environ.get("QRE_COVERAGE_DIR", "/nowhere")
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:
            continue
    return {number: link for number, link in found.items() if not link.startswith(coverage)}


def udp_sockets(pid: int) -> set[str]:
    """``socket:[inode]`` of every UDP socket in the namespace of a process."""
    lines = Path(f"/proc/{pid}/net/udp").read_text().splitlines()[1:]
    return {f"socket:[{line.split()[9]}]" for line in lines}


def runs(pid: int) -> bool:
    """A zombie that nobody has waited for yet does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def check_promises(daemon: LoneDaemon) -> None:
    """Uid, all five capability sets, NoNewPrivs and seccomp of every thread of every worker."""
    workers = daemon.workers()
    uids = set()
    for party, role in ROLES.items():
        if party.value not in workers:
            continue
        granted = sum(1 << capability for capability in role.capabilities)
        found = threads(workers[party.value])
        assert len(found) >= 3, "ZeroMQ's threads too"
        for thread in found:
            assert thread.capabilities == (0, granted, granted, 0, 0), thread
            assert (thread.no_new_privs, thread.seccomp) == (1, 2), thread
            assert thread.uid == role.ids()[0] != 0
        uids.add(found[0].uid)
        status = Path(f"/proc/{workers[party.value]}/status").read_text()
        assert "Groups:\t \n" in status
    assert len(uids) == len(workers) - 1, "each worker has a uid of its own"


def test_every_thread_of_every_worker_is_as_promised(lone: Lone) -> None:
    check_promises(lone.daemon)


def test_the_supervisor_keeps_what_it_needs_and_can_gain_nothing(lone: Lone) -> None:
    allowed = sum(1 << number for number in (2, 5, 6, 7, 8, 12, 39))
    for thread in threads(lone.daemon.workers()["supervisor"]):
        inheritable, permitted, effective, bounding, ambient = thread.capabilities
        assert (inheritable, ambient) == (0, 0)
        assert not (permitted | effective | bounding) & ~allowed
        assert thread.no_new_privs == 1


def test_no_process_lives_that_the_drawing_does_not_name(lone: Lone) -> None:
    workers = lone.daemon.workers()
    assert sorted(children(lone.daemon.pid)) == sorted(workers.values())
    for pid in workers.values():
        assert b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_each_process_holds_the_files_of_its_row_and_no_other(lone: Lone) -> None:
    secrets = {"profile_secrets", "session_secrets", "ticket-keys", "tickets"}
    allowed = {
        "handshake": {"127.0.0.1_4433.replay", "leases", *secrets},
        "dataplane": {"tun", "number_marks"},
        "netlink": set(),
        "bpf_loader": {"qre_reuseport.bpf.o"},
        "supervisor": {"127.0.0.1_4433.replay", "leases", "tun", "qre_reuseport.bpf.o", "number_marks", *secrets},
    }
    standard = {os.readlink(f"/proc/{lone.daemon.pid}/fd/{number}") for number in range(3)}
    for name, pid in lone.daemon.workers().items():
        held = {link for number, link in links(pid).items() if number > 2 and link not in standard | {"/dev/null"}}
        files = {link.removeprefix("/memfd:").removesuffix(" (deleted)") for link in held if link.startswith("/")}
        names = {Path(file).name.removeprefix(f"{lone.daemon.profile}.") for file in files}
        assert names <= allowed[name], name


def test_the_underlay_sockets_are_where_they_belong(lone: Lone) -> None:
    underlay = udp_sockets(lone.daemon.pid)
    held = {name: len(underlay & set(links(pid).values())) for name, pid in lone.daemon.workers().items()}
    if "bpf_loader" in held:
        assert held == {"supervisor": 2, "bpf_loader": 2, "handshake": 1, "dataplane": 1, "netlink": 0}
    else:
        assert held == {"supervisor": 0, "handshake": 0, "dataplane": 0, "netlink": 0}
    assert not underlay & set(links(lone.daemon.pid).values()), "the parent holds none"


def test_the_supervisor_never_maps_what_holds_secrets(lone: Lone) -> None:
    for pid in (lone.daemon.pid, lone.daemon.workers()["supervisor"]):
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "secrets" not in maps
        assert "number_marks" not in maps


def test_nobody_but_the_worker_reaches_its_endpoint(lone: Lone) -> None:
    workers = lone.directory / "run" / f"{lone.daemon.profile}.workers"
    assert workers.stat().st_mode & 0o777 == 0o711
    for party, role in ROLES.items():
        if party.value not in lone.daemon.workers():
            continue
        status = (workers / party.value).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, role.ids()[1], 0o710)


def test_a_killed_worker_comes_back_with_its_promises_and_the_others_stay(lone: Lone) -> None:
    daemon = lone.daemon
    assert daemon.notify is not None
    names = [name for name in daemon.workers() if name != "supervisor"]
    for name in names:
        before = daemon.workers()
        old = daemon.kill_worker(name)
        wait_for(f"{name} to come back", lambda: daemon.workers().get(name, old) != old)  # noqa: B023 - at once
        wait_for(f"{name} to be ready", lambda: f"worker {name} is back" in daemon.said())  # noqa: B023 - at once
        after = daemon.workers()
        assert {other: pid for other, pid in after.items() if other != name} == {
            other: pid for other, pid in before.items() if other != name
        }
        check_promises(daemon)
    assert daemon.notify.poll().count("READY=1") == 1
    shown = daemon.shown()
    assert [process["restarts"] for process in shown["processes"]] == [1] * len(names)
    wait_for("STATUS without a restart", lambda: "restarting" not in daemon.status())


def test_status_names_the_worker_that_is_missing() -> None:
    with client() as lone:
        daemon = lone.daemon
        daemon.start().wait_ready().wait_status("quiet")
        for _ in range(4):  # the pause grows with every death
            pid = daemon.kill_worker("dataplane")
            wait_for("dataplane", lambda: daemon.workers().get("dataplane", pid) != pid)  # noqa: B023 - at once
            wait_for("dataplane to be ready", lambda: "restarting" not in daemon.status())
        assert daemon.notify is not None
        assert (
            "STATUS=restarting dataplane; quiet: keys profile_secrets session_secrets tickets" in daemon.notify.poll()
        )


def test_a_killed_supervisor_takes_everything_with_it_and_the_parent_cleans_up() -> None:
    with server("handshake=up") as lone:
        daemon = lone.daemon
        daemon.start().wait_ready().wait_session()
        assert list(lone.pin_dir.iterdir())
        daemon.kill_worker("supervisor")
        assert daemon.ends() == 1, "systemd starts it again"
        end = "qre-tool: daemon server0 : the supervisor was killed by signal 9; `journalctl -k` says"
        assert daemon.said().splitlines()[-1].startswith(end)
        assert daemon.notify is not None
        assert daemon.notify.poll()[-1] == "STOPPING=1"
        lone.nothing_left()


@pytest.mark.parametrize("make", [client, server])
def test_after_a_killed_parent_nothing_runs_and_the_next_start_takes_over(make: Callable[..., Lone]) -> None:
    with make(more="PostDown = echo PostDown\nAllowedIPs = 0.0.0.0/0\n") as lone:
        daemon = lone.daemon
        daemon.start().wait_ready()
        first = daemon.workers()
        os.kill(daemon.pid, signal.SIGKILL)
        assert daemon.ends() == -signal.SIGKILL
        daemon.start().wait_ready()  # at once: the dying processes may still hold device and port
        for pid in first.values():
            assert not runs(pid)
        assert daemon.stop() == 0
        lone.nothing_left()
        assert daemon.said().count("PostDown") == 1


def test_down_takes_away_what_a_killed_daemon_left() -> None:
    with server() as lone:
        daemon = lone.daemon
        daemon.start().wait_ready()
        os.kill(daemon.pid, signal.SIGKILL)
        assert daemon.ends() == -signal.SIGKILL
        wait_for("its processes are gone", lambda: not any(map(runs, daemon.workers().values())))
        daemon.env["QRE_BPF_PIN_DIR"] = str(lone.pin_dir)
        plan = daemon.tool("--dry-run", "down", daemon.profile).splitlines()
        assert {f"remove {path}" for path in lone.pin_dir.glob("*-server0")} < set(plan)
        assert daemon.tool("down", daemon.profile) == ""
        lone.nothing_left()


@pytest.mark.parametrize("pause", [0.0, 0.15, 0.3])
def test_all_workers_killed_in_a_row_come_back_and_a_reload_meanwhile_waits_for_them(pause: float) -> None:
    with server() as lone:
        daemon = lone.daemon
        daemon.start().wait_ready().wait_status("quiet")
        before = {name: pid for name, pid in daemon.workers().items() if name != "supervisor"}
        lone.edit("Address = 10.77.0.1/24", "MTU = 1300\nAddress = 10.77.0.1/24")
        first, *others = before.values()
        os.kill(first, signal.SIGKILL)
        os.kill(daemon.pid, signal.SIGHUP)
        for pid in others:
            time.sleep(pause)
            os.kill(pid, signal.SIGKILL)
        wait_for("all workers back", lambda: daemon.said().count("is back") == len(before))
        wait_for("the new MTU", lambda: "mtu 1300" in lone.namespace.ip("link") and daemon.shown()["mtu"] == 1300)
        assert "reload:" not in daemon.said()
        assert not set(before.values()) & set(daemon.workers().values())
        check_promises(daemon)


def test_the_parties_of_the_table_are_the_processes_of_the_drawing() -> None:
    assert {party.value for party in ROLES} == {
        "handshake",
        "bpf_loader",
        "netlink",
        "dataplane",
        "visit",
        "resolver",
    }
    assert {role.user for role in ROLES.values()} == {
        "qre-handshake",
        "qre-bpf-loader",
        "qre-netlink",
        "qre-dataplane",
        "qre-visit",
        "qre-resolver",
    }
    assert ROLES[Party.HANDSHAKE].capabilities == ROLES[Party.DATAPLANE].capabilities == frozenset()
