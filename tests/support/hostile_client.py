"""A client that is authenticated, or somebody who saw its hello, and sends whatever it likes. In memory.

It is aioquic's client with REALITY (``fake_client``); packets are protected by its keys and built by hand. The CPU
time that the server takes for each is counted.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from aioquic import tls
from aioquic.buffer import encode_uint_var
from aioquic.quic.connection import QuicReceiveContext
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicProtocolVersion

from qre.quic.handshake_events import HandshakeFailed
from qre.quic.server.server_handshake import ServerEvent
from qre.wire.initial import MIN_DATAGRAM, parse_initial_header_untrusted
from tests.fuzz.fuzz_handshake import authenticated_flight, new_server
from tests.support.fake_client import CLIENT, SERVER

#: A payload leaves room for the headers and the tag in a datagram of 1,200 bytes.
ROOM = 1120


class HostileClient:
    """``worst`` and ``spent``: CPU seconds of the server, for one datagram and for all."""

    def __init__(self, *, round_trips: int = 6) -> None:
        self.client, found, flight = authenticated_flight()
        self.server = new_server(found)
        self.now = self.worst = self.spent = 0.0
        self.datagrams = 0
        #: Packets whose frames the server has read, by their space.
        self.read: Counter[tls.Epoch] = Counter()
        self.events: list[ServerEvent] = []
        self._number = 5000
        self._answers: list[bytes] = []
        self._count_what_is_read()
        self._hello_cid = parse_initial_header_untrusted(flight[0], 0).destination_cid
        for datagram in flight:
            self.server.datagram_received(datagram, CLIENT, self.now)
        self._exchange(round_trips)

    def _count_what_is_read(self) -> None:
        reads = self.server._connection._payload_received

        def counted(context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False) -> Any:
            self.read[context.epoch] += 1
            return reads(context, plain, crypto_frame_required)

        self.server._connection._payload_received = counted  # type: ignore[method-assign]  # and goes on

    def _exchange(self, round_trips: int) -> None:
        for _ in range(round_trips):
            answers, self._answers = self._answers, []
            for data in answers + self.server.datagrams_to_send(self.now):
                self.client.receive_datagram(data, SERVER, self.now)
            self.client.handle()
            for data, _address in self.client.datagrams_to_send(self.now):
                self.server.datagram_received(data, CLIENT, self.now)
            self.now += 0.002

    def finish_handshake(self) -> None:
        """Read what the server has answered, and go on as an honest client does."""
        self._exchange(8)
        self._collect()

    def deliver(self, datagram: bytes) -> None:
        """Give the server one datagram."""
        self.now += 0.0005
        began = time.process_time()
        self.server.datagram_received(datagram, CLIENT, self.now)
        self._answers += self.server.datagrams_to_send(self.now)
        took = time.process_time() - began
        self.worst, self.spent = max(self.worst, took), self.spent + took
        self.datagrams += 1
        self._collect()

    def _collect(self) -> None:
        while (event := self.server.next_event()) is not None:
            self.events.append(event)

    def send(self, payload: bytes) -> None:
        """These frames in a 1-RTT packet of the client's."""
        pair = self.client._cryptos[tls.Epoch.ONE_RTT]
        self._number += 1
        header = b"\x41" + self.client._peer_cid.cid + (self._number & 0xFFFF).to_bytes(2, "big")
        self.deliver(pair.send.encrypt_packet(header, payload.ljust(4, b"\x00"), self._number))

    def inject_initial(self, payload: bytes) -> None:
        """These frames in an Initial of somebody who saw the hello; what is shorter is dropped (RFC 9000 §14.1)."""
        self.deliver(self.initial(payload).ljust(MIN_DATAGRAM, b"\x00"))

    def initial(self, payload: bytes) -> bytes:
        """The packet alone: its keys are nobody's secret (RFC 9001 §5.2)."""
        pair = CryptoPair()
        pair.setup_initial(cid=self._hello_cid, is_client=True, version=QuicProtocolVersion.VERSION_1)
        self._number += 1
        length = (len(payload) + 2 + 16 | 0x4000).to_bytes(2, "big")
        cids = bytes([len(self._hello_cid)]) + self._hello_cid + b"\x00"
        header = b"\xc1\x00\x00\x00\x01" + cids + b"\x00" + length + self._number.to_bytes(2, "big")
        return pair.send.encrypt_packet(header, payload, self._number)

    def send_stream(self, stream_id: int, data: bytes, offset: int = 0, *, fin: bool = False) -> None:
        """As many packets as it takes."""
        for at in range(0, len(data), ROOM - 20):
            piece = data[at : at + ROOM - 20]
            last = fin and at + len(piece) == len(data)
            self.send(stream_frame(stream_id, offset + at, piece, fin=last))

    @property
    def failure(self) -> HandshakeFailed | None:
        """Why the server gave the handshake up, once it did."""
        return next((event for event in self.events if isinstance(event, HandshakeFailed)), None)

    @property
    def ended(self) -> bool:
        """The server has given it up, or closes the connection (RFC 9000 §10.2)."""
        return self.failure is not None or self.server._connection.ended


def stream_frame(stream_id: int, offset: int, data: bytes, *, fin: bool = False) -> bytes:
    """STREAM with offset and length (RFC 9000 §19.8)."""
    fields = encode_uint_var(stream_id) + encode_uint_var(offset) + encode_uint_var(len(data))
    return bytes([0x0E | fin]) + fields + data


def crypto_frame(offset: int, data: bytes) -> bytes:
    """CRYPTO (RFC 9000 §19.6)."""
    return b"\x06" + encode_uint_var(offset) + encode_uint_var(len(data)) + data
