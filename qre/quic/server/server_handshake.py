"""One server handshake, from an authenticated first flight to the hand-over: sans-IO.

    authenticated ── TLS, SETTINGS ──► AddressesRequested ──► grant() ──┐         refuse() ──► 4xx, the client closes
                                                                       ▼
      everything acknowledged ──► InstallNow ──► session_installed() ──► the last frame, until confirmed() ──► silence

*The last frame* is NEW_CONNECTION_ID with the routed connection ID, or a PING when the handshake's own CID is the
routed one. It never leaves before the session is installed, because a client that has it may switch to the data plane
at once. From ``confirmed()`` on nothing is ever sent. Nothing here answers a client that was not authenticated.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from aioquic.quic.events import ConnectionTerminated, ProtocolNegotiated

from qre.addresses import Interface, Network
from qre.causes import Cause, status_of
from qre.dest_profile import DestProfile
from qre.ends import LIKE_DEST
from qre.errors import InternalError
from qre.quic.bounds import Bound, OverBoundError
from qre.quic.handed_over import HandedOver, limits_of, session_id
from qre.quic.handshake_events import Closed, HandshakeFailed
from qre.quic.server.coming_back import Following, TicketKeeper, shadow_of, ticket_maker
from qre.quic.server.connect_ip import AddressesRequested, ConnectIpServer
from qre.quic.server.inspector import Authenticated
from qre.quic.server.performance import Performance
from qre.quic.server.server_connection import RoutedConnectionId, ServerConnection
from qre.quic.server.server_tls import GO_SERVER_HELLO, GO_TICKETS, ServerFlight
from qre.quic.server.shadow_connection import DestAnswer, Mirrored, ShadowConnection
from qre.reality.authenticator import TAKES_DEST_CIDS, TAKES_UNNAMED_CIDS
from qre.reality.cid import MAX_LENGTH, cid_key, reset_token, routed_cid
from qre.wire.close_reason import CloseReason, close_words
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.protection import derive

Address = tuple[str, int]

#: Caddy's: two full datagrams, then NEW_CONNECTION_ID and SETTINGS in 1-RTT.
CADDY_DATAGRAMS: Final = (1200, 1200, 43, 31)
CADDY_CID_LENGTH: Final = 4
_SMALLEST_DATAGRAM: Final = 1200
_LARGEST_DATAGRAM: Final = 1452
#: A handshake fails when its packet numbers come this close to the data plane's.
_NUMBER_RESERVE: Final = 256
_LAST_PING: Final = 1


class _Stage(enum.Enum):
    """The stages of the drawing above."""

    HANDSHAKE = enum.auto()  # until the address request is answered
    GRANTED = enum.auto()  # until everything is acknowledged
    INSTALLING = enum.auto()  # InstallNow was reported
    HELD = enum.auto()  # the last frame is out, or on its way
    OVER = enum.auto()  # nothing more is sent


@dataclass(frozen=True)
class ShownByDest:
    """What Dest has already sent to the client before the client was authenticated."""

    source_cid: bytes
    highest_packet_number: int


@dataclass(frozen=True)
class InstallNow:
    """Install the session of ``hand_over_state()``, held; then call ``session_installed()``."""


@dataclass(frozen=True)
class LeftUnread:
    """The client, or somebody in its name, went beyond ``bound``: what does is not read, and the handshake goes on.
    Reported once."""

    bound: Bound


ServerEvent = AddressesRequested | InstallNow | LeftUnread | HandshakeFailed | Closed


class ServerHandshake:
    """Drive it with ``datagram_received``, ``timer``/``handle_timer``, ``datagrams_to_send`` and ``next_event``.

    The datagrams that made the inspector say ``Authenticated`` are fed first, in order. ``random(n)`` gives n random
    bytes; ``now`` is monotonic, in seconds. ``client_cid``: the client's source CID; with it a living Dest is
    followed, without it Dest is imitated by what is known of it. A recorded visit is played with its probes of the
    path's MTU: the data plane goes on behind the largest that arrived. ``joins``: whether the data
    plane of the session joins packets that a client sends in two datagrams. ``keeper``: of tickets; without it
    clients get none.
    """

    def __init__(
        self,
        *,
        authenticated: Authenticated,
        private_key: bytes,
        dest: DestProfile | None,
        routed_cid_len: int,
        peer: Address,
        now: float,
        random: Callable[[int], bytes],
        shown: ShownByDest | None = None,
        client_cid: bytes | None = None,
        joins: bool = True,
        keeper: TicketKeeper | None = None,
    ) -> None:
        self._short_id = authenticated.short_id
        self._answers_requests = not authenticated.repeated
        self._server_name = authenticated.server_name
        self._peer = peer
        self._stage = _Stage.HANDSHAKE
        self._events: deque[ServerEvent] = deque()
        self._addresses: tuple[Interface, ...] = ()
        self._joins = joins
        self._connect_ip: ConnectIpServer | None = None
        self._closing = self._told_closed = False
        self._now = now
        self._performance: Performance | None = None
        key = cid_key(private_key)
        length = _routed_length(routed_cid_len, authenticated)
        cid = b"" if length == LIKE_DEST else routed_cid(key, random, length)
        #: Issued when the handshake's own is not the routed one.
        self._routed = RoutedConnectionId(cid, reset_token(key, cid))
        own = cid if client_cid is None else b""  # else one that stands for a living Dest's
        self._handshake_cid = shown.source_cid if shown else _handshake_cid(own, dest, random)
        lengths = dest.flight_datagram_lengths if dest else CADDY_DATAGRAMS
        arguments: dict[str, Any] = {
            "client_hello": authenticated.client_hello,
            "proof_key": authenticated.secrets.proof,
            "original_destination_cid": authenticated.original_destination_cid,
            "retry_source_cid": authenticated.retry_source_cid,
            "handshake_cid": self._handshake_cid,
            "handshake_reset_token": reset_token(key, self._handshake_cid),
            "max_datagram_size": min(max((*lengths[:1], _SMALLEST_DATAGRAM)), _LARGEST_DATAGRAM),
            "first_packet_number": shown.highest_packet_number + 1 if shown else 0,
            "random_bytes": random,
            "tickets": ticket_maker(keeper, dest, authenticated.short_id),
        }
        flight = _flight(dest)
        self._shadow: ShadowConnection | None = None
        self._connection: ServerConnection
        if client_cid is None:
            self._connection = ServerConnection(flight=flight, datagram_lengths=list(lengths), **arguments)
        else:
            said = (shown.source_cid, shown.highest_packet_number) if shown else None
            unnamed = authenticated.client_version >= TAKES_UNNAMED_CIDS
            follows = Following(client_cid, flight, said, None if unnamed else partial(reset_token, key))
            self._connection, script = shadow_of(authenticated, keeper, dest, follows, arguments)
            self._shadow = self._connection
            if script is not None:
                self._performance = Performance(self._shadow, script, self._let_go)

    @property
    def peer(self) -> Address:
        """(address, port) of the client."""
        return self._peer

    @property
    def handshake_cid(self) -> bytes:
        """The source CID of the handshake's packets: Dest's, once it has answered, where Dest is followed."""
        return (self._shadow and self._shadow.dest_cid) or self._handshake_cid

    @property
    def following(self) -> bool:
        """Whether Dest's datagrams still say what is sent: give each to ``dest_spoke``."""
        return self._shadow is not None and self._shadow.following and self._stage is not _Stage.OVER

    @property
    def visit_is_over(self) -> bool:
        """Whether this can only repeat what Dest still says, because Dest or the client has closed the connection."""
        return self._shadow is not None and self.following and self._shadow.visit_is_over

    @property
    def routed_cid(self) -> bytes:
        """The connection ID that the session will be reached by."""
        return self._routed.cid or self.handshake_cid

    # --- driving ---

    def datagram_received(self, data: bytes, peer: Address, now: float) -> None:
        """Process any bytes; datagrams from another address are ignored: a handshake does not migrate."""
        if self._stage is not _Stage.OVER and peer == self._peer:
            self._now = now
            unread = self._connection.initials_left_out
            self._guarded(lambda: self._connection.receive_datagram(data, peer, now))
            if not unread and self._connection.initials_left_out:
                self._events.append(LeftUnread(Bound.INITIALS))
            self._tell_closed("the client closed the connection")
            if self._performance is not None:
                self._performance.received(now)

    def dest_spoke(self, data: bytes, now: float) -> DestAnswer:
        """One datagram of Dest for this client, and what it gets instead. Not in a handshake that follows none."""
        shadow = self._shadow
        if shadow is None or not self.following:
            return Mirrored(())
        answer: DestAnswer = Mirrored(())
        try:
            answer = shadow.dest_spoke(data, now)
        except Exception as error:  # noqa: BLE001 - see _broken
            self._broken(error)
        self._tell_closed("Dest closed the connection")
        return answer

    def _tell_closed(self, why: str) -> None:
        """Once; what Dest still says is mirrored nevertheless."""
        if self.visit_is_over and not self._told_closed:
            self._told_closed = True
            self._events.append(HandshakeFailed(why, None))

    def prepare(self) -> None:
        """Do ahead what Dest's next datagram needs: to be called when what answers the last one is sent."""
        shadow = self._shadow
        if shadow is not None:
            self._guarded(shadow.prepare)

    def farewell(self, token: bytes) -> bytes:
        """What ends the client's visit at Dest, once it is followed no more; ``token`` is that of Dest's Retry. Empty
        when Dest has not answered."""
        return b"" if self._shadow is None else self._shadow.farewell(token)

    def timer(self) -> float | None:
        """When to call ``handle_timer`` (seconds, monotonic); None: not before the next datagram."""
        if self._performance is not None and self._stage is not _Stage.OVER:
            return self._performance.timer()
        return self._connection.get_timer()

    def handle_timer(self, now: float) -> None:
        """Loss recovery, the idle timeout, and what a script says."""
        self._now = now
        self._guarded(lambda: self._connection.handle_timer(now))

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """UDP payloads to send now, in order; empty once the handshake is over."""
        if self._stage is _Stage.OVER:
            return []
        sent = self._performance.datagrams(now) if self._performance is not None else self._connection.send(now)
        self._see_how_far()
        if self._connection.next_packet_number > PACKET_NUMBER_BASE - _NUMBER_RESERVE:
            self._fail("it used up its packet numbers")
        return sent

    @property
    def scripted(self) -> bool:
        """Whether what is sent after the client's Finished has Dest's times already."""
        return self._performance is not None

    @property
    def proven_path(self) -> tuple[int, float] | None:
        """UDP payload (bytes) that the path has carried at this time, if it was probed."""
        return self._shadow.proven_size if self._shadow is not None else None

    def next_event(self) -> ServerEvent | None:
        """The oldest event that has not been read; None when there is none."""
        return self._events.popleft() if self._events else None

    # --- answers ---

    def grant(self, addresses: tuple[Interface, ...], routes: tuple[Network, ...]) -> None:
        """Answer AddressesRequested: these addresses, host prefixes, and the routes behind the server."""
        tunnel = self._tunnel()
        icon = self._performance.icon if self._performance is not None else ""
        self._guarded(lambda: tunnel.grant(addresses, routes, joins=self._joins, icon=icon))
        if self._stage is _Stage.HANDSHAKE:
            self._addresses = addresses
            self._stage = _Stage.GRANTED

    def refuse(self, cause: Cause) -> None:
        """Answer AddressesRequested with the status of ``cause``. The client closes, or the idle timeout does."""
        tunnel = self._tunnel()
        self._guarded(lambda: tunnel.refuse(status_of(cause)))

    def hand_over_state(self) -> HandedOver:
        """The session for the data plane; secrets are of key epoch 0."""
        peer = self._connection.peer_parameters
        if peer is None or self._stage not in (_Stage.INSTALLING, _Stage.HELD):
            raise InternalError("handshake", "it is not ready to be handed over")
        secrets = self._connection.application_secrets()
        return HandedOver(
            session_id=session_id(secrets.client),
            routed_cid=self.routed_cid,
            client_cid=self._connection.peer_cid,
            tx_secret=secrets.server,
            rx_secret=secrets.client,
            tx_hp_key=derive(secrets.server).hp,
            rx_hp_key=derive(secrets.client).hp,
            key_epoch=0,
            **limits_of(peer),
            reset_token=None,
            addresses=self._addresses,
            short_id=self._short_id,
            next_cid_sequence=1 if self._cid_is_routed else 2,
            splits=self._tunnel().splits,
            next_packet_number=self._connection.next_packet_number,
        )

    def session_installed(self) -> None:
        """The session is installed: send the last frame. Does nothing if the handshake has ended meanwhile."""
        if self._stage is _Stage.OVER:
            return
        if self._stage is not _Stage.INSTALLING:
            raise InternalError("handshake", "it did not ask for a session")
        self._stage = _Stage.HELD
        if self._performance is not None:
            self._performance.installed()
        else:
            self._let_go()

    def confirmed(self, now: float) -> None:
        """The client uses the data plane: never send again."""
        self._stop()

    def abandon(self) -> None:
        """Never send again, not even a CLOSE: the session was not confirmed, or the worker ends."""
        self._stop()

    def close(self, reason: CloseReason) -> None:
        """Tell the client, with a CLOSE like that of a site that is shut down."""
        if self._stage is not _Stage.OVER:
            self._closing = True
            self._connection.close(error_code=reason.error_code)

    # --- inside ---

    def _let_go(self) -> None:
        """The last frame."""
        if self._cid_is_routed:
            self._connection.send_ping(_LAST_PING)
        else:
            self._connection.issue(self._routed)

    @property
    def _cid_is_routed(self) -> bool:
        return self.handshake_cid == self.routed_cid

    def _tunnel(self) -> ConnectIpServer:
        if self._connect_ip is None:
            raise InternalError("handshake", "there is no request to answer")
        return self._connect_ip

    def _guarded(self, step: Callable[[], None]) -> None:
        """Run a step of aioquic. An escaping exception (unexpected bytes) ends only this handshake."""
        if self._stage is _Stage.OVER:
            return
        try:
            step()
            self._collect_events()
        except Exception as error:  # noqa: BLE001 - see _broken
            self._broken(error)
            return
        self._see_how_far()

    def _broken(self, error: Exception) -> None:
        """Whatever it is, it came from a peer's bytes and must stop here, unless it is a fault of ours."""
        if isinstance(error, InternalError):
            raise error
        if isinstance(error, OverBoundError):
            self._fail(str(error), error.bound)
        else:
            self._fail(f"{type(error).__name__} in the QUIC stack")

    def _collect_events(self) -> None:
        while (event := self._connection.next_event()) is not None:
            if isinstance(event, ConnectionTerminated):
                if self._closing:
                    self._stop()
                else:
                    self._fail(_why(event))
                return
            if isinstance(event, ProtocolNegotiated) and self._answers_requests:
                self._connect_ip = ConnectIpServer(self._connection, self._server_name)
            if self._connect_ip is not None:
                request = self._connect_ip.handle_event(event)
                if request is not None:
                    self._events.append(request)
                    if self._performance is not None:
                        self._performance.asked(self._now, icon=self._connect_ip.offers_icon)
                elif self._performance is not None and self._connect_ip.other_requests:
                    self._performance.asked_icon(self._now)

    def _see_how_far(self) -> None:
        if self._stage is not _Stage.GRANTED or not (self._performance or self._connection).everything_acknowledged():
            return
        if self._connection.key_phase:
            self._fail("the client updated its keys before the hand-over")
            return
        self._stage = _Stage.INSTALLING
        if self._performance is not None:
            self._performance.installing(self._now)
        self._events.append(InstallNow())

    def _fail(self, reason: str, bound: Bound | None = None) -> None:
        if self._stage is not _Stage.OVER:
            self._events.append(HandshakeFailed(reason, bound))
            self._stop()

    def _stop(self) -> None:
        if self._stage is not _Stage.OVER:
            self._stage = _Stage.OVER
            self._connection.stop()
            self._events.append(Closed())


