"""Packets that a client's machine sends before there is a session: few, young, in order."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address

from qre.workers.dataplane.early_packets import LONGEST, MOST, MOST_BYTES, EarlyPackets, is_unicast


def test_they_come_out_once_and_in_order() -> None:
    early = EarlyPackets(Counter())
    for number in range(3):
        early.put(bytes([number]), 10.0 + number)
    assert len(early) == 3
    assert early.take(12.0) == [b"\0", b"\1", b"\2"]
    assert early.take(12.0) == [] and not early


def test_old_ones_are_dropped() -> None:
    drops: Counter[str] = Counter()
    early = EarlyPackets(drops)
    early.put(b"old", 10.0)
    early.put(b"young", 12.0)
    assert early.take(10.0 + LONGEST + 0.5) == [b"young"]
    assert drops == {"no-session": 1}


def test_the_latest_are_kept_and_neither_number_nor_size_grows() -> None:
    drops: Counter[str] = Counter()
    early = EarlyPackets(drops)
    for number in range(MOST + 5):
        early.put(number.to_bytes(2, "big"), 1.0)
    assert len(early) == MOST and drops["no-session"] == 5
    for _ in range(10):
        early.put(bytes(65_545), 1.0)
    assert len(early) == MOST_BYTES // 65_545
    assert sum(map(len, early.take(1.0))) <= MOST_BYTES


def test_what_goes_to_all_of_a_link_is_told_from_the_rest() -> None:
    one = ("10.0.0.1", "223.255.255.255", "2001:db8::1", "fe80::1")
    many = ("224.0.0.1", "255.255.255.255", "ff02::2")
    assert [text for text in (*one, *many) if is_unicast(ip_address(text).packed)] == list(one)
