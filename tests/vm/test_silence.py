"""qre.ko tells that a client's server is silent: two seconds and three probe timeouts after something was sent."""

from __future__ import annotations

import pytest

from qre.ends import Role
from qre.kernel.abi import Event
from tests.support.guest_peer import GuestPeer
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(900), pytest.mark.both_versions(always=False)]
_numbers = iter(range(73_000, 74_000))
SILENT, ANSWERS = str(int(Event.SESSION_SILENT)), str(int(Event.SESSION_ANSWERS))
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
