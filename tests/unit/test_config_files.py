"""Files as they may lie about: kinds, owners, modes, sizes, and names that must not become paths."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from qre.config.kind import load_file
from qre.config.model import GlobalConfig, Profile
from qre.config.profile import load_profile, load_profile_file
from qre.config.settings import load_global
from qre.errors import UserError, UserErrors
from tests.support.profiles import CLIENT, SERVER, write_profile


@pytest.fixture
def config(tmp_path: Path) -> GlobalConfig:
    return load_global({"QRE_GLOBAL_CONFIG": str(tmp_path / "none"), "QRE_CONFIG_DIR": str(tmp_path)})


def test_a_profile_is_found_by_its_name(tmp_path: Path, config: GlobalConfig) -> None:
    write_profile(tmp_path, "qre0", SERVER)
    assert load_profile("qre0", config, {}).device == "qre0"


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "../x", "a\\b", "a b", "a\n", "é", "a" * 65, "a\0b"]
)
def test_a_name_that_is_none_touches_no_path(
    name: str, config: GlobalConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*arguments: object, **keywords: object) -> None:
        raise AssertionError(f"a path was touched: {arguments}")

    with monkeypatch.context() as patched, pytest.raises(UserError, match="it is not a profile name"):
        for function in ("open", "stat", "lstat", "listdir"):
            patched.setattr(os, function, touched)
        load_profile(name, config, {})


@pytest.mark.parametrize("name", ["a", "A-b_c.d", "0", "-x", "a" * 64])
def test_a_name_that_is_one_is_looked_for(name: str, config: GlobalConfig) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        load_profile(name, config, {})


def test_a_misspelt_name_is_answered_with_the_nearest(tmp_path: Path, config: GlobalConfig) -> None:
    write_profile(tmp_path, "server0", SERVER)
    with pytest.raises(UserError, match="did you mean server0"):
        load_profile("sever0", config, {})


def test_a_missing_directory_is_answered_with_the_way_to_make_a_profile(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"{tmp_path / 'none'}/.*; write one with `qre-tool init`, or name the directory"
    ):
        load_profile("qre0", GlobalConfig(config_dir=tmp_path / "none"), {})


@pytest.mark.parametrize("text", [SERVER, CLIENT])
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o666])
def test_a_file_with_a_key_that_others_can_read_is_refused(tmp_path: Path, text: str, mode: int) -> None:
    path = write_profile(tmp_path, "qre0", text, mode)
    with pytest.raises(UserErrors, match=f"holds a key, and others can read it .mode {mode:04o}.; chmod 600 {path}"):
        load_profile_file(path)
    path.chmod(0o600)
    load_profile_file(path)


def test_the_mode_does_not_hide_the_other_errors(tmp_path: Path) -> None:
    path = write_profile(tmp_path, "qre0", SERVER + "MTU = 1\n", 0o644)
    with pytest.raises(UserErrors) as caught:
        load_profile_file(path)
    assert len(caught.value.errors) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = write_profile(tmp_path, "qre0", SERVER)
    os.chown(path, 12345, 12345)
    with pytest.raises(UserErrors, match=f"belongs to uid 12345, not to root; chown root:root {path}"):
        load_profile_file(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "directory.conf").mkdir()
    os.mkfifo(tmp_path / "fifo.conf")
    (tmp_path / "dangling.conf").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.conf").symlink_to(tmp_path / "loop.conf")
    (tmp_path / "device.conf").symlink_to("/dev/zero")
    (tmp_path / "large.conf").write_bytes(b"#" * ((1 << 20) + 1))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.conf"))
        for name, told in {
            "directory": "is a directory, not a file",
            "fifo": "is a FIFO, not a file",
            "dangling": "is a dangling symbolic link",
            "loop": "cannot be read: Too many levels of symbolic links",
            "device": "is a device, not a file",
            "socket": "is a socket, not a file",
            "large": "is larger than 1048576 bytes",
            "none": "there is no such file",
            "n\0ne": "cannot be read: embedded null byte",
            "x" * 300: "cannot be read: File name too long",
        }.items():
            with pytest.raises(UserError, match=told):
                load_profile_file(tmp_path / f"{name}.conf")


def test_a_symbolic_link_to_a_file_is_followed(tmp_path: Path) -> None:
    path = write_profile(tmp_path, "real", SERVER)
    (tmp_path / "link.conf").symlink_to(path)
    assert load_profile_file(tmp_path / "link.conf").name == "link"


def test_a_file_with_any_name_is_a_profile_named_after_its_device(tmp_path: Path) -> None:
    path = tmp_path / "my profile"
    path.write_text(SERVER + "Device = qre7\n")
    path.chmod(0o600)
    assert load_profile_file(path).name == "qre7"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (SERVER, Profile),
        ("", GlobalConfig),
        ("# nothing\n", GlobalConfig),
        ("LogLevel = debug\n", GlobalConfig),
        ("[Interface]\nLogLevel = debug\n", GlobalConfig),
    ],
)
def test_the_kind_of_a_file_is_told_by_its_keys(tmp_path: Path, text: str, kind: type) -> None:
    path = tmp_path / "some.conf"
    path.write_text(text)
    path.chmod(0o600)
    assert isinstance(load_file(path), kind)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[Interface]\n", "Address: is missing"),
        ("Adress = 1\n", "did you mean Address"),
        ("LogLevel = info\nStateDir = /x\nMTU = 1380\n", "is a key of an interface profile"),
        ("LogLevel = info\nMTU = 1380\nAddress = 10.0.0.1/8\n", "is a key of the global file"),
    ],
)
def test_a_file_of_mixed_or_no_kind_is_judged_as_the_likelier_one(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "some.conf"
    path.write_text(text)
    with pytest.raises(UserErrors, match=told):
        load_file(path)
