"""The plays against each end that shakes hands: a server's, a client's, a client's visit of a site."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_interface
from random import Random
from typing import Final

from aioquic import tls
from aioquic.quic.crypto import CryptoPair

from qre.dest_profile import DestProfile
from qre.errors import QreError
from qre.quic.client.client_handshake import ClientHandshake
from qre.quic.handshake_events import Closed, HandOverReady
from qre.quic.server.address_grants import Grants
from qre.quic.server.connect_ip import AddressesRequested
from qre.quic.server.identities import Identities
from qre.quic.server.server_handshake import InstallNow, ServerHandshake
from qre.wire.capsule import CapsuleType, RequestedAddress, encode_addresses, encode_routes
from qre.wire.close_reason import CloseReason
from qre.wire.frames import NewConnectionId, encode_frame
from tests.fuzz.fuzz_handshake import PRIVATE, authenticated_flight
from tests.fuzz.hostile_grammar import ANSWER, CONNECT, WANTED, http_frame
from tests.fuzz.hostile_plays import Play, Sealer, sent_numbers
from tests.support.fake_client import CLIENT, SERVER
from tests.support.pair import SERVER as PAIR_SERVER
from tests.support.pair import Pair
from tests.support.stock_site import ADDRESS, StockSite, client, issue

_ONE_RTT = tls.Epoch.ONE_RTT
_ROUTES: Final = encode_routes(ip_interface(text).network for text in ("0.0.0.0/0", "::/0"))
_ASKED: Final = encode_addresses(
    CapsuleType.ADDRESS_REQUEST, [RequestedAddress(number, address) for number, address in enumerate(WANTED, start=1)]
)
#: SETTINGS of a server that allows a tunnel; a client's need not say anything.
SERVER_SETTINGS: Final = http_frame(4, b"\x06\x80\x00\x40\x00\x08\x01\x33\x01")


class ServerPlay(Play):
    """A client that has the key and a short id, against ``ServerHandshake``."""

    kind = "server"
    fields = CONNECT

    def __init__(self, dest: DestProfile | None = None) -> None:
        super().__init__()
        peer, found, flight = authenticated_flight()
        self.server = ServerHandshake(
            authenticated=found,
            private_key=PRIVATE,
            dest=dest,
            routed_cid_len=20,
            peer=CLIENT,
            now=0.0,
            random=Random(7).randbytes,
        )
        self._grants = Grants([ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")], Identities([bytes(8)]))
        now = 0.0
        for datagram in flight:
            self.server.datagram_received(datagram, CLIENT, now)
        for _ in range(6):
            for datagram in self.server.datagrams_to_send(now):
                peer.receive_datagram(datagram, SERVER, now)
            for datagram, _address in peer.datagrams_to_send(now):
                self.server.datagram_received(datagram, CLIENT, now)
            now += 0.002
        self.now = now
        self._peer = peer
        assert self.server._connection.handshake_confirmed

    def cids(self) -> list[bytes]:
        return [self.server.handshake_cid, self.server.routed_cid]

    def prepare(self) -> None:
        self._sealer = Sealer(self._peer._cryptos[_ONE_RTT], self.server.handshake_cid, 5000)

    def seal(self, payload: bytes) -> bytes:
        return self._sealer.seal(payload, self.rng)

    def course(self) -> list[Callable[[], list[bytes]]]:
        flows, grammar = self.flows, self.grammar
        steps = [self.on_stream(flows.new_uni(), lambda: b"\x00\x04\x00")]
        if self.rng.random() < 0.4:
            steps.append(self.on_stream(flows.new_uni(), lambda: b"\x02" + grammar.from_encoder()))
            steps.append(self.on_stream(flows.new_uni(), lambda: b"\x03"))
        if self.rng.random() < 0.2:
            self.rng.shuffle(steps)
        tunnel = flows.new_bidi()
        steps += [
            self.on_stream(tunnel, lambda: http_frame(1, grammar.honest_section(CONNECT))),
            self.encode,
            self.open,
        ]
        if self.rng.random() < 0.2:
            steps.append(self.on_stream(tunnel, lambda: http_frame(0, grammar.unknown_capsule())))
        steps.append(self.on_stream(tunnel, lambda: http_frame(0, _ASKED)))
        return [*steps, *[self.acknowledge] * 4]

    def deliver(self, datagram: bytes) -> None:
        server = self.server
        at = server.timer()
        if at is not None and at <= self.now:
            server.handle_timer(self.now)
        server.datagram_received(datagram, CLIENT, self.now)
        server.datagrams_to_send(self.now)
        while (event := server.next_event()) is not None:
            self.events.append(event)
            match event:
                case AddressesRequested(addresses=wanted):
                    granted = self._grants.ask(self, bytes(8), wanted)
                    if granted:
                        server.grant(granted, self._grants.routes())
                    else:
                        server.refuse(self._grants.why_not(bytes(8), wanted))
                case InstallNow():
                    self._install()
                case Closed():
                    self.over = True
            server.datagrams_to_send(self.now)

    def _install(self) -> None:
        """As the worker does: a handshake that has ended meanwhile is closed."""
        try:
            self.server.hand_over_state()
        except QreError:
            self.server.close(CloseReason.NO_ROOM)
            return
        self.happened()
        if self.rng.random() < 0.9:
            self.server.session_installed()

    def unacknowledged(self) -> list[int]:
        return sent_numbers(self.server._connection)

    def finish(self) -> None:
        match self.rng.randrange(3):
            case 0:
                self.server.confirmed(self.now)
            case 1:
                self.server.abandon()
            case _:
                self.server.close(CloseReason.STOPPED)
                self.server.datagrams_to_send(self.now)


class ServerLikeDestPlay(ServerPlay):
    """The same where Dest's connection IDs are shorter than the routed one, which goes in NEW_CONNECTION_ID then."""

    kind = "server-like-dest"

    def __init__(self) -> None:
        super().__init__(DestProfile(reachable=True, checked_at=0, scid_length=8, group="x25519"))


