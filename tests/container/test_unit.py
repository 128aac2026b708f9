"""The unit as systemd runs it: start, reload, kill, stop; what it may see; what is left of it."""

from __future__ import annotations

import re

import pytest

from tests.container.conftest import GUIDE, Ends, Machine
from tests.support.daemons import wait_for

CAP_CHOWN, CAP_NET_ADMIN, CAP_SYS_ADMIN = 0, 12, 21
BOTH = pytest.mark.parametrize("end", ["server", "client"])

pytestmark = pytest.mark.timeout(900)  # the first test boots two machines, and may have to make their Debian


def machine_of(ends: Ends, end: str) -> Machine:
    machine: Machine = getattr(ends, end)
    return machine


def has_said(machine: Machine, words: str, before: int) -> bool:
    """Whether the words are in the unit's journal, behind so many lines. (A line may come after systemd's word.)"""
    return any(words in line for line in machine.journal()[before:])


def test_both_ends_run_with_users_of_their_own(up: Ends) -> None:
    for machine, workers in (
        (up.server, {"qre-handshake", "qre-bpf-loader", "qre-netlink", "qre-dataplane"}),
        (up.client, {"qre-handshake", "qre-netlink", "qre-dataplane"}),
    ):
        users = set(machine.container.check("ps -eo user:32=").split())
        assert workers <= users
        assert machine.told("NRestarts") == "0"
        assert not [
            line for line in machine.journal() if "no such user" in line or "Error" in line or "Errno" in line
        ]
    assert any("connected" in line for line in up.client.journal())
    found = up.client.container.check("journalctl -o cat QRE_DEVICE=client0 QRE_PROCESS=supervisor PRIORITY=6")
    assert "connected to" in found, "by the journal's fields"


@BOTH
def test_it_sees_no_device_but_tun_and_no_settings_of_the_kernel(up: Ends, end: str) -> None:
    machine = machine_of(up, end)
    seen = f"/proc/{machine.pid}/root"
    # find itself does not see what is mounted over a file
    look = "for f in $(find . ! -type d ! -type l); do if test -c $f -o -b $f; then echo $f; fi; done"
    devices = machine.container.check(f"cd {seen}/dev; {look}").split()
    assert "./net/tun" in devices
    assert {name.split("/")[1] for name in devices} <= {
        "net", "null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "console",
    }  # fmt: skip
    machine.container.check(f"test ! -e {seen}/proc/sys && test -e {seen}/proc/self/status")
    status = dict(
        line.split(":", 1) for line in machine.container.check(f"cat /proc/{machine.pid}/status").splitlines()
    )
    bounding = int(status["CapBnd"], 16)
    assert [bounding >> number & 1 for number in (CAP_CHOWN, CAP_NET_ADMIN, CAP_SYS_ADMIN)] == [0, 1, 0]
    assert (status["Seccomp"].strip(), status["NoNewPrivs"].strip()) == ("2", "1")


def test_a_client_needs_no_bpffs(up: Ends) -> None:
    assert up.client.container.run("test -e /sys/fs/bpf/qre")[0] == 1
    assert up.server.container.check("ls /sys/fs/bpf/qre")


@BOTH
def test_the_user_of_what_a_drop_in_adds_owns_nothing_and_reads_nothing(up: Ends, end: str) -> None:
    container = (machine := machine_of(up, end)).container
    assert machine.told("User") == "qre"
    owners = container.check(f"stat -c %U /etc/qre/dev /run/qre /var/lib/qre /proc/{machine.pid}")
    assert owners.split() == ["root"] * 4, "the daemon is root, and so is what it keeps"
    for words in ("ls /etc/qre/dev", "ls /var/lib/qre"):
        assert container.run(f"runuser -u qre -- {words}")[0] != 0


@BOTH
def test_a_reload_with_an_error_fails_with_the_reason_and_the_tunnel_goes_on(up: Ends, end: str) -> None:
    machine = machine_of(up, end)
    text, pid, before = machine.read(), machine.pid, len(machine.journal())
    try:
        machine.write(text + "Nonsense = 1\n")
        status, _ = machine.container.run(f"systemctl reload {machine.unit}")
        assert status != 0
        wait_for("the reason", lambda: has_said(machine, "Nonsense : unknown key", before))
        assert (machine.told("ActiveState"), machine.pid) == ("active", pid)
        assert up.pass_packets()
    finally:
        machine.write(text)
    machine.container.check(f"systemctl reload {machine.unit}")
    assert machine.pid == pid
    assert up.pass_packets()


