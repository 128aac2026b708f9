"""A server's handshake in the shadow of a living Dest: what an observer sees is Dest's, and nothing repeats."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import encode_quic_retry
from hypothesis import given
from hypothesis import strategies as st

from qre.dest_profile import DestProfile
from qre.errors import UntrustedInputError
from qre.quic.handshake_events import NotRecognised
from qre.quic.server.shadow_connection import Mirrored, NotFollowed, NotOfThisConnection
from qre.quic.server.shadow_tls import ShadowTlsContext
from qre.quic.shadow.dest_reader import DestReader
from qre.quic.shadow.farewell import farewell
from qre.quic.shadow.server_hello import CannotFollowError, Obstacle, expected_pattern, pattern_of_untrusted
from qre.quic.shadow.shapes import CryptoPlace, DatagramShape, InitialShape
from qre.wire.frames import Ack, ConnectionClose, Crypto, Padding, encode_frame, frames_untrusted
from qre.wire.packet import PacketType, build_long_header, long_header_source_cid, packets_untrusted
from qre.wire.protection import Protection, initial_secrets
from tests.support.packets import open_initial, packets
from tests.support.pair import SERVER, Path
from tests.support.shadow_pair import ShadowPair
from tests.support.stock_site import StockSite, issue

AES_128 = [tls.CipherSuite.AES_128_GCM_SHA256]
#: Enough names for a certificate of several datagrams.
LONG_CERTIFICATE = issue(names=150)
CID = b"original"
#: More of them are a run of its own.
HANDSHAKES = int(os.environ.get("QRE_SHADOW_HANDSHAKES", "40"))


def site(**settings: object) -> StockSite:
    return StockSite(suites=AES_128, **settings)  # type: ignore[arg-type]  # a test's


def first_cid(pair: ShadowPair) -> bytes:
    first = next(datagram for by_client, datagram in pair.sent if by_client)
    return next(packets(first, 0)).destination_cid


def clear(shape: DatagramShape) -> list[tuple[object, ...]]:
    """All that anyone can read of a datagram, but for the bytes that are ours and the bits that are protected."""
    seen: list[tuple[object, ...]] = []
    for packet in shape.packets:
        protected = 0x0F if packet.header[0] & 0x80 else 0x1F
        seen.append((packet.type, packet.header[0] & ~protected, packet.header[1:], packet.length))
        if isinstance(packet, InitialShape):
            seen.append((packet.number, packet.number_length, packet.frames))
    return [*seen, (shape.trailing,)]


@pytest.mark.parametrize("certificate", [None, LONG_CERTIFICATE])
@pytest.mark.parametrize("seed", range(10))
def test_for_every_datagram_of_dest_one_of_the_same_shape_leaves(certificate: object, seed: int) -> None:
    path = Path(loss=0.1, duplicate=0.1, reorder=0.2)
    pair = ShadowPair(seed=seed, path=path, dest_path=path, site=site(certificate=certificate)).run(60)
    assert pair.complete and pair.followed and not pair.passed
    theirs = [datagram for datagram, _ in pair.mirrored]
    ours = [datagram for _, made in pair.mirrored for datagram in made]
    assert ours and len(ours) == len(theirs)
    cid = first_cid(pair)
    read, again = DestReader(cid, b""), DestReader(cid, b"")
    in_order = [each for datagram, made in pair.mirrored for each in ([datagram] if made else [])]
    if len(in_order) == len(theirs):  # none waited for another
        for one, other in zip(theirs, ours, strict=True):
            assert clear(read.read_untrusted(one)) == clear(again.read_untrusted(other))
    assert sorted(map(len, theirs)) == sorted(map(len, ours))


def test_a_client_that_falls_silent_gets_what_dest_sends_again_and_when() -> None:
    pair = ShadowPair(site=site(certificate=LONG_CERTIFICATE))
    pair.client.connect(SERVER, pair.now)
    pair._send(True, pair.client.datagrams_to_send(pair.now))
    begun = pair.now
    while pair.now < begun + 8:
        assert pair.server is None or not pair.server.datagrams_to_send(pair.now), "never by itself"
        for datagram in pair.site.datagrams_to_send(pair.now):
            pair._post(False, datagram)
        moments = [at for at, *_ in pair._wire[:1] + pair._behind[:1]]
        timer = pair._site_timer()
        pair.now = max(pair.now, min([*moments, *([timer] if timer else [])], default=begun + 8)) + 1e-6
        if pair.server is not None:
            pair._wire.clear()  # the client hears nothing
        while pair._wire:
            pair._deliver(True, pair._wire.pop(0)[3])
        pair._behind_happens()
    assert len(pair.mirrored) >= 4
    assert [len(datagram) for datagram, _ in pair.mirrored] == [len(made[0]) for _, made in pair.mirrored]


def test_no_packet_number_is_used_twice_with_other_content(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed: dict[tuple[bytes, int], bytes] = {}
    stock = CryptoPair.encrypt_packet

    def watched(self: CryptoPair, plain_header: bytes, plain_payload: bytes, packet_number: int) -> bytes:
        assert self.send.secret is not None
        key = (self.send.secret, packet_number)
        assert sealed.setdefault(key, plain_payload) == plain_payload
        return stock(self, plain_header, plain_payload, packet_number)

    monkeypatch.setattr(CryptoPair, "encrypt_packet", watched)
    path = Path(loss=0.05, duplicate=0.2, reorder=0.3)
    for seed in range(HANDSHAKES):
        pair = ShadowPair(seed=seed, path=path, dest_path=path, site=site(certificate=LONG_CERTIFICATE)).run(60)
        heard = bool(pair.mirrored)  # a Dest without a whole hello says nothing to anybody
        assert pair.complete or not heard, (seed, pair.client_events, pair.server_events)


def test_what_the_network_repeats_is_repeated_byte_for_byte() -> None:
    pair = ShadowPair(site=site())
    pair.client.connect(SERVER, pair.now)
    for datagram in pair.client.datagrams_to_send(pair.now):
        pair._deliver(True, datagram)
    pair.now += 0.01
    pair._behind_happens()
    (reply,) = pair.site.datagrams_to_send(pair.now)
    assert pair.server is not None
    first, second = (pair.server.dest_spoke(reply, pair.now) for _ in range(2))
    assert isinstance(first, Mirrored) and first == second and len(first.datagrams) == 1


def test_finished_goes_with_what_is_expected_to_be_dests_last() -> None:
    """The client must not be done before it has all of Dest's flight."""
    measured = ShadowPair(site=site(certificate=LONG_CERTIFICATE)).run()
    assert measured.complete
    flight = 0
    for datagram, _ in measured.mirrored:
        for packet in packets_untrusted(datagram, short_cid_length=0):
            if packet.type is PacketType.HANDSHAKE:
                flight += packet.end - packet.number_offset - 24
    known = DestProfile(reachable=True, checked_at=1, scid_length=8, handshake_flight_length=flight)
    pair = ShadowPair(site=site(certificate=LONG_CERTIFICATE), dest=known).run()
    assert pair.complete
    assert len(pair.mirrored) == len(measured.mirrored) >= 3
    wrong = DestProfile(reachable=True, checked_at=1, scid_length=8, handshake_flight_length=flight * 3)
    pair = ShadowPair(site=site(certificate=LONG_CERTIFICATE), dest=wrong).run()
    assert pair.complete, "a wrong expectation costs one retransmission of Dest's"


