"""DNS: the key, and what resolvconf and resolvectl are told. The real systemd-resolved is in the ring container."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path

import pytest

from qre.config.model import DnsSettings, Profile
from qre.config.normalise import profile_values
from qre.config.profile import profile_from_values
from qre.device import name_servers
from qre.device.name_servers import NameService, name_service, names_are_set, set_names, unset_names
from qre.errors import MachineError, UserError
from tests.support.profiles import CLIENT

DNS = DnsSettings((ip_address("10.77.0.1"), ip_address("fd77::1")), ("example.internal", "example.org"))


def parsed(text: str) -> Profile:
    texts = dict(line.split(" = ", 1) for line in CLIENT.splitlines() if " = " in line)
    return profile_from_values("qre0", texts | {"DNS": text})


def test_the_key_has_servers_and_domains_in_any_order() -> None:
    profile = parsed("example.internal, 10.77.0.1, Example.ORG, fd77::1")
    assert profile.dns == DNS
    assert profile_values(profile)["DNS"] == ["10.77.0.1", "fd77::1", "example.internal", "example.org"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("example.internal", "it names no server"),
        ("10.77.0.1, $(reboot)", "is not a DNS name"),
        ("10.77.0.1, -x", "is not a DNS name"),
        ("10.77.0.300", "is not a DNS name"),
        ("0.0.0.0", "is not the address of a name server"),
        ("fe80::1%eth0", "is not the address of a name server"),
        ("10.77.0.1,,", "an entry of the list is empty"),
        (", ".join(f"10.77.0.{number}" for number in range(1, 18)), "17 entries are more than 16"),
    ],
)
def test_anything_else_is_refused_in_one_line(text: str, why: str) -> None:
    with pytest.raises(UserError, match="DNS") as caught:
        parsed(text)
    assert why in str(caught.value)


class Machine:
    """Programs that write down how they were called, in place of the machine's."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory, self.diary, self.conf = directory, directory / "diary", directory / "resolv.conf"
        self.diary.touch()
        monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
        monkeypatch.setattr(name_servers, "_CONF", str(self.conf))
        monkeypatch.setattr(name_servers, "_ORDER", directory / "interface-order")
        self.records = directory / "interfaces"
        self.records.mkdir()
        monkeypatch.setattr(name_servers, "_RECORDS", (str(directory / "none"), str(self.records)))

    def install(self, name: str, script: str = "") -> None:
        path = self.directory / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.diary}\n{script}\n')
        path.chmod(0o755)

    def said(self) -> list[str]:
        return self.diary.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_resolvconf_is_told_as_by_wg_quick_and_takes_it_back(machine: Machine) -> None:
    machine.install("resolvconf", f"test $1 = -d || cat >>{machine.diary}")
    assert name_service() is NameService.RESOLVCONF
    set_names(NameService.RESOLVCONF, "qre0", DNS)
    unset_names(NameService.RESOLVCONF, "qre0")
    assert machine.said() == [
        "resolvconf -a qre0 -m 0 -x",
        "nameserver 10.77.0.1",
        "nameserver fd77::1",
        "search example.internal example.org",
        "resolvconf -d qre0 -f",
    ]
    (machine.directory / "interface-order").write_text("lo.inet6\nlo.inet\nlo.@(dnsmasq|pdnsd)\ntun*\n")
    unset_names(NameService.RESOLVCONF, "qre0")
    assert machine.said()[-1] == "resolvconf -d tun.qre0 -f"


@pytest.mark.parametrize("conf", ["nameserver 127.0.0.53\noptions edns0\n", "# stub\nnameserver 127.0.0.54\n"])
def test_resolved_is_told_of_the_device_where_the_stub_is_asked(machine: Machine, conf: str) -> None:
    machine.conf.write_text(conf)
    machine.install("resolvectl")
    assert name_service() is NameService.RESOLVED
    set_names(NameService.RESOLVED, "lo", DNS)
    unset_names(NameService.RESOLVED, "lo")
    unset_names(NameService.RESOLVED, "gone0")  # what was said of it went with it
    assert machine.said() == [
        "resolvectl dns lo 10.77.0.1 fd77::1",
        "resolvectl domain lo example.internal example.org ~.",
        "resolvectl default-route lo yes",
        "resolvectl revert lo",
    ]


def test_what_was_told_is_found_until_it_is_taken_back(machine: Machine) -> None:
    assert not names_are_set(NameService.RESOLVCONF, "qre0")
    (machine.directory / "interface-order").write_text("tun*\n")
    (machine.records / "tun.qre0").touch()
    assert names_are_set(NameService.RESOLVCONF, "qre0")
    assert not names_are_set(NameService.RESOLVED, "lo")  # there is none
    machine.install("resolvectl", f"cat {machine.directory}/answer")
    for answer, there in (("Link 1 (lo):", False), ("Link 1 (lo): 10.77.0.1 fd77::1", True)):
        (machine.directory / "answer").write_text(f"{answer}\n")
        assert names_are_set(NameService.RESOLVED, "lo") is there
    assert not names_are_set(NameService.RESOLVED, "gone0")


def test_what_half_worked_is_taken_back_and_the_reason_is_one_line(machine: Machine) -> None:
    machine.install("resolvectl", 'test $1 != domain || { echo "Failed\nto set" >&2; exit 1; }')
    with pytest.raises(MachineError, match=r"`resolvectl domain lo .*`: Failed to set"):
        set_names(NameService.RESOLVED, "lo", DNS)
    assert machine.said()[-1] == "resolvectl revert lo"


def test_a_resolver_that_hangs_is_not_waited_for(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install("resolvconf", "exec sleep 60")
    monkeypatch.setattr(name_servers, "TIMEOUT", 0.2)
    with pytest.raises(MachineError, match=r"did not end within 0\.2 s"):
        unset_names(NameService.RESOLVCONF, "qre0")


@pytest.mark.parametrize("conf", ["nameserver 192.0.2.1\n", None])
def test_where_nobody_manages_the_file_it_is_refused_and_says_what_to_install(
    machine: Machine, conf: str | None
) -> None:
    if conf is not None:
        machine.conf.write_text(conf)
    machine.install("resolvectl")  # installed, but nobody asks it
    os.symlink(machine.directory / "resolvectl", machine.directory / "resolvconf")
    with pytest.raises(UserError, match=r"neither systemd-resolved nor resolvconf manages .* apt install"):
        name_service()
