"""A server's TCP face while the daemon runs. Whatever is in the way is logged once, and never ends the worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from qre.addresses import listen_by_version
from qre.errors import QreError
from qre.ipc.messages import DestAddressReport
from qre.ipc.worker import WorkerContext
from qre.kernel.netfilter.listening import Listening
from qre.kernel.netfilter.own_tables import SITE_TCP
from qre.kernel.netfilter.table_status import SiteTcpPort
from qre.kernel.site_tcp.site_face import TAKEN, SiteFace, State, Wanted

_MOST_SAID: Final = 32
_FRONT: Final = "the daemon that has the port passes them on"


class TcpFace:
    """The connections to a server's TCP ports, over each version of IP that it listens on."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._faces = {version: SiteFace(context.config.device, version) for version in SITE_TCP}
        self._states = dict.fromkeys(SITE_TCP, State())
        self._said: set[str] = set()

    @property
    def hindered(self) -> bool:
        """Whether nothing can be passed."""
        return all(self._states[each.version].why for each in self._wanted(DestAddressReport()))

    def look(self, dest: DestAddressReport) -> None:
        """Compare and mend now."""
        joined, wanted = self._context.config.joined, {each.version: each for each in self._wanted(dest)}
        for version, face in self._faces.items():
            if version not in wanted or joined:
                face.stay_off()  # a killed daemon may have left something, when it had the port
                self._states[version] = State(why=_FRONT)
            else:
                self._states[version] = face.look(wanted[version])
        if dest.address is not None:
            for each in self.status():
                if each.why:
                    over = " over IPv6" if each.ip == 6 else ""
                    self._say(f"TCP port {each.port} is not passed to Dest{over}: {each.why}")

    def _say(self, text: str) -> None:
        """Once."""
        if text not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(text)
            self._context.log.info("%s", text)

    def status(self) -> tuple[SiteTcpPort, ...]:
        """For each port how many connections were passed, or why none is."""
        return tuple(told for wanted in self._wanted(DestAddressReport()) for told in self._told(wanted))

    def _told(self, wanted: Wanted) -> Iterator[SiteTcpPort]:
        state, counts = self._states[wanted.version], self._faces[wanted.version].counts()
        passed = dict(state.ports)
        for port, _ in wanted.chosen():
            yield SiteTcpPort(
                port=port,
                ip=wanted.version,
                connections=counts.get(port, 0),
                why="" if port in passed else TAKEN if port in state.taken else state.why[:512],
            )

    def undo(self) -> None:
        """Take everything back. What cannot be is left to the daemon's parent, which tries again."""
        for face in self._faces.values():
            try:
                face.undo()
            except QreError as error:
                self._context.log.debug("%s", error)

    def _wanted(self, dest: DestAddressReport) -> list[Wanted]:
        """Over each version."""
        config = self._context.config
        return [
            Wanted(
                device=config.device,
                listen=Listening(addresses, config.listen_port),
                ports=config.site_tcp,
                dest=dest.address if version == 4 else dest.for_ipv6,
                dest_port=config.dest_port,
                ttl=config.ttl,
            )
            for version, addresses in listen_by_version(config.listen).items()
        ]
