"""The global configuration: option over environment over file over default."""

from __future__ import annotations

from pathlib import Path

import pytest

from qre.config.model import GlobalConfig
from qre.config.settings import load_global, load_global_file
from qre.ends import Dataplane
from qre.errors import UserError, UserErrors
from tests.support.config_parsers import global_from_values, parse_global


def write(directory: Path, text: str) -> Path:
    path = directory / "qre.conf"
    path.write_text(text)
    return path


def test_without_a_file_everything_is_a_default(tmp_path: Path) -> None:
    assert load_global({"QRE_GLOBAL_CONFIG": str(tmp_path / "none.conf")}) == GlobalConfig()


def test_a_file_that_an_option_names_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserErrors, match="there is no such file"):
        load_global({}, global_config=tmp_path / "none.conf")


def test_an_option_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "StateDir = /file\nBpfPinDir = /file\nLogLevel = error\nDataplane = kernel\n")
    environ = {"QRE_GLOBAL_CONFIG": str(path), "QRE_STATE_DIR": "/environment", "QRE_BPF_PIN_DIR": "/environment"}
    config = load_global(environ | {"QRE_DATAPLANE": "user", "QRE_LOG": ""}, state_dir="/option", pin_dir=None)
    assert str(config.state_dir) == "/option"
    assert str(config.bpf_pin_dir) == "/environment"
    assert (config.log_level, config.dataplane) == ("error", Dataplane.USER)


def test_every_variable_is_read(tmp_path: Path) -> None:
    config = load_global(
        {
            "QRE_GLOBAL_CONFIG": str(tmp_path / "none"),
            "QRE_CONFIG_DIR": "/c",
            "QRE_STATE_DIR": "/s",
            "RUNTIME_DIRECTORY": "/r:/other",
            "QRE_MODULE_LOAD": "no",
            "QRE_DATAPLANE": "kernel",
            "QRE_BPF_ELF": "/e",
            "QRE_BPF_PIN_DIR": "/p",
            "QRE_LOG": "DEBUG",
        }
    )
    assert config == GlobalConfig(
        config_dir=Path("/c"),
        state_dir=Path("/s"),
        runtime_dir=Path("/r"),
        module_load=False,
        dataplane=Dataplane.KERNEL,
        bpf_elf=Path("/e"),
        bpf_pin_dir=Path("/p"),
        log_level="debug",
    )


def test_every_option_is_read_and_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "User = nobody\n")
    config = load_global({}, global_config="qre.conf", config_dir="dev", bpf_elf=Path("x.o"), pin_dir="pins")
    assert config.user == "nobody"
    assert config.config_dir == tmp_path / "dev"
    assert (config.bpf_elf, config.bpf_pin_dir) == (tmp_path / "x.o", tmp_path / "pins")


def test_the_errors_of_all_sources_are_told_at_once(tmp_path: Path) -> None:
    strange = f"{Path.cwd()}/a\n"
    path = write(tmp_path, "RoutedCidLen = 16\nRekeyInterval = 120\nAddress = 10.0.0.1/8\nStateDirr = /x\n")
    with pytest.raises(UserErrors) as caught:
        load_global(
            {"QRE_GLOBAL_CONFIG": str(path), "QRE_LOG": "wanring", "QRE_MODULE_LOAD": "maybe"}, state_dir="a\n"
        )
    assert [str(error) for error in caught.value.errors] == [
        f"{path}:1: RoutedCidLen: '16' is not a number from 17 to 20; write RoutedCidLen = dest",
        f"{path}:2: RekeyInterval: '120' is not from 1s to 24h; a number without a unit is in milliseconds; "
        "did you mean 120s?",
        f"{path}:3: Address: is a key of an interface profile; move the line there",
        f"{path}:4: StateDirr: unknown key; did you mean StateDir?",
        "variable QRE_MODULE_LOAD: 'maybe' is neither true nor false; write true or false",
        "variable QRE_LOG: 'wanring' is not one of debug, info, warning, error; did you mean warning?",
        f"option --state-dir: {strange!r} is not an absolute path of at most 255 bytes; "
        "write a value like /var/lib/qre",
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("StateDir = relative", "is not an absolute path"),
        ("StateDir = /a/../b", "has `..` in it"),
        ("ReconnectMin = 2m", "ReconnectMin is larger than ReconnectMax"),
        ("RelayMaxFlows = 10", "RelayMaxFlowsPerPrefix is larger than RelayMaxFlows"),
        ("RelayMaxFlows = 0", "is not a number from 1"),
        ("User = root", "workers do not run as root"),
        ("User = 0", "workers do not run as root"),
        ("User = a b", "is not a user"),
        ("Dataplane = users", "did you mean user?"),
        ("IdleTimeout = 1.5s", "is not a duration"),
        ("SessionLifetime = 9s", "is not from 10s to 24h"),
        ("SessionLifetime = never", "is not a duration"),
    ],
)
def test_a_wrong_setting_is_refused(line: str, told: str) -> None:
    with pytest.raises(UserErrors, match=r"qre\.conf:1: ") as caught:
        parse_global(f"{line}\n".encode(), "qre.conf")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("value", "milliseconds"), [("off", 0), ("OFF", 0), ("0", 0), ("10s", 10_000), ("24h", 86_400_000)]
)
def test_sessions_have_a_lifetime_or_none(value: str, milliseconds: int) -> None:
    assert parse_global(f"SessionLifetime = {value}\n".encode(), "x").session_lifetime_ms == milliseconds
    assert GlobalConfig().session_lifetime_ms == 1_800_000


def test_paths_are_normalised() -> None:
    assert str(parse_global(b"StateDir = //var/./lib//qre/\n", "x").state_dir) == "/var/lib/qre"


def test_a_file_that_others_can_change_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "LogLevel = info\n")
    path.chmod(0o664)
    with pytest.raises(UserErrors, match=f"others can change it .mode 0664.; chmod go-w {path}"):
        load_global_file(path)
    with pytest.raises(UserError, match="others can change it"):
        load_global({"QRE_GLOBAL_CONFIG": str(path)})


def test_a_directory_in_its_place_is_an_error_and_not_absence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory, not a file"):
        load_global({"QRE_GLOBAL_CONFIG": str(tmp_path)})


def test_values_have_the_rules_of_a_file() -> None:
    assert global_from_values({"RelayIdle": "3m"}) == GlobalConfig()
    with pytest.raises(UserErrors, match="arguments: RelayIdle"):
        global_from_values({"RelayIdle": "x"})
