"""docs/specification.md and its vectors: each value is computed here as the page says, by libraries alone, and what
the code makes and takes is the same."""

from __future__ import annotations

import hmac
import json
import re
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from pylsqpack import Decoder

from qre.quic.server.inspector import Authenticated, HelloInspector, Undecided
from qre.reality.authenticator import VERSION, Authenticator, open_untrusted, seal, share_secrets_untrusted
from qre.reality.proof import proves_server
from qre.wire.capsule import CapsuleType, parse_addresses_untrusted, parse_routes_untrusted, read_capsule_untrusted
from qre.wire.close_reason import CloseReason, close_words
from qre.wire.frames import Ack, Crypto, Frame, HandshakeDone, Padding, Ping, Stream, frames_untrusted
from qre.wire.packet import PacketType
from qre.wire.protection import Protection, initial_secrets
from qre.wire.varint import read_varint_untrusted
from qre.workers.dataplane.inner.joining import Joiner
from tests.support import protocol_vectors
from tests.support.conformance import ROOT
from tests.support.inner_packets import slow_sum
from tests.support.packets import Packet, packets

PAGE = (ROOT / "docs" / "specification.md").read_text()
VECTORS: dict[str, Any] = json.loads((ROOT / "docs" / "vectors.json").read_text())
CERTIFICATE = 11


def value(*path: str) -> bytes:
    found: Any = VECTORS
    for name in path:
        found = found[name]
    return bytes.fromhex(found)


def expand(key: bytes, info: bytes, length: int) -> bytes:
    return HKDFExpand(SHA256(), length, info).derive(key)


def expand_label(secret: bytes, label: bytes, length: int) -> bytes:
    """RFC 8446 §7.1."""
    full = b"tls13 " + label
    return expand(secret, length.to_bytes(2, "big") + bytes([len(full)]) + full + b"\0", length)


def hello_secrets() -> tuple[bytes, bytes, bytes]:
    """hello_key, hello_iv and proof as §1 says."""
    private = X25519PrivateKey.from_private_bytes(value("hello", "x25519_private_key"))
    shared = private.exchange(X25519PublicKey.from_public_bytes(value("profile", "reality_public_key")))
    prk = hmac.digest(b"qre reality v1", shared, "sha256")
    return expand(prk, b"hello key", 16), expand(prk, b"hello iv", 12), expand(prk, b"proof", 32)


def test_the_hello_is_sealed_as_the_page_says() -> None:
    key, iv, proof = hello_secrets()
    assert (key, iv, proof) == tuple(value("hello", name) for name in ("hello_key", "hello_iv", "proof"))
    hello = value("hello", "client_hello")
    assert hello[6:38] == value("hello", "random")
    plaintext = AESGCM(key).decrypt(iv, hello[6:38], hello[:6] + bytes(32) + hello[38:])
    time = VECTORS["profile"]["unix_time"].to_bytes(4, "big")
    assert plaintext == bytes([0, 3, 0, 0]) + time + value("profile", "short_id")


def test_the_code_seals_this_hello_and_opens_it() -> None:
    hello = value("hello", "client_hello")
    ours = share_secrets_untrusted(value("hello", "x25519_private_key"), value("profile", "reality_public_key"))
    sent = Authenticator(VERSION, VECTORS["profile"]["unix_time"], value("profile", "short_id"))
    assert seal(ours, sent, hello) == value("hello", "random")
    theirs = share_secrets_untrusted(value("profile", "reality_private_key"), value("hello", "x25519_share"))
    assert open_untrusted(theirs, hello) == sent


def datagrams(by: str) -> list[bytes]:
    return [bytes.fromhex(each["data"]) for each in VECTORS["datagrams"] if each["by"] == by]


def inspector(**changed: Any) -> HelloInspector:
    settings: dict[str, Any] = {
        "server_name": VECTORS["profile"]["server_name"],
        "private_key": value("profile", "reality_private_key"),
        "short_ids": [value("profile", "short_id")],
        "max_time_diff_ms": 60_000,
    }
    return HelloInspector(**settings | changed)


