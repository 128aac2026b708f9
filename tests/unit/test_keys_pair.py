"""The data plane's end of the pair on which keys travel, over a real socket pair."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from qre.dataplane.protocol import (
    Answer,
    DataplaneReport,
    FrameReceived,
    KeyPhaseChanged,
    PeerMoved,
    SessionSilent,
    Stray,
    Underlay,
)
from qre.ipc import keys_pair
from qre.ipc.channel import MAX_SIZE, Channel
from qre.ipc.keys_pair import KeysPair

ID = bytes(32)


def test_what_the_other_end_would_never_take_is_told_and_the_rest_goes_on() -> None:
    """It must not stand before all later reports for ever."""

    async def run() -> None:
        failed: list[str] = []
        pair = KeysPair(lambda request, fds: None, failed.append)
        ours, theirs = Channel.pair()
        other: Channel[Any] = Channel(theirs, SessionSilent)
        pair.use(ours.detach())
        try:
            whole = FrameReceived(session_id=ID, frames=b"\1")
            pair.report(msgspec.structs.replace(whole, frames=bytes(MAX_SIZE)))
            assert len(failed) == 1 and failed[0].startswith("channel: a FrameReceived of")
            pair.report(SessionSilent(session_id=ID, silent=True))
            assert other.receive() == (SessionSilent(session_id=ID, silent=True), [])
        finally:
            pair.close()
            other.close()

    asyncio.run(run())


STRAY = Stray(session_id=ID, ip="203.0.113.9", port=1, ecn=0, data=bytes(1200))


def read_late(story: Callable[[KeysPair], None]) -> list[Any]:
    """What a handshake worker reads that begins only after the story."""

    async def run() -> list[Any]:
        pair = KeysPair(lambda request, fds: None, pytest.fail)
        ours, theirs = Channel.pair()
        other: Channel[Any] = Channel(theirs, DataplaneReport)
        pair.use(ours.detach())
        try:
            story(pair)
            read: list[Any] = []
            while True:
                while (received := other.receive()) is not None:
                    read.append(received[0])
                if pair._retry is None:
                    return read
                await asyncio.sleep(0.01)
        finally:
            pair.close()
            other.close()

    return asyncio.run(run())


def test_strays_push_out_nothing_else() -> None:
    def story(pair: KeysPair) -> None:
        for _ in range(400):
            pair.report(STRAY)
        pair.report(KeyPhaseChanged(session_id=ID, key_epoch=7))
        pair.report(Answer(id=42))
        for _ in range(1200):
            pair.report(STRAY)

    seen = Counter(type(report) for report in read_late(story))
    assert (seen[KeyPhaseChanged], seen[Answer]) == (1, 1)
    assert seen[Stray] < 400, "what the socket holds, and few more"


def test_one_clients_frames_push_out_neither_answers_nor_another_clients() -> None:
    other = bytes([1]) * 32

    def story(pair: KeysPair) -> None:
        for number in range(2000):
            pair.report(FrameReceived(session_id=ID, frames=number.to_bytes(2, "big") * 600))
        pair.report(FrameReceived(session_id=other, frames=b"\1"))
        pair.report(Answer(id=42))

    read = read_late(story)
    assert read[-2:] == [FrameReceived(session_id=other, frames=b"\1"), Answer(id=42)]
    frames = [int.from_bytes(report.frames[:2], "big") for report in read[:-2]]
    assert frames == list(range(len(frames))), "in order; the newest are dropped"
    assert len(frames) < 1000


def test_of_what_changes_often_the_latest_waits() -> None:
    def moved(port: int) -> PeerMoved:
        at, to = ip_address("192.0.2.1"), ip_address("192.0.2.2")
        return PeerMoved(session_id=ID, underlay=Underlay(local_ip=at, local_port=443, peer_ip=to, peer_port=port))

    def story(pair: KeysPair) -> None:
        for _ in range(1000):
            pair.report(STRAY)
        for port in range(1, 50_001):
            pair.report(moved(port))

    assert [report for report in read_late(story) if isinstance(report, PeerMoved)][-1:] == [moved(50_000)]


def test_more_than_a_worker_that_reads_ever_leaves_ends_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_pair, "_MAX_WAITING", 5)
    failed: list[str] = []
    pair = KeysPair(lambda request, fds: None, failed.append)
    for number in range(6):
        pair.report(Answer(id=number))
    assert failed == ["the handshake worker does not read its reports"]
