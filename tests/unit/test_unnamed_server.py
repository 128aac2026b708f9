"""A server's flight is made before its site has chosen a connection ID, and does not name one (RFC 9000 §7.3)."""

from __future__ import annotations

import pytest
from aioquic import tls
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.events import ProtocolNegotiated, QuicEvent
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import CipherSuite

from qre.dest_profile import DestProfile
from qre.quic import connection
from qre.quic.client import hello
from qre.quic.handshake_events import Closed, HandshakeFailed, Proven
from qre.quic.server.shadow_connection import Mirrored, ShadowConnection
from qre.quic.server.shadow_tls import ShadowTlsContext
from qre.quic.shadow.shapes import PacketShape
from qre.wire.packet import FIXED, PacketType
from tests.support.pair import SERVER
from tests.support.shadow_pair import ShadowPair
from tests.support.stock_site import STRANGE_KEY, StockSite, client, issue, meet

LEAF = issue()
#: What a server knows of a site like StockSite.
KNOWN = DestProfile(reachable=True, checked_at=1, scid_length=8, group="X25519", server_hello_extensions=(43, 51))


def a_site() -> StockSite:
    """With the one suite that a server of ours can follow."""
    return StockSite(LEAF, suites=[CipherSuite.AES_128_GCM_SHA256])


def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads the parameter as every client did before."""
    monkeypatch.setattr(connection, "_is_unnamed_untrusted", lambda _: False)


def test_all_that_follows_server_hello_is_made_before_dest_has_answered() -> None:
    pair = ShadowPair(site=a_site(), dest=KNOWN)
    pair.client.connect(SERVER, pair.now)
    for datagram in pair.client.datagrams_to_send(pair.now):
        pair._deliver(True, datagram)
    assert pair.server is not None
    pair.server.prepare()
    context = pair.server._connection.tls
    assert isinstance(context, ShadowTlsContext) and context.rest_is_made
    made = context._rest
    pair.now += 0.01
    pair._behind_happens()
    said = [pair.server.dest_spoke(reply, pair.now) for reply in pair.site.datagrams_to_send(pair.now)]
    assert said and all(isinstance(each, Mirrored) and each.datagrams for each in said)
    assert made == context._rest, "it was not made again"


def test_a_dest_that_answers_otherwise_than_expected_is_followed_all_the_same() -> None:
    other = DestProfile(reachable=True, checked_at=1, scid_length=8, group="X25519", server_hello_extensions=(51, 43))
    assert ShadowPair(site=a_site(), dest=other).run().complete


@pytest.mark.parametrize("version", [(0, 1, 0), (0, 2, 0), (0, 2, 255)])
def test_a_client_of_an_earlier_version_reads_the_connection_id_that_it_wants(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(hello, "VERSION", version)
    strict(monkeypatch)
    assert ShadowPair(site=a_site(), dest=KNOWN).run().complete


def test_it_would_not_take_the_flight_of_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    strict(monkeypatch)
    pair = ShadowPair(site=a_site(), dest=KNOWN).run()
    assert not pair.complete
    assert any(isinstance(event, HandshakeFailed) for event in pair.client_events)
    assert not any(isinstance(event, Proven) for event in pair.client_events)


class UnnamedSite(StockSite):
    """A site that leaves its source connection ID unnamed."""

    def datagram_received(self, data: bytes, now: float) -> None:
        begins = self.connection is None
        if begins:
            connect = self._connect
            self._connect = lambda cid: _unnamed(connect(cid))  # type: ignore[method-assign]
        super().datagram_received(data, now)


def _unnamed(made: QuicConnection) -> QuicConnection:
    made._local_initial_source_connection_id = b""
    return made


@pytest.mark.parametrize("public_key", [STRANGE_KEY, b""], ids=["not recognised", "a probe"])
def test_a_site_has_to_name_it(public_key: bytes) -> None:
    site = UnnamedSite(LEAF)
    visitor = client(public_key)
    events = meet(visitor, site)
    assert isinstance(events[-1], Closed)
    assert not any(isinstance(event, Proven) for event in events)
    ending = visitor._connection.ending
    assert ending is not None and ending.by_us and ending.error_code == QuicErrorCode.TRANSPORT_PARAMETER_ERROR
    assert not site.requests


@pytest.mark.parametrize("dest", [KNOWN, DestProfile(reachable=True, checked_at=1)], ids=["ahead", "late"])
def test_no_packet_number_is_left_out_which_an_acknowledgement_would_show(
    monkeypatch: pytest.MonkeyPatch, dest: DestProfile
) -> None:
    numbers: dict[CryptoPair, list[int]] = {}
    stock = CryptoPair.encrypt_packet

    def watched(self: CryptoPair, plain_header: bytes, plain_payload: bytes, packet_number: int) -> bytes:
        numbers.setdefault(self, []).append(packet_number)
        return stock(self, plain_header, plain_payload, packet_number)

    monkeypatch.setattr(CryptoPair, "encrypt_packet", watched)
    pair = ShadowPair(site=a_site(), dest=dest).run()
    assert pair.complete and pair.server is not None
    for epoch in (tls.Epoch.HANDSHAKE, tls.Epoch.ONE_RTT):
        said = numbers[pair.server._connection._cryptos[epoch]]
        assert said == list(range(len(said)))


class LateSite(StockSite):
    """Says nothing in 1-RTT packets before the client's Finished."""

    def _handle(self, event: QuicEvent) -> None:
        if not isinstance(event, ProtocolNegotiated):
            super()._handle(event)


