"""A server's QUIC connection in the shadow of a living Dest (docs/protocol.md, «The living site»).

As long as the handshake lasts it sends nothing of its own accord: for every datagram of Dest it makes one of the same
length, with the same packets, clear bytes and Initial frames, and with our CRYPTO data in place of Dest's. PADDING
fills what is longer than ours; where nothing of ours is left, a PING stands for it. Dest's timers are ours: what it
sends again is sent again here. When the client has sent Finished, aioquic goes on as in the base class.

No packet number is used twice: those of Handshake packets are counted here, those of 1-RTT by aioquic, whose one
counter does for whatever follows the mirrored flight. Neither leaves one out, which the client's ACK would show by
its length. An Initial has Dest's number, and the same content whenever the number is the same, or Dest's own
content under its public keys.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

from aioquic import tls
from aioquic.buffer import size_uint_var
from aioquic.quic.connection import QuicConnectionId
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilderStop, QuicSentPacket

from qre.errors import UntrustedInputError
from qre.quic.packet_builder import UnsealedBuilder, UnsealedPacket
from qre.quic.server.scripted_connection import NUMBER_LENGTH, ScriptedConnection
from qre.quic.server.server_connection import MAX_ACK_DELAY_MS
from qre.quic.server.shadow_tls import FINISHED_LENGTH, ShadowTlsContext
from qre.quic.shadow.dest_reader import DestReader
from qre.quic.shadow.farewell import farewell
from qre.quic.shadow.habits import Habits
from qre.quic.shadow.server_hello import CannotFollowError, Obstacle, pattern_of_untrusted
from qre.quic.shadow.shapes import CryptoPlace, DatagramShape, InitialShape, PacketShape
from qre.wire.frames import ConnectionClose, Crypto, FlowControl, Frame, Ping, encode_frame
from qre.wire.number import PACKET_NUMBER_BASE, encode_number
from qre.wire.packet import FIXED, LONG, PacketType, packets_untrusted
from qre.wire.protection import TAG_LENGTH

#: What a CRYPTO frame needs besides its data, and a little of that: type, offset and length.
_CRYPTO_OVERHEAD: Final = 5
#: What waits for the length of its packet is one of a datagram of so many bytes at most.
_FULL: Final = 1200
_MOST_READY: Final = 4
#: Datagrams of Dest that wait until ServerHello is known.
_MOST_WITHHELD: Final = 16
#: Datagrams of Dest that are answered with keys of ours in one handshake: its flight, and what it repeats of it for
#: many seconds. What anyone can seal costs what a relayed datagram does, and has no bound.
_MOST_SEALED: Final = 512
#: Datagrams that are known again when the network between Dest and us repeats them.
_MOST_REMEMBERED: Final = 64
#: Datagrams of the client that wait for its Finished.
_MOST_EARLY: Final = 4
#: Dest pauses so long (seconds) only before it sends something again: its flight has ended.
_PAUSE: Final = 0.1
#: A server sends no more than so many times what has come, to an address that is not validated (RFC 9000 §8.1). Dest
#: cannot validate the client's: it cannot open its Handshake packets.
_AMPLIFICATION: Final = 3
#: How much Dest's Handshake packets may say in other frames than CRYPTO; less than any packet's own CRYPTO data.
_SLACK: Final = 8
#: In 1-RTT a PING is the sign to switch (see the base class): this stands for it.
_MAX_DATA: Final = 0x10


@dataclass(frozen=True)
class Mirrored:
    """Send these instead, now; none when it has to wait, or was not worth an answer."""

    datagrams: tuple[bytes, ...]


@dataclass(frozen=True)
class NotOfThisConnection:
    """It belongs to something else that came from the client's address: pass it on as it is."""


@dataclass(frozen=True)
class NotFollowed:
    """Dest chose what we cannot have, and nothing of ours has left: the client gets ``withheld``, and then this
    datagram, as they are."""

    obstacle: Obstacle
    withheld: tuple[bytes, ...]


DestAnswer = Mirrored | NotOfThisConnection | NotFollowed


