"""A client's DNS while its daemon runs.

It is set as soon as the tunnel is up for the first time, so that Endpoint's name is looked up as before until then,
and kept until the daemon ends, so that no name is asked outside while a session is renewed. ``down`` takes it back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from qre.config.model import DnsSettings, Profile
from qre.device.name_servers import name_service, set_names, unset_names
from qre.errors import QreError
from qre.ipc.tasks import Tasks


class TunnelNames:
    """``fail`` is called with the reason when they cannot be set: a tunnel whose names are asked outside tells others
    where its user goes."""

    def __init__(self, tasks: Tasks, fail: Callable[[str], None]) -> None:
        self._tasks = tasks
        self._fail = fail
        self._up = False
        self._set: DnsSettings | None = None
        self._one_at_a_time = asyncio.Lock()

    def tunnel_is_up(self, profile: Profile) -> None:
        """There is a session."""
        self._up = True
        self.follow(profile)

    def follow(self, profile: Profile) -> None:
        """What the profile says has changed, perhaps."""
        if self._up and profile.dns != self._set:
            self._tasks.spawn(self._apply(profile))

    async def _apply(self, profile: Profile) -> None:
        async with self._one_at_a_time:
            if profile.dns == self._set:
                return
            try:
                service = name_service()
                if profile.dns is None:
                    await asyncio.to_thread(unset_names, service, profile.device)
                else:
                    await asyncio.to_thread(set_names, service, profile.device, profile.dns)
            except QreError as error:
                self._fail(str(error))
            self._set = profile.dns
