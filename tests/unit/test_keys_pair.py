"""The data plane's end of the pair on which keys travel, over a real socket pair."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from qre.dataplane.protocol import FrameReceived, SessionSilent
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
