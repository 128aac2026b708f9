"""Packets of a real browser and a real site, captured with their keys, are read as tshark reads them.

``tests/data/chromium-156`` holds three visits of headless Chromium 156 to a Caddy site that was set up for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qre.quic.handed_over import session_id
from qre.wire.frames import ConnectionClose, Crypto, Frame, encode_frame, read_frame_untrusted
from qre.wire.initial import ClientInitialKeys, CryptoStream, crypto_frames_untrusted, parse_initial_header_untrusted
from qre.wire.packet import PacketType, build_short_header, packets_untrusted, parse_header_untrusted
from qre.wire.protection import Protection, initial_secrets, next_secret
from tests.support.capture import Decrypted, SessionSecrets, decrypt
from tests.support.tcpdump import Datagram, read_udp

DATA = Path(__file__).resolve().parents[1] / "data" / "chromium-156"
RUNS = ("run1", "run2", "run3")
PORT = 443

#: What tshark says of each run's 1-RTT packets, client's and server's: packet number[types of its frames].
TSHARK = {
    "run1": (
        "6[8] 7[3] 8[14,9] 9[3] 10[3] 11[3,28]",
        "0[24] 1[8] 2[2,30,6,7] 3[2,9] 4[18]",
    ),
    "run2": (
        "6[8] 7[3] 8[14,9] 9[3] 10[3] 11[3] 12[3] 13[3] 14[3] 15[3,28]",
        "0[24] 1[8] 2[2,6,7,30] 3[2,9] 4[18] 5[0,1] 6[0,1] 7[0,1] 8[0,1]",
    ),
    "run3": (
        "6[8] 7[14,9] 8[3] 9[3] 10[3] 11[3] 12[14,9] 13[3] 14[3] 15[3,28]",
        "0[24,8] 1[2,6,30,7] 2[2,9] 3[18] 4[0,1] 5[2,9] 6[18]",
    ),
}


@dataclass(frozen=True)
class Packet:
    from_client: bool
    type: PacketType
    number: int
    payload: bytes

    def frames(self) -> Iterator[tuple[int, Frame]]:
        at = 0
        while at < len(self.payload):
            frame, end = read_frame_untrusted(self.payload, at)
            yield self.payload[at], frame
            at = end


class Visit:
    """One run: its datagrams, and its secrets by the key log's names."""

    def __init__(self, run: str) -> None:
        self.datagrams = list(read_udp(DATA / f"{run}.pcap"))
        lines = (line.split() for line in (DATA / f"{run}.keys").read_text().splitlines())
        self.secrets = {name: bytes.fromhex(secret) for name, _, secret in lines}
        self.session = SessionSecrets(
            session_id=session_id(self.secrets["CLIENT_TRAFFIC_SECRET_0"]),
            client=self.datagrams[0].source,
            server=self.datagrams[0].destination,
            client_secret=self.secrets["CLIENT_TRAFFIC_SECRET_0"],
            server_secret=self.secrets["SERVER_TRAFFIC_SECRET_0"],
        )

    def packets(self) -> Iterator[Packet]:
        first = parse_header_untrusted(self.datagrams[0].payload, short_cid_length=0)
        initial = initial_secrets(first.destination_cid)
        server_cid = b""
        for datagram in self.datagrams:
            from_client = datagram.destination[1] == PORT
            side = "CLIENT" if from_client else "SERVER"
            secrets = {
                PacketType.INITIAL: initial[0 if from_client else 1],
                PacketType.HANDSHAKE: self.secrets[f"{side}_HANDSHAKE_TRAFFIC_SECRET"],
                PacketType.ONE_RTT: self.secrets[f"{side}_TRAFFIC_SECRET_0"],
            }
            length = len(server_cid) if from_client else 0  # Chromium's own has none
            for header in packets_untrusted(datagram.payload, short_cid_length=length):
                if not from_client:
                    server_cid = header.source_cid or server_cid
                packet = datagram.payload[header.start : header.end]
                offset = header.number_offset - header.start
                _, number, payload = Protection(secrets[header.type]).unprotect_untrusted(packet, offset, 0)
                yield Packet(from_client, header.type, number, payload)

    def judged(self, *more: Datagram) -> Decrypted:
        return decrypt([self.session], [*self.datagrams, *more], PORT)


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_packet_is_read_as_tshark_reads_it(run: str) -> None:
    found: dict[bool, list[str]] = {True: [], False: []}
    for packet in Visit(run).packets():
        if packet.type is PacketType.ONE_RTT:
            kinds = ",".join(str(kind) for kind, _ in packet.frames())
            found[packet.from_client].append(f"{packet.number}[{kinds}]")
    assert (" ".join(found[True]), " ".join(found[False])) == TSHARK[run]


