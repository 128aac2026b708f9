"""Inner packets in two datagrams: their format, what joins them whatever is sent, both in sessions, and the offer."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from ipaddress import ip_interface
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.dataplane.protocol import underlay_of
from qre.ends import Role
from qre.quic.client import http3
from qre.quic.server import connect_ip
from qre.quic.server.server_handshake import ServerHandshake
from qre.wire import overhead
from qre.wire.datagram import (
    DATAGRAM_HEAD,
    MAX_IDENTIFIER,
    MAX_SPLIT,
    SPLIT_HEAD,
    Part,
    in_two,
    parse_part_untrusted,
)
from qre.workers.dataplane.inner.joining import LONGEST_WAIT, MOST_KEPT, Joiner
from qre.workers.dataplane.inner.offload import GSO_UDP_L4, NO_OFFLOAD, TOO_BIG, split_untrusted
from qre.workers.dataplane.refusals import Refusals
from qre.workers.handshake.sessions.secrets import SessionRecord
from qre.workers.handshake.sessions.session_state import Settings, installation
from tests.support.dataplane import Ends
from tests.support.inner_packets import V4, V6, assert_whole, offloaded, tcp, udp
from tests.support.pair import Pair
from tests.support.two_ends import handed_over_pair
from tests.support.untrusted import read_or_refused

C, S = Role.CLIENT, Role.SERVER
UNDERLAY = underlay_of(("192.0.2.1", 443), ("192.0.2.2", 40_000))
identifiers = st.integers(0, MAX_IDENTIFIER)


def part(identifier: int, total: int, data: bytes, *, second: bool = False) -> bytes:
    told = total | 0x8000 * second
    return SPLIT_HEAD + identifier.to_bytes(2, "big") + told.to_bytes(2, "big") + data


class Joined:
    """A Joiner, and the time."""

    def __init__(self, *, allowed: bool = True) -> None:
        self.drops: Counter[str] = Counter()
        self.joiner = Joiner(self.drops, allowed=allowed)
        self.now = 5.0

    def whole(self, *plaintexts: bytes) -> list[bytes]:
        return self.joiner.whole_untrusted(plaintexts, self.now)


# --- the format ---


@given(st.integers(2, MAX_SPLIT), identifiers, st.data())
def test_both_parts_are_read_back_and_neither_is_longer_than_its_room(
    length: int, identifier: int, data: st.DataObject
) -> None:
    packet = random.Random(length).randbytes(length)
    room = data.draw(st.integers((length + 1) // 2, length - 1))
    one, two = (parse_part_untrusted(each.removeprefix(SPLIT_HEAD)) for each in in_two(packet, identifier, room))
    assert one == Part(identifier, False, length, packet[:room])
    assert two == Part(identifier, True, length, packet[room:])


@pytest.mark.parametrize(("length", "room"), [(100, 100), (100, 49), (100, 0), (MAX_SPLIT + 1, 1000), (0, 0)])
def test_what_does_not_need_two_or_needs_more_is_not_made(length: int, room: int) -> None:
    with pytest.raises(ValueError, match="in two parts"):
        in_two(bytes(length), 1, room)


def test_two_parts_are_enough_for_every_packet_of_a_device_on_any_path_of_quic() -> None:
    smallest = overhead.BASE_UDP_PAYLOAD - overhead.quic_overhead(overhead.ROUTED_CID) - overhead.SPLIT_HEAD_LENGTH
    assert 2 * smallest >= MAX_SPLIT >= overhead.largest_inner(overhead.ETHERNET_MTU)
    assert len(in_two(bytes(1300), 1, 1200)[0]) == len(SPLIT_HEAD) + overhead.SPLIT_HEAD_LENGTH + 1200


@given(st.binary(max_size=40))
def test_any_content_is_a_part_or_refused(content: bytes) -> None:
    found = read_or_refused(parse_part_untrusted, content)
    assert found is None or (0 < len(found.data) < found.total <= MAX_SPLIT)


# --- joining ---


def test_two_parts_make_the_packet_in_either_order_and_others_keep_their_places() -> None:
    joined = Joined()
    packet, whole = bytes(range(100)), DATAGRAM_HEAD + b"ip"
    one, two = in_two(packet, 7, 60)
    assert joined.whole(whole, one, whole, two, whole) == [whole, whole, DATAGRAM_HEAD + packet, whole]
    assert joined.whole(two) == []
    joined.now += LONGEST_WAIT - 0.001
    assert joined.whole(one) == [DATAGRAM_HEAD + packet]
    assert (len(joined.joiner), joined.drops) == (0, {})


def test_a_part_waits_for_a_second_and_no_longer() -> None:
    joined = Joined()
    one, two = in_two(bytes(100), 7, 60)
    joined.whole(one)
    joined.now += LONGEST_WAIT
    assert joined.whole(two) == []
    assert joined.drops == {"part-alone": 1}
    assert joined.whole(one) == [DATAGRAM_HEAD + bytes(100)], "the second part is a new one's"


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (part(7, 100, b"a" * 60), part(8, 100, b"b" * 40, second=True)),  # of another packet
        (part(7, 100, b"a" * 60), part(7, 100, b"a" * 60)),  # twice
        (part(7, 100, b"a" * 60), part(7, 100, b"a" * 40)),  # two first parts
        (part(7, 100, b"a" * 60), part(7, 100, b"b" * 41, second=True)),  # overlapping
        (part(7, 100, b"a" * 60), part(7, 100, b"b" * 39, second=True)),  # with a hole
        (part(7, 101, b"a" * 60), part(7, 100, b"b" * 40, second=True)),  # of another length
    ],
)
def test_what_does_not_fit_exactly_is_never_joined(one: bytes, two: bytes) -> None:
    for first, second in ((one, two), (two, one)):
        joined = Joined()
        assert joined.whole(first, second) == []
        assert len(joined.joiner) == 2 - joined.drops["part-alone"]


def test_a_wrapped_identifier_joins_the_new_packet_and_gives_the_old_part_up() -> None:
    joined = Joined()
    old, _ = in_two(b"old" * 40, 7, 60)
    one, two = in_two(b"new" * 40, 7, 60)
    assert joined.whole(old, one, two) == [DATAGRAM_HEAD + b"new" * 40]
    assert joined.drops == {"part-alone": 1}


def test_no_more_parts_are_kept_than_the_bound_and_the_oldest_gives_way() -> None:
    joined = Joined()
    for identifier in range(MOST_KEPT + 8):
        joined.whole(part(identifier, 100, bytes(60)))
    assert len(joined.joiner) == MOST_KEPT
    assert joined.drops == {"part-alone": 8}
    assert joined.whole(part(7, 100, bytes(40), second=True)) == []
    assert len(joined.whole(part(MOST_KEPT + 7, 100, bytes(40), second=True))) == 1


def test_malformed_parts_and_those_that_nobody_allowed_are_counted_and_kept_nowhere() -> None:
    joined, refused = Joined(), Joined(allowed=False)
    for content in (b"", b"\0\1\0\x64", b"\0\1\0\1a", b"\0\1\x7f\xffa", b"\0\1\0\2ab"):
        assert joined.whole(SPLIT_HEAD + content) == []
    assert joined.drops == {"malformed": 5}
    assert refused.whole(*in_two(bytes(100), 7, 60)) == []
    assert refused.drops == {"unknown-context": 2}
    assert len(joined.joiner) == len(refused.joiner) == 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.floats(0, 0.4), st.integers(0, 12)), max_size=150))
def test_packets_come_out_whole_or_not_at_all_whatever_is_lost_repeated_or_late(
    arrivals: list[tuple[int, bool, float, int]],
) -> None:
    """Ten packets whose identifiers collide in pairs; a naive table says what may come."""
    packets = [bytes([number]) * (90 + number // 2) for number in range(10)]
    parts = [in_two(packet, number % 5, 60) for number, packet in enumerate(packets)]
    joined, came = Joined(), dict[tuple[int, bool], float]()
    for number, second, pause, junk in arrivals:
        joined.now += pause
        for identifier in range(junk):
            joined.whole(part(100 + identifier, 90, bytes(50)))
        out = joined.whole(parts[number][second])
        assert len(joined.joiner) <= MOST_KEPT
        assert out in ([], [DATAGRAM_HEAD + packets[number]])
        if out:
            assert joined.now - came[number, not second] < LONGEST_WAIT
        came[number, second] = joined.now


# --- in sessions ---


def ends() -> Ends:
    made = Ends(splits=True, of_client={"max_datagram_payload": 1250})
    made.run(0.2)
    return made


def uplink(made: Ends, packet: bytes) -> None:
    """As the device does with what it reads."""
    session = made.client
    refusals = Refusals(made.drops[C], lambda _: pytest.fail("answered"), lambda *_: None)
    limit = session.max_inner if packet[0] >> 4 == 4 else session.max_inner_ipv6
    plaintexts = (
        split_untrusted(NO_OFFLOAD + packet, limit)
        if len(packet) <= limit
        else refusals.instead_untrusted(TOO_BIG, session, NO_OFFLOAD + packet, made.now)
    )
    made.send(C, session.seal_datagrams(plaintexts, made.now))
    made.take(C)


def largest(made: Ends) -> int:
    return max(len(datagram) for role, datagram in made.sent if role is C)


def test_a_client_never_sends_more_than_a_browser_and_probes_nothing() -> None:
    made = Ends(splits=True, of_client={"max_datagram_payload": 1250})
    made.run(700)
    assert (made.client.path_mtu.size, made.client.path_mtu.settled) == (1250, True)
    assert largest(made) < 60
    assert (made.client.max_inner, made.client.max_inner_ipv6, made.client.max_in_two) == (1206, 1206, 1500)
    assert made.client.mss_inner == 1206
    assert made.server.max_inner == 1436 - 24, "downward as ever"


@pytest.mark.parametrize("addresses", [V4, V6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("length", [28, 1206, 1207, 1228, 1280, 1380, 1428])
def test_packets_of_every_size_arrive_whole(addresses: tuple[bytes, bytes], length: int) -> None:
    made = ends()
    headers = 28 if addresses is V4 else 48
    packet = udp(addresses, random.Random(length).randbytes(max(length - headers, 1)))
    uplink(made, packet)
    made.run(0.1)
    (arrived,) = made.delivered[S]
    assert arrived[headers:] == packet[headers:]
    assert len(arrived) == len(packet)
    assert largest(made) <= 1250
    assert (made.client.tx_packets, made.client.tx_bytes) == (1, len(packet)), "an inner packet counts once"


def test_tcp_is_cut_and_not_split() -> None:
    made = ends()
    packet = tcp(V4, random.Random(1).randbytes(1340))
    uplink(made, packet)
    made.run(0.1)
    one, two = made.delivered[S]
    assert one[40:] + two[40:] == packet[40:]
    for arrived in (one, two):
        assert_whole(arrived)


def test_a_segment_that_must_stay_whole_goes_in_two_and_datagrams_of_one_send_as_well() -> None:
    made = ends()
    uplink(made, tcp(V4, bytes(1300), flags=0x02))
    together = udp(V4, bytes(3000))
    refusals = Refusals(made.drops[C], lambda _: pytest.fail("answered"), lambda *_: None)
    read = offloaded(together, GSO_UDP_L4, 1300, 6)
    plaintexts = refusals.instead_untrusted(TOO_BIG, made.client, read, made.now)
    made.send(C, made.client.seal_datagrams(plaintexts, made.now))
    made.run(0.1)
    assert [len(packet) for packet in made.delivered[S]] == [1340, 1328, 1328, 428]
    assert largest(made) <= 1250
    assert made.client.tx_packets == 4


def test_a_lost_part_loses_its_packet_alone() -> None:
    made = ends()
    count = 0

    def fate(role: Role, datagram: bytes) -> list[float]:
        nonlocal count
        count += role is C and len(datagram) > 100
        return [] if count == 3 else [made.delay + random.Random(count).random() * 0.005]

    made.fate = fate
    packets = [udp(V4, bytes([number]) * 1300) for number in range(8)]
    for packet in packets:
        uplink(made, packet)
    made.run(0.5)
    assert sorted(arrived[28] for arrived in made.delivered[S]) == [0, 2, 3, 4, 5, 6, 7]


def test_a_path_that_becomes_narrow_is_noticed_and_the_parts_fit_it() -> None:
    made = ends()
    made.fate = lambda role, datagram: [made.delay] if len(datagram) <= 1230 else []
    for _ in range(40):
        uplink(made, udp(V4, bytes(1300)))
        made.run(0.1)
    assert made.client.path_mtu.size == 1200
    made.delivered[S].clear()
    uplink(made, udp(V6, bytes(1380)))
    made.run(0.1)
    assert [len(packet) for packet in made.delivered[S]] == [1428]


def test_a_server_joins_nothing_that_it_did_not_offer_and_a_client_nothing_at_all() -> None:
    made = Ends()
    made.run(0.2)
    for role, other in ((C, S), (S, C)):
        parts = in_two(udp(V4, bytes(1300)), 1, 1100)
        made.send(role, made.sessions[role].packets.seal(parts))
        made.run(0.1)
        assert made.delivered[other] == []
        assert made.drops[other]["unknown-context"] == 2


@pytest.mark.parametrize(
    ("later", "joined"), [(1023, True), (1024, False), (0x7FFF, False), (0x8000, True), (0xFFFF, True)]
)
def test_a_part_is_given_up_before_its_identifier_can_come_again(later: int, joined: bool) -> None:
    """Of two packets of one length, the first half of one and the second of the other: what a sender that has gone
    round would make."""
    made = Joined()
    first, second = in_two(bytes([1]) * 1300, 7, 1000)
    made.whole(first)
    made.whole(in_two(bytes([2]) * 1300, (7 + later) & MAX_IDENTIFIER, 1000)[0])
    assert (len(made.whole(second)) == 1) is joined
    assert made.drops["part-alone"] == (not joined)


def test_parts_behind_other_frames_are_joined_too() -> None:
    made = ends()
    one, two = in_two(udp(V4, bytes(1300)), 1, 1100)
    made.send(C, made.client.packets.seal([b"\x01" + one, b"\x01\x31\x40\xea" + two[1:]]))
    made.run(0.1)
    assert [len(packet) for packet in made.delivered[S]] == [1328]


def test_without_an_offer_ipv4_stays_below_a_browsers_size_and_ipv6_has_what_it_needs() -> None:
    made = Ends(of_client={"usual_payload": 1250})
    made.run(2)
    client = made.client
    assert (client.path_mtu.size, client.max_inner, client.mss_inner) == (1436, 1206, 1206)
    assert (client.max_inner_ipv6, client.max_in_two) == (1392, 0)
    assert client.carries(4) == 1206 and client.carries(6) == 1392


# --- negotiated ---


class JoinsNothing(ServerHandshake):
    """Whose sessions are for a qre.ko of an earlier version."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments | {"joins": False})