def test_a_resumed_hello_is_sealed_up_to_its_binders_and_bound_to_its_proof() -> None:
    hello, ticket = value("resumption", "resumed_client_hello"), value("resumption", "ticket")
    private = X25519PrivateKey.from_private_bytes(value("profile", "reality_private_key"))
    shared = private.exchange(X25519PublicKey.from_public_bytes(value("resumption", "resumption_x25519_share")))
    prk = hmac.digest(b"qre reality v1", shared, "sha256")
    key, iv, proof = expand(prk, b"hello key", 16), expand(prk, b"hello iv", 12), expand(prk, b"proof", 32)
    assert proof == value("resumption", "resumption_proof")
    assert ticket in hello
    covered = hello[:-35]
    plaintext = AESGCM(key).decrypt(iv, hello[6:38], covered[:6] + bytes(32) + covered[38:])
    assert plaintext[8:] == value("profile", "short_id")
    secret = value("resumption", "ticket_secret")
    psk = hmac.digest(proof, b"qre resumption v1" + secret, "sha256")
    assert psk == value("resumption", "pre_shared_key")
    early = hmac.digest(bytes(32), psk, "sha256")
    full = b"tls13 res binder"
    nothing = sha256(b"").digest()
    binder_key = expand(early, b"\0\x20" + bytes([len(full)]) + full + b"\x20" + nothing, 32)
    finished = expand_label(binder_key, b"finished", 32)
    assert hello[-35:] == bytes.fromhex("002120") + hmac.digest(finished, sha256(covered).digest(), "sha256")
    assert hmac.digest(secret, b"qre ticket v1" + ticket[:-8], "sha256")[:8] == ticket[-8:]


def test_the_first_flight_is_let_in_and_with_anything_else_it_is_a_strangers() -> None:
    now = VECTORS["profile"]["unix_time"] * 1000
    first, second = datagrams("client")[:2]
    let_in = inspector()
    assert let_in.datagram_received(first, now) is Undecided.UNDECIDED
    verdict = let_in.datagram_received(second, now)
    assert isinstance(verdict, Authenticated)
    assert verdict.client_hello == value("hello", "client_hello")
    for changed, later in (
        ({}, 61_000),
        ({"server_name": "www.example.net"}, 0),
        ({"short_ids": [bytes(8)]}, 0),
        ({"private_key": bytes(range(2, 34))}, 0),
    ):
        stranger = inspector(**changed)
        stranger.datagram_received(first, now)
        assert stranger.datagram_received(second, now + later) is Undecided.STRANGER


# --- the server's answer ---


def opened(by: str, kind: PacketType, secret: bytes) -> Iterator[tuple[int, list[Frame]]]:
    """Packet numbers and frames of one end's packets of a kind, of key epoch 0."""
    routed = value("hand_over", "routed_cid")
    for datagram in datagrams(by):
        for packet in packets(datagram, len(routed) if by == "client" else 0):
            if packet.kind is kind:
                yield plain(packet, secret)


def plain(packet: Packet, secret: bytes) -> tuple[int, list[Frame]]:
    """RFC 9001 §5: keys, header protection, AEAD."""
    key, iv, hp = (
        expand_label(secret, b"quic " + name, size) for name, size in ((b"key", 16), (b"iv", 12), (b"hp", 16))
    )
    sample = packet.data[packet.offset + 4 : packet.offset + 20]
    encryptor = Cipher(algorithms.AES(hp), modes.ECB()).encryptor()
    mask = encryptor.update(sample)
    first = packet.data[0] ^ mask[0] & (0x0F if packet.data[0] & 0x80 else 0x1F)
    end = packet.offset + (first & 3) + 1
    number = bytes(a ^ b for a, b in zip(packet.data[packet.offset : end], mask[1:], strict=False))
    header = bytes([first]) + packet.data[1 : packet.offset] + number
    nonce = int.from_bytes(iv, "big") ^ int.from_bytes(number, "big")
    payload = AESGCM(key).decrypt(nonce.to_bytes(12, "big"), packet.data[end:], header)
    return int.from_bytes(number, "big"), list(frames_untrusted(payload))


