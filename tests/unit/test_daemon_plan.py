"""``--dry-run daemon``: the plan is made of what the run is made of, for every option and every variable."""

from __future__ import annotations

from pathlib import Path

import pytest

import qre.device.lifecycle
import qre.device.name_servers
from qre.cli.main import main
from qre.device.name_servers import NameService

ELF = Path(__file__).resolve().parents[2] / "workers" / "bpf_loader" / "qre_reuseport.bpf.o"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    for name, value in {
        "QRE_CONFIG_DIR": tmp_path / "dev", "QRE_STATE_DIR": tmp_path / "state", "QRE_DATAPLANE": "user",
        "RUNTIME_DIRECTORY": tmp_path / "run", "QRE_BPF_PIN_DIR": tmp_path / "pins",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("QRE_GLOBAL_CONFIG", raising=False)
    assert main(["init", "Endpoint=192.0.2.1:443", "Dest=site.example:443"]) == 0
    for name in ("other-state", "other-pins"):
        (tmp_path / name).mkdir()
    (tmp_path / "other.o").write_bytes(ELF.read_bytes())
    (tmp_path / "other.conf").write_text("StateDir = /from/the/file\nBpfPinDir = /pins/of/the/file\n")
    capsys.readouterr()
    return tmp_path


def plan(capsys: pytest.CaptureFixture[str], profile: str, *options: str) -> list[str]:
    assert main(["--dry-run", "daemon", profile, *options]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("profile", "options", "line"),
    [
        ("server0", ("--server-underlay", "127.0.0.2:4434"), "bind two sockets to UDP 127.0.0.2:4434"),
        ("server0", ("--run-for-ms=1500",), "end after 1500 ms"),
        ("server0", ("--bpf-elf={}/other.o",), "load {}/other.o"),
        ("server0", ("--pin-dir={}/other-pins",), "pin BPF maps and program below {}/other-pins"),
        ("server0", ("--state-dir={}/other-state",), "save state to {}/other-state/server0.state"),
        (
            "client0",
            ("--server-underlay=127.0.0.2:4434",),
            "connect to 127.0.0.2:4434, and reconnect whenever the session ends",
        ),
        (
            "client0",
            ("--client-underlay=127.0.0.3:5000",),
            "connect from 127.0.0.3:5000 to 192.0.2.1:443, and reconnect whenever the session ends",
        ),
        ("client0", ("--run-for-ms", "7"), "end after 7 ms"),
    ],
)
def test_an_option_is_in_the_plan(
    directory: Path, capsys: pytest.CaptureFixture[str], profile: str, options: tuple[str, ...], line: str
) -> None:
    line = line.format(directory)
    assert line not in plan(capsys, profile)
    assert line in plan(capsys, profile, *(option.format(directory) for option in options))


@pytest.mark.parametrize(
    ("variable", "value", "line"),
    [
        ("QRE_BPF_ELF", "{}/other.o", "load {}/other.o"),
        ("QRE_BPF_PIN_DIR", "{}/other-pins", "pin BPF maps and program below {}/other-pins"),
        ("QRE_STATE_DIR", "{}/other-state", "save state to {}/other-state/server0.state"),
        ("QRE_DATAPLANE", "kernel", "load qre.ko (modprobe qre)"),
    ],
)
def test_a_variable_is_in_the_plan(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    line: str,
) -> None:
    line = line.format(directory)
    assert line not in plan(capsys, "server0")
    monkeypatch.setenv(variable, value.format(directory))
    assert line in plan(capsys, "server0")


def test_the_kernels_device_is_told_the_address_that_is_used(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QRE_DATAPLANE", "kernel")
    for profile, told in (("server0", "listen 127.0.0.2:4434"), ("client0", "endpoint 127.0.0.2:4434")):
        lines = plan(capsys, profile, "--server-underlay=127.0.0.2:4434")
        assert any(line.startswith("sync device") and line.endswith(told) for line in lines)


def test_an_option_wins_over_a_variable_and_that_over_the_file(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = f"--global-config={directory}/other.conf"
    assert f"save state to {directory}/state/server0.state" in plan(capsys, "server0", file)
    monkeypatch.delenv("QRE_STATE_DIR")
    assert "save state to /from/the/file/server0.state" in plan(capsys, "server0", file)
    assert f"save state to {directory}/other-state/server0.state" in plan(
        capsys, "server0", file, f"--state-dir={directory}/other-state"
    )


def write_key(path: Path, key: str, value: str) -> None:
    """In place of what the file says of it."""
    others = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith(f"{key} =")]
    first = [others.pop(0)] if others[:1] == ["[Interface]\n"] else []
    path.write_text("".join([*first, f"{key} = {value}\n", *others]))


SITE_TCP = "make nftables table qre-server0 (ip), forward IPv4 on the uplink: TCP"


@pytest.mark.parametrize(
    ("edits", "options", "lines"),
    [
        ((), (), [f"{SITE_TCP} 443 to site.example:443, 80 to site.example:80"]),
        (
            (),
            ("--server-underlay=127.0.0.2:4434",),
            [f"{SITE_TCP} 4434 to site.example:443, 80 to site.example:80"],
        ),
        ((("other.conf", "SiteTcp", "8443"),), (), [f"{SITE_TCP} 8443 to site.example:8443"]),
        ((("other.conf", "SiteTcp", "off"),), (), []),
        (
            (("other.conf", "SiteTcp", "off"), ("dev/server0.conf", "Forward", "nat")),
            (),
            ["make nftables table qre-server0 (inet), forward IPv4 on server0 and the uplinks: Forward = nat"],
        ),
        (
            (
                ("other.conf", "SiteTcp", "80"),
                ("dev/server0.conf", "Listen", "[::]:443"),
                ("dev/server0.conf", "Forward", "route"),
            ),
            (),
            [
                f"{SITE_TCP} 80 to site.example:80",
                "make nftables table qre-server0 (ip6), where this machine forwards IPv6: TCP 80 to site.example:80",
                "make nftables table qre-server0 (inet), forward IPv4 on server0 and the uplinks: Forward = route",
            ],
        ),
    ],
)
def test_what_a_server_changes_of_nftables_and_forwarding_is_in_the_plan(
    directory: Path,
    capsys: pytest.CaptureFixture[str],
    edits: tuple[tuple[str, str, str], ...],
    options: tuple[str, ...],
    lines: list[str],
) -> None:
    (directory / "other.conf").touch()
    for name, key, value in edits:
        write_key(directory / name, key, value)
    made = plan(capsys, "server0", f"--global-config={directory}/other.conf", *options)
    assert [line for line in made if "nftables" in line] == lines
    assert not any("nftables" in line for line in plan(capsys, "client0"))


@pytest.mark.parametrize("service", NameService)
def test_a_clients_name_servers_are_in_the_plan(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, service: NameService
) -> None:
    for module in (qre.device.lifecycle, qre.device.name_servers):
        monkeypatch.setattr(module, "name_service", lambda: service)
    assert not any("names" in line for line in plan(capsys, "client0"))
    write_key(directory / "dev/client0.conf", "DNS", "10.77.0.1, fd77::1, lan.example")
    line = f"once there is a session, have {service} ask 10.77.0.1, fd77::1 for all names"
    assert line in plan(capsys, "client0")


@pytest.mark.parametrize("profile", ["server0", "client0"])
@pytest.mark.parametrize("option", ["--config-dir", "--global-config", "--bpf-elf", "--pin-dir"])
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_path_that_was_asked_for_and_is_not_there_is_an_error(
    directory: Path, capsys: pytest.CaptureFixture[str], profile: str, option: str, dry_run: bool
) -> None:
    missing = directory / "missing"
    words = [*(["--dry-run"] if dry_run else []), "daemon", profile, f"{option}={missing}"]
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"qre-tool: option {option} : {missing}: there is no such "), printed.err
    assert len(printed.err.splitlines()) == 1
    assert not missing.exists()


def test_every_path_that_is_not_there_is_named_at_once(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"{option}={directory}/missing" for option in ("--config-dir", "--global-config", "--bpf-elf")]
    assert main(["--dry-run", "daemon", "server0", *options]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3
