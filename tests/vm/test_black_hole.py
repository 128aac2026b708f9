"""A client's session in the kernel whose packets reach nobody any more does what the user data plane's does, at its
times: it repeats, leaves numbers out, and says goodbye."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from qre.errors import UntrustedInputError
from qre.wire.frames import Ack, ConnectionClose, Datagram, Frame, Padding, Ping, frames_untrusted
from qre.wire.number import PACKET_NUMBER_BASE
from qre.wire.protection import Protection
from tests.support.capture import KeyLog
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
    frames: tuple[Frame, ...]


@pytest.fixture(scope="module")
def daemons(vm: Vm) -> Iterator[Vm]:
    with guest_daemons(vm, f"daemons_up {START}\ndaemon_secrets b /run/share/secrets.b\n", 3 * START):
        yield vm


def silence(vm: Vm) -> list[Sent]:
    """The packets of the client's session from one on that nobody has had."""
    vm.check(
        LIBRARY
        + """
        $B ping -c 20 -i 0.1 -W 5 -q 10.77.0.1
        sleep 1
        setsid $B tcpdump -Z root -n -i vb -s 0 -U -w /tmp/capture udp and src 10.9.0.2 >/dev/null 2>/tmp/tcpdump &
        until_true 'grep -q "listening on" /tmp/tcpdump'
        $A nft 'add table ip hole; add chain ip hole in { type filter hook input priority 0; policy drop; }'
        $B ping -c 1 -W 1 -s 400 -q 10.77.0.1 >/dev/null || true
        until_true 'grep -q "for as long as a browser waits" /tmp/service.b/said'
        sleep 2
        $A nft delete table ip hole
        pkill -INT tcpdump
        until_true '! pgrep -x tcpdump >/dev/null'
        cp /tmp/capture /run/share/capture
        """,
        SLOW,
    )
    with KeyLog() as log:
        log.read((vm.share / "secrets.b").read_bytes())
    (session,) = log.sessions.values()
    (cid,) = session.server_cids
    keys, sent, largest = Protection(session.client_secret), list[Sent](), PACKET_NUMBER_BASE
    for datagram in read_udp(vm.share / "capture"):
        if datagram.source != session.client:
            continue
        try:
            _, number, payload = keys.unprotect_untrusted(datagram.payload, 1 + len(cid), largest + 1)
        except UntrustedInputError as error:
            raise AssertionError(f"a packet of {len(datagram.payload)} bytes: {error}") from error
        largest = max(largest, number)
        frames = tuple(frame for frame in frames_untrusted(payload) if not isinstance(frame, Padding))
        sent.append(Sent(datagram.time, number, len(datagram.payload) - len(cid), frames))
    first = next(
        place for place, each in enumerate(sent) if any(isinstance(frame, Datagram) for frame in each.frames)
    )
    return sent[first:]


def test_a_silent_client_repeats_and_ends_as_a_browser(daemons: Vm) -> None:
    first, *repeats, last = silence(daemons)
    for each in (first, *repeats, last):
        print(round(each.at - first.at, 4), each.number - first.number, each.size)
    *in_time, behind = repeats
    assert {each.frames for each in repeats} == {(Ping(),)} and {each.size for each in repeats} == {first.size}
    assert [each.number - first.number for each in in_time] == [2 * count + 2 for count in range(len(in_time))]
    assert behind.number == in_time[-1].number + 1 and last.number == behind.number + 1, "these leave none out"
    pauses = [later.at - each.at for each, later in zip([first, *in_time], in_time, strict=False)]
    timeout = min(pause / 2**doubled for doubled, pause in enumerate(pauses))
    assert len(pauses) >= 4 and 0.025 <= timeout <= 0.5
    for doubled, pause in enumerate(pauses):
        assert timeout * 2**doubled - TICK <= pause <= timeout * 2**doubled + LATE
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
