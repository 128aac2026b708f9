"""Applies a new configuration to the device and all workers, or restores the previous one. The front of a port that
this daemon has joined recognises its clients, and is asked first."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final

from qre.errors import MachineError, QreError
from qre.ipc.messages import Party, Reload, SyncDevice, WorkerConfig
from qre.supervisor.front import join_of, tell_front
from qre.supervisor.members.life import WorkerStage
from qre.supervisor.members.supervised import Members, Supervised
from qre.supervisor.parent_messages import Setup

#: How long to wait for workers that are being restarted (seconds).
_COMPLETE_TIMEOUT: Final = 8.0
#: Of a reload during which workers die.
_ATTEMPTS: Final = 3
#: Time for a death to be noticed.
_NOTICE: Final = 0.2


class Reloads:
    """``config`` is the current configuration, which ``use`` replaces. ``supplies`` are the parent's descriptors,
    with the profile's secrets and the connection to the front."""

    def __init__(
        self,
        members: Members,
        setup: Setup,
        supplies: dict[str, int],
        config: Callable[[], WorkerConfig],
        use: Callable[[WorkerConfig], None],
    ) -> None:
        self._members = members
        self._setup = setup
        self._supplies = supplies
        self._config = config
        self._use = use
        self._log = logging.getLogger("qre.supervisor")

    async def apply(self, config: WorkerConfig) -> None:
        """Apply it everywhere, or leave everything unchanged (QreError)."""
        old, old_secrets = self._config(), self._supplies.get("profile_secrets")
        fresh = self._supplies.pop("new_profile_secrets", None)
        try:
            if fresh is not None:
                self._supplies["profile_secrets"] = fresh
            await self._tell_front(config)
            await self._apply_to_all(config)
        except QreError:
            if fresh is not None and old_secrets is not None:
                self._supplies["profile_secrets"], old_secrets = old_secrets, fresh
            await self._apply_again(old)
            raise
        finally:
            if fresh is not None and old_secrets is not None:
                os.close(old_secrets)

    async def _tell_front(self, config: WorkerConfig) -> None:
        """Raises QreError when the front of the port refuses this configuration."""
        front, secrets = self._supplies.get("front"), self._supplies.get("profile_secrets")
        if front is not None and secrets is not None:
            await tell_front(front, join_of(config), secrets)

    async def _apply_to_all(self, config: WorkerConfig) -> None:
        """Wait for workers that are being restarted; start over when one dies during it."""
        for attempt in range(_ATTEMPTS):
            asked = await self._until_complete()
            try:
                await self._apply(config)
            except MachineError:
                await asyncio.sleep(_NOTICE)
                if attempt == _ATTEMPTS - 1 or asked == self._members.complete_pids():
                    raise
            else:
                return

    async def _until_complete(self) -> list[int]:
        """Wait until all workers are ready at once; their pids. Raises MachineError when it takes too long."""
        if not await self._members.until(lambda: bool(self._members.complete_pids()), _COMPLETE_TIMEOUT):
            missing = next(member for member in self._members.values() if member.life.stage is not WorkerStage.READY)
            raise MachineError(f"worker {missing.party}", "it is being restarted", "try again")
        return self._members.complete_pids()

    async def _apply(self, config: WorkerConfig) -> None:
        device = SyncDevice(
            device=config.device,
            address=config.address,
            mtu=config.mtu,
            allowed_ips=config.routes,
            table=config.table,
            outer=config.outer,
            closed=config.closed,
        )
        await self._members[Party.NETLINK].router.request(Party.SUPERVISOR, device, 10.0)
        self._use(config)
        for member in self._members.values():
            if member.life.stage is WorkerStage.READY:
                await self.reconfigure(member)

    async def _apply_again(self, old: WorkerConfig) -> None:
        try:
            await self._tell_front(old)
            await self._apply_to_all(old)
        except QreError as error:
            self._log.error("restoring the previous configuration: %s", error)

    async def reconfigure(self, member: Supervised) -> None:
        """Send one worker the current configuration."""
        if member.party is Party.HANDSHAKE and "profile_secrets" in self._supplies:
            member.hand("profile_secrets", self._supplies["profile_secrets"])
        await member.router.request(Party.SUPERVISOR, Reload(config=self._config()), 10.0)