def negotiated(pair: Pair) -> tuple[bool, bool]:
    """Whether the client splits, and the server joins."""
    pair.run()
    assert pair.client_state is not None and pair.server_state is not None
    return pair.client_state.splits, pair.server_state.splits


def test_a_client_splits_for_a_server_whose_data_plane_joins() -> None:
    assert negotiated(Pair()) == (True, True)
    assert negotiated(Pair(server_kind=JoinsNothing)) == (False, False)


@pytest.mark.parametrize("end", [http3, connect_ip], ids=["client", "server"])
@pytest.mark.parametrize("field", [(b"qre-split", b"4"), (b"other", b"2")])
def test_ends_that_do_not_know_the_context_have_a_tunnel_without_it(
    monkeypatch: pytest.MonkeyPatch, end: ModuleType, field: tuple[bytes, bytes]
) -> None:
    monkeypatch.setattr(end, "SPLIT_FIELD", field)
    assert negotiated(Pair()) == (False, False)


def record(role: Role, *, splits: bool, ipv6: bool = False) -> SessionRecord:
    handed_over = handed_over_pair(1)[role]
    addresses = (*handed_over.addresses, *((ip_interface("fd77::2/128"),) if ipv6 else ()))
    return SessionRecord(role, replace(handed_over, splits=splits, addresses=addresses), UNDERLAY)


@pytest.mark.parametrize("in_kernel", [False, True], ids=["user plane", "qre.ko"])
@pytest.mark.parametrize(
    ("splits", "ipv6", "able", "sizes"),
    [
        (True, True, True, (1250, 1250, True)),
        (False, False, True, (1250, 1250, False)),
        (False, True, True, (1472, 1250, False)),
        (True, True, False, (1472, 1472, False)),
    ],
    ids=["joined", "IPv4 alone", "IPv6 not joined", "an old module"],
)
def test_a_clients_sizes_are_a_browsers_unless_ipv6_or_an_old_module_needs_others(
    splits: bool, ipv6: bool, able: bool, sizes: tuple[int, int, bool], in_kernel: bool
) -> None:
    settings_ = Settings(0, 0, 0, 0, in_kernel=in_kernel, splits=able)
    made = installation(record(C, splits=splits, ipv6=ipv6), settings_, 1)
    assert (made.max_datagram_payload, made.usual_payload, made.splits) == sizes
    served = installation(record(S, splits=splits, ipv6=ipv6), settings_, 1)
    assert (served.max_datagram_payload, served.usual_payload) == (1472, 1472)
    assert served.splits == sizes[2]
