"""check: one line a thing, what to do for every no, nothing changed; without root, and whatever is missing."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

import qre.supervisor
from qre.cli.check import check_machine, check_profile
from qre.cli.check.check import line
from qre.cli.check.check_machine import PACKAGES
from qre.cli.check.findings import Finding, YesNo, look, refused
from qre.cli.main import FAILURE, main
from qre.config.model import GlobalConfig
from qre.config.profile import load_profile
from qre.config.settings import load_global
from qre.device import kernel_module
from qre.device.name_servers import NameService
from qre.device.state import save_state, state_of
from qre.ends import Dataplane, Role
from qre.errors import MachineError, UserError, UserErrors
from qre.kernel import capabilities
from tests.support.json_schemas import check_against_schema
from tests.support.profiles import CLIENT, SERVER, write_profile
from tests.support.unfolded import unfolded
from tests.unit.test_watch import Daemon

ROOT = Path(__file__).resolve().parents[2]


def items(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, dict[str, Any]]:
    """What is found, by name; exit status and text must agree with it."""
    status = main(["--json", "check", *words])
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    check_against_schema("check", told)
    found = {item["item"]: item for item in told["items"]}
    assert len(found) == len(told["items"])
    able = all(item["answer"] == "yes" for item in found.values() if item["needed"])
    assert told["able"] is able
    assert status == (0 if able else FAILURE)
    assert captured.err.count("\n") == (0 if able else 1)
    for item in found.values():
        assert item["seen"]
        assert item["answer"] == "yes" or item["remedy"], f"nothing to do for {item}"
    return found


def test_the_machine_is_looked_at_and_nothing_is_changed(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_profile(machine / "dev", "server0", SERVER)
    before = sorted(machine.rglob("*")), sorted(os.listdir("/proc/self/fd")), sorted(os.listdir("/sys/class/net"))
    found = items(capsys)
    assert before == (
        sorted(machine.rglob("*")), sorted(os.listdir("/proc/self/fd")), sorted(os.listdir("/sys/class/net"))
    )  # fmt: skip
    assert list(found) == [
        "python packages", "kernel module", "tun device", "capabilities", "bpf library", "bpf program", "bpf pins",
        "bpf maps", "service users", "global file", "profile server0",
    ]  # fmt: skip
    assert found["python packages"]["answer"] == "yes"
    assert found["service users"]["needed"] is found["kernel module"]["needed"] is False
    assert found["global file"]["seen"] == f"{machine}/qre.conf does not exist: every key has its default"


def test_the_text_is_aligned_and_says_the_same(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = items(capsys)
    assert main(["check"]) in (0, FAILURE)
    printed = capsys.readouterr().out
    assert all(len(each) <= 100 or "`" in each or " " not in each[22:] for each in printed.splitlines())
    lines = unfolded(printed).splitlines()
    assert len(lines) == len(found)
    for shown, item in zip(lines, found.values(), strict=True):
        answer = "?" if item["answer"] == "unknown" else item["answer"]
        assert shown.startswith(f"{answer:<3}  {item['item']:<16} {item['seen']}")
        assert answer == "yes" or shown.endswith(item["remedy"])
        assert answer != "no" or item["needed"] or f"not needed: {item['instead']}" in shown


def test_every_profile_is_named_and_what_is_wrong_with_it(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_profile(machine / "dev", "good", CLIENT)
    write_profile(machine / "dev", "open", SERVER, 0o644)
    write_profile(machine / "dev", "wrong", SERVER.replace("Address", "Adress") + "MTU = 9\n")
    (machine / "dev" / "not a profile.conf").touch()
    found = items(capsys)
    assert found["profile good"]["answer"] == "yes"
    assert found["profile good"]["seen"].endswith("client good, connects to vpn.example.org:443")
    assert "chmod" in found["profile open"]["remedy"]
    assert re.search(r"wrong\.conf:2: Adress: unknown key \(and [12] more\)", found["profile wrong"]["seen"])
    assert found["profile wrong"]["remedy"] == "did you mean Address?"
    assert "profile not a profile" not in found


def test_allowed_ips_that_are_nobodys_are_told(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = SERVER.replace("0123456789abcdef", "0123456789abcdef, 00") + "AllowedIPs = 192.168.7.0/24\n"
    write_profile(machine / "dev", "server0", shared)
    write_profile(machine / "dev", "server1", shared.replace(", 00", ""))
    found = items(capsys)
    assert found["profile server0"]["seen"].endswith(
        "; AllowedIPs 192.168.7.0/24: no client has it, name the one that does in a section [Client NAME]"
    )
    assert "AllowedIPs" not in found["profile server1"]["seen"]


def test_a_server_whose_own_default_route_leads_to_a_client_is_told(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section = "\n[Client eve]\nShortId = 0011223344556677\nAddress = 10.77.0.9\nAllowedIPs = 0.0.0.0/1, 128.0.0.0/1\n"
    server = SERVER.replace("www.example.org", "nowhere.invalid")
    write_profile(machine / "dev", "server0", server + section)
    write_profile(machine / "dev", "server1", server + "AllowedIPs = ::/0\n")
    found = items(capsys, "server0")["default route"]
    assert (found["answer"], found["needed"]) == ("no", False)
    assert found["seen"].endswith("default route of IPv4 leads into the tunnel, by AllowedIPs of [Client eve]")
    assert "ClientAllowedIPs" in found["remedy"]
    assert "IPv6 leads into the tunnel, by AllowedIPs" in items(capsys, "server1")["default route"]["seen"]
    write_profile(machine / "dev", "server2", server)
    assert "default route" not in items(capsys, "server2")


def test_a_tunnel_that_is_not_there_is_told_with_one_remedy_and_all_servers_are_named(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qre.cli.show import show

    several = CLIENT.replace("vpn.example.org:443", "127.0.0.1:443, 127.0.0.2:443")
    write_profile(machine / "dev", "here", several)
    status = "127.0.0.1:443: no answer; is UDP 443 open there?; next attempt in 4.0 s"
    described = {
        "role": "client",
        "up": False,
        "status": status,
        "remedy": "is UDP 443 open there?",
        "sessions": None,
    }
    monkeypatch.setattr(show, "daemon_of", lambda *_: described)
    found = items(capsys, "here")
    assert found["profile here"]["seen"].endswith("connects to 127.0.0.1:443 or 127.0.0.2:443")
    assert found["tunnel"]["seen"] == "127.0.0.1:443: no answer; next attempt in 4.0 s"
    assert found["tunnel"]["remedy"] == "is UDP 443 open there?"
    ill = {"up": True, "status": "connected to 127.0.0.2:443; nothing has come back for 9 s", "remedy": ""}
    described |= {**ill, "sessions": [{"health": "silent"}]}
    found = items(capsys, "here")
    assert (found["tunnel"]["answer"], found["tunnel"]["seen"]) == ("no", ill["status"])
    assert found["tunnel"]["remedy"].startswith("see its log")


def test_name_servers_that_a_killed_daemon_left_are_told_until_it_runs_again_or_they_are_taken_back(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qre.device import name_servers

    write_profile(machine / "dev", "here", CLIENT.replace("vpn.example.org", "127.0.0.1"))
    config = load_global(os.environ)
    profile = load_profile("here", config, os.environ)
    monkeypatch.setattr(name_servers, "_RECORDS", (str(machine),))
    save_state(config, msgspec.structs.replace(state_of(profile, 0), names=NameService.RESOLVCONF))
    assert "left names" not in items(capsys, "here")
    record = machine / profile.device
    record.touch()
    found = items(capsys, "here")["left names"]
    assert "left its name servers with resolvconf" in found["seen"]
    assert "`qre-tool down here`" in found["remedy"]
    with socket.socket(socket.AF_UNIX) as runs:  # a daemon's: it answers nothing
        runs.bind(str(machine / "run" / f"{profile.device}.sock"))
        runs.listen()
        monkeypatch.setattr(check_profile, "tunnel", lambda *_: ())
        assert "left names" not in items(capsys, "here")


def test_without_profiles_the_way_to_make_some_is_told(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for remove in (False, True):
        if remove:
            (machine / "dev").rmdir()
        found = items(capsys)["profiles"]
        assert (found["answer"], found["needed"]) == ("no", False)
        assert "qre-tool init" in found["remedy"]


def test_a_global_file_that_is_wrong_does_not_hide_the_rest(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine / "qre.conf").write_text("Dataplain = user\nLogLevel = loud\n")
    write_profile(machine / "dev", "good", CLIENT)
    found = items(capsys)
    assert found["global file"]["answer"] == "no"
    assert found["global file"]["seen"] == f"{machine}/qre.conf:1: Dataplain: unknown key (and 1 more)"
    assert found["global file"]["remedy"] == "did you mean Dataplane?"
    assert found["profile good"]["answer"] == "yes"
    (machine / "qre.conf").write_text("Dataplane = kernel\n")
    found = items(capsys)
    assert found["global file"]["seen"] == f"{machine}/qre.conf"
    assert found["kernel module"]["needed"] is True


@pytest.mark.skipif(not Path("/etc/hosts").exists(), reason="no /etc/hosts: localhost is no name here")
def test_a_client_needs_no_bpf_and_its_endpoint_is_looked_up(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_profile(machine / "dev", "other", "nonsense")
    write_profile(machine / "dev", "here", CLIENT.replace("vpn.example.org", "localhost"))
    found = items(capsys, "here")
    assert list(found)[-3:] == ["global file", "profile here", "endpoint"]
    assert not any("bpf" in name for name in found)
    assert found["endpoint"]["answer"] == "yes"
    both = ["[::1]:443", "127.0.0.1:443"]  # one version or two, as the machine's hosts file has it
    assert found["endpoint"]["seen"] in {f"localhost:443 is {', '.join(some)}" for some in (both, both[1:])}
    write_profile(machine / "dev", "lost", CLIENT.replace("vpn.example.org", "nowhere.invalid"))
    found = items(capsys, "lost")
    assert found["endpoint"]["answer"] == "no"
    assert "cannot resolve nowhere.invalid" in found["endpoint"]["seen"]


def test_a_servers_port_is_tried_and_its_dest_visited(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{other.getsockname()[1]}"
        text = SERVER.replace("10.9.0.1:443", where).replace("www.example.org", "nowhere.invalid")
        write_profile(machine / "dev", "qre0", text)
        found = items(capsys, "qre0")
        assert (found["listen"]["answer"], found["dest"]["answer"]) == ("no", "no")
        assert "another program uses this UDP port" in found["listen"]["seen"]
        assert found["dest"]["seen"].startswith("nowhere.invalid:443: its address is not known: ")
    found = items(capsys, "qre0")
    assert (found["listen"]["answer"], found["listen"]["seen"]) == ("yes", f"UDP {where} is free")


def test_a_port_that_the_profiles_own_daemon_holds_is_its_own(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = Daemon(machine / "run")  # says that it serves 192.0.2.1:443 on qre0
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as held:
            held.bind(("127.0.0.1", 0))
            daemon.listen = f"127.0.0.1:{held.getsockname()[1]}"
            text = SERVER.replace("10.9.0.1:443", daemon.listen).replace("www.example.org", "nowhere.invalid")
            write_profile(machine / "dev", "server0", f"{text}Device = qre0\n")
            found = items(capsys, "server0")
    finally:
        daemon.close()
    assert found["listen"]["answer"] == "yes"
    assert found["listen"]["seen"] == f"UDP {daemon.listen} is held by qre0, which is up"


def test_a_profile_that_is_not_there_is_a_no_and_one_that_cannot_be_is_an_error(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_profile(machine / "dev", "server0", SERVER)
    found = items(capsys, "sever0")
    assert found["profile sever0"]["answer"] == "no"
    assert found["profile sever0"]["remedy"] == "did you mean server0?"
    assert main(["check", "../server0"]) == FAILURE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("qre-tool: profile '../server0' : it is not a profile name; ")


def test_a_missing_package_is_named_and_does_not_stop_the_rest(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qre, "supervisor", qre.supervisor)  # it is another one while they are imported again
    for module in [name for name in sys.modules if name.startswith(("zmq", "qre.supervisor"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "zmq", None)
    found = items(capsys)
    assert found["python packages"]["answer"] == "no"
    assert found["python packages"]["seen"].startswith("pyzmq cannot be loaded: ")
    assert found["capabilities"]["answer"] == "unknown"
    assert found["capabilities"]["seen"] == "this check needs zmq, which cannot be loaded"
    assert found["tun device"]["answer"] == "yes" or found["tun device"]["seen"].startswith("/dev/net/tun: ")


def test_the_packages_are_those_that_the_project_depends_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[=<>\[]", text)[0] for text in project["dependencies"]}
    listed = (ROOT / "packaging" / "debian-packages.txt").read_text().splitlines()
    debian = {text.split()[0] for text in listed if text.startswith("python3-") and " runtime: " in text}
    assert {*PACKAGES.values(), "python3-bpfcc"} == wanted | debian - {"python3-venv"}


@pytest.mark.parametrize("role", [None, Role.CLIENT, Role.SERVER])
def test_only_a_server_needs_bcc(
    role: Role | None, machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_profile(machine / "dev", "server0", SERVER)
    write_profile(machine / "dev", "client0", CLIENT)
    monkeypatch.setitem(sys.modules, "bcc", None)
    found = items(capsys, *([f"{role.value}0"] if role else []))
    assert found["python packages"]["answer"] == "yes"
    assert "bpf maps" not in found
    assert ("bpf library" in found) is (role is not Role.CLIENT)
    if role is not Role.CLIENT:
        assert (found["bpf library"]["answer"], found["bpf library"]["needed"]) == ("no", role is Role.SERVER)
        assert found["bpf library"]["remedy"] == "for a server: apt install python3-bpfcc"


def test_the_kernel_module_is_needed_where_the_configuration_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_machine, "LOADED", Path("/nonexistent"))
    monkeypatch.setattr(kernel_module, "LOADED", Path("/nonexistent"))
    monkeypatch.setattr(kernel_module, "MODULE", "qre_that_is_nowhere")
    (auto,) = check_machine.kernel_module(GlobalConfig())
    (kernel,) = check_machine.kernel_module(GlobalConfig(dataplane=Dataplane.KERNEL))
    (user,) = check_machine.kernel_module(GlobalConfig(dataplane=Dataplane.USER))
    assert auto.answer is kernel.answer is user.answer is YesNo.NO
    assert (auto.needed, kernel.needed, user.needed) == (False, True, False)
    assert "qre_that_is_nowhere" in auto.seen or "no modprobe" in auto.seen
    (tun,) = check_machine.tun(GlobalConfig())
    assert tun.needed
    monkeypatch.setattr(check_machine, "LOADED", Path("/sys"))
    (loaded,) = check_machine.kernel_module(GlobalConfig(dataplane=Dataplane.KERNEL))
    assert (loaded.answer, loaded.seen) == (YesNo.YES, "qre.ko is loaded")
    (tun,) = check_machine.tun(GlobalConfig())
    assert not tun.needed


def test_a_module_that_is_installed_may_still_not_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_machine, "LOADED", Path("/nonexistent"))
    monkeypatch.setattr(check_machine, "why_not_loadable", lambda: "")
    (off,) = check_machine.kernel_module(GlobalConfig(module_load=False))
    assert (off.answer, off.remedy) == (YesNo.NO, "run `modprobe qre`")


def test_capabilities_are_those_of_the_role() -> None:
    (client,), (server,) = check_machine.capabilities(Role.CLIENT), check_machine.capabilities(None)
    assert "CAP_BPF" not in client.seen
    assert server.answer in tuple(YesNo)
    assert "CAP_" in server.seen


@pytest.mark.parametrize(
    ("missing", "answer"),
    [({"CapBnd", "CapEff"}, YesNo.NO), ({"CapEff"}, YesNo.UNKNOWN), (set(), YesNo.YES)],
)
def test_a_server_without_raw_sockets_runs_and_is_told_what_its_visitors_miss(
    monkeypatch: pytest.MonkeyPatch, missing: set[str], answer: YesNo
) -> None:
    monkeypatch.setattr(
        capabilities, "missing_capabilities", lambda names, held="CapEff": names if held in missing else []
    )
    (found,) = check_machine.icmp_errors()
    assert (found.answer, found.needed, bool(found.remedy)) == (answer, False, answer is not YesNo.YES)
    assert "CAP_NET_RAW" in found.seen and "not told" in found.instead


def test_what_only_root_can_see_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    unseen = MachineError("/x", "Permission denied", "look")
    unseen.__cause__ = PermissionError()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert refused("thing", unseen) == Finding("thing", YesNo.UNKNOWN, "/x: Permission denied", "run it as root")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert refused("thing", unseen) == Finding("thing", YesNo.NO, "/x: Permission denied", "look")
    several = UserErrors((UserError("a", "b", "c"), UserError("d", "e", "f")))
    assert refused("thing", several) == Finding("thing", YesNo.NO, "a: b (and 1 more)", "c")


def test_a_look_that_fails_is_a_finding() -> None:
    def fails(error: Exception) -> Finding:
        def looks() -> Any:
            raise error
            yield

        (found,) = look("thing", looks)
        return found

    assert fails(ModuleNotFoundError("no", name="bcc.libbcc")).seen == "this check needs bcc, which cannot be loaded"
    assert fails(OSError(5, "Input/output error", "/dev/x")).seen == "/dev/x: Input/output error"
    assert fails(MachineError("a", "b")).answer is YesNo.NO


def test_a_terminal_gets_colour_and_never_somebody_elses_escapes() -> None:
    found = Finding("dest", YesNo.NO, "evil\x1b[2J", "mend it", "nothing")
    assert line(found, colour=False) == "no   dest             evil�[2J; not needed: nothing; mend it"
    assert line(found, colour=True).startswith("\033[33mno \033[0m  dest")
    assert line(Finding("x", YesNo.YES, "fine", "unused", "z"), colour=False) == "yes  x                fine"
