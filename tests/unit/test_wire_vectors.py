"""The vectors of RFC 9001, Appendix A, and RFC 9000, Appendix A."""

from __future__ import annotations

import pytest

from qre.wire.number import decode_number
from qre.wire.packet import PacketType, build_long_header, build_short_header, parse_header_untrusted
from qre.wire.protection import Protection, expand_label, initial_secrets, next_secret
from qre.wire.varint import encode_varint, read_varint_untrusted
from tests.support.wire_codecs import encoded_length, retry_integrity_tag

DCID = bytes.fromhex("8394c8f03e515708")
CRYPTO = bytes.fromhex(
    "060040f1010000ed0303ebf8fa56f12939b9584a3896472ec40bb863cfd3e86804fe3a47f06a2b69484c"
    "00000413011302010000c000000010000e00000b6578616d706c652e636f6dff01000100000a00080006001d"
    "0017001800100007000504616c706e000500050100000000003300260024001d00209370b2c9caa47fbabaf4"
    "559fedba753de171fa71f50f1ce15d43e994ec74d748002b0003020304000d0010000e040305030603020308"
    "04080508060 02d00020101001c00024001003900320408ffffffffffffffff05048000ffff07048000ffff0801"
    "10010480 0075300901100f088394c8f03e51570806048000ffff".replace(" ", "")
)


def test_a1_keys() -> None:
    client, server = (Protection(secret) for secret in initial_secrets(DCID))
    assert client.key.hex() == "1f369613dd76d5467730efcbe3b1a22d"
    assert client.iv.hex() == "fa044b2f42a3fd3b46fb255c"
    assert client.hp.hex() == "9f50449e04a0e810283a1e9933adedd2"
    assert server.key.hex() == "cf3a5331653c364c88f0f379b6067e37"
    assert server.iv.hex() == "0ac1493ca1905853b0bba03e"
    assert server.hp.hex() == "c206b8d9b9f0f37644430b490eeaa314"


def test_a2_client_initial() -> None:
    client, _ = (Protection(secret) for secret in initial_secrets(DCID))
    header = build_long_header(PacketType.INITIAL, DCID, b"", (2).to_bytes(4, "big"), 1182)
    assert header.hex() == "c300000001088394c8f03e5157080000449e00000002"
    packet = client.protect(header, 2, CRYPTO.ljust(1162, b"\0"))
    assert len(packet) == 1200
    assert packet[:22].hex() == "c000000001088394c8f03e5157080000449e7b9aec34"
    assert packet[-16:].hex() == "e221af44860018ab0856972e194cd934"
    parsed = parse_header_untrusted(packet, short_cid_length=8)
    assert (parsed.type, parsed.destination_cid, parsed.end) == (PacketType.INITIAL, DCID, 1200)
    opened, number, payload = client.unprotect_untrusted(packet, parsed.number_offset, 0)
    assert (opened, number, payload.rstrip(b"\0")) == (header, 2, CRYPTO)


def test_a3_server_initial() -> None:
    _, server = (Protection(secret) for secret in initial_secrets(DCID))
    payload = bytes.fromhex(
        "02000000000600405a020000560303eefce7f7b37ba1d1632e96677825ddf73988cfc79825df566dc5430b9a04"
        "5a1200130100002e00330024001d00209d3c940d89690b84d08a60993c144eca684d1081287c834d5311bcf3"
        "2bb9da1a002b00020304"
    )
    header = build_long_header(PacketType.INITIAL, b"", bytes.fromhex("f067a5502a4262b5"), b"\0\1", 117)
    assert header.hex() == "c1000000010008f067a5502a4262b50040750001"
    packet = server.protect(header, 1, payload)
    assert packet.hex() == (
        "cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a5816b6394100f37a1c69797554780bb3"
        "8cc5a99f5ede4cf73c3ec2493a1839b3dbcba3f6ea46c5b7684df3548e7ddeb9c3bf9c73cc3f3bded74b562bfb19fb84"
        "022f8ef4cdd93795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc42158407dd074ee"
    )


def test_a4_retry() -> None:
    packet = bytes.fromhex("ff000000010008f067a5502a4262b5746f6b656e04a265ba2eff4d829058fb3f0f2496ba")
    parsed = parse_header_untrusted(packet, short_cid_length=0)
    assert (parsed.type, parsed.token, parsed.source_cid.hex()) == (PacketType.RETRY, b"token", "f067a5502a4262b5")
    assert retry_integrity_tag(DCID, packet[:-16]) == packet[-16:]


def test_a5_keys_and_key_update() -> None:
    """Its packet is ChaCha20's, which QRE never negotiates; key derivation is the same for every suite."""
    secret = bytes.fromhex("9ac312a7f877468ebe69422748ad00a15443f18203a07d6060f688f30f21632b")
    for label, expected in (
        (b"quic key", "c6d98ff3441c3fe1b2182094f69caa2ed4b716b65488960a7a984979fb23e1c8"),
        (b"quic iv", "e0459b3474bdd0e44a41c144"),
        (b"quic hp", "25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4"),
    ):
        assert expand_label(secret, label, len(expected) // 2).hex() == expected
    assert next_secret(secret).hex() == "1223504755036d556342ee9361d253421a826c9ecdf3c7148684b36b714881f9"
    assert build_short_header(b"", bytes.fromhex("00bff4")).hex() == "4200bff4"


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (151288809941952652, "c2197c5eff14e88c"),
        (494878333, "9d7f3e7d"),
        (15293, "7bbd"),
        (37, "25"),
    ],
)
def test_rfc_9000_a1_varints(value: int, encoded: str) -> None:
    assert encode_varint(value).hex() == encoded
    assert read_varint_untrusted(bytes.fromhex(encoded)) == (value, len(encoded) // 2)


def test_a_varint_need_not_be_short() -> None:
    assert read_varint_untrusted(bytes.fromhex("4025")) == (37, 2)


def test_rfc_9000_a2_and_a3_packet_numbers() -> None:
    assert encoded_length(0xAC5C02, 0xABE8B3) == 2
    assert encoded_length(0xACE8FE, 0xABE8B3) == 3
    assert decode_number(0x9B32, 2, 0xA82F30EA + 1) == 0xA82F9B32


def test_a_short_header_says_its_phase_and_no_spin() -> None:
    assert build_short_header(b"", bytes.fromhex("00bff4")).hex() == "4200bff4"
    assert build_short_header(b"\x11" * 4, b"\x01", key_phase=1)[0] == 0x44
