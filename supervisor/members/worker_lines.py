"""A worker's log lines on their way to the journal: the worker holds no socket of it (``qre.ipc.journal``)."""

from __future__ import annotations

import asyncio
import os
from typing import Final

from qre.ipc.journal import line_pipe, pass_on
from qre.ipc.messages import Party

#: Bytes that are taken at a time, and seconds until the next time: a worker that writes without end waits. Of lines
#: that are shorter than any of ours, so many are passed on.
_AT_ONCE: Final = 4096
_PAUSE: Final = 0.02
_MOST_LINES: Final = 128
#: Of a pipe (pipe(7)): what may be left when its worker has ended.
_CAPACITY: Final = 65_536
#: A longer line comes in parts.
_LONGEST: Final = 4096


class WorkerLines:
    """Of one process. ``theirs`` is its end of the pipe."""

    def __init__(self, party: Party) -> None:
        self._party = party
        self._fd, self.theirs = line_pipe()
        self._begun = b""  # of a line whose end has not come
        self._again: asyncio.TimerHandle | None = None
        self._watch()

    def _watch(self) -> None:
        self._again = None
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._fd)
        if self._take():
            self._again = loop.call_later(_PAUSE, self._watch)

    def _take(self) -> bool:
        """Pass on what has come; False when nothing more will."""
        try:
            data = os.read(self._fd, _AT_ONCE)
        except BlockingIOError:
            return True
        *lines, self._begun = (self._begun + data).split(b"\n")
        while len(self._begun) > _LONGEST or (self._begun and not data):
            lines.append(self._begun[:_LONGEST])
            self._begun = self._begun[_LONGEST:]
        for line in lines[:_MOST_LINES]:
            for at in range(0, len(line), _LONGEST):
                pass_on(self._party, line[at : at + _LONGEST].decode(errors="replace"))
        return bool(data)

    def close(self) -> None:
        """The process has ended; its last lines are passed on."""
        if self._again is not None:
            self._again.cancel()
        asyncio.get_running_loop().remove_reader(self._fd)
        for _ in range(_CAPACITY // _AT_ONCE + 1):
            if not self._take():
                break
        os.close(self._fd)
