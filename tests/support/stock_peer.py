"""A stock aioquic connection whose other end has handed its keys over, and which goes on over UDP."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator
from typing import Any

from aioquic.quic.events import ConnectionTerminated, DatagramFrameReceived

from qre.ends import Role
from qre.wire.number import PACKET_NUMBER_BASE
from tests.support.stock_handover import Address, StockHandover


class StockPeer:
    """The other end of a session of ``role`` at ``session_address``; this one speaks through ``sock``."""

    def __init__(self, role: Role, session_address: Address, sock: socket.socket) -> None:
        self.role = role
        self.sock = sock
        self.session_address = session_address
        self.terminated: list[ConnectionTerminated] = []
        self.received: list[bytes] = []
        own: Address = sock.getsockname()
        server_address, client_address = (session_address, own) if role is Role.SERVER else (own, session_address)
        self.handover = StockHandover(role, server_address, client_address, time.monotonic())
        self.connection = self.handover.connection

    def turn(self, wait: float = 0.0) -> None:
        """Take what came, send what is due; ``wait`` at most for something to come."""
        self._flush()
        timer = self.connection.get_timer()
        if timer is not None:
            wait = max(0.0, min(wait, timer - time.monotonic()))
        if select.select([self.sock], [], [], wait)[0]:
            for _ in range(64):
                try:
                    data = self.sock.recv(65_536)
                except BlockingIOError:
                    break
                self.connection.receive_datagram(data, self.session_address, now=time.monotonic())
        now = time.monotonic()
        timer = self.connection.get_timer()
        if timer is not None and timer <= now:
            self.connection.handle_timer(now=now)
        self._flush()
        while event := self.connection.next_event():
            if isinstance(event, DatagramFrameReceived):
                self.received.append(event.data[2:])
            elif isinstance(event, ConnectionTerminated):
                self.terminated.append(event)

    def _flush(self) -> None:
        for data, _ in self.connection.datagrams_to_send(time.monotonic()):
            self.sock.sendto(data, self.session_address)

    def run(self, seconds: float) -> None:
        """Turn for so long."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.turn(min(left, 0.05))

    def send(self, inner: bytes) -> None:
        """An inner packet; it leaves with the next turn."""
        self.connection.send_datagram_frame(b"\0\0" + inner)

    def _log(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for trace in self.handover.logger.to_dict()["traces"]:
            for event in trace["events"]:
                yield event["name"], event["data"]

    def lost(self) -> list[int]:
        """The numbers that it declared lost, as older than one that was acknowledged (RFC 9002 section 6.1).

        At a PTO it gives up its oldest packet besides: that says that the other machine stood still, and no more.
        """
        acknowledged, numbers = -1, []
        for name, data in self._log():
            if name == "transport:packet_received":
                ranges = [frame["acked_ranges"] for frame in data["frames"] if frame["frame_type"] == "ack"]
                acknowledged = max([acknowledged, *(last for found in ranges for _, last in found)])
            elif name == "recovery:packet_lost" and PACKET_NUMBER_BASE <= data["packet_number"] < acknowledged:
                numbers.append(data["packet_number"])
        return numbers

    def unacknowledged(self) -> list[int]:
        """The numbers of ack-eliciting packets whose fate is open, since the session has them."""
        return [
            number
            for number, packet in self.connection._loss.spaces[-1].sent_packets.items()
            if packet.is_ack_eliciting and number >= PACKET_NUMBER_BASE
        ]

    def arrived(self) -> list[int]:
        """The numbers of packets that came from the session, in order."""
        headers = [data["header"] for name, data in self._log() if name == "transport:packet_received"]
        numbers = [header["packet_number"] for header in headers if header["packet_type"] == "1RTT"]
        return sorted(number for number in numbers if number >= PACKET_NUMBER_BASE)
