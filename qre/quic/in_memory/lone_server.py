"""A server's end for one client alone, without relay, replay filter or data plane: sans-IO.

For the commands that show a handshake, in memory or on a socket. The caller installs the session of ``install_due``
and then calls ``session_installed``: only then does the last frame leave, as in a daemon.
"""

from __future__ import annotations

from collections.abc import Callable

from qre.addresses import Interface, Network
from qre.config.model import ServerSettings
from qre.dest_profile import DestProfile
from qre.errors import PeerError, UserError
from qre.quic.handed_over import HandedOver
from qre.quic.handshake_events import HandshakeFailed
from qre.quic.server.connect_ip import AddressesRequested
from qre.quic.server.inspector import STRANGER, Authenticated, HelloInspector
from qre.quic.server.server_handshake import InstallNow, ServerHandshake

Address = tuple[str, int]
#: Decides which of the requested addresses of a short id are granted.
Grant = Callable[[bytes, tuple[Interface, ...]], tuple[Interface, ...]]


class LoneServer:
    """``client`` is the only address whose datagrams are read; ``routes`` are advertised with the granted addresses;
    ``site``: whose recorded flight is played, None for Caddy's. ``now`` is monotonic and in seconds, ``unix_time`` in
    seconds; ``random`` gives n random bytes."""

    def __init__(
        self,
        *,
        settings: ServerSettings,
        site: DestProfile | None = None,
        client: Address,
        grant: Grant,
        routes: tuple[Network, ...],
        routed_cid_len: int,
        random: Callable[[int], bytes],
    ) -> None:
        self._settings = settings
        self._site = site
        self._client = client
        self._grant = grant
        self._routes = routes
        self._routed_cid_len = routed_cid_len
        self._random = random
        self._inspector = HelloInspector(
            server_name=settings.server_name,
            private_key=settings.private_key,
            short_ids=settings.accepted_ids,
            max_time_diff_ms=settings.max_time_diff_ms,
        )
        self._first_flight: list[bytes] = []
        self._short_id = b""
        self._handshake: ServerHandshake | None = None
        #: The session to be installed, once the client has done all of its part.
        self.install_due: HandedOver | None = None

    def datagram_received(self, data: bytes, source: Address, now: float, unix_time: int) -> None:
        """Raises UserError when the client's configuration does not fit ours, PeerError when it broke the
        handshake."""
        if source != self._client:
            return
        if self._handshake is None:
            self._inspect(data, now, unix_time)
        else:
            self._handshake.datagram_received(data, source, now)
        self._handle_events()

    def datagrams_to_send(self, now: float) -> list[bytes]:
        """UDP payloads to send to ``client`` now, in order."""
        if self._handshake is None:
            return []
        sent = self._handshake.datagrams_to_send(now)
        self._handle_events()
        return sent

    def timer(self) -> float | None:
        """When to call ``handle_timer``."""
        return self._handshake.timer() if self._handshake is not None else None

    def handle_timer(self, now: float) -> None:
        """To be called at ``timer()`` or later."""
        if self._handshake is not None:
            self._handshake.handle_timer(now)
            self._handle_events()

    def session_installed(self) -> None:
        """The session of ``install_due`` is installed: the client may switch to it."""
        if self._handshake is not None:
            self._handshake.session_installed()

    def _inspect(self, data: bytes, now: float, unix_time: int) -> None:
        self._first_flight.append(data)
        verdict = self._inspector.datagram_received(data, unix_time * 1000)
        if verdict is STRANGER:
            raise UserError(
                "server",
                "it does not recognise this client",
                "compare ServerName, RealityPublicKey and RealityShortId of both files",
            )
        if isinstance(verdict, Authenticated):
            self._short_id = verdict.short_id
            self._handshake = ServerHandshake(
                authenticated=verdict,
                private_key=self._settings.private_key,
                dest=self._site,
                routed_cid_len=self._routed_cid_len,
                peer=self._client,
                now=now,
                random=self._random,
                joins=False,
            )
            for earlier in self._first_flight:
                self._handshake.datagram_received(earlier, self._client, now)

    def _handle_events(self) -> None:
        handshake = self._handshake
        while handshake is not None and (event := handshake.next_event()) is not None:
            match event:
                case AddressesRequested(addresses):
                    handshake.grant(self._granted(addresses), self._routes)
                case InstallNow():
                    self.install_due = handshake.hand_over_state()
                case HandshakeFailed(reason):
                    raise PeerError("server", reason)

    def _granted(self, addresses: tuple[Interface, ...]) -> tuple[Interface, ...]:
        granted = self._grant(self._short_id, addresses)
        if not granted:
            raise UserError(
                "client's Address",
                "the server grants none of it",
                "choose one inside the server's Address networks that is not the server's own",
            )
        return granted
