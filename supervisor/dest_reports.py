"""What the handshake worker finds out about Dest: kept for workers that start later, and handed over to the others.

One report of each kind is being handed over at a time, and only the latest one waits for that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import msgspec

from qre.addresses import host_port
from qre.dest_profile import DestProfile
from qre.ends import Role
from qre.errors import QreError, UserError
from qre.ipc.messages import DestAddressReport, DestProfileReport, Party, WorkerConfig
from qre.ipc.tasks import Tasks
from qre.structs import Struct, Text
from qre.supervisor.members.life import WorkerStage
from qre.supervisor.members.supervised import Members
from qre.supervisor.parent_messages import DestProbed

Report = DestProfileReport | DestAddressReport


class DestFound(Struct, frozen=True, kw_only=True):
    """What `refresh` has seen of this Dest under this name."""

    dest: Text  # host:port
    server_name: Text
    profile: DestProfile


class DestReports:
    """``config`` is the current configuration, which ``use`` replaces; ``probed`` tells the parent. Handing over
    is one of ``tasks``."""

    def __init__(
        self,
        members: Members,
        config: Callable[[], WorkerConfig],
        use: Callable[[WorkerConfig], None],
        probed: Callable[[DestProbed], None],
        tasks: Tasks,
    ) -> None:
        self.profile: DestProfile | None = config().dest_profile
        self._members = members
        self._config = config
        self._use = use
        self._probed = probed
        self._tasks = tasks
        self._latest: dict[type[Report], Report] = {}  # of each kind that is being handed over

    def take(self, message: Report) -> None:
        """Keep it; netlink is told the address, the data plane what a visit has seen."""
        config = self._config()
        if isinstance(message, DestAddressReport):
            self._use(msgspec.structs.replace(config, dest_address=message.address, dest_for_ipv6=message.for_ipv6))
            to = Party.NETLINK
        else:
            self.profile = message.profile
            self._use(msgspec.structs.replace(config, dest_profile=message.profile))
            self._probed(DestProbed(profile=message.profile))
            to = Party.DATAPLANE if config.user_dataplane else Party.NETLINK
        under_way = type(message) in self._latest
        self._latest[type(message)] = message
        if not under_way:
            self._tasks.spawn(self._hand_over(to, type(message)))

    async def _hand_over(self, to: Party, kind: type[Report]) -> None:
        """The latest of its kind, until that one has been handed over."""
        handed: Report | None = None
        while (latest := self._latest[kind]) is not handed:
            handed = latest
            # A worker that does not answer is killed by its heartbeats, and gets it with its configuration.
            with contextlib.suppress(QreError):
                await self._pass_on(to, latest)
        del self._latest[kind]

    async def found(self, told: DestFound) -> None:
        """A visit of a command's: the handshake worker takes it as its own, and reports it. Raises QreError when it
        is of another Dest, or the worker does not take it."""
        config = self._config()
        if config.role is not Role.SERVER:
            raise UserError("dest-found", "a client has no Dest")
        if (told.dest, told.server_name) != (host_port(config.dest_host, config.dest_port), config.server_name):
            raise UserError("dest-found", f"{told.dest} is not this server's Dest any more", "run `refresh` again")
        await self._pass_on(Party.HANDSHAKE, DestProfileReport(profile=told.profile))

    async def _pass_on(self, to: Party, message: Report) -> None:
        """A worker that is not ready gets it with its configuration."""
        member = self._members[to]
        if member.life.stage is WorkerStage.READY:
            await member.router.request(Party.SUPERVISOR, message, 10.0)

    def known(self, config: WorkerConfig) -> WorkerConfig:
        """A configuration of the parent's, with what is known of the same Dest."""
        now = self._config()
        same = (config.dest_host, config.dest_port) == (now.dest_host, now.dest_port)
        at = now if same else config
        return msgspec.structs.replace(
            config, dest_profile=self.profile, dest_address=at.dest_address, dest_for_ipv6=at.dest_for_ipv6
        )
