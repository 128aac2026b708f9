"""A client of qre.ko that hears nothing tries another port, which user space lends: RFC 9000 sections 8.2 and 9."""

from __future__ import annotations

from itertools import count

import pytest

from qre.ends import Role
from qre.kernel.abi import Event
from qre.wire.frames import NewConnectionId, RetireConnectionId, encode_frame
from tests.support.guest_peer import ROUTED_CID, Got, GuestPeer
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(900), pytest.mark.both_versions(always=False)]
_numbers = count(79_000)
SPARE, PORT = "c5" * 20, 5600
ISSUED = encode_frame(NewConnectionId(1, 0, bytes.fromhex(SPARE), bytes(range(0x70, 0x80)))).hex()
DEGRADED, ANSWERED, DROPPED = (
    f"'^Event={int(event)}$' /tmp/events" for event in (Event.PATH_DEGRADED, Event.PORT_ANSWERED, Event.PORT_DROPPED)
)
#: Nobody behind the peer answers it. Many of them: the first round trip is that of a peer that has yet to start.
TRAFFIC = "$K ping -c {} -i 0.05 -W 1 -q 10.77.0.1 || true\n"


def on_this_session(peer: GuestPeer, command: str, fields: str = "") -> str:
    return f"$TOOLS/qrectl {command} Device=qre0 SessionId={peer.session_id} {fields}\n"


def trial(peer: GuestPeer, apart: int = 300) -> str:
    return "$K " + on_this_session(
        peer, f"lend {peer.address} {PORT} session-try-port", f"Challenges=3 ApartMs={apart} >/tmp/tried"
    )


def counted(peer: GuestPeer) -> str:
    """Counts what comes from the first port, and from the one that is tried."""
    rules = "".join(f"add rule inet seen in udp sport {port} counter; " for port in (peer.port, PORT))
    chain = "add chain inet seen in { type filter hook input priority 0; }"
    return f"$P nft 'add table inet seen; {chain}; {rules}'"


SEEN = "$P nft list table inet seen | grep -o 'packets [0-9]*' >/tmp/seen; $P nft delete table inet seen"


def falls_silent(
    peer: GuestPeer, then: str, *, answers: bool = False, after: str = "", acks: str = "off", says: str = ""
) -> list[Got]:
    """What comes to a peer that has given a spare connection ID and acknowledges nothing from then on, until ``then``
    is over; it acknowledges what is sent ``after`` that. ``says``: what it is told to say meanwhile."""
    peer.install()
    peer.check("rm -f /tmp/silent /tmp/heard /tmp/asked")
    peer.listen()
    return peer.says(
        f"""
        ack on
        send 0 {ISSUED}
        until /tmp/silent
        ack {acks}
        answer {"on" if answers else "off"}
        {says}
        until /tmp/heard
        ack on
        until DONE
        """,
        meanwhile=TRAFFIC.format(60)
        + f"""
        early=$(grep -c {DEGRADED} || true)  # a peer that has yet to start is silent, too
        touch /tmp/silent
        sleep 1
        {TRAFFIC.format(1)}
        until_true "[ \\$(grep -c {DEGRADED}) -gt $early ]"
        {then}
        touch /tmp/heard
        sleep 1
        {TRAFFIC.format(5)}
        {after}
        """,
        timeout=240,
    )


def events(peer: GuestPeer, kind: Event) -> list[dict[str, str]]:
    return [event for event in peer.events() if event["Event"] == str(int(kind))]


def holds_its_port(peer: GuestPeer, port: int) -> bool:
    return peer.check(f"$K ss -Hanu | grep -c ':{port} ' || true").strip() != "0"


def are_in_one_row(got: list[Got]) -> None:
    numbers = [packet.number for packet in got]
    assert len(set(numbers)) == len(numbers), "no number twice, whatever the port"


