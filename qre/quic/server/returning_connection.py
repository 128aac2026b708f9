"""A server's connection for a client that comes back with a ticket of ours, at a living Dest that cannot read it.

Dest makes a whole handshake of the client's hello, so its answer is not mirrored. The first datagram of it says when
ours begins, and under which connection ID; what is sent then has the shapes of a visit that Dest did resume
(``RecordedReturn``). Dest is told at once that the visit is over. Nobody repeats anything for us any more: a client
that says nothing to the flight gets it again at the times of Dest's stack, where they are known, and loss recovery is
the connection's own as soon as it has said something. Until the client has proved its address it gets no more than
three times what it sent (RFC 9000 §8.1).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import msgspec
from aioquic import tls
from aioquic.quic.connection import QuicNetworkPath
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from qre.dest_profile import RecordedReturn, ReturnedDatagram, ReturnedFrame, ReturnedPacket
from qre.errors import UntrustedInputError
from qre.quic.server.server_connection import ServerConnection
from qre.quic.server.shadow_connection import (
    DestAnswer,
    Mirrored,
    NotFollowed,
    NotOfThisConnection,
    ShadowConnection,
)
from qre.quic.server.shadow_tls import ShadowTlsContext
from qre.quic.shadow.probe_times import ProbeTimes
from qre.quic.shadow.server_hello import X25519MLKEM768, CannotFollowError, Obstacle, expected_pattern
from qre.quic.shadow.shapes import InitialShape, PacketShape
from qre.wire.frames import Ack, Frame, encode_frame, read_frame_untrusted
from qre.wire.number import encode_number
from qre.wire.packet import FIXED, LONG, VERSION_1, PacketType
from qre.wire.protection import TAG_LENGTH
from qre.wire.varint import encode_varint, encode_vector

#: RFC 9000 §8.1.
_AMPLIFICATION: Final = 3
#: 1-RTT packets that Dest sent so much later than its first datagram are acknowledgements that it put off
#: (microseconds). All else goes at once: a recording may have been made by a busy machine.
_AT_ONCE_US: Final = 20_000
#: The datagram of an Initial that is repeated (bytes).
_FULL: Final = 1200
#: How a recorded return names 1-RTT packets.
KIND_OF_1RTT: Final = 3
#: Of the Length field of a long header (RFC 9000 §16): its first two bits by its size in bytes.
_SIZES: Final = {1: 0, 2: 1, 4: 2, 8: 3}
#: The highest packet number of Dest's that ours go on from.
_HIGHEST: Final = 1000


class ReturningConnection(ShadowConnection):
    """``recorded`` is played. What follows the client's Finished is as in the base class."""

    def __init__(self, *, recorded: RecordedReturn, **arguments: Any) -> None:
        expected = replace(
            arguments.pop("flight"),
            hybrid=recorded.group == X25519MLKEM768,
            server_hello_extensions=recorded.server_hello_extensions,
        )
        super().__init__(flight=expected, **arguments)
        self._recorded = recorded
        self._plays = False
        #: While the client has said nothing to the flight, if Dest's habits are known.
        self._probe_times: ProbeTimes | None = None
        self._repeated = 0  # Initial packets of the flight, by turns

    def dest_spoke(self, data: bytes, now: float) -> DestAnswer:
        """With the first datagram that has a part of Dest's ServerHello, the whole flight of ours."""
        if self._stopped or not self._following:
            return Mirrored(())
        known = self._reader.source_cid
        try:
            shape = self._reader.read_untrusted(data)
            if self._reader.closed:
                raise CannotFollowError(Obstacle.CLOSED)
            if known is None and self._reader.source_cid is not None:
                self._take_cid(self._reader.source_cid)
            if not shape.needs_hello:  # it acknowledges a part of the hello, under keys that are everybody's
                numbers = [each.number for each in shape.packets if isinstance(each, InitialShape)]
                self._packet_number = max(self._packet_number, *(min(each, _HIGHEST) + 1 for each in numbers))
                return Mirrored((self._mirror(data, shape, now),))
            return Mirrored(self._play(now))
        except CannotFollowError as error:
            return NotFollowed(error.obstacle, ())
        except UntrustedInputError:
            return NotOfThisConnection()

    # --- the flight ---

    def _play(self, now: float) -> tuple[bytes, ...]:
        """Raises CannotFollowError, with nothing done."""
        context = self.tls
        if not isinstance(context, ShadowTlsContext):
            raise CannotFollowError(Obstacle.UNREADABLE)
        pattern = expected_pattern(self._recorded.group, self._recorded.server_hello_extensions)
        self._crypto_streams[tls.Epoch.INITIAL].sender.write(context.server_hello(pattern))
        context.handshake_extensions = [
            (int(tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS), self._serialize_transport_parameters())
        ]
        flight = context.rest(self._crypto_buffers[tls.Epoch.HANDSHAKE])
        self._crypto_streams[tls.Epoch.HANDSHAKE].sender.write(flight)
        path, sent = self._network_paths[0], []
        self._plays = True
        for datagram in self._recorded.flight:
            allowed = _AMPLIFICATION * path.bytes_received - path.bytes_sent
            late = datagram.at_us > _AT_ONCE_US and all(each.kind == KIND_OF_1RTT for each in datagram.packets)
            if late or (not path.is_validated and _size(datagram) > allowed):
                break
            made = b"".join(self._played(packet, now) for packet in datagram.packets)
            path.bytes_sent += len(made)
            sent.append(made)
        self._spaces[tls.Epoch.INITIAL].ack_at = None  # the recording has acknowledged the hello
        self._plays = False
        self._follow_no_more()
        if self.habits.handshake_times is not None:
            timeout, patience = self.habits.handshake_times
            self._probe_times = ProbeTimes(now, timeout=timeout, patience=patience)
        return tuple(sent)

    def _played(self, packet: ReturnedPacket, now: float) -> bytes:
        if packet.kind == KIND_OF_1RTT:
            header = bytes([FIXED]) + self._peer_cid.cid
            return self._mirror_application(PacketShape(PacketType.ONE_RTT, header, packet.length), now)
        kind = PacketType(packet.kind)
        header = b"".join(
            (
                bytes([LONG | FIXED | packet.kind << 4 | packet.number_length - 1]),
                VERSION_1.to_bytes(4, "big"),
                bytes([len(self._peer_cid.cid)]) + self._peer_cid.cid,
                bytes([len(self._handshake_cid)]) + self._handshake_cid,
                encode_vector(b"") if kind is PacketType.INITIAL else b"",
                _length_field(packet),
            )
        )
        shape = PacketShape(kind, header, packet.length)
        if kind is PacketType.INITIAL:
            return self._played_initial(packet, shape, now)
        return self._mirror_handshake(shape, now, paused=False)

    def _played_initial(self, packet: ReturnedPacket, shape: PacketShape, now: float) -> bytes:
        sender = self._crypto_streams[tls.Epoch.INITIAL].sender
        sent = self._new_packet(tls.Epoch.INITIAL, QuicPacketType.INITIAL, shape.size)
        payload = b""
        for frame in packet.frames:
            payload += self._with_our_ack(frame.raw)
            if frame.crypto:
                end = max(frame.offset, min(frame.offset + frame.crypto, sender._buffer_stop))
                data = bytes(sender._buffer[frame.offset : end])
                payload += data.ljust(frame.crypto, b"\0")
                if not data:
                    continue
                sender._pending.subtract(frame.offset, end)
                sender.highest_offset = max(sender.highest_offset, end)
                sent.delivery_handlers.append((sender.on_data_delivery, (frame.offset, end, False)))
                sent.is_crypto_packet = True
        number = sent.packet_number
        header = shape.header + encode_number(number, packet.number_length)
        return self._sealed(self._reader.initial_keys.protect(header, number, payload), sent, now)

    def _with_our_ack(self, raw: bytes) -> bytes:
        """Recorded frames. A client that had to repeat its hello has its newest packets acknowledged, in as many
        bytes."""
        queue = self._spaces[tls.Epoch.INITIAL].ack_queue
        made: list[bytes] = []
        at = 0
        while at < len(raw):
            try:
                frame, end = read_frame_untrusted(raw, at)
            except UntrustedInputError:
                return b"".join(made) + raw[at:]  # the beginning of a CRYPTO frame
            made.append(raw[at:end])
            if isinstance(frame, Ack) and len(queue):
                newest = queue[len(queue) - 1]
                ours = encode_frame(Ack(((newest.start, newest.stop - 1),), frame.delay))
                if len(ours) == len(made[-1]):
                    made[-1] = ours
            at = end
        return b"".join(made)

    # --- a client that says nothing to the flight ---

    @property
    def _unanswered(self) -> ProbeTimes | None:
        """None as soon as the client has acknowledged anything, or finished."""
        if self._handshake_complete or self._loss._rtt_initialized:
            self._probe_times = None
        return self._probe_times

    def get_timer(self) -> float | None:
        """Of what goes again to a silent client, Dest's times."""
        times = self._unanswered
        if times is None:
            return super().get_timer()
        waiting = [space.ack_at for space in self._spaces.values()]
        return min((at for at in (self._close_at, times.next_due(), *waiting) if at is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """As its base, without timeouts of its own as long as Dest's times are known."""
        if self._unanswered is not None:
            self._loss_at = None
        super().handle_timer(now)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """As its base, and what goes again."""
        times, path = self._unanswered, self._network_paths[0] if self._network_paths else None
        sent = super().datagrams_to_send(now)
        space = times.take(now) if times is not None and path is not None and not self._stopped else None
        for _ in range(self.habits.at_a_timeout if space is not None else 0):
            assert path is not None
            packet = self._initial_again() if space is tls.Epoch.INITIAL else self._handshake_again()
            if packet is None or path.bytes_sent + _longest(packet) > _AMPLIFICATION * path.bytes_received:
                break
            made = self._played(packet, now)
            path.bytes_sent += len(made)
            sent.append((made, path.addr))
        return sent

    def _initial_again(self) -> ReturnedPacket | None:
        """The next of the flight's Initials that have a part of ServerHello, in a full datagram and without its ACK:
        PADDING takes its place."""
        packets = [each for datagram in self._recorded.flight for each in datagram.packets]
        initials = [each for each in packets if any(frame.crypto for frame in each.frames)]
        if not initials:
            return None
        packet = initials[self._repeated % len(initials)]
        self._repeated += 1
        header = 1 + 4 + 2 + len(self._peer_cid.cid) + len(self._handshake_cid) + 1 + packet.length_size
        length = max(_FULL - header, packet.length)
        places = [(frame.offset, frame.crypto) for frame in packet.frames if frame.crypto]
        heads = [_crypto_head(*place) for place in places]
        said = sum(map(len, heads)) + sum(size for _, size in places)
        heads[0] = bytes(length - packet.number_length - TAG_LENGTH - said) + heads[0]
        frames = tuple(ReturnedFrame(head, *place) for head, place in zip(heads, places, strict=True))
        return msgspec.structs.replace(packet, length=length, frames=frames)

    def _handshake_again(self) -> ReturnedPacket | None:
        packets = (each for datagram in self._recorded.flight for each in datagram.packets)
        return next((each for each in packets if each.kind == PacketType.HANDSHAKE.value), None)

    # --- until Finished ---

    def _takes_of_initial(self, frame: Frame) -> bool:
        """Once our flight is out, as without a shadow."""
        if self._following:
            return super()._takes_of_initial(frame)
        return ServerConnection._takes_of_initial(self, frame)

    def _write_application(self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float) -> None:
        """Before Finished nothing is said but in the flight; what comes late of early data is acknowledged."""
        if self._handshake_complete or self._plays:
            super()._write_application(builder, network_path, now)
            return
        space, crypto = self._spaces[tls.Epoch.ONE_RTT], self._cryptos[tls.Epoch.ONE_RTT]
        if crypto.send.is_valid() and space.ack_at is not None and space.ack_at <= now:
            builder.start_packet(QuicPacketType.ONE_RTT, crypto)
            self._write_ack_frame(builder, space, now)


def _length_field(packet: ReturnedPacket) -> bytes:
    size = packet.length_size
    if size not in _SIZES:
        raise CannotFollowError(Obstacle.UNREADABLE)
    return (packet.length | _SIZES[size] << (8 * size - 2)).to_bytes(size, "big")


def _crypto_head(offset: int, length: int) -> bytes:
    """The beginning of a CRYPTO frame (RFC 9000 §19.6)."""
    return b"\x06" + encode_varint(offset) + encode_varint(length)


def _size(datagram: ReturnedDatagram) -> int:
    """Its bytes, at most."""
    return sum(map(_longest, datagram.packets))


def _longest(packet: ReturnedPacket) -> int:
    return packet.length + 1 + 4 + 2 * 21 + 1 + 8
