"""qre-tool up, down, reload and show as a user runs them: files, exit status, one line on standard error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qre.device.device_lock import hold_device
from qre.kernel.tun import open_tun
from tests.support.daemons import PATIENCE, TOOL, wait_for
from tests.support.machine import CLIENT, Machine
from tests.support.network import everything, ip
from tests.support.ordinary_user import NOBODY, as_nobody

pytestmark = pytest.mark.root


@contextmanager
def control_socket(machine: Machine, answer: bytes, device: str = "qre0") -> Iterator[list[bytes]]:
    """A control socket that gives every caller this answer; what they asked."""
    directory = machine.config.runtime_dir
    directory.mkdir(exist_ok=True)
    path = directory / f"{device}.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    asked: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.settimeout(5)
                if request := client.recv(65536):
                    asked.append(request)
                    client.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
        path.unlink(missing_ok=True)


def test_up_reload_and_down_do_what_they_say_and_leave_nothing(machine: Machine) -> None:
    before = everything()
    machine.does("up", "tunnel")
    assert "inet 10.77.0.2/24" in everything()
    machine.write(CLIENT.replace("10.77.0.2/24, fd77::2/64", "10.77.0.9/24") + "MTU = 1300\n")
    machine.does("reload", "tunnel")
    shown = everything()
    assert "inet 10.77.0.9/24" in shown
    assert "10.77.0.2/" not in shown
    assert "mtu 1300" in shown
    machine.does("down", "tunnel")
    assert everything() == before
    assert machine.files() == ["dev", "run", "state"]


def test_down_of_what_was_never_up_or_is_down_already_succeeds(machine: Machine) -> None:
    before = everything()
    assert machine.does("--dry-run", "down", "tunnel") == ""
    for _ in range(2):
        assert machine.does("down", "tunnel") == ""
    assert everything() == before
    machine.does("up", "tunnel")
    for _ in range(2):
        assert machine.does("down", "tunnel") == ""
    assert everything() == before
    assert "did you mean tunnel?" in machine.refuses("down", "tunel")


def test_a_dry_run_prints_the_plan_and_changes_nothing(machine: Machine) -> None:
    before, files = everything(), machine.files()
    machine.write(CLIENT + "AllowedIPs = 0.0.0.0/0\nPreUp = touch %i.made\nPostUp = true\nPostUp = false\n")
    assert machine.does("--dry-run", "up", "tunnel").splitlines() == [
        "use the user data plane",
        "PreUp: touch qre0.made",
        "make TUN device qre0 (persistent)",
        "set qre0 up, MTU 1380",
        "set address 10.77.0.2/24 on qre0",
        "set address fd77::2/64 on qre0",
        "route 0.0.0.0/0 to qre0 in table 5329477",
        "rule -4: lookup main suppress_prefixlength 0",
        "rule -4: not fwmark 0x515245 lookup 5329477",
        "rule -4: not fwmark 0x515245 unreachable",
        "rule -4: fwmark 0x515245 lookup main",
        "rule -6: lookup main suppress_prefixlength 0",
        "rule -6: not fwmark 0x515245 lookup 5329477",
        "rule -6: not fwmark 0x515245 unreachable",
        "rule -6: fwmark 0x515245 lookup main",
        "PostUp: true",
        "PostUp: false",
        f"save state to {machine.directory}/state/tunnel.state",
    ]
    assert everything() == before
    assert machine.files() == files
    assert not Path("qre0.made").exists()

    machine.write(CLIENT)
    machine.does("up", "tunnel")
    before, files = everything(), machine.files()
    machine.write(CLIENT.replace("10.77.0.2", "10.77.0.3"))
    assert "set address 10.77.0.3/24 on qre0\n" in machine.does("reload", "tunnel", "--dry-run")
    assert "delete device qre0\n" in machine.does("down", "--dry-run", "tunnel")
    assert "up already" in machine.refuses("--dry-run", "up", "tunnel")
    assert everything() == before
    assert machine.files() == files


BAD_NAMES = ("../tunnel", "dev/tunnel", "..", ".", "", ".hidden", "a\\b", "x" * 65, "tünnel")


def test_a_name_that_is_no_profile_name_touches_no_path(machine: Machine) -> None:
    trace = machine.directory / "trace"
    code = (
        "import sys; from qre.cli.main import main; import qre.cli.profile.lifecycle_commands\n"
        f"print([main([command, name]) for command in ('up', 'down', 'reload') for name in {BAD_NAMES!r}])"
    )
    command = [sys.executable, "-c", code]
    if shutil.which("strace"):
        command = ["strace", "-f", "-e", "trace=%file", "-o", str(trace), *command]
    done = subprocess.run(command, env=machine.env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout == f"{[2] * 3 * len(BAD_NAMES)}\n"
    assert done.stderr.count("it is not a profile name") == 3 * len(BAD_NAMES)
    assert [file for file in machine.files() if file != "trace"] == ["dev"]
    if trace.exists():
        touched = [line for line in trace.read_text().splitlines() if str(machine.directory) in line]
        assert [line for line in touched if "/qre.conf" not in line and "execve" not in line] == []


def test_an_invalid_profile_shows_every_mistake_and_changes_nothing(machine: Machine) -> None:
    before = everything()
    hooks = "".join(
        f"{kind} = touch {machine.directory}/made\n" for kind in ("PreUp", "PostUp", "PreDown", "PostDown")
    )
    machine.write(CLIENT.replace("10.77.0.2/24", "10.77.0.2/99") + f"MTU = 9\n{hooks}")
    modprobe = machine.directory / "bin" / "modprobe"
    modprobe.parent.mkdir()
    modprobe.write_text(f"#!/bin/sh\ntouch {machine.directory}/loaded\nexit 1\n")
    modprobe.chmod(0o755)
    machine.env |= {"QRE_DATAPLANE": "auto", "PATH": f"{modprobe.parent}:{machine.env['PATH']}"}
    for command in ("up", "reload", "down"):
        done = machine.tool(command, "tunnel")
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 2, done.stderr
    assert everything() == before
    assert machine.files() == ["bin", "bin/modprobe", "dev"]
    machine.write(CLIENT)
    machine.tool("up", "tunnel")
    assert (machine.directory / "loaded").exists(), "of a profile that is right qre.ko is looked for"


def test_a_user_without_the_capability_is_told_which_in_one_line(machine: Machine) -> None:
    before = everything()
    profile = machine.config.config_dir / "tunnel.conf"
    for readable in (False, True):
        if readable:
            profile.parent.chmod(0o755)
            os.chown(profile, NOBODY, NOBODY)
        for command in ("up", "down", "reload"):
            done = subprocess.run(
                as_nobody(TOOL, command, "tunnel"), env=machine.env, capture_output=True, text=True, timeout=PATIENCE,
                check=False,
            )  # fmt: skip
            assert done.returncode == 2
            missing = "it needs CAP_NET_ADMIN, which is missing; run it as root"
            assert done.stderr == f"qre-tool: {command} tunnel : {missing}\n"
    assert everything() == before


def test_a_failing_hook_of_each_kind_is_one_line_and_leaves_nothing(machine: Machine) -> None:
    before = everything()
    for kind in ("PreUp", "PostUp"):
        machine.write(CLIENT + f"{kind} = exit 9\n")
        assert machine.refuses("up", "tunnel") == f"qre-tool: {kind} = exit 9 : it failed with exit status 9\n"
        assert everything() == before
        assert machine.files() in (["dev", "run"], ["dev", "run", "state"])


def test_hooks_speak_on_our_standard_output_and_see_the_device(machine: Machine) -> None:
    machine.write(CLIENT + "PostUp = ip -o link show %i | cut -d: -f2\nPostDown = echo %i is gone\n")
    assert machine.does("up", "tunnel") == " qre0\n"
    assert machine.does("down", "tunnel") == "qre0 is gone\n"


def test_two_at_once_do_not_meddle_with_each_other(machine: Machine) -> None:
    go = machine.directory / "go"
    machine.write(CLIENT + f"PreUp = touch {machine.directory}/begun; until [ -e {go} ]; do sleep 0.05; done\n")
    first = subprocess.Popen([TOOL, "up", "tunnel"], env=machine.env)
    wait_for("the first to begin", (machine.directory / "begun").exists)
    for command in ("up", "down"):
        line = machine.refuses(command, "tunnel")
        assert "`up` is changing it" in line or "it is not up" in line
    go.touch()
    assert first.wait(PATIENCE) == 0
    machine.does("down", "tunnel")


def test_a_terminated_up_undoes_what_it_did(machine: Machine) -> None:
    before = everything()
    machine.write(CLIENT + f"PostUp = touch {machine.directory}/begun; sleep 20\n")
    running = subprocess.Popen([TOOL, "up", "tunnel"], env=machine.env)
    wait_for("the hook", (machine.directory / "begun").exists)
    assert "qre0" in everything()
    running.send_signal(signal.SIGTERM)
    assert running.wait(PATIENCE) == 128 + signal.SIGTERM
    assert everything() == before
    assert [file for file in machine.files() if file != "begun"] == ["dev", "run"]


def test_down_by_saved_state_when_the_profiles_file_is_gone(machine: Machine) -> None:
    before = everything()
    machine.does("up", "tunnel")
    (machine.config.config_dir / "tunnel.conf").unlink()
    machine.does("down", "tunnel")
    assert everything() == before
    assert "there is no such file" in machine.refuses("down", "tunnel")


def test_down_by_the_devices_alias_when_the_state_is_gone_too(machine: Machine) -> None:
    before = everything()
    machine.does("up", "tunnel")
    (machine.config.config_dir / "tunnel.conf").unlink()
    (machine.config.state_dir / "tunnel.state").unlink()
    assert "delete device qre0\n" in machine.does("--dry-run", "down", "tunnel")
    machine.does("down", "tunnel")
    assert everything() == before


@pytest.mark.parametrize("known", ["its state", "its device"])
def test_down_of_a_profile_whose_file_has_an_error_takes_what_was_saved(machine: Machine, known: str) -> None:
    before = everything()
    machine.does("up", "tunnel")
    machine.write(CLIENT + f"MTU = 9\nColour = red\nPostDown = touch {machine.directory}/made\n")
    if known == "its device":
        (machine.config.state_dir / "tunnel.state").unlink()
    for options in (["--dry-run"], []):
        done = machine.tool(*options, "down", "tunnel")
        assert done.returncode == 0
        lines = done.stderr.splitlines()
        assert len(lines) == 3 and all(line.startswith("qre-tool: ") for line in lines)
        assert "tunnel.conf:7: MTU" in lines[0] and "tunnel.conf:8" in lines[1]
        assert lines[2] == "qre-tool: profile tunnel: it is taken down without its file, and no hook is run"
        assert ("delete device qre0\n" in done.stdout) is bool(options)
    assert everything() == before
    assert machine.files() == ["dev", "run", "state"]
    assert "MTU" in machine.tool("down", "tunnel").stderr, "with nothing saved, the file's errors are errors"
    assert machine.tool("down", "tunnel").returncode == 2


def test_down_and_up_are_refused_while_a_daemon_holds_the_device(machine: Machine) -> None:
    with hold_device(machine.config, "qre0", "daemon"):
        descriptor = open_tun("qre0", persistent=False, profile="tunnel")
        try:
            for command in ("up", "down", "reload"):
                line = machine.refuses(command, "tunnel")
                assert "a daemon holds it" in line or "it is not up" in line
        finally:
            os.close(descriptor)
    with control_socket(machine, b'{"ok": true}\n'):
        for arguments in (("down", "tunnel"), ("--dry-run", "down", "tunnel"), ("--dry-run", "up", "tunnel")):
            assert "stop the daemon first: `systemctl stop qred@tunnel`" in machine.refuses(*arguments)


def test_reload_asks_the_running_daemon_and_changes_nothing_itself(machine: Machine) -> None:
    machine.does("up", "tunnel")
    before = everything()
    machine.write(CLIENT.replace("10.77.0.2", "10.77.0.3"))
    with control_socket(machine, b'{"ok": true}\n') as asked:
        plan = machine.does("--dry-run", "reload", "tunnel").splitlines()
        assert plan[0] == "ask the daemon of qre0 to reload"
        assert asked == []
        machine.does("reload", "tunnel")
        assert asked == [b'{"op": "reload"}\n']
    assert everything() == before


def test_a_daemon_that_refuses_or_answers_nonsense_is_reported_in_one_line(machine: Machine) -> None:
    with control_socket(
        machine, b'{"ok": false, "error": "profile tunnel: Listen was 1 and is now 2; down and up"}\n'
    ):
        assert "Listen was 1 and is now 2; down and up" in machine.refuses("reload", "tunnel")
    for nonsense in (b"", b"what\n", b"[" * 3000 + b"\n", b'{"ok": 1}\n', b'"ok"\n', b"\xff\xfe\n"):
        with control_socket(machine, nonsense):
            assert "its daemon" in machine.refuses("reload", "tunnel")
            assert "its daemon" in machine.refuses("show", "qre0")


# --- show ---


def test_show_without_anything_up_prints_nothing(machine: Machine) -> None:
    assert machine.does("show") == ""
    assert json.loads(machine.does("--json", "show")) == {"version": 1, "devices": []}


def test_show_of_an_unknown_device_is_an_error_that_suggests_the_nearest(machine: Machine) -> None:
    assert "device qre9 : it is not up; see `qre-tool show`" in machine.refuses("show", "qre9")
    machine.does("up", "tunnel")
    assert "did you mean" in machine.refuses("show", "qre1")
    for name in ("../qre0", "", "a/b"):
        assert "it is not up" in machine.refuses("show", name)


def test_show_of_a_device_without_a_daemon_tells_what_the_kernel_knows(machine: Machine) -> None:
    machine.does("up", "tunnel")
    assert machine.does("show") == machine.does("show", "qre0") == machine.does("show", "tunnel")
    assert machine.does("show").splitlines() == [
        "interface: qre0",
        "  profile: tunnel (client, user data plane)",
        "  status: no daemon runs",
        "  address: 10.77.0.2/24, fd77::2/64",
        "  mtu: 1380",
    ]
    shown = json.loads(machine.does("--json", "show", "qre0"))["devices"]
    assert [device["device"] for device in shown] == ["qre0"]
    assert shown[0]["daemon_pid"] is None
    ip("link", "del", "qre0")
    assert machine.does("show") == ""


def test_show_tells_of_all_devices_or_of_one(machine: Machine) -> None:
    machine.does("up", "tunnel")
    machine.write(CLIENT.replace("qre0", "qre1").replace("10.77.0.2/24, fd77::2/64", "10.78.0.2/24"), "other")
    machine.does("up", "other")
    for words, named in (((), ["qre0", "qre1"]), (("qre1",), ["qre1"]), (("tunnel",), ["qre0"])):
        assert [one["device"] for one in json.loads(machine.does("--json", "show", *words))["devices"]] == named
        assert [line for line in machine.does("show", *words).splitlines() if line.startswith("interface: ")] == [
            f"interface: {name}" for name in named
        ]
    for name in ("other", "tunnel"):
        machine.does("down", name)


def test_a_socket_that_outlived_its_daemon_is_no_device(machine: Machine) -> None:
    machine.config.runtime_dir.mkdir()
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stale.bind(str(machine.config.runtime_dir / "qre7.sock"))
    stale.close()
    assert machine.does("show") == ""
    assert "it is not up" in machine.refuses("show", "qre7")


def test_show_asks_each_daemon_and_prints_what_it_says(machine: Machine) -> None:
    described = {
        "device": "qre5", "profile": "other", "role": "client", "dataplane": "user", "daemon_pid": 7, "up": True,
        "status": "connected\x1b[31m", "mtu": 1380, "address": ["10.9.0.2/24"], "allowed_ips": [], "sessions": [],
    }  # fmt: skip
    with control_socket(machine, json.dumps({"ok": True, "device": described}).encode() + b"\n", "qre5") as asked:
        text = machine.does("show", "qre5")
        assert "status: connected�[31m" in text
        assert "\x1b" not in text
        assert json.loads(machine.does("--json", "show"))["devices"] == [described]
    assert asked == [b'{"op": "show"}\n'] * 2


def test_a_user_who_may_not_look_is_told_so(machine: Machine) -> None:
    machine.does("up", "tunnel")
    done = subprocess.run(
        as_nobody(TOOL, "show"), env=machine.env, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Permission denied; run as root" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_show_starts_without_the_libraries_it_does_not_need(machine: Machine) -> None:
    code = (
        "import sys; from qre.cli.main import main; status = main(['show']);"
        "print({'aioquic', 'zmq', 'bcc', 'pyroute2', 'cryptography'} & set(sys.modules)); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=machine.env, capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stderr


def test_a_command_that_hangs_on_a_silent_daemon_ends(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    import qre.device.control_client as client
    from qre.errors import MachineError

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    machine.config.runtime_dir.mkdir()
    listener.bind(str(machine.config.runtime_dir / "qre0.sock"))
    listener.listen()
    started = time.monotonic()
    with pytest.raises(MachineError, match="did not answer within"):
        client.ask_daemon(machine.config, "qre0", "show", 0.3)
    assert time.monotonic() - started < PATIENCE
    listener.close()


def test_what_a_busy_daemon_says_before_it_reads_is_heard(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    import qre.device.control_client as client

    machine.config.runtime_dir.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(machine.config.runtime_dir / "qre0.sock"))
        listener.listen()

        def refuse_first(sock: socket.socket, path: Path) -> None:
            with listener.accept()[0] as made:
                made.sendall(b'{"ok": false, "error": "too many ask at once"}\n')

        monkeypatch.setattr(client, "_check_peer", refuse_first)
        with pytest.raises(client.DaemonRefusedError, match="too many ask at once"):
            client.ask_daemon(machine.config, "qre0", "show", PATIENCE)