def _routed_length(wanted: int, client: Authenticated) -> int:
    """An old client takes no CID of Dest's for the routed one."""
    return MAX_LENGTH if wanted == LIKE_DEST and client.client_version < TAKES_DEST_CIDS else wanted


def _handshake_cid(routed: bytes, dest: DestProfile | None, random: Callable[[int], bytes]) -> bytes:
    """A CID as long as Dest's; the routed one itself if it has that length, or if Dest's is unknown. ``routed``:
    empty for one like Dest's."""
    length = dest.scid_length if dest and dest.reachable else 0
    if routed and length in (0, len(routed)):
        return routed
    return random(length or CADDY_CID_LENGTH)


def _flight(dest: DestProfile | None) -> ServerFlight:
    if dest is None or not dest.reachable:
        return ServerFlight()
    return ServerFlight(
        hybrid=dest.group.lower() != "x25519",
        server_hello_extensions=dest.server_hello_extensions or GO_SERVER_HELLO,
        handshake_length=dest.handshake_flight_length,
        ticket_lengths=GO_TICKETS if dest.session_ticket_lengths is None else dest.session_ticket_lengths,
    )


def _why(event: ConnectionTerminated) -> str:
    if event.reason_phrase == "Idle timeout":
        return "the client stopped answering"
    said = close_words(event.error_code)
    return f"the client closed the connection: {said}" if said else "the client closed the connection"