def test_finished_does_not_wait_for_what_dest_may_not_send() -> None:
    """It cannot open the client's Handshake packets, so it never validates the address, and three times what has
    come is all that it sends: to the end of a long flight it never gets."""
    known = DestProfile(reachable=True, checked_at=1, scid_length=8, handshake_flight_length=15_000)
    pair = ShadowPair(site=site(certificate=issue(names=800)), dest=known).run(20)
    assert pair.complete
    assert sum(len(each) for _, made in pair.mirrored for each in made) >= 3 * 2 * 1250


@pytest.mark.parametrize("length", [4, 8, 18, 20])
def test_the_destination_connection_id_is_dests_and_never_changes(length: int) -> None:
    pair = ShadowPair(site=site(cid_length=length)).run()
    assert pair.complete and pair.server_state is not None and pair.client_state is not None
    chosen = long_header_source_cid(pair.mirrored[0][0])
    assert chosen is not None and len(chosen) == length
    assert pair.server_state.routed_cid == pair.client_state.routed_cid == chosen
    assert pair.client_state.retire_sequence is None
    for by_client, datagram in pair.sent:
        if by_client and not datagram[0] & 0x80:
            assert datagram[1 : 1 + length] == chosen


@pytest.mark.parametrize("length", [0, 3])
def test_a_dest_with_too_short_connection_ids_is_shown_to_the_client(length: int) -> None:
    pair = ShadowPair(site=site(cid_length=length)).run()
    assert not pair.complete and not pair.followed