def test_a_port_that_does_not_answer_is_dropped_and_its_connection_id_is_retired(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    got = falls_silent(peer, trial(peer) + f'until_true "grep -q {DROPPED}"')
    are_in_one_row(got)
    *_, degraded = events(peer, Event.PATH_DEGRADED)
    assert degraded["Spare"] == "1"
    tried = [packet for packet in got if packet.cid == SPARE]
    assert [(packet.size, packet.payload[0], len(packet.payload)) for packet in tried] == [(1250, 0x1A, 9)] * 3
    assert len({packet.payload for packet in tried}) == 3 and {packet.tos & 3 for packet in tried} == {0}
    assert not events(peer, Event.PORT_ANSWERED) and len(events(peer, Event.PORT_DROPPED)) == 1
    retired = encode_frame(RetireConnectionId(1))
    assert any(packet.payload[: len(retired)] == retired for packet in got if packet.cid == ROUTED_CID)
    assert peer.session()["Tries"] == "0" and peer.session()["UnderlayLocalPort"] == str(peer.port)
    assert not holds_its_port(peer, PORT)


@pytest.mark.only_in_all
def test_without_a_word_of_user_space_a_port_that_answers_is_dropped_too(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    got = falls_silent(peer, trial(peer) + f'until_true "grep -q {DROPPED}"', answers=True)
    are_in_one_row(got)
    (answered,) = events(peer, Event.PORT_ANSWERED)
    assert (answered["ConnectionId"], answered["Sequence"]) == (SPARE, "1")
    assert len(events(peer, Event.PORT_DROPPED)) == 1
    assert all(packet.payload[0] == 0x1A for packet in got if packet.cid == SPARE), "it has not moved"
    assert peer.session()["UnderlayLocalPort"] == str(peer.port)
    assert not holds_its_port(peer, PORT)


def test_a_port_that_answers_becomes_the_sessions_when_user_space_says_so(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    got = falls_silent(
        peer,
        trial(peer)
        + f"""
        until_true "grep -q {ANSWERED}"
        $K {on_this_session(peer, "session-move", ">/tmp/moved")}
        $K ss -Hanu >/tmp/sockets
        {counted(peer)}
        """,
        answers=True,
        after=SEEN,
    )
    are_in_one_row(got)
    assert peer.check("cat /tmp/tried /tmp/moved").split() == []
    place = next(i for i, packet in enumerate(got) if packet.cid == SPARE and packet.payload[0] != 0x1A)
    assert {packet.cid for packet in got[place:]} == {SPARE}, "all goes by the new port"
    retired = encode_frame(RetireConnectionId(0)).rstrip(b"\0")
    assert any(packet.payload == retired for packet in got[place:])
    assert any(packet.payload[0] == 0x30 for packet in got[place:]), "inner packets, too"
    after = peer.session()
    assert after["UnderlayLocalPort"] == str(PORT) and after["UnansweredMs"] == "0" and after["Tries"] == "0"
    assert (after["ConnectionId"], after["Sequence"]) == (SPARE, "1"), "the one in use"
    by_old, by_new = (int(line.split()[1]) for line in peer.check("cat /tmp/seen").splitlines())
    assert by_old == 0 and by_new >= 5, "as whoever looks at the packets sees it"
    assert f":{peer.port} " in peer.check("cat /tmp/sockets"), "what was on its way to the old port is read"
    peer.check("sleep 6")
    assert holds_its_port(peer, PORT) and not holds_its_port(peer, peer.port)
    later = GuestPeer(peers, Role.CLIENT, peer.keys)
    later.port = PORT
    more = later.says("send 0 01 0 70000\nwait 500")
    assert any(packet.acknowledges for packet in more), "what comes to the new port is the session's"


def test_the_old_path_is_heard_again_though_the_trial_was_acknowledged_alone_before(peers: Vm) -> None:
    """The second ACK has the same largest number: the session is not silent any more, and stays where it is."""
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    move = f"""
        until_true "grep -q {ANSWERED}"
        $K {on_this_session(peer, "session-move", ">/tmp/moved || true")}
        """
    falls_silent(peer, trial(peer) + move, answers=True, acks="challenges")
    assert peer.check("cat /tmp/tried").split() == [] and "EALREADY" in peer.check("cat /tmp/moved")
    assert peer.session()["UnderlayLocalPort"] == str(peer.port)


def test_a_peer_that_takes_the_connection_id_of_a_trial_back_ends_it(peers: Vm) -> None:
    """Retire Prior To covers both: nothing moves to the one, and the next one takes the place of the other."""
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    following = "c6" * 20
    issued = encode_frame(NewConnectionId(2, 2, bytes.fromhex(following), bytes(range(0x80, 0x90)))).hex()
    got = falls_silent(
        peer,
        trial(peer, 60_000)
        + f"""
        touch /tmp/asked
        until_true "grep -q {DROPPED}"
        $K {on_this_session(peer, "session-move", ">/tmp/moved || true")}
        """,
        says=f"until /tmp/asked\nsend 0 {issued}",
        after="sleep 1",
    )
    are_in_one_row(got)
    assert peer.check("cat /tmp/tried").split() == [] and peer.check("cat /tmp/moved").split() != []
    assert len(events(peer, Event.PORT_DROPPED)) == 1 and not events(peer, Event.PORT_ANSWERED)
    assert [packet.payload[0] for packet in got if packet.cid == SPARE] == [0x1A], "the challenge, and nothing else"
    retired = {sequence for packet in got if packet.cid == following for sequence in retirements(packet)}
    assert retired == {0, 1}
    place = next(i for i, packet in enumerate(got) if packet.cid == following)
    assert {packet.cid for packet in got[place:]} == {following}
    after = peer.session()
    assert (after["ConnectionId"], after["Sequence"], after["Tries"]) == (following, "2", "0")
    assert after["UnderlayLocalPort"] == str(peer.port) and holds_its_port(peer, peer.port)
    assert not holds_its_port(peer, PORT)


def retirements(packet: Got) -> list[int]:
    """Sequence numbers of RETIRE_CONNECTION_ID, which stand at the beginning of a packet of their own."""
    found, payload = [], packet.payload
    while payload[:1] == b"\x19":
        found.append(payload[1] if len(payload) > 1 else 0)
        payload = payload[2:]
    return found


def test_a_port_is_refused_while_the_server_answers_and_while_another_is_tried(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    again = trial(peer).replace(str(PORT), str(PORT + 1)).replace("/tmp/tried", "/tmp/again || true")
    late = trial(peer).replace("/tmp/tried", "/tmp/late || true")
    drop = "$K " + on_this_session(peer, "session-drop-port", ">/tmp/dropped")
    falls_silent(peer, trial(peer, 60_000) + again + drop, after=f"sleep 1\n{late}")
    assert peer.check("cat /tmp/tried /tmp/dropped").split() == []
    assert "EBUSY" in peer.check("cat /tmp/again") and "EALREADY" in peer.check("cat /tmp/late")
    assert not events(peer, Event.PORT_DROPPED), "whoever asks for it knows it"
    assert not holds_its_port(peer, PORT) and not holds_its_port(peer, PORT + 1)


@pytest.mark.only_in_all
@pytest.mark.parametrize("way", ["the session", "the device", "the namespace"])
def test_whatever_ends_takes_the_port_that_is_tried_with_it(peers: Vm, way: str) -> None:
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    falls_silent(peer, trial(peer, 60_000))
    assert peer.check("cat /tmp/tried").split() == [] and peer.session()["Tries"] == "1"
    assert holds_its_port(peer, PORT)
    match way:
        case "the session":
            peer.check("$K " + on_this_session(peer, "session-del"))
        case "the device":
            peer.check("$K $TOOLS/qrectl device-del Device=qre0")
        case _:
            peer.check("pkill -x qrectl; ip netns del b; until_true 'rmmod qre 2>/dev/null'; insmod $MODULE")
            return  # nothing was left that would have held it
    peer.check("sleep 1")
    assert not holds_its_port(peer, PORT) and not holds_its_port(peer, peer.port)
