"""The client's first flight, as an observer on the path reads it, against what was measured of the browser."""

from __future__ import annotations

import random as randomness
from ipaddress import ip_interface

import pytest
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.packet import encode_quic_retry
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from qre.errors import InternalError, UserError
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.client.hello import X25519, X25519MLKEM768, make_hello
from qre.quic.handshake_events import Closed
from qre.reality.authenticator import open_untrusted, share_secrets_untrusted
from qre.visit.visitor_files import load_fingerprint
from tests.support.ja4 import ja4
from tests.support.packets import layout, open_initial, packets
from tests.support.pair import NAME, SERVER, SHORT_ID, TRUST, UNIX_TIME

KEY = X25519PrivateKey.generate()


def client(seed: int | None = None, public_key: bytes | None = None) -> ClientHandshake:
    return ClientHandshake(
        server_name=NAME,
        public_key=KEY.public_key().public_bytes_raw() if public_key is None else public_key,
        short_id=SHORT_ID,
        addresses=(ip_interface("10.0.0.2/24"),),
        fingerprint=load_fingerprint(),
        trust=TRUST,
        unix_time=UNIX_TIME,
        now=0.0,
        random=randomness.SystemRandom() if seed is None else randomness.Random(seed),
    )


def first_flight(handshake: ClientHandshake) -> list[bytes]:
    handshake.connect(SERVER, 0.0)
    return handshake.datagrams_to_send(0.0)


def crypto_of(datagrams: list[bytes], cid: bytes | None = None) -> list[dict[int, bytes]]:
    """offset -> data of each datagram's CRYPTO frames."""
    found = []
    for datagram in datagrams:
        (packet,) = packets(datagram, 0)
        found.append(layout(open_initial(packet, cid or packet.destination_cid).payload).crypto)
    return found


def put_together(pieces: list[dict[int, bytes]]) -> bytes:
    whole = b""
    for offset, data in sorted(item for piece in pieces for item in piece.items()):
        assert offset == len(whole), "a gap or an overlap"
        whole += data
    return whole


@pytest.mark.parametrize("seed", range(16))
def test_a_first_flight_is_two_full_datagrams_with_the_hello_in_pieces(seed: int) -> None:
    datagrams = first_flight(client(seed))
    assert [len(datagram) for datagram in datagrams] == [1250, 1250]
    opened = []
    for datagram in datagrams:
        (packet,) = packets(datagram, 0)  # one packet that fills the datagram: nothing behind it
        assert len(packet.data) == 1250
        assert (len(packet.destination_cid), packet.source_cid, packet.token) == (8, b"", b"")
        opened.append(open_initial(packet, packet.destination_cid))
    assert [(plain.number, plain.length) for plain in opened] == [(1, 1), (2, 2)]
    for plain, fewest in zip(opened, (4, 3), strict=True):
        frames = layout(plain.payload)
        assert fewest <= len(frames.crypto) <= fewest + 8
        assert 2 <= frames.pings <= 10
        assert 150 <= frames.padding <= 275
    first, second = (layout(plain.payload).crypto for plain in opened)
    hello = put_together([first, second])
    start, end = min(second), max(offset + len(data) for offset, data in second.items())
    assert 55 <= start <= 86
    assert end - start == (len(hello) + 1) // 2 + 2
    assert 1860 <= len(hello) <= 2000
    assert min(first) == 0


def test_the_hello_is_the_browsers_and_varies() -> None:
    orders, parameters, cids = set(), set(), set()
    for _ in range(16):
        datagrams = first_flight(client())
        message = put_together(crypto_of(datagrams))
        hello = tls.pull_client_hello(Buffer(data=message))
        kinds = extension_order(message)
        assert hello.signature_algorithms is not None
        assert ja4(hello.cipher_suites, kinds, hello.signature_algorithms, "h3") == load_fingerprint().ja4
        assert hello.legacy_session_id == b""
        assert hello.server_name == NAME
        assert hello.supported_groups == [X25519MLKEM768, X25519, 0x17, 0x18]
        assert [(group, len(share)) for group, share in hello.key_share or []] == [
            (X25519MLKEM768, 1216),
            (X25519, 32),
        ]
        shares = dict(hello.key_share or [])
        assert shares[X25519MLKEM768][-32:] != shares[X25519]
        others = dict(hello.other_extensions)
        assert len(others[0xFE0D]) - 42 in (144, 176, 208, 240)
        assert len(others[0xCA34]) == 186
        orders.add(kinds)
        parameters.add(parameter_order(others[57]))
        cids.add(next(packets(datagrams[0], 0)).destination_cid)
    assert len(orders) == len(parameters) == len(cids) == 16


