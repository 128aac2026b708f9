"""Daemons that have joined our port: each is announced to the handshake worker, and again after a restart."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Final

from qre.errors import MachineError, QreError
from qre.ipc.messages import GuestJoin, GuestLeave, Party
from qre.supervisor.front import GuestDaemon
from qre.supervisor.members.life import WorkerStage
from qre.supervisor.members.supervised import Supervised

_TIMEOUT: Final = 30.0


class PortGuests:
    """``changed`` is called with their number after each change."""

    def __init__(self, handshake: Supervised, changed: Callable[[int], None]) -> None:
        self._handshake = handshake
        self._changed = changed
        self._guests: dict[int, GuestDaemon] = {}
        self._log = logging.getLogger("qre.supervisor")

    def any(self) -> bool:
        """Whether other daemons share the port."""
        return bool(self._guests)

    async def admit(self, guest: GuestDaemon) -> None:
        """Admit a daemon to the port; takes over ``guest``, and closes it when the daemon is refused (QreError)."""
        self._guests[guest.number] = guest
        try:
            await self._announce(guest)
        except QreError:
            self._guests.pop(guest.number, None)
            guest.close()
            raise
        self._log.info("profile %s has joined the port", guest.profile)
        self._changed(len(self._guests))

    async def reload(self, number: int, secrets: int) -> None:
        """The daemon has other clients now; takes over ``secrets``. Raises QreError when they are refused: then the
        former ones stay."""
        guest = self._guests.get(number)
        if guest is None:
            os.close(secrets)
            raise MachineError("the port's front", "it does not know this daemon")
        before, guest.secrets = guest.secrets, secrets
        try:
            await self._announce(guest, feed=False)
        except QreError:
            if self._guests.get(number) is guest:
                guest.secrets, before = before, guest.secrets
            raise
        finally:
            os.close(before)

    async def leave(self, number: int) -> None:
        """The daemon has left or died."""
        guest = self._guests.pop(number, None)
        if guest is None:
            return
        guest.close()
        self._log.info("profile %s has left the port", guest.profile)
        self._changed(len(self._guests))
        if self._handshake.life.stage is WorkerStage.READY:
            try:
                await self._handshake.router.request(Party.SUPERVISOR, GuestLeave(number=number), _TIMEOUT)
            except MachineError as error:
                self._log.warning("%s", error)  # the next handshake worker does not know of it

    async def announce_all(self) -> None:
        """Announce every joined daemon to a restarted handshake worker."""
        for guest in list(self._guests.values()):
            await self._announce(guest)

    async def _announce(self, guest: GuestDaemon, *, feed: bool = True) -> None:
        if self._handshake.life.stage is not WorkerStage.READY:
            raise MachineError("worker handshake", "it is being restarted", "try again")
        self._handshake.hand("guest_secrets", guest.secrets, guest.number)
        if feed:
            self._handshake.hand("guest_feed", guest.feed, guest.number)
        joins = GuestJoin(number=guest.number, profile=guest.profile)
        await self._handshake.router.request(Party.SUPERVISOR, joins, _TIMEOUT)