@BOTH
def test_a_daemon_that_is_killed_runs_again(up: Ends, end: str) -> None:
    machine = machine_of(up, end)
    pid, restarts = machine.pid, int(machine.told("NRestarts"))
    machine.container.check(f"kill -KILL {pid}")
    wait_for("the restart", lambda: machine.told("NRestarts") == str(restarts + 1), interval=0.3)
    wait_for("the daemon", lambda: machine.told("ActiveState") == "active", interval=0.3)
    assert machine.pid != pid
    wait_for("packets", up.pass_packets)


@BOTH
def test_what_the_user_has_to_mend_is_not_started_again(ends: Ends, end: str) -> None:
    machine = machine_of(ends, end)
    text, before = machine.read(), len(machine.journal())
    machine.container.check(f"systemctl stop {machine.unit}; systemctl reset-failed {machine.unit} || true")
    try:
        machine.write(text + "Nonsense = 1\n")
        assert machine.container.run(f"systemctl start {machine.unit}")[0] != 0
        found = [machine.told(name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")]
        assert found == ["failed", "2", "0"]
        wait_for("the reason", lambda: has_said(machine, "Nonsense : unknown key", before))
    finally:
        machine.write(text)


def test_without_users_of_their_own_the_workers_run_and_the_log_has_the_command_that_makes_them(up: Ends) -> None:
    machine = up.client
    files = "/etc/passwd /etc/shadow /etc/group /etc/gshadow"
    machine.container.check(f"systemctl stop {machine.unit}; sed -i /^qre-/d {files}")
    before = len(machine.journal())
    up.up()
    wait_for("the line", lambda: has_said(machine, "no such user: fixed user ids are used", before))
    assert has_said(machine, "run `systemd-sysusers`", before)
    assert "no   service users" in machine.container.run("qre-tool check")[1]
    machine.container.check(f"systemctl stop {machine.unit}; systemd-sysusers")
    before = len(machine.journal())
    up.up()
    assert not has_said(machine, "no such user", before)
    assert "yes  service users" in machine.container.run("qre-tool check")[1]


#: /etc/resolv.conf may be systemd-resolved's file, which a unit of few capabilities cannot write.
APART = "[ ! -L /etc/resolv.conf ] || mv /etc/resolv.conf /etc/resolv.link"
BACK = "[ ! -L /etc/resolv.link ] || mv /etc/resolv.link /etc/resolv.conf"


def test_a_hook_lives_within_the_limits_and_the_drop_in_of_the_guide_loosens_them(ends: Ends) -> None:
    machine = ends.client
    drop_in = re.search(r"```ini\n(\[Service\]\n.*?)```", GUIDE.read_text(), re.DOTALL)
    assert drop_in
    text, setting = machine.read(), "net.ipv4.conf.client0.rp_filter"
    directory = f"/run/systemd/system/{machine.unit}.d"
    try:
        machine.container.check(f"systemctl stop {machine.unit}")
        machine.write(text + f"PostUp = sysctl -w {setting}=2 && echo '# seen' >>/etc/resolv.conf\n")
        assert machine.container.run(f"systemctl start {machine.unit}")[0] != 0
        machine.container.check(f"mkdir -p {directory}; cat >{directory}/hooks.conf", stdin=drop_in[1])
        machine.container.check(f"{APART}; touch /etc/resolv.conf; systemctl daemon-reload")
        ends.up()
        assert machine.container.check(f"sysctl -n {setting}") == "2"
        assert "# seen" in machine.container.check("cat /etc/resolv.conf")
    finally:
        machine.write(text)
        machine.container.check(f"rm -rf {directory}; systemctl daemon-reload; systemctl stop {machine.unit}; {BACK}")


def test_nothing_is_left_when_it_was_stopped(up: Ends) -> None:
    for machine in (up.client, up.server):
        machine.container.check(f"systemctl stop {machine.unit}")
        assert [machine.told(name) for name in ("ActiveState", "Result")] == ["inactive", "success"]
        assert machine.container.check("ls /run/qre; ls /sys/fs/bpf/qre 2>/dev/null || true") == ""
        left = machine.container.check("ip link show; ip rule show; ip -6 rule show; ip route show table all")
        assert machine.profile not in left
        assert "proto 81" not in left
        running = machine.container.check("ps -eo args=")
        assert "qre" not in running.replace("ps -eo args=", ""), running