def test_every_frame_is_written_as_it_was_read(run: str) -> None:
    for packet in Visit(run).packets():
        for _, frame in packet.frames():
            encoded = encode_frame(frame)
            assert read_frame_untrusted(encoded) == (frame, len(encoded))
        assert packet.type is not PacketType.ONE_RTT or len(packet.payload) >= 3


def test_a_browsers_close_is_understood(run: str) -> None:
    *_, last = (packet for packet in Visit(run).packets() if packet.from_client)
    *_, (_, close) = last.frames()
    assert isinstance(close, ConnectionClose)
    assert not close.application


def test_the_hello_is_put_together_from_both_datagrams(run: str) -> None:
    visit, stream, pieces = Visit(run), CryptoStream(1 << 14, 64), 0
    keys: ClientInitialKeys | None = None
    for datagram in visit.datagrams[:2]:
        assert stream.contiguous[:1] != b"\x01" or len(stream.contiguous) < 1500
        header = parse_initial_header_untrusted(datagram.payload)
        keys = keys or ClientInitialKeys(header.destination_cid)
        for offset, data in crypto_frames_untrusted(keys.open_untrusted(datagram.payload, header)):
            stream.add_untrusted(offset, data)
            pieces += 1
    hello = stream.contiguous
    assert (hello[0], int.from_bytes(hello[1:4], "big")) == (1, len(hello) - 4)  # a whole ClientHello, and no more
    assert len(hello) == stream.highest > 1500  # its X25519MLKEM768 share alone has 1,216 bytes
    assert pieces > 2


def test_the_capture_reader_leaves_nothing_unread_and_finds_no_number_twice(run: str) -> None:
    visit = Visit(run)
    found = visit.judged(*visit.datagrams)  # as if it had been captured at both ends
    client, server = found.sent_by(visit.session.session_id)
    assert (found.undecrypted, found.other_flows) == ([], {})
    assert found.packets == len(client.ciphertexts) + len(server.ciphertexts)
    for direction, told in zip((client, server), TSHARK[run], strict=True):
        assert {number for _, number in direction.ciphertexts} == {int(one.split("[")[0]) for one in told.split()}
        assert (direction.generations, direction.reused(), direction.wrong_phase) == ({0}, [], 0)


def test_a_number_used_again_under_any_generation_is_found_among_real_packets(run: str) -> None:
    visit = Visit(run)
    client, server = visit.session.client, visit.session.server
    at, forged = visit.datagrams[-1].time, []
    secret = first = visit.session.server_secret
    numbers = [int(one.split("[")[0]) for one in TSHARK[run][1].split()]
    for epoch in range(6):
        protection = Protection(secret, first)
        for number, text in ((numbers[0], b"\x01"), (1000 + epoch, b"\x01"), (1000 + epoch, b"\x1e")):
            if number < 1000 and epoch:
                continue  # an old number in a later generation is outside of what a number's four bytes tell
            header = build_short_header(b"", number.to_bytes(4, "big"), key_phase=epoch & 1)
            at += 0.001
            payload = protection.protect(header, number, text + bytes(3))
            forged.append(Datagram(at, server, client, 0, True, payload))
        secret = next_secret(secret)
    found = visit.judged(*forged)
    ours, theirs = found.sent_by(visit.session.session_id)
    assert found.undecrypted == []
    assert ours.reused() == []
    assert sorted(theirs.reused()) == [(0, numbers[0]), *((epoch, 1000 + epoch) for epoch in range(6))]
    assert theirs.generations == set(range(6))


def test_another_visits_secrets_read_nothing() -> None:
    visit, other = Visit("run1"), Visit("run2")
    visit.session.client_secret = other.session.client_secret
    visit.session.server_secret = other.session.server_secret
    found = visit.judged()
    assert len(found.undecrypted) == found.packets > 0
    assert not any(direction.ciphertexts for direction in found.directions.values())


def test_a_capture_that_was_cut_short_is_read_up_to_there(tmp_path: Path) -> None:
    whole = (DATA / "run1.pcap").read_bytes()
    path = tmp_path / "cut.pcap"
    for missing in (1, 40, 90, 95):  # some of the last packet; all but a byte; it and some of its record's header
        path.write_bytes(whole[:-missing])
        assert list(read_udp(path)) == Visit("run1").datagrams[:-1]


def test_crypto_data_of_both_sides_follows_itself_without_a_gap(run: str) -> None:
    streams: dict[tuple[bool, PacketType], CryptoStream] = {}
    for packet in Visit(run).packets():
        for _, frame in packet.frames():
            if isinstance(frame, Crypto):
                key = packet.from_client, packet.type
                streams.setdefault(key, CryptoStream(1 << 15, 64)).add_untrusted(frame.offset, frame.data)
    assert {kind for _, kind in streams} == {PacketType.INITIAL, PacketType.HANDSHAKE, PacketType.ONE_RTT}
    assert all(len(stream.contiguous) == stream.highest for stream in streams.values())
