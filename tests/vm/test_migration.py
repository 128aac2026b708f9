"""Paths and what belongs to them, as a peer with the session's keys sees it: validation, migration, connection IDs,
marks, stateless resets. RFC 9000 sections 5.1, 8.2, 9, 10.3 and 13.4."""

from __future__ import annotations

import secrets
from itertools import count

import pytest

from qre.ends import Role
from qre.kernel.abi import Event, Loss
from qre.wire.frames import NewConnectionId, encode_frame
from tests.support.daemons import wait_for
from tests.support.guest_peer import ROUTED_CID, Got, GuestPeer
from tests.support.vm import Vm

pytestmark = pytest.mark.timeout(900)
_numbers = iter(range(71_000, 72_000))
PING, PADDED = "01", 1200
CHALLENGE = b"\x1a\x11\x22\x33\x44\x55\x66\x77\x88"
RESPONSE = b"\x1b" + CHALLENGE[1:]
FIRST, SECOND = "c1" * 8, "c2" * 8
TOKEN = bytes(range(0x70, 0x80))
ELSEWHERE, FURTHER = 5556, 5557


def issued(sequence: int, prior: int, cid: str) -> str:
    return encode_frame(NewConnectionId(sequence, prior, bytes.fromhex(cid), TOKEN)).hex()


def to(got: list[Got], socket: int, first: int) -> list[Got]:
    """Packets to this socket of the peer whose payload begins with a frame of this type."""
    return [packet for packet in got if packet.socket == socket and packet.payload[:1] == bytes([first])]


# --- paths ---


@pytest.mark.both_versions
def test_a_challenge_is_answered_where_it_came_from_within_what_it_brought(peers: Vm) -> None:
    """Before anything is known of that address, and when another one is being validated."""
    peer = GuestPeer(peers, Role.SERVER, next(_numbers))
    peer.install()
    got = peer.says(
        f"""
        send 0 {PING}
        wait 300
        send 1 {CHALLENGE.hex()} {PADDED}
        wait 300
        send 2 {CHALLENGE.hex()}
        wait 1500
        """,
        ports=(ELSEWHERE, FURTHER),
    )
    (large,), (small,) = to(got, 1, 0x1B), to(got, 2, 0x1B)
    assert large.payload[:9] == small.payload[:9] == RESPONSE
    assert large.size == PADDED and 0 < small.size <= 3 * (1 + 20 + 4 + 9 + 16)
    assert not to(got, 1, 0x1A) and not to(got, 2, 0x1A), "a probe is no move"
    assert int(peer.session()["UnderlayPeerPort"]) == peer.peer_port


@pytest.mark.both_versions
def test_a_peer_that_moves_is_challenged_at_both_addresses_and_moves_when_it_answers(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.SERVER, next(_numbers))
    peer.install()
    peer.listen()
    got = peer.says(f"send 0 {PING}\nwait 300\nsend 1 {PING}\nwait 400", ports=(ELSEWHERE,))
    assert to(got, 1, 0x1A) and to(got, 0, 0x1A)
    assert max(packet.size for packet in got if packet.socket == 1) <= 3 * (1 + 20 + 4 + 4 + 16)
    assert {packet.size for packet in to(got, 0, 0x1A)} == {PADDED}
    assert int(peer.session()["UnderlayPeerPort"]) == peer.peer_port
    peer.check("sleep 3")  # as long as the challenges of the first try are waited for
    got = peer.says(
        f"answer on\nwait 10\nsend 1 {PING} {PADDED} 70000\nwait 600\nsend 1 {PING} 0 70001\nwait 300",
        ports=(ELSEWHERE,),
    )
    assert int(peer.session()["UnderlayPeerPort"]) == ELSEWHERE
    (moved,) = [event for event in peer.events() if event["Event"] == str(int(Event.PEER_MOVED))]
    assert moved["UnderlayPeerPort"] == str(ELSEWHERE)
    assert [packet.socket for packet in got if packet.acknowledges][-1] == 1


@pytest.mark.both_versions(always=False)
def test_a_client_answers_a_challenge_with_more_than_a_probe(peers: Vm) -> None:
    """So that a server whose packets somebody copied from elsewhere knows where it is."""
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    peer.install()
    got = peer.says(f"send 0 {CHALLENGE.hex()} {PADDED}\nwait 500")
    (answer,) = to(got, 0, 0x1B)
    assert answer.payload == RESPONSE + b"\x01" and answer.size == PADDED


def test_what_is_padded_is_padded_to_what_the_peer_takes(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.SERVER, next(_numbers))
    peer.install("MaxUdpPayload=700")
    got = peer.says(f"send 0 {CHALLENGE.hex()}\nwait 300\nsend 1 {PING} 600\nwait 300", ports=(ELSEWHERE,))
    assert [packet.size for packet in to(got, 0, 0x1B)] == [700]
    assert {packet.size for packet in to(got, 1, 0x1A)} == {700}