def messages() -> dict[int, bytes]:
    """The TLS messages of the server's Handshake packets, by type."""
    pieces: dict[int, bytes] = {}
    for _, frames in opened("server", PacketType.HANDSHAKE, value("secrets", "server_handshake_traffic_secret")):
        pieces |= {frame.offset: frame.data for frame in frames if isinstance(frame, Crypto)}
    data = b"".join(pieces[offset] for offset in sorted(pieces))
    found, at = {}, 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at + 1 : at + 4], "big")
        found[data[at]], at = data[at:end], end
    return found


def test_the_servers_certificate_carries_the_proof() -> None:
    message = messages()[CERTIFICATE]
    length = int.from_bytes(message[8:11], "big")
    certificate = x509.load_der_x509_certificate(message[11 : 11 + length])
    key = certificate.public_key()
    assert isinstance(key, Ed25519PublicKey)
    proof = value("hello", "proof")
    assert certificate.signature == hmac.digest(proof, key.public_bytes_raw(), "sha512")
    assert proves_server(proof, key.public_bytes_raw(), certificate.signature)


def test_the_client_asks_for_its_address_and_the_server_grants_it() -> None:
    asked = content("client", "client_traffic_secret_0")
    assert value("capsules", "address_request") in asked
    granted = content("server", "server_traffic_secret_0")
    assert value("capsules", "address_assign") + value("capsules", "route_advertisement") in granted
    kind, entry, _ = read_capsule_untrusted(value("capsules", "address_request"), 100) or pytest.fail("no capsule")
    assert kind == CapsuleType.ADDRESS_REQUEST
    (address,) = parse_addresses_untrusted(entry)
    assert (address.request_id, address.address) == (1, ip_interface("10.77.0.2/32"))
    _, routes, _ = read_capsule_untrusted(value("capsules", "route_advertisement"), 100) or pytest.fail("no capsule")
    assert parse_routes_untrusted(routes) == (ip_network("10.77.0.0/24"),)


def content(by: str, secret: str) -> bytes:
    """Of stream 0."""
    pieces: dict[int, bytes] = {}
    for _, frames in opened(by, PacketType.ONE_RTT, value("secrets", secret)):
        pieces |= {f.offset: f.data for f in frames if isinstance(f, Stream) and f.stream_id == 0}
    return b"".join(pieces[offset] for offset in sorted(pieces))


# --- the hand-over ---


def test_user_space_stays_below_the_data_planes_numbers_and_the_last_frame_is_a_ping() -> None:
    server = list(opened("server", PacketType.ONE_RTT, value("secrets", "server_traffic_secret_0")))
    client = list(opened("client", PacketType.ONE_RTT, value("secrets", "client_traffic_secret_0")))
    assert max(number for number, _ in [*server, *client]) < protocol_vectors.PACKET_NUMBER_BASE
    last, frames = server[-1]
    assert all(isinstance(frame, Ping | Padding | Ack) for frame in frames)
    assert any(isinstance(frame, Ping) for frame in frames)
    acknowledged = [frame for frame in client[-1][1] if isinstance(frame, Ack)]
    assert acknowledged and acknowledged[0].ranges[0][1] == last
    assert any(isinstance(frame, HandshakeDone) for _, frames in server for frame in frames)


def test_the_session_is_named_and_its_keys_are_derived_as_the_page_says() -> None:
    assert expand_label(value("secrets", "client_traffic_secret_0"), b"qre session id", 32) == value(
        "hand_over", "session_id"
    )
    for end in ("client", "server"):
        secret = value("secrets", f"{end}_traffic_secret_0")
        header = expand_label(secret, b"quic hp", 16)
        for keys in VECTORS["hand_over"][f"{end}_keys"]:
            expected = expand_label(secret, b"quic key", 16), expand_label(secret, b"quic iv", 12), header
            assert expected == tuple(bytes.fromhex(keys[name]) for name in ("key", "iv", "hp"))
            secret = expand_label(secret, b"quic ku", 32)


