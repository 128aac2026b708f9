"""A profile's device in qre.ko, without a daemon: its settings are the file's, or what they were when that fails."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.vm import Vm
from tests.vm.test_commands import Answer, done, guest, refused, run
from tests.vm.test_sessions_by_hand import make_pair

__all__ = ["guest"]  # a fixture
pytestmark = [pytest.mark.timeout(900), pytest.mark.guest_python]
VARIABLES = "QRE_CONFIG_DIR=/tmp/e/dev QRE_STATE_DIR=/tmp/e/state"
#: What the file says at first, as ``show`` tells it.
FIRST = {
    "server0": {"listen": "10.9.0.1:443", "dest": "10.9.0.2:443", "server_name": "example.com"},
    "client0": {"endpoint": "10.9.0.1:443", "server_name": "example.com"},
}
#: What it says later, and how that is told.
LATER = {
    "server0": (
        {"Dest": "10.9.0.2:8443", "ServerName": "www.example.com", "PersistentKeepalive": "20"},
        {"dest": "10.9.0.2:8443", "server_name": "www.example.com", "persistent_keepalive": 20},
    ),
    "client0": (
        {"Endpoint": "10.9.0.1:8443", "ServerName": "www.example.com", "PersistentKeepalive": "25"},
        {"endpoint": "10.9.0.1:8443", "server_name": "www.example.com", "persistent_keepalive": 25},
    ),
}
#: What ``set`` gives a device that no profile has: nothing of it is the file's.
SET = {
    "server0": ("server", "Address=10.78.0.1/24", "Listen=10.9.0.1:8443", "Dest=10.9.0.9:443"),
    "client0": ("client", "Address=10.78.0.2/24", "Endpoint=10.9.0.9:443"),
}


def written(profile: str, **values: str) -> tuple[str, str]:
    """Puts these keys into the profile's file, in place of those that are there."""
    edits = "".join(f"-e '/^{key} /d' -e '/^.Interface/a {key} = {value}' " for key, value in values.items())
    return "{sh}", f"sed -i {edits} /tmp/e/dev/{profile}.conf"


def told(answer: Answer) -> dict[str, Any]:
    """All but the packets that the device counts."""
    device = answer.device
    assert device["dataplane"] == "kernel"
    return {name: value for name, value in device.items() if name != "counters"}


@pytest.mark.parametrize("profile", FIRST)
def test_reload_syncs_the_file_and_one_that_fails_gives_the_settings_back(guest: Vm, profile: str) -> None:
    make_pair(guest, "Endpoint=10.9.0.1:443")
    show = ("--json", "show", profile)
    values, as_told = LATER[profile]
    others = {"Dest" if profile == "server0" else "Endpoint": "10.9.0.9:9443", "ServerName": "other.example"}
    up, first, edited, reloaded, second, again, locked, failed, opened, third, down, gone = run(
        guest,
        ("up", profile),
        show,
        written(profile, **values),
        ("reload", profile),
        show,
        written(profile, **others, PersistentKeepalive="30"),
        ("{sh}", "mount --bind /tmp/e/state /tmp/e/state; mount -o remount,bind,ro /tmp/e/state"),
        ("reload", profile),
        ("{sh}", "umount /tmp/e/state"),
        show,
        ("down", profile),
        ("{sh}", "ip -o link show type qre"),
        variables=VARIABLES,
    )
    done(up, first, edited, reloaded, second, again, locked, opened, third, down, gone)
    refused(failed, "Read-only file system")
    before = told(first)
    assert before == before | FIRST[profile] | {"persistent_keepalive": 0, "mtu": 1380, "profile": profile}
    assert told(second) == before | as_told
    assert told(third) == told(second)
    assert gone.out == ""


@pytest.mark.parametrize("profile", FIRST)
def test_an_up_that_fails_gives_a_device_that_was_there_its_settings_back(guest: Vm, profile: str) -> None:
    make_pair(guest, "Endpoint=10.9.0.1:443")
    show = ("--json", "show", profile)
    made, first, edited, failed, second, mended, up, third, down, gone = run(
        guest,
        ("set", profile, "role", *SET[profile], "MTU=1300", "ServerName=other.example", "PersistentKeepalive=33"),
        show,
        written(profile, PostUp="false"),
        ("up", profile),
        show,
        written(profile, PostUp="true"),
        ("up", profile),
        show,
        ("down", profile),
        ("{sh}", "ip -o link show type qre"),
        variables=VARIABLES,
    )
    done(made, first, edited, second, mended, up, third, down, gone)
    refused(failed, "PostUp")
    before, after = told(first), told(third)
    assert (before["mtu"], before["server_name"], before["persistent_keepalive"]) == (1300, "other.example", 33)
    assert told(second) == before
    assert after == after | FIRST[profile] | {"persistent_keepalive": 0, "mtu": 1380, "profile": profile}
    assert gone.out == ""
