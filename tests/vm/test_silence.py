"""qre.ko repeats what a client's server does not answer, tells that it is silent, and ends when it is told to."""

from __future__ import annotations

from itertools import takewhile

import pytest

from qre.ends import Role
from qre.kernel.abi import Event
from tests.support.guest_peer import GuestPeer
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(900), pytest.mark.both_versions(always=False)]
_numbers = iter(range(73_000, 74_000))
SILENT, ANSWERS = str(int(Event.SESSION_SILENT)), str(int(Event.SESSION_ANSWERS))
DEGRADED, LOST = str(int(Event.PATH_DEGRADED)), str(int(Event.SESSION_LOST))
#: CONNECTION_CLOSE with a phrase.
FAREWELL = "1c00000568656c6c6f"
#: Of a ping's datagram: those of ICMP and IP, of the DATAGRAM, and of a packet with a connection ID of twenty bytes.
HEADERS = 8 + 20 + 3 + 1 + 20 + 4 + 16
#: Something leaves, which nobody behind the peer answers.
TRAFFIC = "$K ping -c {} -i 0.2 -W 1 -q 10.77.0.1 || true\n"
#: Not what was before: the session is there a little earlier than its peer.
LISTEN = """
sleep 3
until_true "! $K $TOOLS/qrectl sessions Device=qre0 | grep -q '^Silent=1'"
$K $TOOLS/qrectl events 600 events >/tmp/told </dev/null &
until_true "grep -q listening /tmp/told"
"""


def told(peer: GuestPeer) -> list[str]:
    """Of silence and its end, in order."""
    printed = peer.check("grep ^Event= /tmp/told || true").split()
    return [kind for kind in (line.removeprefix("Event=") for line in printed) if kind in {SILENT, ANSWERS}]


def test_a_server_that_answers_nothing_is_told_of_and_so_is_its_return(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    peer.install()
    peer.check("rm -f /tmp/acknowledged /tmp/silent")
    got = peer.says(
        """
        ack on
        until /tmp/acknowledged
        ack off
        until /tmp/silent
        ack on
        until DONE
        """,
        meanwhile=LISTEN
        + TRAFFIC.format(25)
        + """
        sleep 7
        cp /tmp/told /tmp/told.before
        touch /tmp/acknowledged
        sleep 1  # until the peer has seen that
        """
        + TRAFFIC.format(1)
        + f"""
        until_true "grep -q '^Event={SILENT}$' /tmp/told"
        $K $TOOLS/qrectl session-get Device=qre0 SessionId={peer.session_id} >/tmp/session
        touch /tmp/silent
        until_true "grep -q '^Event={ANSWERS}$' /tmp/told"
        """,
    )
    assert f"Event={SILENT}" not in peer.check("cat /tmp/told.before").split(), "while all is acknowledged"
    session = dict(line.split("=", 1) for line in peer.check("cat /tmp/session").splitlines() if "=" in line)
    assert 2000 <= int(session["UnansweredMs"]) < 20_000, "it is asked for some time after the event"
    assert session["Silent"] == "1"
    assert told(peer) == [SILENT, ANSWERS]
    after = peer.session()
    assert after["Silent"] == "0" and int(after["UnansweredMs"]) < 2000
    assert after["State"] == "1", "the module tells, and goes on"
    assert len([packet for packet in got if packet.payload == b"\x01"]) < 40, "it asks no more than it needs"


def test_a_silent_client_repeats_leaves_numbers_out_and_ends_when_it_is_told_to_and_not_before(peers: Vm) -> None:
    peer = GuestPeer(peers, Role.CLIENT, next(_numbers))
    peer.install()
    peer.check("rm -f /tmp/acknowledged /tmp/silent")
    give_up = f"$K $TOOLS/qrectl session-give-up Device=qre0 SessionId={peer.session_id} Frames={{}} "
    give_up += "LastRepeatMs={} GivesUpMs={}"
    got = peer.says(
        """
        ack on
        until /tmp/acknowledged
        ack off
        until /tmp/silent
        ack on
        wait 5000
        ack off
        until DONE
        """,
        meanwhile=LISTEN
        + TRAFFIC.format(10)
        + f"""
        {give_up.format(FAREWELL, 100, 200)} >/tmp/early 2>&1 || true
        touch /tmp/acknowledged
        sleep 1
        $K ping -c 1 -W 1 -s 300 -q 10.77.0.1 || true
        {give_up.format("01" * 65, 100, 200)} >/tmp/long 2>&1 || true
        sleep 9
        $K $TOOLS/qrectl session-get Device=qre0 SessionId={peer.session_id} >/tmp/goes.on
        touch /tmp/silent
        sleep 1
        $K ping -c 3 -i 0.2 -W 1 -q 10.77.0.1 || true
        until_true "$K $TOOLS/qrectl sessions Device=qre0 | grep -q '^UnansweredMs=0'"
        sleep 5
        $K ping -c 1 -W 1 -s 200 -q 10.77.0.1 || true
        until_true "{give_up.format(FAREWELL, 12000, 13000)}"  # refused until the path is a bad one
        until_true "grep -q '^Event={LOST}$' /tmp/told"
        sleep 1
        """,
    )
    assert "the server answers" in peer.check("cat /tmp/early")
    assert "too long for a farewell" in peer.check("cat /tmp/long")
    assert "State=1" in peer.check("cat /tmp/goes.on").split(), "without an order it goes on"
    for size, ends in ((300, False), (200, True)):
        place = [each.size for each in got].index(size + HEADERS)
        first = got[place]
        behind = takewhile(lambda each: each.payload == b"\1", got[place + 1 :])
        repeats = [each for each in behind if each.size == first.size]
        steps = [each.number - first.number for each in repeats]
        in_time = steps[:-1] if ends else steps
        assert in_time == [2 * count + 2 for count in range(len(in_time))] and len(in_time) >= 2, steps
        if ends:
            assert steps[-1] == steps[-2] + 1, "the last one leaves none out"
            assert got[-1].payload[:1] == b"\2" and got[-1].payload.hex().endswith(FAREWELL)
            assert got[-1].number == repeats[-1].number + 1
    printed = peer.check("cat /tmp/told").split()
    assert f"Event={DEGRADED}" in printed and "Loss=9" in printed


def test_an_idle_client_is_not_silent(peers: Vm) -> None:
    client = GuestPeer(peers, Role.CLIENT, next(_numbers))
    client.install()
    client.says("ack on\nuntil DONE", meanwhile=LISTEN + "sleep 9")
    assert told(client) == []
    assert client.session()["UnansweredMs"] == "0"


def test_of_a_servers_session_nothing_is_told(peers: Vm) -> None:
    """Its client decides when to come back."""
    server = GuestPeer(peers, Role.SERVER, next(_numbers))
    server.install()
    server.says("send 0 01\nuntil DONE", meanwhile=LISTEN + TRAFFIC.format(20).replace("10.77.0.1", "10.77.0.2"))
    assert told(server) == []
    assert "UnansweredMs" not in server.session()