def test_after_finished_dest_is_told_as_by_a_closed_tab() -> None:
    pair = ShadowPair(site=site()).run()
    pair.now += 1
    pair._behind_happens()
    (last,) = pair.farewells
    assert len(last) == 1250
    opened = open_initial(next(packets(last, 8)), first_cid(pair), by_client=True)
    close, padding = frames_untrusted(opened.payload)
    assert close == ConnectionClose(0, False, 0, b"70:net error") and isinstance(padding, Padding)
    assert pair.site.connection is not None and pair.site.connection._close_event is not None


@pytest.mark.parametrize(
    ("settings", "obstacle"),
    [({"suites": [tls.CipherSuite.AES_256_GCM_SHA384]}, Obstacle.SUITE)],
)
def test_a_dest_that_cannot_be_followed_is_shown_to_the_client(
    settings: dict[str, object], obstacle: Obstacle
) -> None:
    pair = ShadowPair(site=StockSite(**settings))  # type: ignore[arg-type]  # a test's
    pair.client.connect(SERVER, pair.now)
    for datagram in pair.client.datagrams_to_send(pair.now):
        pair._deliver(True, datagram)
    pair.now += 0.01
    pair._behind_happens()
    (reply,) = pair.site.datagrams_to_send(pair.now)
    assert pair.server is not None
    assert pair.server.dest_spoke(reply, pair.now) == NotFollowed(obstacle, ())


def test_an_observer_cannot_end_a_handshake_that_waits_for_dest() -> None:
    """Whoever sees the hello can make Initials of the client's: more CRYPTO data says nothing."""
    pair = ShadowPair(site=site())
    pair.client.connect(SERVER, pair.now)
    for datagram in pair.client.datagrams_to_send(pair.now):
        pair._deliver(True, datagram)
        pair._send(True, [datagram])
    server = pair.server
    assert server is not None
    cid = next(packets(datagram, 0)).destination_cid
    payload = encode_frame(Crypto(1900, bytes([1, 0, 0, 4]) + bytes(600))).ljust(1100, b"\0")
    header = build_long_header(PacketType.INITIAL, cid, b"", b"\0\x50", 2 + len(payload) + 16)
    forged = Protection(initial_secrets(cid)[0]).protect(header, 0x50, payload).ljust(1200, b"\0")
    server.datagram_received(forged, ("192.0.2.2", 50_000), pair.now)
    assert server.following
    for _ in range(400):
        pair._pump()
        if pair.complete or not pair._step():
            break
    assert pair.complete, (pair.client_events, pair.server_events)


def test_what_is_not_of_the_connection_is_passed_on() -> None:
    pair = ShadowPair(site=site())
    pair.client.connect(SERVER, pair.now)
    for datagram in pair.client.datagrams_to_send(pair.now):
        pair._deliver(True, datagram)
    assert pair.server is not None
    for strange in (b"", b"\x07garbage", b"\x80\x00\x00\x00\x00\x00\x00versions", bytes(1200)):
        assert pair.server.dest_spoke(strange, pair.now) == NotOfThisConnection()
    overtaking = b"\x41" + bytes(40)
    assert pair.server.dest_spoke(overtaking, pair.now) == Mirrored(()), "it waits for what it has overtaken"
    assert pair.server.following


def test_a_dest_that_sends_without_end_is_answered_a_bounded_number_of_times() -> None:
    pair = ShadowPair(site=site())
    pair.client.connect(SERVER, pair.now)
    for datagram in pair.client.datagrams_to_send(pair.now):
        pair._deliver(True, datagram)
    pair.now += 0.01
    pair._behind_happens()
    (reply,) = pair.site.datagrams_to_send(pair.now)
    server = pair.server
    assert server is not None
    server.dest_spoke(reply, pair.now)
    cid = long_header_source_cid(reply)
    assert cid is not None
    answered = 0
    for number in range(2000):
        body = number.to_bytes(4, "big") * 300
        header = build_long_header(PacketType.HANDSHAKE, b"", cid, b"\0\0", 2 + len(body))
        match server.dest_spoke(header + body, pair.now):
            case Mirrored((_,)):
                answered += 1
    assert 100 < answered < 600


