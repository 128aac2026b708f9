"""One client handshake, from the hello to the hand-over: sans-IO.

Its life is the table in ``attempt_rules``; here what the stack says becomes an event of it, and its effects are done.
Without a ``public_key`` it is a plain visit, which ends in ``SiteAnswered``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Final, TextIO

from aioquic import tls
from aioquic.quic.events import HandshakeCompleted, ProtocolNegotiated, QuicEvent

from qre.addresses import Interface, host_port
from qre.causes import Cause
from qre.errors import InternalError, PeerError, QreError
from qre.quic.attempt_rules import ATTEMPT_RULES, LOOKED_FOR, WORDS, AttemptEffect, AttemptEvent, AttemptState
from qre.quic.client.client_connection import RoutedCid
from qre.quic.client.client_tls import Peer
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.hello import make_hello
from qre.quic.client.http3 import HttpClient, Visit
from qre.quic.client.return_recorder import recorder_of
from qre.quic.client.returning_client import ReturningClient
from qre.quic.client.site_profile import SiteObserver, group_name
from qre.quic.client.trust import TrustStore
from qre.quic.connection import Ending
from qre.quic.endings import cause_of, words_of
from qre.quic.handed_over import HandedOver
from qre.quic.handshake_events import (
    ClientEvent,
    ClockOff,
    Granted,
    HandshakeFailed,
    ManInTheMiddle,
    Negotiated,
    SiteAnswered,
)
from qre.quic.resumption.held_ticket import HeldTicket
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.packet import SHORTEST_DEST_CID

Address = tuple[str, int]

#: Seconds for TLS, and again for the tunnel or the visit.
STEP_TIMEOUT: Final = 10.0
#: The least and the most time from the arrival of the page to the closing of the tab (seconds).
_LINGER: Final = (0.15, 0.6)
#: A handshake fails when its packet numbers come this close to the data plane's.
_NUMBER_RESERVE: Final = 256
#: A site's clock and ours differ when they are so far apart (seconds): the answer may have taken some.
_CLOCKS_DIFFER: Final = 45


class ClientHandshake:
    """Drive it with ``connect``, ``datagram_received``, ``timer``/``handle_timer``, ``datagrams_to_send`` and
    ``next_event``. ``now`` is monotonic and in seconds, ``addresses`` are those of the profile; keys are made with
    ``random``, too, which has to be the system's outside tests. ``key_log`` gets
    every secret (NSS key log format): for captures of sessions that exist nowhere. ``ticket``: one of this server,
    which no other connection uses; ``round_trip_us``: as an earlier one has measured it, 0: not known."""

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
        ticket: HeldTicket | None = None,
        round_trip_us: int = 0,
    ) -> None:
        self._probing = not public_key
        #: Whether its hello has a ticket.
        self.offers_ticket = ticket is not None
        self._short_id = short_id
        self._addresses = addresses
        self._fingerprint = fingerprint
        self._server_name = server_name
        self._unix_time = unix_time
        self._random = random
        self._state = AttemptState.GREETING
        self._events: deque[ClientEvent] = deque()
        self._http: HttpClient | None = None
        self._peer: Address = ("", 0)
        self._granted: Granted | None = None
        self._pings_before_grant = 0
        self._deadline: float | None = None
        self._began = now
        self._silence = fingerprint.patience.silence_ms / 1000
        self._patience = self._silence  # before anything is heard
        self._phrase = fingerprint.patience.left  # of the CLOSE
        self._leave_at: float | None = None
        self._asks_at: float | None = None  # the first request, from when on it may be made
        self._first_visit = ticket is None and not round_trip_us  # else a browser has the page's icon
        self._icon_at: float | None = None  # it is requested once
        self._observer = SiteObserver(now)
        self._connection = ReturningClient(
            hello=make_hello(
                fingerprint,
                server_name,
                public_key=public_key,
                short_id=short_id,
                unix_time=unix_time,
                random=random,
                ticket=ticket,
                round_trip_us=round_trip_us,
            ),
            round_trip_us=round_trip_us,
            fingerprint=fingerprint,
            server_name=server_name,
            trust=trust,
            unix_time=unix_time,
            random=random,
            key_log=key_log,
        )

    # --- driving ---

    def connect(self, peer: Address, now: float, patience: float = STEP_TIMEOUT) -> None:
        """Make the first flight. ``patience``: how long the peer may say nothing (seconds), the browser's at most."""
        self._peer = peer
        self._began = now
        self._deadline = now + STEP_TIMEOUT
        self._patience = min(patience, self._silence)
        self._connection.connect(peer, now)
        self._observer = SiteObserver(now, recorder_of(self._connection) if self._probing else None)
        if self._connection.sends_early_data:
            self._begin_http()
            self._asks_at = now + self._fingerprint.http3.request_delay(self._random)

    def datagram_received(self, data: bytes, peer: Address, now: float, ecn: int = 0) -> None:
        """Process any bytes, and their ECN mark; datagrams from another address are ignored (RFC 9000 §9)."""
        if self._silent or peer != self._peer:
            return
        self._guarded(lambda: self._connection.receive_marked(data, peer, now, ecn), now)
        self._observer.received(data, self._connection, now, ecn)

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """UDP payloads to send now, in order; empty once the handshake is over."""
        if self._state is AttemptState.OVER:
            return []
        sent: list[bytes] = []
        if self._asks_at == math.inf:
            self._asks_at = now + self._fingerprint.http3.request_delay(self._random)

        def send() -> None:
            sent.extend(self._connection.send(now))

        done: object = None
        while done != (len(sent), self._asks_at):  # a request may become due meanwhile: no timer tells of it any more
            done = len(sent), self._asks_at
            self._guarded(send, now)
        if self._probing:
            self._observer.sent(self._connection, now, self._http)
        if self._connection.next_packet_number > PACKET_NUMBER_BASE - _NUMBER_RESERVE:
            self._fail("it used up its packet numbers")
        if self._state is AttemptState.CLOSING:
            if not sent:
                self._guarded(send, now)
            self._happens(AttemptEvent.SENT)
        return sent

    def left(self, now: float) -> None:
        """What ``datagrams_to_send`` gave is on its way. Only the times of a probe tell a difference."""
        self._observer.left(now)

    @property
    def datagram_gap_us(self) -> tuple[int, int]:
        """The least and the most time between two datagrams that are sent together."""
        return self._fingerprint.datagram_gap_us

    def timer(self) -> float | None:
        """When to call ``handle_timer``."""
        if self._state is AttemptState.OVER:
            return None
        planned = (self._deadline, self._leave_at, self._silent_at(), self._asks_at, self._icon_at)
        times = (self._connection.get_timer(), *planned)
        return min((time for time in times if time is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """To be called at ``timer()`` or later: loss recovery, the planned departure, the deadline."""
        if self._silent:
            return
        self._guarded(lambda: self._connection.handle_timer(now), now)
        if self._silent:
            return
        if self._leave_at is not None and now >= self._leave_at:
            self._happens(AttemptEvent.LINGERED)
        elif (at := self._silent_at()) is not None and now >= at:
            self._give_up_waiting(now)
        elif self._deadline is not None and now >= self._deadline:
            self._happens(AttemptEvent.DEADLINE)

    def next_event(self) -> ClientEvent | None:
        """The oldest event that has not been read; None when there is none."""
        return self._events.popleft() if self._events else None

    def negotiated(self) -> Negotiated:
        """The parameters of a handshake that is ready to be handed over."""
        context = self._connection.context
        if self._state is not AttemptState.READY or context is None or context.key_schedule is None:
            raise InternalError("handshake", "it is not complete")
        suite = context.key_schedule.cipher_suite
        return Negotiated(suite.name, group_name(context.group), self._connection.round_trip)

    def brought(self) -> tuple[tuple[HeldTicket, ...], int]:
        """The tickets for the next connections, the newest last, and the measured round trip (microseconds)."""
        return self._connection.tickets, self._connection.smoothed_round_trip_us

    # --- the end ---

    def hand_over(self, now: float) -> HandedOver:
        """Everything that the data plane needs. Nothing is sent or received afterwards."""
        routed = self._routed()
        peer = self._connection.peer_parameters
        granted = self._granted
        if self._state is not AttemptState.READY or routed is None or peer is None or granted is None:
            raise InternalError("handshake", "it is not ready to be handed over")
        handed_over = self._connection.hand_over(routed, peer, granted.addresses, self._short_id)
        handed_over = replace(handed_over, splits=granted.splits)
        self._happens(AttemptEvent.HAND_OVER)
        return handed_over

    def close(self) -> None:
        """Give up: CONNECTION_CLOSE goes with the next ``datagrams_to_send``, then ``Closed`` comes."""
        if not self._silent:
            self._happens(AttemptEvent.CLOSE)

    def abandon(self) -> None:
        """Give up without sending anything."""
        if self._state is not AttemptState.OVER:
            self._happens(AttemptEvent.ABANDON)

    # --- inside ---

    @property
    def _silent(self) -> bool:
        return self._state in (AttemptState.CLOSING, AttemptState.OVER)

    def _silent_at(self) -> float | None:
        """When a browser gives up that has heard nothing; None once TLS is complete."""
        if self._state not in (AttemptState.GREETING, AttemptState.HURRYING) or self._deadline is None:
            return None
        heard_at = self._connection.heard_at
        return self._began + self._patience if heard_at is None else heard_at + self._silence

    def _give_up_waiting(self, now: float) -> None:
        """A browser says for how long it has waited; one whose tab is closed earlier does not."""
        waited = now - (self._began if self._connection.heard_at is None else self._connection.heard_at)
        if waited >= self._silence:
            self._phrase = self._fingerprint.patience.silent.format(microseconds=int(waited * 1e6))
        self._happens(AttemptEvent.DEADLINE)

    def _guarded(self, step: Callable[[], None], now: float) -> None:
        """Run a step of the stack and evaluate the result. Malformed input ends only this handshake."""
        try:
            step()
            while (event := self._connection.next_event()) is not None:
                self._handle_event(event, now)
            if not self._silent:
                self._see_how_far(now)
        except QreError as error:
            self._fail(str(error), error.cause, error.detail)
        except Exception as error:  # noqa: BLE001 - whatever it is, it came of a peer's bytes and must stop here
            self._fail(f"{type(error).__name__} in the protocol stack")

    def _handle_event(self, event: QuicEvent, now: float) -> None:
        if self._silent:
            return
        if isinstance(event, ProtocolNegotiated) and self._http is None:
            self._begin_http()
        if isinstance(event, HandshakeCompleted):
            self._tls_complete(now)
        if self._http is not None:
            granted = self._http.handle_event(event)
            if granted is not None:
                self._tunnel_granted(granted, now)

    def _tls_complete(self, now: float) -> None:
        context = self._connection.context
        assert context is not None and context.key_schedule is not None
        self._settle_early_data(proven=context.peer is Peer.PROVEN)
        self._asks_at = math.inf  # counted from when Finished is sent: to get so far takes a while
        if context.peer is not Peer.PROVEN:
            self._happens(AttemptEvent.NO_PROOF, now)
        elif context.key_schedule.cipher_suite is tls.CipherSuite.AES_128_GCM_SHA256:
            self._happens(AttemptEvent.PROOF, now)
        else:
            raise PeerError("server", "it chose a cipher suite that the data plane does not support")

    def _begin_http(self) -> None:
        self._http = HttpClient(self._connection, self._fingerprint.http3, self._server_name, self._random)

    def _settle_early_data(self, *, proven: bool) -> None:
        """What the server has not read goes again to a server of ours, and is forgotten for a site."""
        if self._connection.offered_early_data and not self._connection.early_data_taken:
            self._connection.take_back(again=proven)
            if not proven:
                self._begin_http()

    def _tunnel_granted(self, granted: Granted, now: float) -> None:
        self._granted = granted
        self._pings_before_grant = self._connection.pings
        self._happens(AttemptEvent.GRANT, now, told=granted)

    def _see_how_far(self, now: float) -> None:
        """A browser's request follows its Finished by a moment, and waits for nothing."""
        ending = self._connection.ending
        if ending is not None:
            self._ended(ending)
            return
        if self._http is None or (self._asks_at is not None and now < self._asks_at):
            return
        self._asks_at = None
        for event in LOOKED_FOR:
            if (self._state, event) in ATTEMPT_RULES and self._holds(event, self._http, now):
                self._happens(event, now)
                return

    def _holds(self, event: AttemptEvent, http: HttpClient, now: float) -> bool:
        match event:
            case AttemptEvent.EARLY:
                return self._connection.sends_early_data
            case AttemptEvent.ICON_DUE:
                return self._icon_at is not None and now >= self._icon_at
            case AttemptEvent.TUNNEL_POSSIBLE:
                return http.tunnel_possible()
            case AttemptEvent.ALL_DONE:
                return self._all_is_done()
            case AttemptEvent.PAGE_POSSIBLE:
                return http.visit_state is Visit.NONE
            case _:
                return http.visit_state is Visit.ANSWERED

    def _all_is_done(self) -> bool:
        """With an unchanged CID our packets go to the server's data plane from its last frame on, which acknowledges
        none of them. Only an ACK can be outstanding then; our data plane's first packet stands for it."""
        routed, quic = self._routed(), self._connection
        if routed is None or not quic.handshake_confirmed:
            return False
        waits = quic.acknowledgement_pending or not quic.everything_acknowledged()
        if waits and routed.retire_sequence is not None:
            return False
        if quic.key_phase:
            raise PeerError("server", "it updated its keys before the hand-over")
        return True

    def _routed(self) -> RoutedCid | None:
        """The routed connection ID, once the server's last frame says that its session is installed."""
        if self._connection.routed is not None:
            return self._connection.routed
        own = self._connection.handshake_cid()
        if len(own.cid) >= SHORTEST_DEST_CID and self._connection.pings > self._pings_before_grant:
            return own
        return None

    def _answer_probe(self) -> None:
        if not self._probing:
            date = self._http.date if self._http is not None else None
            if date is not None and abs(date - self._unix_time) > _CLOCKS_DIFFER:
                self._events.append(ClockOff(self._unix_time - date))
            return
        profile = self._observer.profile(
            self._connection,
            address=host_port(*self._peer),
            http_status=self._http.status if self._http is not None else 0,
            unix_time=self._unix_time,
        )
        self._events.append(SiteAnswered(profile))

    def _ended(self, ending: Ending) -> None:
        """The peer closed, or TLS or QUIC has to close because of an error."""
        context = self._connection.context
        told: ClientEvent = HandshakeFailed(words_of(ending), cause=cause_of(ending))
        if context is not None and context.peer is Peer.IMPOSTOR and not self._probing:
            assert context.problem is not None
            told = ManInTheMiddle(context.problem.detail, context.problem.cause)
        elif ending.by_us and ending.alert == tls.AlertDescription.bad_certificate:
            told = ManInTheMiddle("the certificate cannot be read", Cause.NOT_TRUSTED)
        self._happens(AttemptEvent.ENDED_BY_STACK if ending.by_us else AttemptEvent.ENDED_BY_PEER, told=told)

    def _fail(self, reason: str, cause: Cause | None = None, detail: str = "") -> None:
        if not self._silent:
            self._happens(AttemptEvent.FAILURE, told=HandshakeFailed(reason, cause=cause, detail=detail))

    # --- the table, and what it wants done ---

    def _happens(self, event: AttemptEvent, now: float = 0.0, told: ClientEvent | None = None) -> None:
        """``now`` is wanted by what sets a time, ``told`` where the words are not the table's."""
        rule = ATTEMPT_RULES[self._state, event]
        self._state = rule.becomes
        for effect in rule.effects:
            match effect:
                case AttemptEffect.NEW_DEADLINE:
                    self._deadline = now + STEP_TIMEOUT
                case AttemptEffect.NO_DEADLINE:
                    self._deadline = None
                case AttemptEffect.LINGER:
                    self._leave_at = now + self._random.uniform(*_LINGER)
                case AttemptEffect.ASK_EARLY | AttemptEffect.ASK_TUNNEL if not self._probing:
                    self._requests.open_tunnel(self._addresses, asks_icon=self._first_visit)
                case AttemptEffect.ASK_EARLY | AttemptEffect.ASK_PAGE:
                    self._requests.visit()
                case AttemptEffect.PLAN_ICON if self._first_visit and self._requests.icon:
                    self._icon_at = now + self._random.uniform(*self._fingerprint.http3.icon.delay_ms) / 1000
                    if self._leave_at is not None:
                        self._leave_at = self._icon_at + self._random.uniform(*_LINGER)
                case AttemptEffect.ASK_ICON:
                    self._icon_at = None
                    self._requests.ask_icon()
                case AttemptEffect.CLOSE:
                    self._close()
                case AttemptEffect.SILENCE:
                    self._connection.stop()
                case AttemptEffect.TELL_SITE:
                    self._answer_probe()
                case AttemptEffect.TELL_GRANTED | AttemptEffect.TELL_END | AttemptEffect.TELL_FAILURE:
                    assert told is not None
                    self._events.append(told)
                case AttemptEffect.PLAN_ICON:
                    pass  # there is none, or it has been here before
                case AttemptEffect.TELL_NOT_RECOGNISED if self._probing:
                    pass  # it did not want to be recognised
                case _:
                    self._events.append(WORDS[effect])

    @property
    def _requests(self) -> HttpClient:
        assert self._http is not None
        return self._http

    def _close(self) -> None:
        self._connection.parting = self._phrase.encode("ascii")
        if self._http is not None:
            self._http.close_quietly()
        else:
            self._connection.close()