class _AgainstClient(Play):
    """Of both kinds against ``ClientHandshake``."""

    client = False
    fields = ANSWER
    handshake: ClientHandshake
    address: tuple[str, int]
    _pair: CryptoPair

    def prepare(self) -> None:
        self._sealer = Sealer(self._pair, b"", 5000)
        self.grammar.crypto_at = self.handshake._connection._crypto_streams[_ONE_RTT].receiver.starting_offset()

    def seal(self, payload: bytes) -> bytes:
        return self._sealer.seal(payload, self.rng)

    def deliver(self, datagram: bytes) -> None:
        handshake = self.handshake
        at = handshake.timer()
        if at is not None and at <= self.now:
            handshake.handle_timer(self.now)
        handshake.datagram_received(datagram, self.address, self.now)
        handshake.datagrams_to_send(self.now)
        while (event := handshake.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, HandOverReady) and self.rng.random() < 0.8:
                handshake.negotiated()
                handshake.hand_over(self.now)
                self.happened()
            elif isinstance(event, HandOverReady):
                self.happened()
            elif isinstance(event, Closed):
                self.over = True

    def unacknowledged(self) -> list[int]:
        return sent_numbers(self.handshake._connection)

    def finish(self) -> None:
        if self.rng.random() < 0.5:
            self.handshake.close()
            self.handshake.datagrams_to_send(self.now)
        else:
            self.handshake.abandon()


class _SilentServer(ServerHandshake):
    """Says nothing in HTTP/3: the play does."""

    def _collect_events(self) -> None:
        pass


