"""One client handshake, from the hello to the hand-over: sans-IO.

    connect() ──► GREETING ── TLS complete ──┬─ the proof is right ──► PROVEN ── confirmed, SETTINGS ──► ASKING
                                             │        ── 200, ADDRESS_ASSIGN ──► GRANTED
                                             │        ── the last frame is here and acknowledged, nothing of ours is
                                             │           outstanding ──► READY ── hand_over() ──► OVER
                                             ├─ the site's chain is good ──► VISITING ── "/" answered ──► LEAVING
                                             │        ── a moment later, CLOSE ──► OVER
                                             └─ neither ──► CLOSE with bad_certificate ──► OVER

*The last frame* is NEW_CONNECTION_ID with the routed connection ID, or a PING when the server's handshake CID
is the routed one. A deadline stands over every state but READY. From OVER on nothing is sent. Without a
``public_key`` it is a plain visit, which ends in ``SiteAnswered``.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final, TextIO

from aioquic import tls
from aioquic.quic.events import HandshakeCompleted, ProtocolNegotiated, QuicEvent

from qre.addresses import Interface
from qre.errors import InternalError, PeerError, QreError
from qre.quic.client.client_connection import ClientConnection, RoutedCid
from qre.quic.client.client_tls import Peer
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.hello import make_hello
from qre.quic.client.http3 import HttpClient, Visit
from qre.quic.client.site_profile import SiteObserver, group_name
from qre.quic.client.trust import TrustStore
from qre.quic.connection import Ending
from qre.quic.handed_over import HandedOver, session_id
from qre.quic.handshake_events import (
    ClientEvent,
    Closed,
    Granted,
    HandOverReady,
    HandshakeFailed,
    ManInTheMiddle,
    NotRecognised,
    Proven,
    SiteAnswered,
)
from qre.reality.cid import MIN_LENGTH as MIN_ROUTED_LENGTH
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.protection import derive

Address = tuple[str, int]

#: Seconds for TLS, and again for the tunnel or the visit.
STEP_TIMEOUT: Final = 10.0
#: The least and the most time from the arrival of the page to the closing of the tab (seconds).
_LINGER: Final = (0.15, 0.6)
#: A handshake fails when its packet numbers come this close to the data plane's.
_NUMBER_RESERVE: Final = 256
_DEFAULT_ACK_DELAY_EXPONENT: Final = 3
_DEFAULT_MAX_ACK_DELAY_MS: Final = 25
_DEFAULT_MAX_UDP_PAYLOAD: Final = 65_527

NOT_RECOGNISED: Final = (
    "server did not recognise us: the real site answered "
    "(wrong RealityPublicKey or RealityShortId, or a clock that is off)"
)


class _State(enum.Enum):
    """The states of the drawing above."""

    GREETING = enum.auto()
    PROVEN = enum.auto()
    ASKING = enum.auto()
    GRANTED = enum.auto()
    READY = enum.auto()
    VISITING = enum.auto()
    LEAVING = enum.auto()
    CLOSING = enum.auto()  # a CLOSE is to be sent
    OVER = enum.auto()


@dataclass(frozen=True)
class Negotiated:
    """The negotiated parameters; ``round_trip`` is the shortest so far, in seconds."""

    cipher: str
    group: str
    round_trip: float


class ClientHandshake:
    """Drive it with ``connect``, ``datagram_received``, ``timer``/``handle_timer``, ``datagrams_to_send`` and
    ``next_event``. ``now`` is monotonic and in seconds, ``addresses`` are those of the profile; keys are made with
    ``random``, too, which has to be the system's outside tests. ``key_log`` gets
    every secret (NSS key log format): for captures of sessions that exist nowhere."""

    def __init__(
        self,
        *,
        server_name: str,
        public_key: bytes,
        short_id: bytes,
        addresses: tuple[Interface, ...],
        fingerprint: Fingerprint,
        trust: TrustStore,
        unix_time: int,
        now: float,
        random: Random,
        key_log: TextIO | None = None,
    ) -> None:
        self._probing = not public_key
        self._short_id = short_id
        self._addresses = addresses
        self._fingerprint = fingerprint
        self._server_name = server_name
        self._unix_time = unix_time
        self._random = random
        self._state = _State.GREETING
        self._events: deque[ClientEvent] = deque()
        self._http: HttpClient | None = None
        self._peer: Address = ("", 0)
        self._granted: tuple[Interface, ...] = ()
        self._pings_before_grant = 0
        self._deadline: float | None = None
        self._leave_at: float | None = None
        self._observer = SiteObserver(now)
        self._connection = ClientConnection(
            hello=make_hello(
                fingerprint,
                server_name,
                public_key=public_key,
                short_id=short_id,
                unix_time=unix_time,
                random=random,
            ),
            fingerprint=fingerprint,
            server_name=server_name,
            trust=trust,
            unix_time=unix_time,
            random=random,
            key_log=key_log,
        )

    # --- driving ---

    def connect(self, peer: Address, now: float) -> None:
        """Make the first flight, which ``datagrams_to_send`` returns."""
        self._peer = peer
        self._observer = SiteObserver(now)
        self._deadline = now + STEP_TIMEOUT
        self._connection.connect(peer, now)

    def datagram_received(self, data: bytes, peer: Address, now: float) -> None:
        """Process any bytes; datagrams from another address are ignored (RFC 9000 §9)."""
        if self._silent or peer != self._peer:
            return
        self._guarded(lambda: self._connection.receive_datagram(data, peer, now), now)
        self._observer.received(data, self._connection, now)

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """UDP payloads to send now, in order; empty once the handshake is over."""
        if self._state is _State.OVER:
            return []
        sent: list[bytes] = []

        def send() -> None:
            sent.extend(self._connection.send(now))

        self._guarded(send, now)
        if self._connection.next_packet_number > PACKET_NUMBER_BASE - _NUMBER_RESERVE:
            self._fail("it used up its packet numbers")
        if self._state is _State.CLOSING:
            if not sent:
                self._guarded(send, now)
            self._stop()
        return sent

    def timer(self) -> float | None:
        """When to call ``handle_timer``."""
        if self._state is _State.OVER:
            return None
        times = (self._connection.get_timer(), self._deadline, self._leave_at)
        return min((time for time in times if time is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """To be called at ``timer()`` or later: loss recovery, the planned departure, the deadline."""
        if self._silent:
            return
        self._guarded(lambda: self._connection.handle_timer(now), now)
        if self._leave_at is not None and now >= self._leave_at:
            self._leave()
        elif self._deadline is not None and now >= self._deadline:
            self._time_out()

    def next_event(self) -> ClientEvent | None:
        """The oldest event that has not been read; None when there is none."""
        return self._events.popleft() if self._events else None

    def negotiated(self) -> Negotiated:
        """The parameters of a handshake that is ready to be handed over."""
        context = self._connection.context
        if self._state is not _State.READY or context is None or context.key_schedule is None:
            raise InternalError("handshake", "it is not complete")
        suite = context.key_schedule.cipher_suite
        return Negotiated(suite.name, group_name(context.group), self._connection.round_trip)

    # --- the end ---

    def hand_over(self, now: float) -> HandedOver:
        """Everything that the data plane needs. Nothing is sent or received afterwards."""
        routed = self._routed()
        peer = self._connection.peer_parameters
        if self._state is not _State.READY or routed is None or peer is None:
            raise InternalError("handshake", "it is not ready to be handed over")
        secrets = self._connection.application_secrets()
        handed_over = HandedOver(
            session_id=session_id(secrets.client),
            routed_cid=routed.cid,
            client_cid=b"",
            tx_secret=secrets.client,
            rx_secret=secrets.server,
            tx_hp_key=derive(secrets.client).hp,
            rx_hp_key=derive(secrets.server).hp,
            key_epoch=0,
            peer_idle_ms=peer.max_idle_timeout or 0,
            peer_ack_delay_exponent=_default(peer.ack_delay_exponent, _DEFAULT_ACK_DELAY_EXPONENT),
            peer_max_ack_delay_ms=_default(peer.max_ack_delay, _DEFAULT_MAX_ACK_DELAY_MS),
            peer_max_udp_payload=_default(peer.max_udp_payload_size, _DEFAULT_MAX_UDP_PAYLOAD),
            reset_token=routed.reset_token,
            addresses=self._granted,
            short_id=self._short_id,
            retire_sequence=routed.retire_sequence,
            next_packet_number=self._connection.next_packet_number,
        )
        self._state = _State.OVER
        self._connection.stop()
        return handed_over

    def close(self) -> None:
        """Give up: CONNECTION_CLOSE goes with the next ``datagrams_to_send``, then ``Closed`` comes."""
        if not self._silent:
            self._close()

    def abandon(self) -> None:
        """Give up without sending anything."""
        if self._state is not _State.OVER:
            self._stop()

    # --- inside ---

    @property
    def _silent(self) -> bool:
        return self._state in (_State.CLOSING, _State.OVER)

    def _guarded(self, step: Callable[[], None], now: float) -> None:
        """Run a step of the stack and evaluate the result. Malformed input ends only this handshake."""
        try:
            step()
            while (event := self._connection.next_event()) is not None:
                self._handle_event(event, now)
            if not self._silent:
                self._see_how_far(now)
        except QreError as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, it came of a peer's bytes and must stop here
            self._fail(f"{type(error).__name__} in the protocol stack")

    def _handle_event(self, event: QuicEvent, now: float) -> None:
        if self._silent:
            return
        if isinstance(event, ProtocolNegotiated):
            self._http = HttpClient(self._connection, self._fingerprint.http3, self._server_name, self._random)
        if isinstance(event, HandshakeCompleted):
            self._tls_complete(now)
        if self._http is not None:
            granted = self._http.handle_event(event)
            if granted is not None:
                self._tunnel_granted(granted)

    def _tls_complete(self, now: float) -> None:
        context = self._connection.context
        assert context is not None and context.key_schedule is not None
        self._deadline = now + STEP_TIMEOUT
        if context.peer is Peer.PROVEN:
            if context.key_schedule.cipher_suite is not tls.CipherSuite.AES_128_GCM_SHA256:
                raise PeerError("server", "it chose a cipher suite that the data plane does not support")
            self._state = _State.PROVEN
            self._events.append(Proven())
            return
        self._state = _State.VISITING
        if not self._probing:
            self._events.append(NotRecognised(NOT_RECOGNISED))

    def _tunnel_granted(self, granted: Granted) -> None:
        asked = {address.ip for address in self._addresses}
        if not granted.addresses or not asked.issuperset(address.ip for address in granted.addresses):
            raise PeerError("server", "it did not assign the requested addresses")
        self._granted = granted.addresses
        self._pings_before_grant = self._connection.pings
        self._state = _State.GRANTED
        self._events.append(granted)

    def _see_how_far(self, now: float) -> None:
        """Requests wait until the handshake is confirmed, as a browser's do."""
        ending = self._connection.ending
        if ending is not None:
            self._ended(ending)
            return
        http = self._http
        if http is None or not self._connection.handshake_confirmed:
            return
        match self._state:
            case _State.PROVEN if http.tunnel_possible():
                http.open_tunnel(self._addresses)
                self._state = _State.ASKING
            case _State.GRANTED if self._all_is_done():
                if self._connection.key_phase:
                    raise PeerError("server", "it updated its keys before the hand-over")
                self._state = _State.READY
                self._deadline = None
                self._events.append(HandOverReady())
            case _State.VISITING if http.visit_state is Visit.NONE:
                http.visit()
            case _State.VISITING if http.visit_state is Visit.ANSWERED:
                self._state = _State.LEAVING
                self._deadline = None
                self._leave_at = now + self._random.uniform(*_LINGER)

    def _all_is_done(self) -> bool:
        """With an unchanged CID our packets go to the server's data plane from its last frame on, which acknowledges
        none of them. Since the server has granted the tunnel, only a lost ACK can be outstanding then."""
        routed = self._routed()
        if routed is None or self._connection.acknowledgement_pending:
            return False
        return routed.retire_sequence is None or self._connection.everything_acknowledged()

    def _routed(self) -> RoutedCid | None:
        """The routed connection ID, once the server's last frame says that its session is installed."""
        if self._connection.routed is not None:
            return self._connection.routed
        own = self._connection.handshake_cid()
        if len(own.cid) >= MIN_ROUTED_LENGTH and self._connection.pings > self._pings_before_grant:
            return own
        return None

    def _leave(self) -> None:
        """End the visit: close like a browser."""
        if self._probing:
            self._answer_probe()
        self._close()

    def _answer_probe(self) -> None:
        context = self._connection.context
        assert context is not None
        profile = self._observer.profile(
            self._connection,
            address=f"{self._peer[0]}:{self._peer[1]}",
            http_status=self._http.status if self._http is not None else 0,
            problem=context.problem,
            unix_time=self._unix_time,
        )
        self._events.append(SiteAnswered(profile))

    def _time_out(self) -> None:
        if self._state is _State.VISITING:  # a site that does not answer "/" is left, too
            self._leave()
        elif self._state is _State.GREETING:
            self._fail("no answer in time")
        else:
            self._fail("the server did not finish the handshake in time")

    def _ended(self, ending: Ending) -> None:
        """The peer closed, or TLS or QUIC has to close because of an error."""
        context = self._connection.context
        if context is not None and context.peer is Peer.IMPOSTOR and not self._probing:
            self._events.append(ManInTheMiddle(context.problem or "the certificate is not valid"))
        elif self._state in (_State.VISITING, _State.LEAVING):
            if self._probing:
                self._answer_probe()
        elif ending.by_us and ending.alert == tls.AlertDescription.bad_certificate:
            self._events.append(ManInTheMiddle("the certificate cannot be read"))
        else:
            self._events.append(HandshakeFailed(_why(ending)))
        self._state = _State.CLOSING
        if not ending.by_us:
            self._stop()

    def _fail(self, reason: str) -> None:
        if not self._silent:
            self._events.append(HandshakeFailed(reason))
            self._close()

    def _close(self) -> None:
        self._state = _State.CLOSING
        if self._http is not None:
            self._http.close_quietly()
        else:
            self._connection.close()

    def _stop(self) -> None:
        self._state = _State.OVER
        self._connection.stop()
        self._events.append(Closed())


def _default(value: int | None, default: int) -> int:
    return default if value is None else value


def _why(ending: Ending) -> str:
    if ending.reason == "Idle timeout":
        return "the server stopped answering"
    if ending.by_us:
        return f"the server broke the protocol ({ending.reason or hex(ending.error_code)})"
    if ending.alert is not None:
        return f"the server closed the connection (TLS alert {ending.alert})"
    return f"the server closed the connection (error {ending.error_code:#x})"
