"""Addresses that somebody gave a device by hand stay theirs: no failed `up` or `reload` takes them away."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import qre.device.lifecycle
import qre.device.lifecycle_down
import qre.kernel.tun
from qre.config.model import GlobalConfig, Hooks
from qre.device.lifecycle import reload_profile, up_profile
from qre.device.lifecycle_down import down_profile
from qre.device.state import save_state, state_of, state_path
from qre.ends import Dataplane
from qre.errors import MachineError, UserError
from qre.kernel.qre_family import DeviceSettings
from tests.support.network import everything, ip
from tests.support.profile_values import client_profile, global_config

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("network")]
OURS, OURS_IPV6, OTHER, OTHER_IPV6 = "10.77.0.2/24", "fd77::2/64", "10.78.0.2/24", "fd78::2/64"


class Module:
    """What `up` asks qre.ko for of a device that is there."""

    def __enter__(self) -> Module:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def device(self, name: str) -> SimpleNamespace:
        settings = dict.fromkeys(DeviceSettings.__struct_fields__)
        return SimpleNamespace(**settings | {"mtu": json.loads(ip("-j", "link", "show", name))[0]["mtu"]})

    def device_set(self, name: str, settings: DeviceSettings) -> None:
        if settings.mtu is not None:
            ip("link", "set", name, "mtu", str(settings.mtu))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GlobalConfig:
    """One end of a veth pair stands for a device of qre.ko, which `set` made."""
    monkeypatch.setattr(qre.kernel.tun, "LINK_KIND", "veth")
    monkeypatch.setattr(qre.device.lifecycle, "LINK_KIND", "veth")
    monkeypatch.setattr(qre.device.lifecycle, "Qre", Module)
    for name in ("choose_dataplane", "expected_dataplane"):
        monkeypatch.setattr(qre.device.lifecycle, name, lambda *_: Dataplane.KERNEL)
    for module in (qre.device.lifecycle, qre.device.lifecycle_down):
        monkeypatch.setattr(module, "close_sessions", lambda _: None)
    ip("link", "add", "qre0", "type", "veth", "peer", "name", "peer0")
    for words in (("addrgenmode", "none"), ("up",), ("down",)):  # once up it has a queue, and keeps it
        ip("link", "set", "qre0", *words)
    return global_config(tmp_path)


def shown() -> list[str]:
    """In any order: what was put back stands behind what stayed. The kernel's own routes to the addresses of a device
    that is down come and go a moment later."""
    return sorted(line for line in everything().splitlines() if "table local" not in line)


def give(*addresses: str) -> None:
    for address in addresses:
        ip("address", "add", address, "dev", "qre0", *(["nodad"] if ":" in address else []))


@pytest.mark.parametrize("state", [True, False], ids=["an old state", "no state"])
@pytest.mark.parametrize("link", ["up", "down"])
def test_an_up_that_fails_leaves_a_device_its_addresses(config: GlobalConfig, link: str, state: bool) -> None:
    ip("link", "set", "qre0", link)
    give(OURS, OURS_IPV6, OTHER, OTHER_IPV6)
    ip("address", "add", "fd79::2/64", "dev", "qre0", "nodad", "noprefixroute")
    if state:
        save_state(config, state_of(client_profile(address=(OTHER, OURS)), 0))
    before = shown()
    with pytest.raises(UserError, match="exit status 7"):
        up_profile(client_profile(hooks=Hooks(post_up=("exit 7",))), config, keep_tun=False)
    assert shown() == before
    assert not state_path(config, "tunnel").exists()


def test_addresses_of_the_profile_go_with_an_up_that_fails_and_with_down(config: GlobalConfig) -> None:
    give(OTHER)
    before = shown()
    with pytest.raises(UserError, match="exit status 7"):
        up_profile(client_profile(hooks=Hooks(post_up=("exit 7",))), config, keep_tun=False)
    assert shown() == before
    up_profile(client_profile(), config, keep_tun=False)
    assert OURS in ip("address", "show", "qre0")
    down_profile(client_profile(), config)
    assert "qre0" not in ip("link")


def test_a_reload_that_fails_leaves_a_device_its_addresses(config: GlobalConfig) -> None:
    up_profile(client_profile(address=(OURS,)), config, keep_tun=False)
    give(OTHER, OTHER_IPV6)
    ip("route", "add", "172.16.0.0/12", "dev", "lo")
    before = shown()
    with pytest.raises(MachineError, match=r"172\.16\.0\.0/12"):
        reload_profile(client_profile(address=(OTHER, OTHER_IPV6), allowed_ips=("172.16.0.0/12",)), config)
    assert shown() == before


def test_a_reload_takes_away_what_the_profile_had_whoever_put_it_there(config: GlobalConfig) -> None:
    give(OURS)
    up_profile(client_profile(address=(OURS,)), config, keep_tun=False)
    reload_profile(client_profile(address=(OTHER,)), config)
    addresses = ip("address", "show", "qre0")
    assert OTHER in addresses and OURS not in addresses
