"""The profile state file: what is written can be read back, and nothing else is believed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.device.state import (
    MAX_SIZE,
    load_state,
    parse_state_untrusted,
    remove_state,
    save_state,
    saved_profiles,
    state_of,
    state_path,
)
from qre.errors import MachineError, UntrustedInputError, UserError
from tests.support.profile_values import client_profile, global_config, server_profile


def test_a_state_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    config = global_config(tmp_path)
    for profile, fwmark in ((client_profile(allowed_ips=("0.0.0.0/0", "fd00::/8")), 7), (server_profile(), 0)):
        state = state_of(profile, fwmark)
        save_state(config, state)
        assert load_state(config, profile.name) == state
    assert saved_profiles(config) == ["server", "tunnel"]


def test_the_file_and_its_directory_are_for_their_owner_only_and_nothing_else_is_left(tmp_path: Path) -> None:
    config = global_config(tmp_path)
    old_umask = os.umask(0)
    try:
        save_state(config, state_of(client_profile(), 0))
    finally:
        os.umask(old_umask)
    assert config.state_dir.stat().st_mode & 0o777 == 0o700
    assert [(path.name, path.stat().st_mode & 0o777) for path in config.state_dir.iterdir()] == [
        ("tunnel.state", 0o600)
    ]


def test_a_profile_that_is_not_up_has_no_state_and_forgetting_it_again_is_no_error(tmp_path: Path) -> None:
    config = global_config(tmp_path)
    assert load_state(config, "tunnel") is None
    assert saved_profiles(config) == []
    save_state(config, state_of(client_profile(), 0))
    remove_state(config, "tunnel")
    remove_state(config, "tunnel")
    assert load_state(config, "tunnel") is None


def test_a_failed_write_leaves_the_old_state_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = global_config(tmp_path)
    save_state(config, state_of(client_profile(), 1))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineError, match="No space left on device"):
        save_state(config, state_of(client_profile(), 2))
    saved = load_state(config, "tunnel")
    assert saved is not None
    assert saved.table == 1
    assert [path.name for path in config.state_dir.iterdir()] == ["tunnel.state"]


def stored(**changes: object) -> bytes:
    return json.dumps(
        {
            "version": 1,
            "profile": "tunnel",
            "device": "qre0",
            "role": "client",
            "listen": "",
            "address": ["10.77.0.2/24"],
            "mtu": 1380,
            "allowed_ips": [],
            "fwmark": 0,
            **changes,
        }
    ).encode()


def test_the_longest_address_of_ipv6_that_a_server_listens_on_is_read_again() -> None:
    listen = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535"
    assert parse_state_untrusted(stored(role="server", listen=listen, underlay=listen)).listen == listen
    most = ", ".join(f"[2001:db8:1111:2222:3333:4444:5555:{last:x}]:65535" for last in range(0x6666, 0x666E))
    assert parse_state_untrusted(stored(role="server", listen=most)).listen == most


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"profile": "../../etc/passwd"},
        {"profile": ""},
        {"profile": "tunnel\n"},
        {"device": "a/b"},
        {"device": ".."},
        {"device": "sixteencharacter"},
        {"device": "two words"},
        {"role": "king"},
        {"address": ["10.77.0.2/33"]},
        {"address": "10.77.0.2/24"},
        {"mtu": 1 << 40},
        {"mtu": "1380"},
        {"fwmark": -1},
        {"allowed_ips": ["10.0.0.1/8"]},
        {"post_down": ["rm -rf /"]},
    ],
)
def test_a_state_that_we_cannot_have_written_is_refused(changes: dict[str, object]) -> None:
    assert parse_state_untrusted(stored()).device == "qre0"
    with pytest.raises(UntrustedInputError):
        parse_state_untrusted(stored(**changes))


@settings(max_examples=60)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | st.just(b"[" * 5000))
def test_any_bytes_parse_or_raise_the_one_exception(data: bytes) -> None:
    with pytest.raises(UntrustedInputError):
        parse_state_untrusted(data)


def test_a_file_of_another_profile_is_refused(tmp_path: Path) -> None:
    config = global_config(tmp_path)
    config.state_dir.mkdir()
    path = state_path(config, "other")
    path.write_bytes(stored())
    path.chmod(0o600)
    with pytest.raises(UserError, match="it belongs to the profile tunnel"):
        load_state(config, "other")


def test_a_link_a_directory_a_fifo_an_enormous_file_and_one_that_others_can_write_are_not_read(
    tmp_path: Path,
) -> None:
    config = global_config(tmp_path)
    config.state_dir.mkdir()
    path = state_path(config, "tunnel")
    (tmp_path / "elsewhere").write_bytes(stored())

    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MachineError):
        load_state(config, "tunnel")
    path.unlink()

    os.mkfifo(path)
    with pytest.raises(UserError, match="not a regular file"):
        load_state(config, "tunnel")
    path.unlink()

    path.write_bytes(stored())
    path.chmod(0o666)
    with pytest.raises(UserError, match="users other than its owner can write it"):
        load_state(config, "tunnel")

    path.chmod(0o600)
    with path.open("ab") as file:
        file.truncate(MAX_SIZE + 1)
    with pytest.raises(UserError, match="too large"):
        load_state(config, "tunnel")
