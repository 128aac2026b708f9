"""SIGHUP and the control socket: reload, one at a time, and always report the result.

Requests during the start or another reload are done once, after it. Any failure is a refusal: the daemon continues
unchanged and can reload again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from qre.errors import QreError, UserErrors
from qre.ipc.worker import place_of


class ProfileReload:
    """``apply`` reads the profile again and applies what may change, or raises. ``begun`` is called when one begins,
    ``finished`` with the reason of a refusal (empty on success). ``may_begin``: the daemon is ready, not ending."""

    def __init__(
        self,
        apply: Callable[[], Awaitable[None]],
        may_begin: Callable[[], bool],
        begun: Callable[[], None],
        finished: Callable[[str], None],
    ) -> None:
        self.wanted = False
        self._apply = apply
        self._may_begin = may_begin
        self._begun = begun
        self._finished = finished
        self._running = False
        self._log = logging.getLogger("qre.daemon")

    async def run(self) -> None:
        """Reload now, or after the start or the reload that is running."""
        self.wanted = True
        if self._running or not self._may_begin():
            return
        error = ""
        self._running = True
        try:
            self._begun()
            while self.wanted and self._may_begin():
                self.wanted = False
                error = await self._once()
        finally:
            self._running = False
        self._finished(error)

    async def _once(self) -> str:
        """The reason of a refusal; empty on success."""
        try:
            await self._apply()
        except QreError as refused:
            for each in refused.errors if isinstance(refused, UserErrors) else (refused,):
                self._log.error("reload: %s", each)
            return str(refused)
        except TimeoutError:
            return self._failed("the workers did not answer in time")
        except OSError as error:
            return self._failed(str(error))
        except Exception as error:  # noqa: BLE001 - whatever it was: `systemctl reload` gets its answer
            return self._failed(f"internal error at {place_of(error)}: {type(error).__name__}")
        return ""

    def _failed(self, why: str) -> str:
        self._log.error("reload: %s", why)
        return why
