"""A client that was installed earlier still gets in: first flights that were recorded of its code, and what a server
of today answers to them. ``tests/data/earlier-clients.json`` says of which state of the code each is.

Each was made with the names, keys and the time of ``tests.support.pair``, by the code of that day; the private half
of the hello's lone x25519 share is kept, so that the answer can be read as that client read it.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import pytest
from aioquic import tls
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from qre.quic.server.shadow_connection import Mirrored
from qre.reality.authenticator import share_secrets_untrusted
from qre.reality.proof import proves_server
from qre.wire.frames import Crypto, frames_untrusted
from qre.wire.packet import PacketType
from qre.wire.protection import Protection, initial_secrets
from tests.support.conformance import ROOT
from tests.support.packets import Packet, packets
from tests.support.shadow_pair import ShadowPair
from tests.support.stock_site import StockSite

CLIENTS: dict[str, Any] = json.loads((ROOT / "tests" / "data" / "earlier-clients.json").read_text())
PRIVATE_KEY = bytes(range(1, 33))
SUITES = [tls.CipherSuite.AES_128_GCM_SHA256]
_KEY_SHARE, _X25519, _CERTIFICATE = 51, 29, 11


def crypto(answer: list[bytes], kind: PacketType, secret: bytes) -> bytes:
    """The TLS messages in the server's packets of one kind."""
    pieces: dict[int, bytes] = {}
    for packet in of_kind(answer, kind):
        _, _, payload = Protection(secret).unprotect_untrusted(packet.data, packet.offset, 0)
        pieces |= {each.offset: each.data for each in frames_untrusted(payload) if isinstance(each, Crypto)}
    return b"".join(pieces[offset] for offset in sorted(pieces))


def of_kind(answer: list[bytes], kind: PacketType) -> Iterator[Packet]:
    for datagram in answer:
        yield from (each for each in packets(datagram, 0) if each.kind is kind)


def server_share(server_hello: bytes) -> bytes:
    """The key share of a ServerHello (RFC 8446 §4.1.3, §4.2.8), which is of x25519 alone here."""
    at = 4 + 2 + 32 + 1 + server_hello[38] + 2 + 1 + 2
    while at < len(server_hello):
        kind, length = (int.from_bytes(server_hello[place : place + 2], "big") for place in (at, at + 2))
        if kind == _KEY_SHARE:
            group, share = server_hello[at + 4 : at + 6], server_hello[at + 8 : at + 4 + length]
            assert int.from_bytes(group, "big") == _X25519
            return share
        at += 4 + length
    raise AssertionError("a ServerHello without a key share")


def handshake_secret(shared: bytes, hellos: bytes) -> bytes:
    """The server's (RFC 8446 §7.1)."""
    nothing = sha256(b"").digest()

    def derived(secret: bytes, label: bytes, context: bytes) -> bytes:
        full = b"tls13 " + label
        info = bytes([0, 32, len(full)]) + full + bytes([32]) + context + b"\x01"
        return hmac.digest(secret, info, "sha256")

    early = hmac.digest(bytes(32), bytes(32), "sha256")
    handshake = hmac.digest(derived(early, b"derived", nothing), shared, "sha256")
    return derived(handshake, b"s hs traffic", sha256(hellos).digest())


def answered(pair: ShadowPair, flight: list[bytes]) -> list[bytes]:
    """What a server in the shadow of its Dest answers to a first flight."""
    for datagram in flight:
        pair._deliver(True, datagram)
    pair.now += 0.01
    pair._behind_happens()
    assert pair.server is not None, "the client is let in"
    answer: list[bytes] = []
    for reply in pair.site.datagrams_to_send(pair.now):
        said = pair.server.dest_spoke(reply, pair.now)
        assert isinstance(said, Mirrored)
        answer += said.datagrams
    return answer


@pytest.mark.parametrize("since", CLIENTS)
def test_a_client_of_an_earlier_day_is_let_in_and_finds_the_proof_in_the_answer(since: str) -> None:
    flight = [bytes.fromhex(each) for each in CLIENTS[since]["first_flight"]]
    lone = bytes.fromhex(CLIENTS[since]["x25519_private_key"])
    private_key = X25519PrivateKey.from_private_bytes(PRIVATE_KEY)
    pair = ShadowPair(private_key=private_key, site=StockSite(suites=SUITES))
    answer = answered(pair, flight)

    first = next(packets(flight[0], 0))
    theirs = b"".join(
        data
        for _, data in sorted(
            (frame.offset, frame.data)
            for datagram in flight
            for packet in packets(datagram, 0)
            for frame in frames_untrusted(opened(packet, initial_secrets(first.destination_cid)[0]))
            if isinstance(frame, Crypto)
        )
    )
    ours = crypto(answer, PacketType.INITIAL, initial_secrets(first.destination_cid)[1])
    shared = X25519PrivateKey.from_private_bytes(lone).exchange(X25519PublicKey.from_public_bytes(server_share(ours)))
    said = crypto(answer, PacketType.HANDSHAKE, handshake_secret(shared, theirs + ours))

    proof = share_secrets_untrusted(lone, private_key.public_key().public_bytes_raw()).proof
    certificate = certificate_of(said)
    key = certificate.public_key()
    assert isinstance(key, Ed25519PublicKey)
    assert proves_server(proof, key.public_bytes_raw(), certificate.signature)


def opened(packet: Packet, secret: bytes) -> bytes:
    return Protection(secret).unprotect_untrusted(packet.data, packet.offset, 0)[2]


def certificate_of(messages: bytes) -> x509.Certificate:
    """That of the Certificate message (RFC 8446 §4.4.2)."""
    at = 0
    while messages[at] != _CERTIFICATE:
        at += 4 + int.from_bytes(messages[at + 1 : at + 4], "big")
    message = messages[at:]
    return x509.load_der_x509_certificate(message[11 : 11 + int.from_bytes(message[8:11], "big")])