def test_data_packets_open_and_are_made_as_the_page_says() -> None:
    for each in VECTORS["data_packets"]:
        cid = value("hand_over", "routed_cid") if each["by"] == "client" else b""
        keys = VECTORS["hand_over"][f"{each['by']}_keys"][each["key_epoch"]]
        key, iv, hp = (bytes.fromhex(keys[name]) for name in ("key", "iv", "hp"))
        number, payload = each["number"], bytes.fromhex(each["payload"])
        header = bytes([0x43 | each["key_epoch"] << 2]) + cid + number.to_bytes(4, "big")
        nonce = (int.from_bytes(iv, "big") ^ number).to_bytes(12, "big")
        sealed = AESGCM(key).encrypt(nonce, payload, header)
        encryptor = Cipher(algorithms.AES(hp), modes.ECB()).encryptor()
        mask = encryptor.update(sealed[:16])
        hidden = bytes(a ^ b for a, b in zip(number.to_bytes(4, "big"), mask[1:], strict=False))
        packet = bytes.fromhex(each["packet"])
        assert packet == bytes([header[0] ^ mask[0] & 0x1F]) + cid + hidden + sealed
        secret = value("secrets", f"{each['by']}_traffic_secret_0")
        current = expand_label(secret, b"quic ku", 32) if each["key_epoch"] else secret
        _, read, content = Protection(current, secret).unprotect_untrusted(packet, 1 + len(cid), number)
        assert (read, content) == (number, payload)
    numbers = [(each["by"], each["number"]) for each in VECTORS["data_packets"]]
    assert len(set(numbers)) == len(numbers) and min(number for _, number in numbers) == 65_536


def test_an_echo_request_of_1280_bytes_goes_in_two_parts_that_a_server_joins() -> None:
    one, two = (bytes.fromhex(each["payload"]) for each in VECTORS["data_packets"][-2:])
    assert one[:7] == bytes.fromhex("300002 0000 0500")
    assert two[:7] == bytes.fromhex("300002 0000 8500")
    packet = one[7:] + two[7:]
    assert len(packet) == 1280 == int.from_bytes(packet[2:4], "big")
    assert packet[12:20] == ip_address("10.77.0.2").packed + ip_address("10.77.0.1").packed
    assert slow_sum(packet[:20]) == slow_sum(packet[20:]) == 0xFFFF
    assert Joiner(Counter(), allowed=True).whole_untrusted([two, one], 0.0) == [b"\x30\0\0" + packet]
    packets = [bytes.fromhex(each["packet"]) for each in VECTORS["data_packets"][-2:]]
    assert max(map(len, packets)) == 1250
    for by in ("client", "server"):
        assert b"qre-split" in field_names(content(by, f"{by}_traffic_secret_0")), "offered, and taken"


def field_names(stream: bytes) -> bytes:
    """The fields of the HEADERS that a stream begins with (RFC 9114 §7.2.2, RFC 9204)."""
    kind, at = read_varint_untrusted(stream)
    length, at = read_varint_untrusted(stream, at)
    assert kind == 1
    _, headers = Decoder(0, 0).feed_header(0, stream[at : at + length])
    return b" ".join(name for name, _ in headers)


# --- the page ---


def test_the_initials_are_rfc_9001s() -> None:
    first = next(packets(datagrams("client")[0], 0))
    number, frames = plain(first, initial_secrets(first.destination_cid)[0])
    assert any(isinstance(frame, Crypto) for frame in frames)
    assert first.source_cid == b"" and len(first.destination_cid) >= 8 and number < 256


def test_the_page_has_every_reason_for_a_close() -> None:
    rows = {int(number): int(code) for number, code in re.findall(r"^\| (\d+) \| (8\d{3}) \|", PAGE, re.MULTILINE)}
    assert rows == {int(reason): reason.error_code for reason in CloseReason}
    assert VECTORS["close_reasons"] == {reason.name.lower(): reason.error_code for reason in CloseReason}
    assert all(close_words(code) for code in rows.values())


def test_the_page_names_values_that_the_vectors_have() -> None:
    def names(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            for name, inner in part.items():
                yield name
                yield from names(inner)

    known = set(names(VECTORS))
    prose = "".join(PAGE.split("```")[::2])
    used = set(re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+)+)`", prose))
    assert used <= known


def test_vectors_that_are_made_anew_have_the_same_form() -> None:
    made = protocol_vectors.vectors()
    assert shape(made) == shape(VECTORS)


def shape(part: Any) -> Any:
    """Names and types, without the datagrams, whose number may differ."""
    if isinstance(part, dict):
        return {name: shape(inner) for name, inner in part.items() if name != "datagrams"}
    return [shape(each) for each in part] if isinstance(part, list) else type(part).__name__