class ClientPlay(_AgainstClient):
    """A server that has proved itself, and was taken over then."""

    kind = "client"
    address = PAIR_SERVER

    def __init__(self) -> None:
        super().__init__()
        pair = Pair(server_kind=_SilentServer)
        self.handshake = pair.client
        pair.client.connect(PAIR_SERVER, pair.now)
        for _ in range(8):
            for datagram in pair.client.datagrams_to_send(pair.now):
                pair._deliver(True, datagram)
            if pair.server is not None:
                for datagram in pair.server.datagrams_to_send(pair.now):
                    pair.client.datagram_received(datagram, PAIR_SERVER, pair.now)
            pair.now += 0.002
        assert pair.server is not None
        assert pair.client._connection.handshake_confirmed
        self._pair = pair.server._connection._cryptos[_ONE_RTT]
        self._cid = pair.server.handshake_cid
        self._asked = tuple(type(address)(address.ip) for address in pair.client._addresses)
        self.now = pair.now
        while pair.client.next_event() is not None:
            pass

    def cids(self) -> list[bytes]:
        return [self._cid, bytes(range(20))]

    def course(self) -> list[Callable[[], list[bytes]]]:
        flows, grammar = self.flows, self.grammar
        steps = [self.on_stream(flows.new_uni(), lambda: b"\x00" + SERVER_SETTINGS)]
        if self.rng.random() < 0.5:
            steps.append(self.on_stream(flows.new_uni(), lambda: b"\x02" + grammar.from_encoder()))
            steps.append(self.on_stream(flows.new_uni(), lambda: b"\x03"))
        steps.append(self.acknowledge)
        steps += [self.on_stream(0, lambda: http_frame(1, grammar.honest_section(ANSWER))), self.encode, self.open]
        if self.rng.random() < 0.2:
            steps.append(self.on_stream(0, lambda: http_frame(0, grammar.unknown_capsule())))
        steps.append(self.on_stream(0, lambda: http_frame(0, self._grant())))
        steps.append(self.acknowledge)
        if self.rng.random() < 0.7:
            frame = encode_frame(NewConnectionId(1, 1, bytes(range(20)), bytes(16)))
            steps.append(lambda: [frame])
        else:
            steps.append(lambda: [b"\x01"])
        return [*steps, *[self.acknowledge] * 3]

    def _grant(self) -> bytes:
        entries = [RequestedAddress(number, address) for number, address in enumerate(self._asked, start=1)]
        routes = self.grammar.routes() if self.rng.random() < 0.3 else _ROUTES
        return encode_addresses(CapsuleType.ADDRESS_ASSIGN, entries) + routes


class _SilentSite(StockSite):
    """Says nothing in HTTP/3: the play does."""

    def _handle(self, event: object) -> None:
        pass


class VisitPlay(_AgainstClient):
    """A hostile site with a good certificate, against a visitor. What counts as arrival is that the visit is over."""

    kind = "visit"
    address = ADDRESS

    def __init__(self) -> None:
        super().__init__()
        self.handshake = client(public_key=b"")
        site = _SilentSite(issue())
        now = 100.0
        self.handshake.connect(ADDRESS, now)
        for _ in range(8):
            for datagram in self.handshake.datagrams_to_send(now):
                site.datagram_received(datagram, now)
            for datagram in site.datagrams_to_send(now):
                self.handshake.datagram_received(datagram, ADDRESS, now)
            now += 0.002
        assert site.connection is not None
        assert self.handshake._connection.handshake_confirmed
        self._pair = site.connection._cryptos[_ONE_RTT]
        self._cid = site.connection.host_cid
        self.now = now

    def cids(self) -> list[bytes]:
        return [self._cid]

    def course(self) -> list[Callable[[], list[bytes]]]:
        flows, grammar = self.flows, self.grammar
        said = grammar.settings() if self.rng.random() < 0.2 else b"\x06\x80\x00\x40\x00"
        steps = [self.on_stream(flows.new_uni(), lambda: b"\x00" + http_frame(4, said))]
        if self.rng.random() < 0.7:
            steps.append(self.on_stream(flows.new_uni(), lambda: b"\x02" + grammar.from_encoder()))
            steps.append(self.on_stream(flows.new_uni(), lambda: b"\x03"))
        steps.append(self.acknowledge)
        section = grammar.section if self.rng.random() < 0.2 else grammar.honest_section
        answer = [(b":status", b"200"), (b"date", b"Sun, 06 Nov 1994 08:49:37 GMT"), (b"server", b"test")]
        steps += [self.on_stream(0, lambda: http_frame(1, section(answer))), self.encode]
        page = http_frame(0, b"tulips" * self.rng.randrange(400))
        steps.append(lambda: flows.packed(flows.stream(0, page, fin=True)))
        return [*steps, *[self.acknowledge] * 3]

    def deliver(self, datagram: bytes) -> None:
        super().deliver(datagram)
        self.outcome.installed = self.outcome.installed or self.handshake._state.name == "LEAVING"
