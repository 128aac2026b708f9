"""The server's handshake with the real client: what a watcher sees of it, and the race for the routed CID."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from aioquic.quic.packet import encode_quic_retry

from qre.dest_profile import DestProfile
from qre.quic.server.inspector import UNDECIDED, Authenticated
from qre.quic.server.server_handshake import ServerHandshake
from qre.wire.packet import PacketType
from tests.support.packets import open_initial, packets
from tests.support.pair import CLIENT, SERVER, UNIX_TIME, Pair, Path

CADDY = DestProfile(
    reachable=True,
    checked_at=1,
    scid_length=4,
    group="X25519MLKEM768",
    server_hello_extensions=(43, 51),
    handshake_flight_length=1094,
    flight_datagram_lengths=(1200, 1200, 43, 31),
    session_ticket_lengths=(181,),
)


@dataclass
class SteeredPair(Pair):
    """With the server's session installed, packets on the routed CID go to a data plane, which acknowledges none."""

    def _deliver(self, by_client: bool, datagram: bytes) -> None:
        steered = self.server_state is not None and datagram.startswith(self.server_state.routed_cid, 1)
        if not (by_client and steered and not datagram[0] & 0x80):
            super()._deliver(by_client, datagram)


def by_server(pair: Pair) -> list[bytes]:
    return [datagram for by_client, datagram in pair.sent if not by_client]


def initials_of(pair: Pair) -> list[bytes]:
    """The payloads of the server's Initials, which everybody can open."""
    first = next(datagram for by_client, datagram in pair.sent if by_client)
    cid = next(packets(first, 0)).destination_cid
    return [
        open_initial(packet, cid, by_client=False).payload
        for datagram in by_server(pair)
        for packet in packets(datagram, 0)
        if packet.kind is PacketType.INITIAL
    ]


def test_in_front_of_caddy_the_flight_is_caddys_to_the_byte() -> None:
    """As captured: two full datagrams, NEW_CONNECTION_ID's 43 and SETTINGS' 31, then HANDSHAKE_DONE's 303."""
    pair = Pair(dest=CADDY).run()
    assert pair.complete
    assert [len(datagram) for datagram in by_server(pair)][:5] == [1200, 1200, 43, 31, 303]


def test_in_front_of_caddy_the_initials_are_caddys() -> None:
    """As captured: ACK of 1 and 2 with delay 0, hello[0:1159]; then 16 bytes of PADDING, hello[1159:1178]."""
    first, second = initials_of(Pair(dest=CADDY).run())
    assert first[:15] == bytes.fromhex("0202000001" + "06004487" + "020004960303")
    assert len(first) == 9 + 1159
    assert second[:20] == bytes(16) + bytes.fromhex("06448713")
    assert len(second) == 20 + 19
    hello = first[9:] + second[20:]
    assert hello[38:58] == bytes.fromhex("00130100046e" + "002b00020304" + "0033046411ec0460")


@pytest.mark.parametrize("dest", [None, CADDY])
@pytest.mark.parametrize("seed", range(25))
def test_a_data_plane_that_takes_the_routed_cid_at_once_stops_nobody(dest: DestProfile | None, seed: int) -> None:
    pair = SteeredPair(seed=seed, path=Path(loss=0.05, reorder=0.2, duplicate=0.05), dest=dest).run()
    assert pair.complete, (pair.client_events, pair.server_events)


@pytest.mark.parametrize("group", ["X25519", "X25519MLKEM768"])
def test_the_real_client_takes_the_group_of_dest(group: str) -> None:
    pair = Pair(dest=DestProfile(reachable=True, checked_at=1, scid_length=8, group=group)).run()
    assert pair.complete
    hello = b"".join(initials_of(pair))
    assert (b"\x00\x33\x04\x64\x11\xec" in hello) == (group == "X25519MLKEM768")


def test_a_dest_with_larger_datagrams_is_followed() -> None:
    dest = DestProfile(
        reachable=True, checked_at=1, scid_length=8, handshake_flight_length=4000, flight_datagram_lengths=(1350,) * 4
    )
    pair = Pair(dest=dest).run()
    assert pair.complete
    assert [len(datagram) for datagram in by_server(pair)][:3] == [1350] * 3


def test_a_client_that_dest_has_sent_a_retry_is_answered_with_both_connection_ids() -> None:
    pair = Pair()
    pair.client.connect(SERVER, pair.now)
    first = pair.client.datagrams_to_send(pair.now)
    original = next(packets(first[0], 0)).destination_cid
    assert pair._inspector.datagram_received(first[0], UNIX_TIME * 1000) is UNDECIDED
    retry = encode_quic_retry(
        version=1,
        source_cid=b"retry cid",
        destination_cid=b"",
        original_destination_cid=original,
        retry_token=b"token",
    )
    pair._inspector.retry_relayed(b"retry cid")
    pair.client.datagram_received(retry, SERVER, pair.now)
    second = pair.client.datagrams_to_send(pair.now)
    verdict = [pair._inspector.datagram_received(data, UNIX_TIME * 1000) for data in second][-1]
    assert isinstance(verdict, Authenticated)
    assert (verdict.original_destination_cid, verdict.retry_source_cid) == (original, b"retry cid")
    pair.server = ServerHandshake(
        authenticated=verdict,
        private_key=pair.private_key.private_bytes_raw(),
        dest=None,
        routed_cid_len=20,
        peer=CLIENT,
        now=pair.now,
        random=pair.chance.randbytes,
    )
    for data in first + second:
        pair.server.datagram_received(data, CLIENT, pair.now)
    for _ in range(200):
        pair._pump()
        if pair.complete:
            return
        pair._step()
    raise AssertionError(pair.client_events)
