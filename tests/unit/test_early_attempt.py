"""A wait that a change ends early, and what a device's tampering is called."""

from __future__ import annotations

import asyncio
import os
import time
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import pytest

from qre.addresses import covering, keeps_apart, outer_networks
from qre.device.tampering import tampering_line
from qre.ipc.messages import DeviceTampered
from qre.workers.handshake import early_attempt
from qre.workers.handshake.early_attempt import EarlyAttempt


async def waited(made: EarlyAttempt, pause: float, *, change_after: float | None = None) -> tuple[bool, float]:
    """Whether it was woken, and after how many seconds."""
    began = time.monotonic()
    if change_after is not None:
        asyncio.get_running_loop().call_later(change_after, made.changed)
    return await made.wait(pause), time.monotonic() - began


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Shorter times, and one file of a resolver."""
    path = tmp_path / "resolv.conf"
    for name, value in (("_SETTLING", 0.02), ("_GAP", 0.05), ("_LONG_GAP", 0.4), ("_INTERVAL", 0.05)):
        monkeypatch.setattr(early_attempt, name, value)
    monkeypatch.setattr(early_attempt, "RESOLVER_FILES", (str(path),))
    return path


def test_without_a_change_it_is_the_pause() -> None:
    woken, seconds = asyncio.run(waited(EarlyAttempt(), 0.3))
    assert not woken
    assert seconds >= 0.3


def test_a_change_ends_a_long_wait_and_one_before_the_attempt_does_not() -> None:
    async def scenario() -> None:
        made = EarlyAttempt()
        made.changed()
        await asyncio.sleep(0.01)
        made.began()
        woken, seconds = await waited(made, 0.2)
        assert not woken
        assert seconds >= 0.2
        woken, seconds = await waited(made, 60, change_after=0.1)
        assert woken
        assert seconds < 5

    asyncio.run(scenario())


def test_a_change_while_the_attempt_ran_counts() -> None:
    made = EarlyAttempt()
    made.began()
    made.changed()
    woken, seconds = asyncio.run(waited(made, 60))
    assert woken
    assert 0.05 <= seconds < 5, "some time is left between two attempts"


@pytest.mark.parametrize("how", ["made", "renamed over", "removed"])
def test_a_resolvers_file_that_changes_ends_the_wait(how: str, quick: Path) -> None:
    if how != "made":
        quick.write_text("nameserver 192.0.2.1\n")
    made = EarlyAttempt()
    made.began()

    async def scenario() -> bool:
        waiting = asyncio.ensure_future(made.wait(60))
        await asyncio.sleep(0.1)
        if how == "removed":
            quick.unlink()
        else:
            new = quick.with_suffix(".new")
            new.write_text("nameserver 192.0.2.2\n")
            os.rename(new, quick)
        return await asyncio.wait_for(waiting, 10)

    assert asyncio.run(scenario())


@pytest.mark.parametrize(
    ("jump", "clock", "woken"), [(3600, True, True), (-3600, True, True), (3, True, False), (3600, False, False)]
)
def test_a_clock_that_is_set_ends_the_wait_of_whoever_may_have_failed_for_it(
    jump: float, clock: bool, woken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the attempt ran."""

    async def wait(*, meanwhile: bool) -> tuple[bool, float]:
        now = 1000.0
        monkeypatch.setattr(early_attempt, "_clock", lambda: now)
        made = EarlyAttempt()
        made.began()
        began = time.monotonic()

        def set_it() -> None:
            nonlocal now
            now += jump

        if meanwhile:
            set_it()
        else:
            asyncio.get_running_loop().call_later(0.1, set_it)
        return await made.wait(0.5, any_network=False, clock=clock), time.monotonic() - began

    for meanwhile in (False, True):
        was_woken, seconds = asyncio.run(wait(meanwhile=meanwhile))
        assert was_woken is woken
        assert woken or seconds >= 0.5


def test_the_clock_is_ahead_of_the_time_that_has_passed_by_a_constant() -> None:
    before = early_attempt._clock()
    time.sleep(0.05)  # it goes on meanwhile
    assert abs(early_attempt._clock() - before) < 1.0


def test_a_network_that_changes_all_the_time_does_not_make_it_knock_all_the_time() -> None:
    async def scenario() -> list[float]:
        made, times = EarlyAttempt(), []
        for _ in range(11):
            made.began()
            woken, seconds = await waited(made, 60, change_after=0)
            assert woken
            times.append(seconds)
        return times

    times = asyncio.run(scenario())
    assert times[-1] >= 0.4 > times[0]


def test_tampering_is_told_with_the_program_that_did_it() -> None:
    def line(port: int, **more: object) -> str:
        return tampering_line("qre0", DeviceTampered(what="rules -4 of table 7", port=port, **more))  # type: ignore[arg-type]

    name = Path("/proc/self/comm").read_text().strip()
    assert line(os.getpid()) == f"device qre0: {name} (process {os.getpid()}) removed rules -4 of table 7; put back"
    assert "a program with netlink port 4000000000, which has ended, removed" in line(4_000_000_000)
    assert "the kernel or an unknown program removed" in line(0)
    assert line(0, error="no room").endswith(", which cannot be put back: no room")
    assert "more than three times in a minute: the tunnel ends" in line(0, final=True)


@pytest.mark.parametrize(
    ("endpoint", "prefix", "apart"),
    [
        ("198.51.100.1", "0.0.0.0/0", True),
        ("198.51.100.1", "198.51.100.0/24", True),
        ("198.51.100.1", "203.0.113.0/24", False),
        ("198.51.100.1", "::/0", True),
        ("198.51.100.1", "fd00::/8", False),
        ("vpn.example", "8.8.0.0/16", True),
        ("vpn.example", "128.0.0.0/1", True),
        ("vpn.example", "192.168.0.0/16", False),
        (None, "8.8.0.0/16", False),
        (None, "0.0.0.0/0", True),
    ],
)
def test_what_may_hold_the_server_is_kept_from_the_tunnels_own_packets(
    endpoint: str | None, prefix: str, apart: bool
) -> None:
    assert keeps_apart(ip_network(prefix), outer_networks(endpoint)) is apart


def test_what_covers_a_server_is_named() -> None:
    own, prefixes = (ip_interface("10.0.0.2/8"),), (ip_network("192.168.0.0/16"), ip_network("0.0.0.0/0"))
    outer = outer_networks("vpn.example")
    assert covering(ip_address("10.9.9.9"), own, prefixes, outer) == "Address 10.0.0.2/8"
    assert covering(ip_address("192.168.1.1"), own, prefixes, outer) == "AllowedIPs 192.168.0.0/16"
    assert covering(ip_address("8.8.8.8"), own, prefixes, outer) == ""