def test_a_retry_of_dest_before_the_verdict_binds_the_keys() -> None:
    pair = ShadowPair(site=site())
    pair.client.connect(SERVER, pair.now)
    first = pair.client.datagrams_to_send(pair.now)
    original = next(packets(first[0], 0)).destination_cid
    pair._inspector.datagram_received(first[0], 1_790_000_000_000)
    retry = encode_quic_retry(
        version=1,
        source_cid=b"retry cid",
        destination_cid=b"",
        original_destination_cid=original,
        retry_token=b"token",
    )
    pair._inspector.retry_relayed(b"retry cid")
    pair.client.datagram_received(retry, SERVER, pair.now)
    pair.site = site(retried=(original, b"retry cid"))
    for _ in range(400):
        pair._pump()
        if pair.complete or not pair._step():
            break
    assert pair.complete, (pair.client_events, pair.server_events)
    assert not any(isinstance(event, NotRecognised) for event in pair.client_events)


# --- ServerHello ---

HELLO = bytes.fromhex("020004960303") + bytes(32) + bytes.fromhex("00130100046e")
VERSIONS = bytes.fromhex("002b00020304")
HYBRID = bytes.fromhex("0033046411ec0460") + bytes(range(256)) * 4 + bytes(96)


def test_the_pattern_is_certain_as_soon_as_only_the_share_is_missing() -> None:
    whole = HELLO + VERSIONS + HYBRID
    assert pattern_of_untrusted(whole[:51]) is None
    for end in (58, 700, 1159, len(whole)):
        found = pattern_of_untrusted(whole[:end])
        assert found is not None and (found.share_at, found.group) == (58, 0x11EC)
        ours = found.with_ours(b"r" * 32, b"s" * 1120)
        assert ours == whole[:6] + b"r" * 32 + whole[38:58] + b"s" * 1120


def test_the_extension_that_is_missing_behind_the_share_is_known() -> None:
    whole = HELLO + HYBRID + VERSIONS
    for end in (52, 700, 1160, len(whole)):
        found = pattern_of_untrusted(whole[:end])
        assert found is not None
        assert found.with_ours(bytes(32), bytes(1120)) == whole[:52] + bytes(1120) + VERSIONS


@pytest.mark.parametrize(("extensions", "whole"), [((43, 51), VERSIONS + HYBRID), ((51, 43), HYBRID + VERSIONS)])
def test_what_is_expected_after_a_visit_is_what_comes(extensions: tuple[int, ...], whole: bytes) -> None:
    found, expected = pattern_of_untrusted(HELLO + whole), expected_pattern(0x11EC, extensions)
    assert found is not None
    assert (found.share_at, found.group) == (expected.share_at, expected.group)
    assert found.with_ours(bytes(32), bytes(1120)) == expected.with_ours(bytes(32), bytes(1120))
    assert expected_pattern(0x11EC, ()).pattern == expected_pattern(0x11EC, (43, 51)).pattern
    short = expected_pattern(0x001D, (43, 51))
    assert pattern_of_untrusted(short.pattern) == short


@pytest.mark.parametrize("group", ["X25519", "X25519MLKEM768"])
@pytest.mark.parametrize("extensions", [(43, 51), (51, 43)])
def test_a_wrong_expectation_costs_nothing_but_time(group: str, extensions: tuple[int, ...]) -> None:
    known = DestProfile(reachable=True, checked_at=1, scid_length=8, group=group, server_hello_extensions=extensions)
    assert ShadowPair(site=site(), dest=known).run().complete
    assert AcknowledgedPair(site=site(), dest=known).run().complete


class AcknowledgedPair(ShadowPair):
    """Dest acknowledges the hello before it answers it; the client does not get that."""

    def _dest_spoke(self, datagram: bytes) -> None:
        if self.server is not None and not self.mirrored:
            header, cid = next(packets(datagram, 0)), first_cid(self)
            payload = encode_frame(Ack([(0, 0)], 0)).ljust(30, b"\0")
            clear = build_long_header(
                PacketType.INITIAL, header.destination_cid, header.source_cid, b"\0\0", 2 + len(payload) + 16
            )
            self.server.dest_spoke(Protection(initial_secrets(cid)[1]).protect(clear, 0, payload), self.now)
            self.server.prepare()
        super()._dest_spoke(datagram)


