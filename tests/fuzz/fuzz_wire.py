"""Bounded fuzzing of the parsers of ``qre.wire``: ``python -m tests.fuzz.fuzz_wire [INPUTS [SEED]]``.

Inputs are real packets and well-formed frames and capsules, broken at random, and noise. Whatever is read is either
parsed, and then holds what its parser promises, or refused with UntrustedInputError. Exits 0 and says how many inputs
each target parsed and refused; anything else ends the run with the input that did it. INPUTS and SEED repeat a run.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_interface, ip_network
from pathlib import Path
from random import Random

from qre.errors import UntrustedInputError
from qre.wire.capsule import (
    CapsuleType,
    RequestedAddress,
    encode_addresses,
    encode_routes,
    parse_addresses_untrusted,
    parse_request_untrusted,
    parse_routes_untrusted,
    read_capsule_untrusted,
)
from qre.wire.datagram import SPLIT_HEAD, in_two, parse_http_datagram_untrusted, parse_part_untrusted
from qre.wire.frames import (
    Ack,
    ConnectionClose,
    Crypto,
    Datagram,
    FlowControl,
    HandshakeDone,
    NewConnectionId,
    NewToken,
    Padding,
    PathChallenge,
    PathResponse,
    Ping,
    ResetStream,
    RetireConnectionId,
    StopSending,
    Stream,
    encode_frame,
    frames_untrusted,
)
from qre.wire.initial import ClientInitialKeys, CryptoStream, crypto_frames_untrusted, parse_initial_header_untrusted
from qre.wire.packet import (
    PacketType,
    build_long_header,
    long_header_destination_cid,
    packets_untrusted,
    retry_source_cid,
)
from qre.wire.protection import Protection, initial_secrets
from qre.wire.varint import MAX_VARINT, encode_varint, read_varint_untrusted, read_vector_untrusted
from tests.support.tcpdump import read_udp
from tests.support.wire_codecs import encode_http_datagram

CAPTURES = Path(__file__).resolve().parents[1] / "data" / "chromium-156"
MAX_CAPSULE = 2048
DCID = bytes.fromhex("8394c8f03e515708")
RETRY = bytes.fromhex("ff000000010008f067a5502a4262b5746f6b656e04a265ba2eff4d829058fb3f0f2496ba")
SEALER = Protection(b"\x07" * 32)
HELLO = Random(0).randbytes(1700)
FRAMES = [
    encode_frame(frame)
    for frame in (
        Padding(7), Ping(3), Ack([(90, 99), (5, 20), (1, 1)], 25), Ack([(0, 70_000)], 3, (1, 2, 3)),
        ResetStream(4, 0x10C, 99), StopSending(8, 1), Crypto(1200, b"hello"), NewToken(b"token"),
        Stream(0, b"capsule", 66, fin=True), FlowControl(0x10, 1 << 20), FlowControl(0x11, 1 << 33, 4),
        FlowControl(0x12, 100), NewConnectionId(2, 1, bytes(range(20)), bytes(16)), RetireConnectionId(0),
        PathChallenge(bytes(8)), PathResponse(bytes(8)), ConnectionClose(0x100, True), HandshakeDone(),
        ConnectionClose(7, False, 2, b"why"), Datagram(b"\x00\x00E" + bytes(20)),
    )
]  # fmt: skip
CAPSULES = [
    encode_addresses(
        CapsuleType.ADDRESS_REQUEST,
        [RequestedAddress(1, ip_interface("10.0.0.2/32")), RequestedAddress(2, ip_interface("fd00::2/128"))],
    ),
    encode_addresses(CapsuleType.ADDRESS_ASSIGN, [RequestedAddress(0, ip_interface("10.0.0.0/24"))]),
    encode_routes(map(ip_network, ("0.0.0.0/1", "192.0.2.0/24", "2001:db8::/32", "fd00::/8"))),
]


def broken(data: bytes, rng: Random) -> bytes:
    """Flip, overwrite, cut, insert, repeat something of it; or nothing."""
    changed = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(changed):
                changed[at] = rng.choice((0, 1, 0x3F, 0x40, 0x7F, 0x80, 0xBF, 0xC0, 0xFF))
            case 2:
                del changed[at : at + rng.randrange(1, 20)]
            case 3:
                changed[at:at] = rng.randbytes(rng.randrange(1, 20))
            case 4:
                changed[at : at + 8] = encode_varint(rng.choice((MAX_VARINT, MAX_VARINT - 1, 1 << 60, 1 << 32, 1500)))
            case _:
                changed[at:at] = changed[rng.randrange(len(changed) + 1) :][: rng.randrange(100)]
    return bytes(changed)


class Fuzzer:
    """Each target takes one input, and raises UntrustedInputError or has parsed it."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.sealed = b""  # the packet that the last input was made of
        self.kind = 0  # of the capsule that the last input is the value of
        self.datagrams = [one.payload for path in sorted(CAPTURES.glob("*.pcap")) for one in read_udp(path)]
        self.datagrams += [RETRY, b"\x80\x00\x00\x00\x00\x01a\x01b\x00\x00\x00\x01", b"\x40" + bytes(60)]
        self.initials = [data for data in self.datagrams if data[0] & 0xF0 == 0xC0]
        self.targets: dict[str, tuple[Callable[[], bytes], Callable[[bytes], object]]] = {
            "packets": (self._datagram, self.packets),
            "Initial": (self._initial, self.initial),
            "protection": (self._sealed, self.protection),
            "frames": (self._payload, self.frames),
            "first flight": (self._flight, self.first_flight),
            "varints": (lambda: rng.randbytes(rng.randrange(12)), self.varints),
            "vectors": (lambda: bytes([rng.randrange(70)]) + rng.randbytes(rng.randrange(64)), self.vectors),
            "capsules": (self._capsules, self.capsules),
            "capsule values": (self._capsule_value, self.capsule_values),
            "HTTP Datagrams": (lambda: rng.randbytes(rng.randrange(24)), self.http_datagrams),
            "parts": (self._part, self.parts),
        }

    # --- inputs ---

    def _datagram(self) -> bytes:
        if self.rng.random() < 0.1:
            return self.rng.randbytes(self.rng.randrange(1500))
        return broken(self.rng.choice(self.datagrams), self.rng)

    def _initial(self) -> bytes:
        """A real Initial broken; or one whose protection is good and whose payload is anything."""
        if self.rng.random() < 0.3:
            return broken(self.rng.choice(self.initials), self.rng)
        payload = self._flight().ljust(4, b"\x00")[:1200]
        header = build_long_header(PacketType.INITIAL, DCID, b"", b"\0\1", 2 + len(payload) + 16)
        return Protection(initial_secrets(DCID)[0]).protect(header, 1, payload)

    def _sealed(self) -> bytes:
        self.sealed = SEALER.protect(
            b"\x43" + DCID + b"\x12\x34\x56\x78", 0x12345678, self._payload().ljust(4, b"\0")
        )
        return self.sealed if self.rng.random() < 0.2 else broken(self.sealed, self.rng)

    def _flight(self) -> bytes:
        """Pieces of one message in any order, some twice, some contradicting others; PING and PADDING between."""
        rng = self.rng
        pieces: list[bytes] = []
        for _ in range(rng.randrange(1, 12)):
            start = rng.randrange(len(HELLO)) if rng.random() < 0.7 else 0
            data = HELLO[start : start + rng.randrange(200)]
            if rng.random() < 0.03:
                data = broken(data, rng)
            pieces += encode_frame(Crypto(start, data)), rng.choice((b"", b"\x00" * 9, b"\x01", FRAMES[2]))
        return b"".join(pieces) if rng.random() < 0.8 else broken(b"".join(pieces), rng)

    def _payload(self) -> bytes:
        rng = self.rng
        whole = b"".join(rng.choice(FRAMES) for _ in range(rng.randrange(1, 6)))
        return broken(whole, rng) if rng.random() < 0.8 else rng.randbytes(rng.randrange(60))

    def _capsules(self) -> bytes:
        return broken(b"".join(self.rng.choice(CAPSULES) for _ in range(self.rng.randrange(1, 4))), self.rng)

    def _capsule_value(self) -> bytes:
        found = read_capsule_untrusted(self.rng.choice(CAPSULES), MAX_CAPSULE)
        assert found is not None
        self.kind, value, _ = found
        return broken(value, self.rng)

    def _part(self) -> bytes:
        room = self.rng.randrange(20, 39)
        made = self.rng.choice(in_two(HELLO[:40], self.rng.randrange(1 << 16), room))
        return broken(made.removeprefix(SPLIT_HEAD), self.rng)

    # --- targets ---

    def packets(self, data: bytes) -> None:
        length = self.rng.randrange(21)
        end = 0
        retry_source_cid(data)
        assert len(long_header_destination_cid(data)) <= 255
        for header in packets_untrusted(data, short_cid_length=length):
            assert end == header.start < header.end <= len(data)
            assert header.start < header.number_offset <= header.end
            assert max(len(header.destination_cid), len(header.source_cid)) <= 20
            end = header.end

    def initial(self, data: bytes) -> None:
        header = parse_initial_header_untrusted(data)
        payload = ClientInitialKeys(header.destination_cid).open_untrusted(data, header)
        assert len(payload) < len(data)
        self._put_together(crypto_frames_untrusted(payload))

    def protection(self, data: bytes) -> None:
        SEALER.unprotect_untrusted(data, 1 + len(DCID), 0x12345678)
        assert data == self.sealed

    def frames(self, data: bytes) -> None:
        found = list(frames_untrusted(data))
        assert 0 < len(found) <= len(data)
        assert list(frames_untrusted(b"".join(map(encode_frame, found)))) == found

    def first_flight(self, data: bytes) -> None:
        self._put_together(crypto_frames_untrusted(data))

    def _put_together(self, pieces: list[tuple[int, bytes]]) -> None:
        """The same bytes as a plain table of them gives; one byte said in two ways is refused."""
        stream, table = CryptoStream(1 << 14, 16), dict[int, int]()
        for offset, data in pieces:
            stream.add_untrusted(offset, data)
            for at, byte in enumerate(data, offset):
                assert table.setdefault(at, byte) == byte
        length = next(at for at in range(len(table) + 1) if at not in table)
        assert stream.contiguous == bytes(table[at] for at in range(length))
        assert stream.highest == max(table, default=-1) + 1

    def varints(self, data: bytes) -> None:
        value, end = read_varint_untrusted(data)
        assert 0 <= value <= MAX_VARINT
        assert len(encode_varint(value)) <= end <= len(data)

    def vectors(self, data: bytes) -> None:
        content, end = read_vector_untrusted(data, 0)
        assert end <= len(data)
        assert data[:end].endswith(content)

    def capsules(self, data: bytes) -> None:
        while (capsule := read_capsule_untrusted(data, MAX_CAPSULE)) is not None:
            kind, value, length = capsule
            assert len(value) <= min(MAX_CAPSULE, length - 2)
            data = data[length:]
            match kind:
                case CapsuleType.ADDRESS_REQUEST:
                    parse_request_untrusted(value)
                case CapsuleType.ADDRESS_ASSIGN:
                    parse_addresses_untrusted(value)
                case CapsuleType.ROUTE_ADVERTISEMENT:
                    self._routes(value)

    def capsule_values(self, data: bytes) -> None:
        match self.kind:
            case CapsuleType.ROUTE_ADVERTISEMENT:
                self._routes(data)
            case CapsuleType.ADDRESS_ASSIGN:
                entries = parse_addresses_untrusted(data)
                encoded = read_capsule_untrusted(encode_addresses(CapsuleType.ADDRESS_ASSIGN, entries), 1 << 20)
                assert encoded is not None
                assert parse_addresses_untrusted(encoded[1]) == entries
            case _:
                assert parse_request_untrusted(data) == parse_addresses_untrusted(data)

    def _routes(self, data: bytes) -> None:
        routes = parse_routes_untrusted(data)
        assert len(routes) <= len(data) * 8
        encoded = read_capsule_untrusted(encode_routes(routes), 1 << 20)
        assert encoded is not None
        assert parse_routes_untrusted(encoded[1]) == routes  # nothing overlapped

    def http_datagrams(self, data: bytes) -> None:
        quarter_stream_id, context_id, content = parse_http_datagram_untrusted(data)
        again = encode_http_datagram(quarter_stream_id, context_id, content)
        assert parse_http_datagram_untrusted(again) == (quarter_stream_id, context_id, content)

    def parts(self, data: bytes) -> None:
        part = parse_part_untrusted(data)
        room = max(len(part.data), part.total - len(part.data))
        if part.second == (len(part.data) < room) or part.total == 2 * room:  # as we cut it: the first is the longer
            whole = HELLO[: part.total - len(part.data)] + part.data if part.second else part.data + HELLO
            again = in_two(whole[: part.total], part.identifier, room)[part.second]
            assert parse_part_untrusted(again.removeprefix(SPLIT_HEAD)) == part


def main(inputs: int, seed: int) -> int:
    print(f"seed {seed}, {inputs} inputs", flush=True)
    fuzzer = Fuzzer(Random(seed))
    parsed, refused = Counter[str](), Counter[str]()
    names = list(fuzzer.targets)
    for number in range(inputs):
        name = names[number % len(names)]
        make, target = fuzzer.targets[name]
        data = make()
        try:
            target(data)
        except UntrustedInputError:
            refused[name] += 1
        except BaseException as error:
            error.add_note(f"{name}, input {number} of seed {seed}: {data.hex()}")
            raise
        else:
            parsed[name] += 1
    for name in names:
        print(f"{name:16}{parsed[name]:8} parsed {refused[name]:8} refused")
    print("nothing else was raised")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, int(sys.argv[2]) if len(sys.argv) > 2 else 1))