@pytest.mark.both_versions
def test_a_peer_moves_to_the_other_version_of_ip_and_back(peers: Vm) -> None:
    """On a socket of both, as a server has it; it is answered from the address that it speaks to, and no other."""
    peer = GuestPeer(peers, Role.SERVER, next(_numbers), client_cid=FIRST)
    other = 6 if peers.outer == 4 else 4
    # Another address of ours that the kernel would rather choose.
    peer.check("ip -n a addr add fd09::7/64 dev va nodad; ip -n a addr add 10.9.0.7/24 dev va")
    peer.check("$K $TOOLS/qrectl hold :: 443 register >/tmp/held </dev/null & until_true 'grep -q held /tmp/held'")
    peer.install()
    peer.listen()
    got = peer.says(
        f"""
        answer on
        send 0 {issued(1, 0, SECOND)} {PADDED}
        send 0 {issued(2, 0, "c3" * 8)} {PADDED}
        wait 300
        send 1 {PING} {PADDED}
        wait 800
        send 1 {PING}
        wait 500
        send 0 {PING} {PADDED}
        wait 800
        send 0 {PING}
        wait 300
        """,
        ports=(f"{ELSEWHERE}{peer.of_other_version}",),
    )
    moved = [event for event in peer.events() if event["Event"] == str(int(Event.PEER_MOVED))]
    ends = {4: ("10.9.0.1", "10.9.0.2"), 6: ("fd09::1", "fd09::2")}
    assert [
        tuple(event[f"Underlay{end}IPv{version}"] for end in ("Local", "Peer"))
        for event, version in zip(moved, (other, peers.outer), strict=True)
    ] == [ends[other], ends[peers.outer]]
    assert {packet.cid for packet in got if packet.socket == 1} == {SECOND}
    assert [packet.cid for packet in got if packet.socket == 0][-1] == "c3" * 8
    session = peer.session()
    assert session[f"UnderlayPeerIPv{peers.outer}"] == peer.peer_address and f"UnderlayPeerIPv{other}" not in session


# --- connection IDs ---


@pytest.mark.both_versions(always=False)
def test_a_path_has_a_connection_id_of_its_own(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.SERVER, next(_numbers), client_cid=FIRST)
    peer.install()
    got = peer.says(
        f"""
        answer on
        send 0 {issued(1, 0, SECOND)}
        wait 200
        send 1 {PING} {PADDED}
        wait 800
        send 1 {PING}
        wait 500
        """,
        ports=(ELSEWHERE,),
    )
    assert {packet.cid for packet in got if packet.socket == 0} == {FIRST}
    assert {packet.cid for packet in got if packet.socket == 1} == {SECOND}
    retired = [packet for packet in got if packet.payload[:2] == b"\x19\x00" or packet.payload == b"\x19"]
    assert retired and {packet.socket for packet in retired} == {1}


def test_without_a_spare_one_it_goes_on_with_what_it_has(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.SERVER, next(_numbers), client_cid=FIRST)
    peer.install()
    got = peer.says(f"answer on\nsend 0 {PING}\nwait 200\nsend 1 {PING} {PADDED}\nwait 800", ports=(ELSEWHERE,))
    assert {packet.cid for packet in got} == {FIRST}
    assert int(peer.session()["UnderlayPeerPort"]) == ELSEWHERE


