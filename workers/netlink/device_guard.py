"""Keeps the device as it was made: what another program takes away comes back, but not for ever.

Rules, routes, addresses, MTU and the link's state are compared with what is wanted whenever something changed. What
is missing is put back and counted. Somebody who takes the same thing away again and again means it: after three times
in a minute the guard puts it back once more, so that nothing leaves in the clear meanwhile, says so and lets go; the
daemon ends then.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Final

from qre.ipc.messages import DeviceTampered
from qre.kernel.rtnl import Link, Rtnl
from qre.kernel.tunnel import DeviceSpec, Part, missing, restore

#: How often in that many seconds.
_MOST: Final = 3
_WINDOW: Final = 60.0
#: What happens within a second of the first is one time: a program removes several things, or one that we have put
#: back while it was not done yet.
_ONE_TIME: Final = 1.0
#: Until the next attempt when something could not be put back.
RETRY: Final = 1.0
_LONGEST_TEXT: Final = 400


class DeviceGuard:
    """``link`` finds the device, None when it is gone. ``tell`` takes what happened."""

    def __init__(
        self, rtnl: Rtnl, spec: DeviceSpec, link: Callable[[], Link | None], tell: Callable[[DeviceTampered], None]
    ) -> None:
        self.spec = spec
        #: How often something was put back.
        self.restored: Counter[Part] = Counter()
        self._rtnl = rtnl
        self._link = link
        self._tell = tell
        self._times: dict[Part, deque[float]] = {part: deque(maxlen=_MOST + 1) for part in Part}
        self._over = False

    def look(self, by: Mapping[Part, int], now: float) -> float | None:
        """Put back what is missing. ``by``: the netlink port of the last request of each kind. Returns the time at
        which to look again, if some of it could not be put back. Raises MachineError when it cannot be looked at."""
        link = self._link()
        if self._over or link is None:
            return None
        lost = missing(self._rtnl, link, self.spec)
        if not lost:
            return None
        parts = sorted({part for part, _ in lost})
        news = [self._count(part, now) for part in parts]
        error = restore(self._rtnl, link, self.spec)
        self._over = any(self._too_often(part, now) for part in parts)
        if any(news) or self._over:
            self._tell(
                DeviceTampered(
                    what=", ".join(text for _, text in lost)[:_LONGEST_TEXT],
                    port=next((by[part] for part in (*parts, Part.LINK) if by.get(part)), 0),
                    error=str(error)[:_LONGEST_TEXT] if error is not None else "",
                    final=self._over,
                )
            )
        return now + RETRY if error is not None and not self._over else None

    def _count(self, part: Part, now: float) -> bool:
        """Whether this is a new time."""
        times = self._times[part]
        if times and now - times[-1] < _ONE_TIME:
            return False
        times.append(now)
        self.restored[part] += 1
        return True

    def _too_often(self, part: Part, now: float) -> bool:
        times = self._times[part]
        return len(times) > _MOST and now - times[0] < _WINDOW