class ShadowConnection(ScriptedConnection):
    """``client_cid``: the client's source CID. ``expected_flight``: CRYPTO bytes of Dest's Handshake packets on
    earlier visits, or 0. ``shown``: what Dest has told the client already, its source CID and highest number.
    ``scripted``: what follows the client's Finished is sent by ``speak``, in datagrams of given lengths. ``habits``:
    Dest's. ``reset_token`` makes that of a CID, for a client that wants to read Dest's source CID in the flight: it
    cannot be made before Dest has chosen one then. None: the client does not."""

    def __init__(
        self,
        *,
        client_cid: bytes,
        expected_flight: int,
        shown: tuple[bytes, int] | None,
        scripted: bool,
        habits: Habits,
        reset_token: Callable[[bytes], bytes] | None,
        **arguments: Any,
    ) -> None:
        if scripted and arguments.get("tickets") is None:  # PADDING stands for tickets, and for tokens
            arguments["flight"] = replace(arguments["flight"], ticket_lengths=())
        super().__init__(scripted=scripted, habits=habits, **arguments)
        self._gives_token = not scripted
        if scripted:
            self._ack_delay = MAX_ACK_DELAY_MS / 1000  # what a script has none for waits for it
        self._client_cid = client_cid
        self._reader = DestReader(self._first_destination_cid, client_cid)
        if shown is not None:
            self._reader.shown(*shown)
        self._reset_token = reset_token
        if reset_token is None:
            self._local_initial_source_connection_id = b""
        self._following = True
        self._handshake_number = 0  # of the next mirrored Handshake packet
        self._server_hello = b""
        self._withheld: list[tuple[bytes, DatagramShape]] = []
        self._remembered: OrderedDict[bytes, bytes] = OrderedDict()
        self._expected_flight = expected_flight
        self._flight_so_far = 0
        self._flight_is_made = False  # for the ServerHello that is said
        self._ready: deque[UnsealedPacket] | None = None  # all that there is to say in 1-RTT before Finished
        self._finished = b""  # held back
        self._at_once = 0  # bytes that Dest may send before it has heard of the client again
        self._dest_spoke_at: float | None = None
        self._most_sealed = _MOST_SEALED  # datagrams of Dest that are still answered with keys of ours
        self._early: list[bytes] = []
        self._left = False  # an Initial of the client's has ended its visit

    @property
    def following(self) -> bool:
        """Whether Dest's datagrams still say what is sent."""
        return self._following

    @property
    def finished(self) -> bool:
        """Whether the client's Finished has come."""
        return bool(self._handshake_complete)

    @property
    def dest_cid(self) -> bytes | None:
        """Dest's source CID, which is ours; None while it has not answered."""
        return self._reader.source_cid

    def farewell(self, token: bytes) -> bytes:
        """Ends the client's visit at Dest, which gave it ``token`` with a Retry. Empty: Dest has not answered."""
        dest_cid = self._reader.source_cid
        if dest_cid is None:
            return b""
        number = int(self._spaces[tls.Epoch.INITIAL].largest_received_packet) + 1
        return farewell(self._first_destination_cid, dest_cid, self._client_cid, number, token)

    # --- hooks of the base class ---

    def _new_tls(self) -> ShadowTlsContext:
        return ShadowTlsContext(
            client_hello=self._client_hello,
            proof_key=self._proof_key,
            flight=self._flight,
            random_bytes=self._random_bytes,
            resumption=self._resumption,
            tickets=self._tickets,
        )

    def _hello_is_read(self) -> bool:
        context = self.tls if self._network_paths else None
        return isinstance(context, ShadowTlsContext) and context.exchanged is not None

    @property
    def visit_is_over(self) -> bool:
        """Whether Dest or the client has closed the connection, as anyone can read; only Dest still speaks."""
        return self._left or self._reader.closed

    def receive_datagram(self, data: bytes, addr: Any, now: float) -> None:
        """Also notice the client's Finished: from then on we speak for ourselves. None opens what is closed."""
        if self._following and self.visit_is_over:
            return
        before = self._handshake_complete
        super().receive_datagram(data, addr, now)
        if not before:
            self._keep_early(data)
        if self._handshake_complete:
            self._unready()  # Dest's packet did not come for it
            self._follow_no_more()
            early, self._early = self._early, []
            for each in early:
                super().receive_datagram(each, addr, now)

    def _follow_no_more(self) -> None:
        """aioquic goes on, in the Handshake space only while it has the keys: behind our numbers."""
        self._following = False
        if self._cryptos[tls.Epoch.HANDSHAKE].send.is_valid():
            self._packet_number = max(self._packet_number, self._handshake_number)

    def _keep_early(self, data: bytes) -> None:
        """What came before Finished in 1-RTT packets cannot be opened yet; stock drops it."""
        with contextlib.suppress(UntrustedInputError):
            kinds = [each.type for each in packets_untrusted(data, short_cid_length=len(self._handshake_cid))]
            if kinds[-1:] == [PacketType.ONE_RTT] and len(self._early) < _MOST_EARLY:
                self._early.append(data)

    def _takes_of_initial(self, frame: Frame) -> bool:
        """Dest alone answers Initials, a CLOSE too: it may have sent more before that came to it."""
        if isinstance(frame, ConnectionClose) and not frame.application:
            self._left = True
        return isinstance(frame, Crypto) and super()._takes_of_initial(frame)

    def get_timer(self) -> float | None:
        """None while following: what was lost Dest sends again, for as long as it likes."""
        return None if self._following else super().get_timer()

    def handle_timer(self, now: float) -> None:
        """Nothing while following."""
        if not self._following:
            super().handle_timer(now)

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Any]]:
        """Nothing while following."""
        return [] if self._following else super().datagrams_to_send(now)

    # --- Dest's datagrams ---

    def dest_spoke(self, data: bytes, now: float) -> DestAnswer:
        """One datagram of Dest."""
        if self._stopped:
            return Mirrored(())
        again = self._remembered.get(data)
        if again is not None:
            return Mirrored((again,))
        known = self._reader.source_cid
        try:
            shape = self._reader.read_untrusted(data)
            if known is None and self._reader.source_cid is not None:
                self._take_cid(self._reader.source_cid)
            if not self._server_hello:
                self._answer_untrusted()
        except CannotFollowError as error:
            if self._server_hello:
                return Mirrored(())
            return NotFollowed(error.obstacle, tuple(data for data, _ in self._withheld))
        except UntrustedInputError:
            return NotOfThisConnection()
        if shape.needs_our_keys:
            self._most_sealed -= 1
            if self._most_sealed < 0:
                return Mirrored(())
        due = [(data, shape)]
        if self._server_hello:
            due, self._withheld = [*self._withheld, *due], []
        elif shape.needs_hello:
            self._withheld = [*self._withheld, *due][:_MOST_WITHHELD]
            return Mirrored(())
        return Mirrored(tuple(self._mirror(raw, each, now) for raw, each in due))

    def _take_cid(self, cid: bytes) -> None:
        self._handshake_cid = self.host_cid = cid
        token = self._host_cids[0].stateless_reset_token
        if self._reset_token is not None:
            self._local_initial_source_connection_id, token = cid, self._reset_token(cid)
        self._host_cids[0] = QuicConnectionId(cid, 0, token, was_sent=True)
        self._configuration.connection_id_length = len(cid)

    def _answer_untrusted(self) -> None:
        """Make ServerHello as soon as Dest's is known. Raises CannotFollowError."""
        if self._reader.closed:
            raise CannotFollowError(Obstacle.CLOSED)
        pattern = pattern_of_untrusted(self._reader.hello)
        if pattern is None:
            return
        context = self.tls
        if not isinstance(context, ShadowTlsContext):
            raise CannotFollowError(Obstacle.UNREADABLE)
        self._server_hello = context.server_hello(pattern)

    def prepare(self) -> None:
        """Make what follows ServerHello, while Dest still thinks; for a client that wants to read Dest's connection
        ID there, as soon as that is known. It is said when ServerHello is what was expected, or else made again."""
        context = self.tls if self._network_paths else None
        unnamed = self._reset_token is not None and self._reader.source_cid is None
        if self._flight_is_made or unnamed or not isinstance(context, ShadowTlsContext):
            return
        if not context.rest_is_made:
            context.handshake_extensions = [
                (int(tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS), self._serialize_transport_parameters())
            ]
        flight = context.rest(self._crypto_buffers[tls.Epoch.HANDSHAKE])
        if self._server_hello:
            self._flight_is_made = True
            self._finished = flight[-FINISHED_LENGTH:]
            self._crypto_streams[tls.Epoch.HANDSHAKE].sender.write(flight[:-FINISHED_LENGTH])
        if flight and self._ready is None and self._resumption is None:
            self._ready = deque(islice(iter(self._next_unsealed, None), _MOST_READY))

    def _next_unsealed(self) -> UnsealedPacket | None:
        """A 1-RTT packet with what there is to say, as far as it has room; it waits for its length."""
        builder = self._builder_of_one(UnsealedBuilder, _FULL)
        self._loss._pacer.packet_time = None
        with contextlib.suppress(QuicPacketBuilderStop):  # the packet is full
            super()._write_application(builder, self._network_paths[0], 0.0)
        packet = builder.unsealed()
        self._packet_number = builder.packet_number
        return packet

    # --- datagrams of ours ---

    def _mirror(self, raw: bytes, shape: DatagramShape, now: float) -> bytes:
        paused = self._dest_spoke_at is not None and now - self._dest_spoke_at > _PAUSE
        self._dest_spoke_at = now
        self._at_once = self._at_once or _AMPLIFICATION * self._network_paths[0].bytes_received
        packets = [self._mirror_packet(each, now, paused=paused) for each in shape.packets]
        made = b"".join(packets) + shape.trailing
        self._network_paths[0].bytes_sent += len(made)
        self._remembered[raw] = made
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)
        return made

    def _mirror_packet(self, shape: PacketShape, now: float, *, paused: bool) -> bytes:
        if isinstance(shape, InitialShape):
            return self._mirror_initial(shape)
        self.prepare()
        if shape.type is PacketType.HANDSHAKE:
            return self._mirror_handshake(shape, now, paused=paused)
        return self._mirror_application(shape, now)

    def _mirror_initial(self, shape: InitialShape) -> bytes:
        """Frame by frame, under Dest's packet number: these keys are everybody's."""
        payload = b"".join(frame if isinstance(frame, bytes) else self._crypto_frame(frame) for frame in shape.frames)
        header = shape.header + encode_number(shape.number, shape.number_length)
        return self._reader.initial_keys.protect(header, shape.number, payload)

    def _crypto_frame(self, place: CryptoPlace) -> bytes:
        data = self._server_hello[place.offset : place.offset + place.length]
        return place.head + data.ljust(place.length, b"\0")

    def _mirror_handshake(self, shape: PacketShape, now: float, *, paused: bool) -> bytes:
        pair = self._cryptos[tls.Epoch.HANDSHAKE]
        sender = self._crypto_streams[tls.Epoch.HANDSHAKE].sender
        room = shape.length - NUMBER_LENGTH - TAG_LENGTH
        self._flight_so_far += room
        limited = self._network_paths[0].bytes_sent >= self._at_once  # what is left of Dest's flight may not come
        if self._finished and (paused or limited or self._flight_so_far + _SLACK >= self._expected_flight):
            sender.write(self._finished)
            self._finished = b""
        elif not self._finished and not len(sender._pending):
            self._send_again(tls.Epoch.HANDSHAKE)
        sent = self._new_packet(tls.Epoch.HANDSHAKE, QuicPacketType.HANDSHAKE, shape.size)
        frames: list[bytes] = []
        while (left := room - sum(map(len, frames))) > _CRYPTO_OVERHEAD:
            head = 1 + size_uint_var(sender.next_offset)
            frame = sender.get_frame(left - head - size_uint_var(left - head - 1))
            if frame is None or not frame.data:
                break
            end = frame.offset + len(frame.data)
            frames.append(encode_frame(Crypto(frame.offset, frame.data)))
            sent.delivery_handlers.append((sender.on_data_delivery, (frame.offset, end, False)))
        sent.is_crypto_packet = bool(frames)
        payload = b"".join(frames) or encode_frame(Ping())
        number = sent.packet_number
        header = (
            bytes([LONG | FIXED | PacketType.HANDSHAKE.value << 4 | NUMBER_LENGTH - 1])
            + shape.header[1:]
            + encode_number(number, NUMBER_LENGTH)
        )
        return self._sealed(pair.encrypt_packet(header, payload.ljust(room, b"\0"), number), sent, now)

    def _mirror_application(self, shape: PacketShape, now: float) -> bytes:
        """With what we have for the client, as far as it fits; else with MAX_DATA, which says nothing."""
        room = shape.length - NUMBER_LENGTH - TAG_LENGTH
        if self._ready and len(self._ready[0].payload) > room:
            self._unready()
        if self._ready is None:
            builder = self._one_packet(shape.size)
            with contextlib.suppress(QuicPacketBuilderStop):  # the packet is full
                super()._write_application(builder, self._network_paths[0], now)
            datagrams, packets = builder.flush()
            if datagrams:
                self._packet_number = builder.packet_number
                (packet,), (datagram,) = packets, datagrams
                self._repeat_if_lost(packet, counted=False)
                return self._sealed(datagram, packet, now)
        if self._ready:
            unsealed = self._ready.popleft()
            sent, payload = unsealed.packet, unsealed.payload
            sent.sent_bytes, sent.in_flight = shape.size, True
        else:
            sent = self._new_packet(tls.Epoch.ONE_RTT, QuicPacketType.ONE_RTT, shape.size)
            payload = encode_frame(FlowControl(_MAX_DATA, self._local_max_data.value))
            if len(payload) > room:
                payload, sent.is_ack_eliciting = b"", False
        if sent.is_ack_eliciting:
            self._repeat_if_lost(sent, counted=False)
        number = sent.packet_number
        header = bytes([FIXED | NUMBER_LENGTH - 1]) + shape.header[1:] + encode_number(number, NUMBER_LENGTH)
        packet_bytes = self._cryptos[tls.Epoch.ONE_RTT].encrypt_packet(header, payload.ljust(room, b"\0"), number)
        return self._sealed(packet_bytes, sent, now)

    def _new_packet(self, epoch: tls.Epoch, kind: QuicPacketType, size: int) -> QuicSentPacket:
        """Takes the next packet number."""
        own = epoch is tls.Epoch.HANDSHAKE
        number = self._handshake_number if own else self._packet_number
        if number >= PACKET_NUMBER_BASE:
            raise UntrustedInputError("Dest", "it sends without end")
        if own:
            self._handshake_number += 1
        else:
            self._packet_number += 1
        return QuicSentPacket(
            epoch=epoch,
            in_flight=True,
            is_ack_eliciting=True,
            is_crypto_packet=False,
            packet_number=number,
            packet_type=kind,
            sent_bytes=size,
        )

    def _unready(self) -> None:
        """What waits for its length has no room in Dest's next packet: it is written anew, as far as it fits. Nothing
        was sealed with its packet numbers, which are the last that were taken."""
        waiting, self._ready = self._ready or (), None
        if waiting and waiting[-1].packet.packet_number == self._packet_number - 1:
            self._packet_number = waiting[0].packet.packet_number
        for unsealed in waiting:
            _say_again(unsealed.packet)

    def _send_again(self, epoch: tls.Epoch) -> None:
        """Dest sends more than our flight has: what is not acknowledged goes again."""
        for packet in list(self._spaces[epoch].sent_packets.values()):
            _say_again(packet)


def _say_again(packet: QuicSentPacket) -> None:
    for handler, arguments in packet.delivery_handlers:
        handler(QuicDeliveryState.LOST, *arguments)
    packet.delivery_handlers.clear()