def test_what_waits_for_a_packet_of_dests_that_does_not_come_is_said_behind_finished() -> None:
    site = LateSite(LEAF, suites=[CipherSuite.AES_128_GCM_SHA256])
    pair = ShadowPair(site=site, dest=KNOWN).run()
    assert pair.complete
    (settings,) = [each for number, each in pair.client._connection._streams.items() if number == 3]
    assert settings.receiver.starting_offset() > 0


def test_a_routed_connection_id_as_long_as_dests_has_a_reset_token_of_its_own() -> None:
    dest = DestProfile(reachable=True, checked_at=1, scid_length=20, group="X25519", server_hello_extensions=(43, 51))
    site = StockSite(LEAF, suites=[CipherSuite.AES_128_GCM_SHA256], cid_length=20)
    pair = ShadowPair(site=site, dest=dest, routed_cid_len=20).run()
    assert pair.complete and pair.server is not None
    tokens = [each.stateless_reset_token for each in pair.server._connection._host_cids]
    assert len(tokens) > 1 and len(set(tokens)) == len(tokens)


def test_what_waits_for_its_length_is_written_anew_where_dests_packet_is_too_short() -> None:
    pair = ShadowPair(site=a_site(), dest=KNOWN)
    pair.client.connect(SERVER, pair.now)
    for datagram in pair.client.datagrams_to_send(pair.now):
        pair._deliver(True, datagram)
    assert pair.server is not None
    shadow = pair.server._connection
    assert isinstance(shadow, ShadowConnection) and shadow._ready
    (waiting,) = shadow._ready
    first, second, third = (
        shadow._mirror_application(PacketShape(PacketType.ONE_RTT, bytes([FIXED]), length), pair.now)
        for length in (22, 300, 300)
    )
    assert [len(each) for each in (first, second, third)] == [23, 301, 301]
    sent = shadow._spaces[tls.Epoch.ONE_RTT].sent_packets
    assert sorted(sent) == [0, 1, 2] and sent[0] is not waiting.packet, "its number is another packet's"
    said = [[handler.__name__ for handler, _ in packet.delivery_handlers] for packet in sent.values()]
    assert sum("on_data_delivery" in each for each in said) >= 1
