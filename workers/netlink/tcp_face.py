"""A server's TCP face while the daemon runs. Whatever is in the way is logged once, and never ends the worker."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Final

from qre.addresses import Address, ipv4_of_listen
from qre.errors import QreError
from qre.ipc.worker import WorkerContext
from qre.kernel.netfilter.table_status import SiteTcpPort
from qre.kernel.site_tcp.site_face import TAKEN, SiteFace, State, Wanted

_MOST_SAID: Final = 32
_FRONT: Final = "the daemon that has the port passes them on"


class TcpFace:
    """The connections to a server's TCP ports."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._face = SiteFace(context.config.device)
        self._state = State()
        self._said: set[str] = set()

    @property
    def hindered(self) -> bool:
        """Whether something is in the way."""
        return bool(self._state.why)

    def look(self, dest: Address | None) -> None:
        """Compare and mend now; ``dest`` is Dest's address, as the handshake worker last told it."""
        wanted = self._wanted(dest)
        if self._context.config.joined:
            self._face.look(replace(wanted, ports=()))  # what a killed daemon left, when it had the port
            self._state = State(why=_FRONT)
            return
        self._state = self._face.look(wanted)
        if dest is not None:
            for each in self.status():
                if each.why:
                    self._say(f"TCP port {each.port} is not passed to Dest: {each.why}")

    def _say(self, text: str) -> None:
        """Once."""
        if text not in self._said and len(self._said) < _MOST_SAID:
            self._said.add(text)
            self._context.log.info("%s", text)

    def status(self) -> tuple[SiteTcpPort, ...]:
        """For each port how many connections were passed, or why none is."""
        counts = self._face.counts()
        passed = dict(self._state.ports)
        return tuple(
            SiteTcpPort(
                port=port,
                connections=counts.get(port, 0),
                why="" if port in passed else TAKEN if port in self._state.taken else self._state.why[:512],
            )
            for port, _ in self._wanted(None).chosen()
        )

    def undo(self) -> None:
        """Take everything back. What cannot be is left to the daemon's parent, which tries again."""
        try:
            self._face.undo()
        except QreError as error:
            self._context.log.debug("%s", error)

    def _wanted(self, dest: Address | None) -> Wanted:
        config = self._context.config
        return Wanted(
            device=config.device,
            listen=(ipv4_of_listen(ip_address(config.listen_ip)), config.listen_port),
            ports=config.site_tcp,
            dest=dest,
            dest_port=config.dest_port,
            ttl=config.ttl,
        )