def test_a_connection_id_that_the_peer_wants_back_is_used_no_more(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    peer.install("Sequence=1")
    other = "0b" * 20
    got = peer.says(f"send 0 {PING}\nwait 200\nsend 0 {issued(2, 2, other)}\nwait 300\nsend 0 {PING}\nwait 300")
    at = next(index for index, packet in enumerate(got) if packet.cid == other)
    assert {packet.cid for packet in got[:at]} == {ROUTED_CID}
    assert {packet.cid for packet in got[at:]} == {other}
    assert any(packet.payload[:2] == b"\x19\x01" for packet in got[at:]), got


def test_a_client_whose_own_address_changes_takes_another_connection_id(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    peer.install("Sequence=1", local="0.0.0.0")
    other = "0b" * 20
    got = peer.says(
        f"send 0 {issued(2, 1, other)}\nuntil DONE\nwait 200",
        meanwhile="""
            sleep 1  # the peer has begun, and issued its ID
            $K ping -c 2 -i 0.1 -W 1 10.77.0.1 || true  # the peer answers nothing
            ip -n b addr add 10.9.0.22/24 dev vb
            ip -n b route replace 10.9.0.0/24 dev vb src 10.9.0.22
            $K ping -c 5 -i 0.1 -W 1 10.77.0.1
        """,
    )
    cids = [packet.cid for packet in got]
    at = cids.index(other)
    assert set(cids[:at]) == {ROUTED_CID} and set(cids[at:]) == {other}
    assert any(packet.payload[:2] == b"\x19\x01" for packet in got[at:]), got


# --- stateless resets ---


def reset(size: int) -> str:
    """As any short-header packet looks, and the token."""
    return (bytes([0x40 | secrets.randbelow(64)]) + secrets.token_bytes(size - 17) + TOKEN).hex()


@pytest.mark.both_versions(always=False)
@pytest.mark.parametrize("client_cid", ["", FIRST], ids=["no connection ID", "one of its own"])
def test_a_stateless_reset_of_any_length_ends_the_session(peers: Vm, client_cid: str) -> None:
    """Half of them look like packets of a key phase that there are no keys for."""
    listening = False
    for size in (21, 36, 37, 40, 43, 43, 43, 43, 60, 1200):
        peer = GuestPeer(peers, Role.CLIENT, next(_numbers), client_cid=client_cid)
        peer.install(f"ResetToken={TOKEN.hex()}", device=not listening)
        if not listening:
            peer.listen()
            listening = True
        peer.says(f"raw 0 {reset(size)}\nwait 100")
        lost = [event for event in peer.events() if event.get("SessionId") == peer.session_id and "Loss" in event]
        assert [event["Loss"] for event in lost] == [str(int(Loss.RESET))], size


def test_what_only_looks_like_a_reset_ends_nothing(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    peer.install(f"ResetToken={TOKEN.hex()}")
    wrong = bytearray.fromhex(reset(60))
    wrong[-1] ^= 1
    peer.says(
        f"raw 0 {wrong.hex()}\nraw 1 {reset(60)}\nraw 0 {reset(60)}00\nraw 0 {TOKEN.hex()}\nwait 300",
        ports=(ELSEWHERE,),
    )
    assert peer.session()["State"] == "1"


def test_the_token_of_a_connection_id_that_is_not_used_ends_nothing(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    peer.install("Sequence=1")
    peer.listen()
    peer.says(f"send 0 {issued(2, 1, '0b' * 20)}\nwait 200\nraw 0 {reset(60)}\nwait 200")
    assert peer.session()["State"] == "1"
    number = count(70_000)

    def ended() -> bool:
        """Once the other connection ID is used, which takes a moment; it is told again, as a peer does."""
        peer.says(f"send 0 {issued(3, 3, '0c' * 20)} 0 {next(number)}\nwait 300\nraw 0 {reset(60)}\nwait 200")
        return any(event.get("Loss") == str(int(Loss.RESET)) for event in peer.events())

    try:
        wait_for("its end", ended)
    except RuntimeError as error:
        seen = peer.check(f"$K $TOOLS/qrectl session-get Device=qre0 SessionId={peer.session_id} || true")
        raise AssertionError(f"{peer.events()}\n{seen}\n{peer.drops()}") from error


# --- marks ---

#: The peer has begun by then.
TRAFFIC = "sleep 0.5; $K ping -c 60 -i 0.03 -W 1 -q 10.77.0.2"


def marks(got: list[Got]) -> list[int]:
    return [packet.tos & 3 for packet in got if packet.payload[:1] == b"\x30"]


@pytest.mark.both_versions
def test_a_path_that_counts_marks_rightly_gets_them(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.SERVER, next(_numbers))
    peer.install()
    peer.check("$K $TOOLS/qrectl profile-set Device=qre0 Ecn=2")
    seen = marks(peer.says(f"ecn on\nack on\nsend 0 {PING}\nuntil DONE\nwait 200", meanwhile=TRAFFIC))
    assert len(seen) == 60 and seen.count(2) >= 58, seen


@pytest.mark.parametrize("acknowledged", [True, False])
def test_a_path_that_does_not_gets_no_more_than_the_test_of_it(peers: Vm, acknowledged: bool) -> None:
    peer = GuestPeer(peers, Role.SERVER, next(_numbers))
    peer.install()
    peer.check("$K $TOOLS/qrectl profile-set Device=qre0 Ecn=2")
    got = peer.says(f"ack {'on' if acknowledged else 'off'}\nsend 0 {PING}\nuntil DONE\nwait 200", meanwhile=TRAFFIC)
    marked = sum(bool(packet.tos & 3) for packet in got)  # the first packets may be probes of the path's MTU
    seen = marks(got)
    assert len(seen) == 60 and 0 < marked <= 10 and set(seen[10:]) == {0}, seen


# --- IPv6 inside ---


def test_a_session_for_ipv6_whose_peer_takes_too_little_is_refused_in_words(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.SERVER, next(_numbers))
    smallest = 1280 + 1 + 4 + 3 + 16
    with pytest.raises(AssertionError, match="MaxUdpPayload leaves less than the 1280 bytes of IPv6"):
        peer.install(f"AllowedIPs=10.78.0.2/32,fd78::2/128 MaxUdpPayload={smallest - 1}")
    peer.install(f"AllowedIPs=10.78.0.2/32,fd78::2/128 MaxUdpPayload={smallest}", device=False)
    other = GuestPeer(peers, Role.SERVER, next(_numbers), cid="0d" * 20)
    other.install(f"AllowedIPs=10.78.0.3/32 MaxUdpPayload={smallest - 1}", device=False)
