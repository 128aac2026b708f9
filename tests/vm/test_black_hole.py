"""A client's session in the kernel whose packets reach nobody any more does what the user data plane's does, at its
times: it repeats, leaves numbers out, tries another port, and says goodbye, or moves to the port that answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest

from qre.errors import UntrustedInputError
from qre.wire.frames import (
    Ack,
    ConnectionClose,
    Datagram,
    Frame,
    Padding,
    PathChallenge,
    Ping,
    RetireConnectionId,
    frames_untrusted,
)
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.protection import Protection
from tests.support.capture import KeyLog, SessionSecrets
from tests.support.guest_daemons import guest_daemons
from tests.support.tcpdump import read_udp
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(1500), pytest.mark.guest_python, pytest.mark.only_in_all]
LIBRARY = ". /tmp/library; . $GUEST/daemons.sh\n"
#: Seconds in a guest: Python starts slowly there.
START, SLOW = 200, 400.0
#: The kernel's timer has ticks of 4 ms, and a busy machine is late (seconds).
TICK, LATE = 0.004, 0.15


class Sent(NamedTuple):
    at: float
    number: int
    size: int
    port: int
    cid: bytes
    frames: tuple[Frame, ...]


@pytest.fixture(scope="module")
def daemons(vm: Vm) -> Iterator[Vm]:
    with guest_daemons(vm, f"daemons_up {START}\ndaemon_secrets b /run/share/secrets.b\n", 3 * START):
        yield vm


def session_of(vm: Vm) -> SessionSecrets:
    """Of the client's one session, as its daemon knows it."""
    vm.check(LIBRARY + "daemon_secrets b /run/share/secrets.b", SLOW)
    with KeyLog() as log:
        log.read((vm.share / "secrets.b").read_bytes())
    (session,) = log.sessions.values()
    return session


def packets(vm: Vm, session: SessionSecrets) -> list[Sent]:
    """Those of the client in the capture, from whatever port, from the first one with an inner packet on. The next
    session is begun beside this one, from a port whose first packet has a long header; all others must open."""
    (cid,) = session.server_cids
    others = set[int]()
    keys, sent, largest = Protection(session.client_secret), list[Sent](), PACKET_NUMBER_BASE
    for datagram in read_udp(vm.share / "capture"):
        if datagram.source[0] != session.client[0]:
            continue
        if datagram.payload[0] & 0x80:
            others.add(datagram.source[1])
        if datagram.source[1] in others:
            continue
        try:
            _, number, payload = keys.unprotect_untrusted(datagram.payload, 1 + len(cid), largest + 1)
        except UntrustedInputError as error:
            raise AssertionError(f"a packet of {len(datagram.payload)} bytes: {error}") from error
        largest = max(largest, number)
        frames = tuple(frame for frame in frames_untrusted(payload) if not isinstance(frame, Padding))
        size, port = len(datagram.payload) - len(cid), datagram.source[1]
        sent.append(Sent(datagram.time, number, size, port, datagram.payload[1 : 1 + len(cid)], frames))
    first = next(
        place for place, each in enumerate(sent) if any(isinstance(frame, Datagram) for frame in each.frames)
    )
    found = sent[first:]
    for each in found:
        print(round(each.at - found[0].at, 4), each.number - found[0].number, each.size, each.port, *each.frames[:1])
    assert len({each.number for each in found}) == len(found), "no number twice"
    return found


CAPTURE = """
setsid $B tcpdump -Z root -n -i vb -s 0 -U -w /tmp/capture udp and src 10.9.0.2 >/dev/null 2>/tmp/tcpdump &
until_true 'grep -q "listening on" /tmp/tcpdump'
"""
CAPTURED = """
pkill -INT tcpdump
until_true '! pgrep -x tcpdump >/dev/null'
cp /tmp/capture /run/share/capture
"""


def silence(vm: Vm) -> list[Sent]:
    """The packets of the client's session from one on that nobody has had."""
    session = session_of(vm)
    vm.check(
        LIBRARY
        + f"""
        $B ping -c 20 -i 0.1 -W 5 -q 10.77.0.1
        sleep 1
        {CAPTURE}
        $A nft 'add table ip hole; add chain ip hole in {{ type filter hook input priority 0; policy drop; }}'
        $B ping -c 1 -W 1 -s 400 -q 10.77.0.1 >/dev/null || true
        until_true 'grep -q "for as long as a browser waits" /tmp/service.b/said'
        sleep 2
        $A nft delete table ip hole
        {CAPTURED}
        """,
        SLOW,
    )
    found = packets(vm, session)
    end = next(place for place, each in enumerate(found) if isinstance(each.frames[-1], ConnectionClose))
    return found[: end + 1]


def are_challenges(tried: list[Sent], first: Sent) -> None:
    """Three of them, as Chromium's, with another connection ID."""
    assert [type(frame) for each in tried for frame in each.frames] == [PathChallenge] * 3
    assert {each.size + len(each.cid) for each in tried} == {1250}
    assert {each.port for each in tried}.isdisjoint({first.port}) and {each.cid for each in tried} != {first.cid}
    assert len({(each.port, each.cid) for each in tried}) == 1
    for count, each in enumerate(tried):
        assert each.at - tried[0].at == pytest.approx(0.3 * count, abs=LATE)