def extension_order(message: bytes) -> tuple[int, ...]:
    buf = Buffer(data=message)
    buf.seek(4 + 2 + 32 + 1 + 2 + 6 + 2 + 2)
    found = []
    while not buf.eof():
        found.append(buf.pull_uint16())
        buf.pull_bytes(buf.pull_uint16())
    return tuple(found)


def parameter_order(value: bytes) -> tuple[int, ...]:
    buf = Buffer(data=value)
    found, grease = [], []
    while not buf.eof():
        identifier = buf.pull_uint_var()
        content = buf.pull_bytes(buf.pull_uint_var())
        if identifier > 1 << 30:
            assert identifier % 31 == 27
            assert 0 <= len(content) <= 15
            grease.append(identifier)
            identifier = 0
        found.append(identifier)
    assert len(grease) == 1
    assert sorted(found) == [0, 1, 3, 4, 5, 6, 7, 8, 9, 0x0F, 0x11, 0x20, 0x3128]
    return tuple(found)


def test_the_authenticator_is_in_random() -> None:
    message = put_together(crypto_of(first_flight(client())))
    hello = tls.pull_client_hello(Buffer(data=message))
    secrets = share_secrets_untrusted(KEY, dict(hello.key_share or [])[X25519])
    opened = open_untrusted(secrets, message)
    assert (opened.unix_time, opened.short_id) == (UNIX_TIME, SHORT_ID)


@pytest.mark.parametrize("token_length", [16, 100, 400])
def test_a_retry_gets_the_same_hello_with_the_token_and_no_number_again(token_length: int) -> None:
    handshake = client(2)
    sent = first_flight(handshake)
    (packet,) = packets(sent[0], 0)
    token, cid = bytes(token_length), b"retryscid"
    handshake.datagram_received(
        encode_quic_retry(
            version=1,
            source_cid=cid,
            destination_cid=b"",
            original_destination_cid=packet.destination_cid,
            retry_token=token,
        ),
        SERVER,
        0.01,
    )
    again = handshake.datagrams_to_send(0.01)
    assert {len(datagram) for datagram in again} == {1250}
    opened = [(packet, open_initial(packet, cid)) for datagram in again for packet in packets(datagram, 0)]
    assert {packet.token for packet, _ in opened} == {token}
    assert [plain.number for _, plain in opened] == list(range(3, 3 + len(opened)))
    pieces = [layout(plain.payload).crypto for _, plain in opened]
    assert put_together(pieces) == put_together(crypto_of(sent))


def test_what_comes_from_another_address_is_ignored() -> None:
    handshake = client()
    first_flight(handshake)
    handshake.datagram_received(b"\xc0" + bytes(1200), ("192.0.2.99", 443), 0.01)
    assert handshake.next_event() is None
    assert handshake.datagrams_to_send(0.01) == []


def test_a_handshake_is_given_up_with_or_without_a_word() -> None:
    for give_up, datagrams in ((ClientHandshake.close, 1), (ClientHandshake.abandon, 0)):
        handshake = client()
        first_flight(handshake)
        give_up(handshake)
        assert len(handshake.datagrams_to_send(0.1)) == datagrams
        assert handshake.next_event() == Closed()
        assert handshake.timer() is None
        give_up(handshake)
        assert handshake.next_event() is None


def test_a_handshake_that_is_not_ready_cannot_be_handed_over() -> None:
    with pytest.raises(InternalError):
        client().hand_over(0.0)


def test_a_public_key_of_small_order_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="RealityPublicKey"):
        client(public_key=b"\x01" + bytes(31))


def test_a_plain_hello_has_a_random_random_and_no_secrets() -> None:
    hello = make_hello(
        load_fingerprint(), NAME, public_key=b"", short_id=b"", unix_time=0, random=randomness.Random(1)
    )
    assert hello.secrets is None
    assert any(hello.random)
    assert "random" not in repr(hello)


def test_an_unknown_fingerprint_is_a_defect_of_the_installation() -> None:
    with pytest.raises(InternalError, match="netscape"):
        load_fingerprint("netscape-4")
