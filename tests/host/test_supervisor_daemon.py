"""``qre-tool daemon`` as a user and systemd see it: start, refusals, signals, reload, control socket, end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import PATIENCE, wait_for
from tests.support.lone_daemon import LISTEN, ROOT, Lone, client, fill, server, small_disk
from tests.support.profiles import PRIVATE_KEY

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def running() -> Iterator[Lone]:
    """A client that says it is connected."""
    with client("handshake=up") as made:
        made.daemon.start().wait_ready().wait_session()
        yield made


def last_line(lone: Lone) -> str:
    return lone.daemon.said().splitlines()[-1]


# --- start ---


def test_a_hook_that_is_under_way_is_ended_and_what_was_done_is_undone() -> None:
    with client(more="PostUp = echo begun; sleep 300\nPostDown = echo not reached\n") as lone:
        lone.daemon.start()
        wait_for("the hook", lambda: "begun" in lone.daemon.said())
        assert lone.daemon.stop() == 0
        lone.nothing_left()
        assert "not reached" not in lone.daemon.said()


def test_a_pin_directory_that_is_no_bpf_file_system_is_told_how_to_become_one() -> None:
    with server() as lone:
        lone.daemon.options = ("--pin-dir", str(lone.directory / "dev"))
        lone.daemon.start()
        assert lone.daemon.ends() == 2
        assert f"mount -t bpf bpf {lone.directory}/dev" in last_line(lone)
        lone.nothing_left()


def test_under_a_narrow_umask_the_workers_still_get_through() -> None:
    with client() as lone:
        lone.daemon.umask = 0o077
        lone.daemon.start().wait_ready()
        status = Path(f"/proc/{lone.daemon.pid}/status").read_text()
        assert "Umask:\t0077" in status
        assert set(lone.daemon.workers()) == {"supervisor", "handshake", "dataplane", "netlink"}


def test_a_runtime_directory_that_workers_cannot_get_through_is_named() -> None:
    with client() as lone:
        lone.directory.chmod(0o700)
        lone.daemon.start()
        assert lone.daemon.ends() == 2
        assert f"chmod o+x {lone.directory}" in last_line(lone)
        lone.nothing_left()


def test_a_disk_that_is_full_at_a_reload_is_told_and_the_daemon_goes_on() -> None:
    with client() as lone, small_disk(lone.directory / "state") as state:
        lone.daemon.start().wait_ready()
        filler = fill(state)
        lone.edit("Address = 10.77.0.2/24", "Address = 10.77.0.9/24")
        os.kill(lone.daemon.pid, signal.SIGHUP)
        wait_for("the refusal", lambda: "No space left" in lone.daemon.said())
        assert lone.daemon.workers(), "it goes on"
        filler.unlink()
        os.kill(lone.daemon.pid, signal.SIGHUP)
        wait_for("the state", lambda: "10.77.0.9/24" in (state / "client0.state").read_text())
        lone.daemon.stop()  # it holds a file there


# --- options ---


def test_every_option_sets_its_variable_for_hooks_and_dry_run_changes_nothing() -> None:
    with server(more="PreUp = env | grep ^QRE_ | sort\n") as lone:
        other = lone.directory / "other"
        options = {
            "--config-dir": lone.directory / "dev", "--global-config": lone.directory / "qre.conf",
            "--state-dir": other, "--pin-dir": lone.pin_dir,
            "--bpf-elf": ROOT / "workers/bpf_loader/qre_reuseport.bpf.o",
        }  # fmt: skip
        lone.daemon.options = (
            *(f"{option}={path}" for option, path in options.items()),
            "--server-underlay", "127.0.0.2:4434", "--run-for-ms", "1",
        )  # fmt: skip
        (lone.directory / "wrong.conf").write_text("Colour = red\n")
        lone.daemon.environment = {  # an option wins
            "QRE_CONFIG_DIR": str(lone.directory / "none"), "QRE_GLOBAL_CONFIG": str(lone.directory / "wrong.conf"),
            "QRE_STATE_DIR": str(lone.directory / "none"), "QRE_BPF_PIN_DIR": str(lone.directory / "none"),
            "QRE_BPF_ELF": str(lone.directory / "none"),
        }  # fmt: skip
        lone.daemon.options = ("--dry-run", *lone.daemon.options)
        lone.daemon.start()
        assert lone.daemon.ends() == 0
        plan = lone.daemon.said()
        for line in (
            "PreUp: env | grep ^QRE_ | sort",
            "make TUN device server0 (for the daemon)",
            "start the workers bpf_loader, netlink, dataplane, handshake",
            f"pin BPF maps and program below {lone.pin_dir}",
            "attach qre_reuseport_demux",
        ):
            assert line in plan.splitlines(), plan
        assert not other.exists()
        lone.nothing_left()

        lone.daemon.options = lone.daemon.options[1:]
        lone.daemon.start()
        assert lone.daemon.ends() == 0
        said = lone.daemon.said().removeprefix(plan)
        for variable, option in (
            ("QRE_CONFIG_DIR", "--config-dir"), ("QRE_GLOBAL_CONFIG", "--global-config"),
            ("QRE_STATE_DIR", "--state-dir"), ("QRE_BPF_PIN_DIR", "--pin-dir"), ("QRE_BPF_ELF", "--bpf-elf"),
        ):  # fmt: skip
            assert f"{variable}={options[option]}" in said
        assert list(other.glob("*.replay"))
        lone.nothing_left()


def test_the_underlay_options_replace_listen_and_endpoint() -> None:
    with server() as lone:
        lone.daemon.options = ("--server-underlay", "127.0.0.2:4434")
        lone.daemon.start().wait_ready()
        assert lone.daemon.shown()["listen"] == "127.0.0.2:4434"
    with client("handshake=holds") as lone:
        lone.daemon.options = ("--server-underlay", "127.0.0.2:4434", "--client-underlay", "127.0.0.3:5000")
        lone.daemon.start().wait_ready().wait_status("socket 1 is here")
        assert lone.daemon.shown()["endpoint"] == "127.0.0.2:4434"
        assert "127.0.0.3:5000" in lone.namespace.run("ss", "-Hlun")


# --- while it runs ---


def test_the_ready_file_is_there_while_a_session_is(running: Lone) -> None:
    assert stat.S_ISREG((running.directory / "run" / "client0.ready").stat().st_mode)
    with client("handshake=quiet") as lone:
        lone.daemon.start().wait_ready().wait_status("quiet")
        assert not (lone.directory / "run" / "client0.ready").exists()


def test_a_listener_that_never_reads_delays_nothing() -> None:
    with client("handshake=chatters") as lone:
        lone.daemon.start()
        wait_for("the control socket", lone.daemon.control().exists)
        wait_for("many messages", lambda: lone.daemon.shown()["status"].startswith("last words"))
        assert lone.daemon.stop() == 0, "in the time that it gives itself"


def test_reload_applies_what_may_change_and_refuses_the_rest() -> None:
    with server() as lone:
        daemon = lone.daemon
        daemon.start().wait_ready()
        assert daemon.notify is not None

        def reload() -> list[str]:
            assert daemon.notify is not None
            daemon.notify.poll()
            daemon.notify.received.clear()
            os.kill(daemon.pid, signal.SIGHUP)
            wait_for("READY=1 after RELOADING=1", lambda: "READY=1" in daemon.notify.poll())
            return daemon.notify.poll()

        lone.edit("Address = 10.77.0.1/24", "MTU = 1300\nAddress = 10.77.0.5/24")
        lines = reload()
        assert lines[0] == "RELOADING=1"
        assert lines[1].startswith("MONOTONIC_USEC=")
        daemon.wait_status("reloaded 1, secrets 1, mtu 1300")
        assert "10.77.0.5/24" in lone.network()
        assert "10.77.0.1/24" not in lone.network()
        good = lone.profile.read_text()
        for old, new, words in (
            (LISTEN, "127.0.0.1:4444", "Listen was 127.0.0.1:4433 and is now 127.0.0.1:4444; down and up"),
            ("MTU = 1300", "MTU = 1300\nDevice = other", "Device was server0 and is now other; down and up"),
            ("MTU = 1300", "MTU = lots", "MTU"),
        ):
            lone.edit(old, new)
            reload()
            assert words in last_line(lone)
            assert daemon.shown()["mtu"] == 1300
            lone.profile.write_text(good)
        assert json.loads((lone.directory / "state" / "server0.state").read_text())["address"] == ["10.77.0.5/24"]
        daemon.tool("reload", "server0")
        daemon.wait_status("reloaded 2")


def test_a_reload_that_a_worker_cannot_follow_is_taken_back() -> None:
    with client("handshake=no-reload") as lone:
        daemon = lone.daemon
        daemon.start().wait_ready()
        lone.edit("Address = 10.77.0.2/24", "Address = 10.77.0.9/24")
        os.kill(daemon.pid, signal.SIGHUP)
        wait_for("the refusal", lambda: "not this one" in daemon.said())
        assert "10.77.0.2/24" in lone.network()
        assert "10.77.0.9/24" not in lone.network()
        assert daemon.shown()["address"] == ["10.77.0.2/24"]


# --- control socket ---


def ask(lone: Lone, data: bytes, *, whole: bool = True) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.settimeout(PATIENCE)
        made.connect(str(lone.daemon.control()))
        try:
            made.sendall(data)
            if whole:
                made.shutdown(socket.SHUT_WR)
            received = b""
            while piece := made.recv(65_536):
                received += piece
        except (BrokenPipeError, ConnectionResetError):
            return b""
        return received


def test_the_control_socket_answers_its_owner_only_and_only_what_it_knows(running: Lone) -> None:
    path = running.daemon.control()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for garbage in (b"", b"\n", b"x\n", b"[]\n", b'{"op": 1}\n', b'{"op": "halt"}\n', b'{"op": "show", "x": 1}\n',
                    b"\xff\xfe\n", b"[" * 60_000 + b"\n", b"x" * 200_000):  # fmt: skip
        answer = ask(running, garbage)
        assert not answer or json.loads(answer)["ok"] is False, garbage[:40]
    assert json.loads(ask(running, b'{"op": "show"}\n'))["device"]["device"] == "client0"
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            os._exit(0 if ask(running, b'{"op": "show"}\n') else 3)
        except OSError:
            os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4


def test_many_askers_at_once_are_bounded_and_a_silent_one_is_cut_off(running: Lone) -> None:
    silent = []
    for _ in range(40):
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.settimeout(PATIENCE)
        made.connect(str(running.daemon.control()))
        silent.append(made)
    for made in silent:
        while made.recv(65_536):
            pass
        made.close()
    assert json.loads(ask(running, b'{"op": "show"}\n', whole=False))["ok"] is True


def test_show_has_no_key(running: Lone) -> None:
    assert PRIVATE_KEY not in json.dumps(running.daemon.shown())


# --- end ---


def test_what_a_hook_left_in_the_background_is_the_users() -> None:
    with client() as lone:
        path = lone.directory / "left"
        lone.edit("Address", f"PostUp = sleep 300 & echo $! >{path}\nAddress")
        lone.daemon.start().wait_ready()
        assert lone.daemon.stop() == 0
        left = int(path.read_text())
        assert Path(f"/proc/{left}/cmdline").read_bytes() == b"sleep\x00300\x00"
        os.kill(left, signal.SIGKILL)
        wait_for("its end", lambda: not Path(f"/proc/{left}/cmdline").exists())


def test_a_clean_up_that_fails_in_part_does_the_rest_and_says_so() -> None:
    with client(more="PreDown = false\nPostDown = echo reached\n") as lone:
        lone.daemon.start().wait_ready()
        lone.daemon.process.send_signal(signal.SIGTERM)
        assert lone.daemon.ends() == 2
        assert "PreDown = false" in lone.daemon.said()
        assert "reached" in lone.daemon.said()
        lone.nothing_left()
        lone.daemon.process = None


def test_a_device_that_somebody_removes_ends_the_daemon() -> None:
    with client() as lone:
        lone.daemon.start().wait_ready()
        lone.namespace.ip("link", "del", "client0")
        assert lone.daemon.ends() == 1
        assert "device client0 was removed by another program" in last_line(lone)
        lone.nothing_left()