def whatever_went_out_longest_ago(first: Sent, here: list[Sent], given_back: Sent) -> None:
    """A PING as long as the inner packet that was lost, or the spare connection ID's end."""
    went: dict[tuple[Frame, ...], float] = {(Ping(),): first.at}
    for each in here:
        if each is not given_back:
            assert each.frames == min(went, key=went.__getitem__)
            assert each.size == (first.size if each.frames == (Ping(),) else given_back.size)
        went[each.frames] = each.at


def test_a_silent_client_repeats_and_ends_as_a_browser(daemons: Vm) -> None:
    first, *others = silence(daemons)
    tried = [each for each in others if each.port != first.port]
    are_challenges(tried, first)
    *here, last = [each for each in others if each.port == first.port]
    given_back = next(each for each in here if each.frames == (RetireConnectionId(1),))
    assert given_back.at - tried[-1].at == pytest.approx(0.3, abs=LATE)
    whatever_went_out_longest_ago(first, here, given_back)
    *in_time, behind = [each for each in here if each is not given_back]
    row = sorted([first, *others], key=lambda each: each.number)
    steps = {each.number: each.number - before.number for before, each in pairwise(row)}
    assert {steps[each.number] for each in in_time} == {2}, "one is left out"
    assert {steps[each.number] for each in (*tried, given_back, behind, last)} == {1}, "these leave none out"
    pauses = [each.at - before.at for before, each in pairwise([first, *here]) if each in in_time]
    timeout = min(pause / 2**doubled for doubled, pause in enumerate(pauses))
    assert len(pauses) >= 4 and 0.025 <= timeout <= 0.5
    for doubled, pause in enumerate(pauses):
        assert timeout * 2**doubled - TICK <= pause <= timeout * 2**doubled + LATE
    assert tried[0].at - first.at >= 4 * timeout - TICK, "before that the path is not a bad one"
    assert 6.4 <= last.at - first.at <= 9, "more where the round trip is longer"
    assert last.at - behind.at == pytest.approx(0.81, abs=LATE)
    ack, close = last.frames
    assert isinstance(ack, Ack) and not ack.ecn
    assert isinstance(close, ConnectionClose) and close.reason == b"85:Network blackhole detected"
    assert 66 - 4 <= last.size <= 68 - 4, "less the four bytes of a site's connection ID"


def test_the_next_session_is_begun_by_itself(daemons: Vm) -> None:
    daemons.check(
        LIBRARY
        + f"""
        for ((i = 0; i < {START}; i++)); do $B ping -c 1 -W 1 -q 10.77.0.1 >/dev/null && break; done
        $B ping -c 5 -i 0.2 -W 5 -q 10.77.0.1
        """,
        SLOW,
    )
    (device,) = json.loads(daemons.check(LIBRARY + "show b", SLOW))["devices"]
    (session,) = device["sessions"]
    assert session["state"] == "established" and device["dataplane"] == "kernel"


def test_a_client_whose_port_is_dead_moves_to_another_one_that_answers(daemons: Vm) -> None:
    before = session_of(daemons)
    port = before.client[1]
    daemons.check(
        LIBRARY
        + f"""
        $B ping -c 20 -i 0.1 -W 5 -q 10.77.0.1
        sleep 1
        {CAPTURE}
        # Of the other port's two are lost besides: the third one is answered.
        $A nft 'add table ip hole
            add chain ip hole in {{ type filter hook input priority 0; }}
            add chain ip hole out {{ type filter hook output priority 0; }}
            add rule ip hole in udp sport {port} drop
            add rule ip hole out udp dport {port} drop
            add rule ip hole in udp dport 443 ip length 1278 quota until 2600 bytes drop'
        $B ping -c 1 -W 1 -s 400 -q 10.77.0.1 >/dev/null || true
        moved=
        for ((i = 0; i < 60; i++)); do
            $B ping -c 1 -W 1 -q 10.77.0.1 >/dev/null && moved=1 && break
        done
        [ -n "$moved" ]
        $B ping -c 50 -i 0.1 -W 5 -q 10.77.0.1 >/tmp/pings || true
        cat /tmp/pings
        grep -q ' 0% packet loss' /tmp/pings
        $A nft delete table ip hole
        {CAPTURED}
        """,
        SLOW,
    )
    first, *others = packets(daemons, before)
    assert first.port == port
    elsewhere = [each for each in others if each.port != port]
    tried, moved = elsewhere[:3], elsewhere[3:]
    are_challenges(tried, first)
    assert {(each.port, each.cid) for each in moved} == {(tried[0].port, tried[0].cid)}
    assert any(isinstance(frame, RetireConnectionId) for each in moved for frame in each.frames)
    assert not [each for each in others if each.port == port and each.at > moved[0].at], "the old one is left"
    assert sum(isinstance(frame, Datagram) for each in moved for frame in each.frames) >= 50
    after = session_of(daemons)
    assert after.client_secret == before.client_secret and after.server_cids == {tried[0].cid}
    (device,) = json.loads(daemons.check(LIBRARY + "show b", SLOW))["devices"]
    (session,) = device["sessions"]
    assert session["state"] == "established"