def test_where_dest_acknowledges_first_all_is_made_before_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that ours leaves when a site's would: hashing, signing and keys take longer than a datagram's way."""
    made: list[int] = []
    stock = ShadowTlsContext._push_rest

    def push_rest(self: ShadowTlsContext, buf: Buffer) -> None:
        made.append(len(pair.mirrored))
        stock(self, buf)

    monkeypatch.setattr(ShadowTlsContext, "_push_rest", push_rest)
    known = DestProfile(reachable=True, checked_at=1, scid_length=8, group="X25519", server_hello_extensions=(43, 51))
    pair = AcknowledgedPair(site=site(), dest=known)
    assert pair.run().complete
    assert made == [0], "once"


@pytest.mark.parametrize(
    ("hello", "obstacle"),
    [
        (HELLO.replace(b"\x13\x01", b"\x13\x02") + VERSIONS + HYBRID, Obstacle.SUITE),
        (
            HELLO[:6]
            + bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
            + HELLO[38:]
            + VERSIONS
            + HYBRID,
            Obstacle.HELLO_RETRY,
        ),
        (HELLO + VERSIONS + HYBRID.replace(b"\x11\xec", b"\x00\x17"), Obstacle.GROUP),
        (b"\x0b" + HELLO[1:] + VERSIONS + HYBRID, Obstacle.UNREADABLE),
        (HELLO + VERSIONS.replace(b"\x03\x04", b"\x03\x03") + HYBRID, Obstacle.UNREADABLE),
        (HELLO.replace(b"\x04\x6e", b"\x04\x6f") + VERSIONS + HYBRID, Obstacle.UNREADABLE),
    ],
)
def test_what_ours_cannot_be_is_named(hello: bytes, obstacle: Obstacle) -> None:
    with pytest.raises(CannotFollowError) as caught:
        pattern_of_untrusted(hello)
    assert caught.value.obstacle is obstacle


@given(st.binary(max_size=1400))
def test_any_bytes_may_be_a_server_hello(data: bytes) -> None:
    for text in (data, HELLO + data):
        try:
            found = pattern_of_untrusted(text)
        except UntrustedInputError:
            continue
        assert found is None or found.share_at < len(found.pattern)


def initials(payloads: list[bytes], source: bytes = b"dest") -> Iterator[bytes]:
    for number, payload in enumerate(payloads):
        header = build_long_header(PacketType.INITIAL, b"", source, bytes([number]), len(payload) + 17)
        yield Protection(initial_secrets(CID)[1]).protect(header, number, payload)


def test_the_reader_keeps_what_is_clear_of_an_initial() -> None:
    reader = DestReader(CID, b"")
    payload = (
        b"\x02\x01\x00\x00\x00"
        + bytes(7)
        + encode_frame(Crypto(3, b"abc"))
        + b"\x01"
        + encode_frame(Crypto(0, b"xyz"))
    )
    (datagram,) = initials([payload])
    shape = reader.read_untrusted(datagram + b"\0\0trailing")
    (packet,) = shape.packets
    assert isinstance(packet, InitialShape)
    assert packet.frames == (
        b"\x02\x01\x00\x00\x00",
        bytes(7),
        CryptoPlace(b"\x06\x03\x03", 3, 3),
        b"\x01",
        CryptoPlace(b"\x06\x00\x03", 0, 3),
    )
    assert shape.trailing == b"\0\0trailing"
    assert reader.hello == b"xyzabc" and reader.source_cid == b"dest"


@pytest.mark.parametrize("source", [b"", b"abc"])
def test_a_connection_id_that_tells_nobody_apart_is_refused(source: bytes) -> None:
    with pytest.raises(CannotFollowError):
        DestReader(CID, b"").read_untrusted(next(initials([b"\x01\0\0\0"], source)))


@given(st.lists(st.binary(max_size=300), max_size=6), st.binary(max_size=60))
def test_whatever_dest_sends_is_read_or_refused(payloads: list[bytes], rest: bytes) -> None:
    reader = DestReader(CID, b"")
    for datagram in initials([payload.ljust(4, b"\0") for payload in payloads]):
        for data in (datagram, datagram + rest, rest):
            try:
                shape = reader.read_untrusted(data)
            except UntrustedInputError:
                continue
            assert sum(packet.size for packet in shape.packets) + len(shape.trailing) == len(data)
    assert len(reader.hello) <= 4096


def test_the_farewell_carries_the_token_of_a_retry() -> None:
    data = farewell(CID, b"dest", b"", 7, b"token")
    header = next(packets_untrusted(data, short_cid_length=0))
    assert (header.destination_cid, header.source_cid, header.token, header.end) == (b"dest", b"", b"token", 1250)
