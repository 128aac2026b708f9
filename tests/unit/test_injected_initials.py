"""Whoever sees a client's hello has its Initial keys (RFC 9001 §5.2): what such an observer injects is answered as
Dest answers it, and by nobody else."""

from __future__ import annotations

import pytest

from qre.quic.handshake_events import HandshakeFailed
from qre.quic.server.shadow_connection import Mirrored
from qre.wire.frames import Ack, ConnectionClose, Crypto, encode_frame
from qre.wire.packet import PacketType, build_long_header
from qre.wire.protection import Protection, initial_secrets
from tests.support.packets import packets
from tests.support.pair import CLIENT, SERVER, Pair
from tests.support.shadow_pair import ShadowPair
from tests.unit.test_quic_shadow import LONG_CERTIFICATE, site

NUMBER = 0x50
#: What Dest closes the connection for, and whether stock aioquic does, which stands for it.
CLOSED_FOR = {
    "an unknown frame": b"\x3f",
    "a frame of another space": b"\x08\x00abc",
    "HANDSHAKE_DONE": b"\x1e",
    "NEW_TOKEN": b"\x07\x01\x00",
    "an application's CLOSE": encode_frame(ConnectionClose(0, application=True)),
    "a frame that is cut off": b"\x06\x00\x47\xd0",
    "CRYPTO far behind the hello": encode_frame(Crypto(1 << 20, b"x")),
}
IGNORED = {
    "an ACK of what was never sent": encode_frame(Ack(((900, 1000),), 0)),
    "another hello": encode_frame(Crypto(0, bytes(600))),
    "no frame but PADDING": b"",
}


def initial(cid: bytes, payload: bytes, *, reserved: int = 0) -> bytes:
    payload = payload.ljust(1100, b"\0")
    header = build_long_header(PacketType.INITIAL, cid, b"", bytes([0, NUMBER]), 2 + len(payload) + 16)
    header = bytes([header[0] | reserved]) + header[1:]
    return Protection(initial_secrets(cid)[0]).protect(header, NUMBER, payload).ljust(1200, b"\0")


class Observed(ShadowPair):
    """Dest has sent the first datagram of its flight, and the client has none of it yet."""

    cid = b""

    def begin(self) -> Observed:
        self.client.connect(SERVER, self.now)
        first = self.client.datagrams_to_send(self.now)
        self.cid = next(packets(first[0], 0)).destination_cid
        for datagram in first:
            self._deliver(True, datagram)
        self.dest_answers()
        assert self.mirrored and self.server is not None
        return self

    def dest_answers(self) -> list[bytes]:
        """What Dest says to what it has been sent."""
        self.now += 0.01
        self._behind_happens()
        said = self.site.datagrams_to_send(self.now)
        for datagram in said:
            self._dest_spoke(datagram)
        return said

    def inject(self, payload: bytes, *, reserved: int = 0) -> list[tuple[int, list[int]]]:
        """An Initial of the client's; the lengths of Dest's answers and of ours in their place."""
        assert self.server is not None
        before = len(self.mirrored)
        data = initial(self.cid, payload, reserved=reserved)
        self.server.datagram_received(data, CLIENT, self.now)
        self._post(True, data)
        self.dest_answers()
        return [(len(datagram), list(map(len, made))) for datagram, made in self.mirrored[before:]]


@pytest.mark.parametrize("payload", CLOSED_FOR.values(), ids=CLOSED_FOR)
def test_what_dest_closes_a_connection_for_is_answered_with_its_close(payload: bytes) -> None:
    pair = Observed(site=site(certificate=LONG_CERTIFICATE)).begin()
    ((dest, ours),) = pair.inject(payload)
    assert ours == [dest]
    assert pair.server is not None and pair.server.following and pair.server.visit_is_over, (
        "no Finished opens it again"
    )
    assert pair.server.next_event() == HandshakeFailed("Dest closed the connection", None)
    assert pair.server.next_event() is None, "and it does not end: what Dest says again is mirrored"


def test_reserved_bits_are_dests_to_answer() -> None:
    pair = Observed(site=site(certificate=LONG_CERTIFICATE)).begin()
    ((dest, ours),) = pair.inject(b"\x01", reserved=0x0C)
    assert ours == [dest]


@pytest.mark.parametrize("payload", IGNORED.values(), ids=IGNORED)
def test_what_dest_does_not_mind_ends_nothing(payload: bytes) -> None:
    pair = Observed(site=site()).begin()
    assert all(ours == [dest] for dest, ours in pair.inject(payload))
    finish(pair)
    assert pair.complete, (pair.client_events, pair.server_events)


def finish(pair: Pair) -> None:
    for _ in range(400):
        pair._pump()
        if pair.complete or not pair._step():
            break


def test_a_close_ends_what_the_client_says_and_not_what_dest_says() -> None:
    """Dest has sent its flight before the CLOSE came to it."""
    pair = Observed(site=site(certificate=LONG_CERTIFICATE))
    pair.client.connect(SERVER, pair.now)
    first = pair.client.datagrams_to_send(pair.now)
    pair.cid = next(packets(first[0], 0)).destination_cid
    for datagram in first:
        pair._deliver(True, datagram)
    assert pair.server is not None
    pair.server.datagram_received(initial(pair.cid, encode_frame(ConnectionClose(0, False))), CLIENT, pair.now)
    pair.dest_answers()
    assert len(pair.mirrored) >= 2 and all([len(one)] == list(map(len, made)) for one, made in pair.mirrored)
    finish(pair)
    assert not pair.complete, "as little as with Dest"


@pytest.mark.parametrize("payload", [*CLOSED_FOR.values(), *IGNORED.values()])
def test_a_dest_that_is_imitated_ignores_what_a_client_does_not_send(payload: bytes) -> None:
    pair = Pair()
    pair.client.connect(SERVER, pair.now)
    first = pair.client.datagrams_to_send(pair.now)
    for datagram in first:
        pair._deliver(True, datagram)
    assert pair.server is not None
    cid = next(packets(first[0], 0)).destination_cid
    pair.server.datagram_received(initial(cid, payload), CLIENT, pair.now)
    finish(pair)
    assert pair.complete, (pair.client_events, pair.server_events)


def test_every_acknowledgement_of_dest_has_its_answer() -> None:
    """However many PINGs somebody sends in the client's Initials."""
    pair = Observed(site=site()).begin()
    assert pair.server is not None
    for number in range(100, 1400):
        body = b"\x02\x01\x00\x00\x00".ljust(20, b"\0")
        header = build_long_header(
            PacketType.INITIAL, b"", pair.server.handshake_cid, number.to_bytes(2, "big"), 2 + len(body) + 16
        )
        data = Protection(initial_secrets(pair.cid)[1]).protect(header, number, body)
        match pair.server.dest_spoke(data, pair.now):
            case Mirrored((answer,)):
                assert len(answer) == len(data)
            case other:
                raise AssertionError((number, other))
