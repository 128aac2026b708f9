"""What a peer that holds a session's keys can cost: one answer a packet, and user space told at a rate of its own."""

from __future__ import annotations

import pytest

from qre.ends import Role
from qre.kernel.abi import Drop, Event
from tests.support.guest_peer import GuestPeer
from tests.support.vm import Vm

pytestmark = pytest.mark.timeout(900)
_numbers = iter(range(70_000, 71_000))
#: What control.c allows.
BURST = 64
RETIRE, MAX_DATA, PING = "1900", "1009", "01"


def of_kind(events: list[dict[str, str]], kind: Event) -> list[dict[str, str]]:
    return [event for event in events if event["Event"] == str(int(kind))]


@pytest.mark.parametrize("role", [Role.SERVER, Role.CLIENT])
def test_a_packet_of_many_challenges_is_answered_once_with_the_last(peers: Vm, role: Role) -> None:
    peer = GuestPeer(peers, role, next(_numbers))
    peer.install()
    challenges = [bytes([7, 0, 0, 0, 0, 0, 0, number]) for number in range(133)]
    got = peer.says(f"send 0 {''.join('1a' + data.hex() for data in challenges)}\nwait 1500")
    answers = [packet for packet in got if packet.payload[:1] == b"\x1b"]
    assert [packet.payload[:9] for packet in answers] == [b"\x1b" + challenges[-1]]
    assert answers[0].size == 1200
    assert len([packet for packet in got if not packet.acknowledges and packet.payload != b"\x01"]) == 1, got
    assert peer.drops() == {}


def test_the_frames_of_a_packet_that_are_user_spaces_come_in_one_event(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.SERVER, next(_numbers))
    peer.install()
    peer.listen()
    stream, most = "0a0003414243", "0c" + "00" * 2 + "55" * 1300
    peer.says(f"send 0 {RETIRE}000001{stream}1a1122334455667788{MAX_DATA}\nsend 0 {most}\nwait 500")
    told = of_kind(peer.events(), Event.FRAME_RECEIVED)
    assert [event["Frames"] for event in told] == [RETIRE + stream + MAX_DATA, most]


def test_frames_beyond_the_budget_are_not_acknowledged_and_counted_and_told_once(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.SERVER, next(_numbers))
    peer.install()
    peer.listen()
    got = peer.says(f"burst 0 1000 {MAX_DATA * 10}\nwait 100\nsend 0 {PING}\nwait 1000")
    events = peer.events()
    told, refused = len(of_kind(events, Event.FRAME_RECEIVED)), peer.drops()[Drop.FRAMES_LIMIT]
    assert BURST <= told < BURST + 100, "so many at once, and a few while they came"
    assert told + refused == 1000
    assert len(of_kind(events, Event.FRAMES_LIMITED)) == 1
    last = [packet for packet in got if packet.acknowledges][-1].payload
    assert len(last) > 8 and last[1:5] == (0x8001_0000 + 1000).to_bytes(4, "big"), (
        "the PING is, those before it are not"
    )
    # What was not taken is taken when it comes again: the number is not used up.
    missing = 65_536 + 999
    peer.says(f"wait 1500\nsend 0 {MAX_DATA * 10} 0 {missing}\nwait 500")
    assert len(of_kind(peer.events(), Event.FRAME_RECEIVED)) == told + 1
    assert peer.drops() == {Drop.FRAMES_LIMIT: refused}


def test_a_peer_that_floods_keeps_nobody_elses_events_away(peers: Vm) -> None:
    """A listener that reads nothing meanwhile: its buffers are as large as the kernel makes them by itself."""
    flooding = GuestPeer(peers, Role.SERVER, next(_numbers))
    flooding.install("AllowedIPs=10.78.0.0/24")
    other = GuestPeer(peers, Role.SERVER, next(_numbers), cid="0a" * 20)
    other.peer_port += 1  # what the kernel still says to the flooding one does not come here
    other.install("AllowedIPs=10.79.0.0/24", device=False)
    other.listen("events")
    other.check("pkill -STOP -x qrectl")
    flooding.says(f"burst 0 2000 {'0c0000' + '55' * 1200}\nwait 500")
    other.says("send 0 1d410000\nwait 500")
    other.check("pkill -CONT -x qrectl; until_true 'grep -q ^Loss= /tmp/eventsevents'")
    (lost,) = of_kind(other.events("events"), Event.SESSION_LOST)
    assert (lost["SessionId"], lost["Loss"], lost["ErrorCode"]) == (other.session_id, "2", "256")
    assert of_kind(other.events("events"), Event.FRAME_RECEIVED) == []
