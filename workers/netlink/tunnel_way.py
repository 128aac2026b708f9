"""What a server forwards while the daemon runs. Whatever is in the way is logged, and never ends the worker."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

from qre.addresses import Address
from qre.ends import Forward
from qre.errors import QreError
from qre.ipc.worker import WorkerContext
from qre.kernel.forward.forwarder import Forwarder, ForwardState, WantedWay
from qre.kernel.netfilter.listening import Listening
from qre.kernel.netfilter.table_status import MOST_CLOSED, MOST_UPLINKS, ForwardStatus

_LONGEST: Final = 512
_NO_IPV6: Final = "IPv6 is not forwarded: net.ipv6.conf.all.forwarding is off, and QRE does not switch it on"


class TunnelWay:
    """The way of the tunnel's packets to other networks, and back."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._forwarder = Forwarder(context.config.device)
        self._state = ForwardState()
        self._said: tuple[str, ...] = ()

    @property
    def hindered(self) -> bool:
        """Whether something is in the way."""
        return bool(self._state.why)

    def look(self, dest: Address | None) -> None:
        """Compare and mend now; ``dest`` is Dest's address, as the handshake worker last told it."""
        config = self._context.config
        self._state = self._forwarder.look(
            WantedWay(
                device=config.device,
                mode=config.forward,
                listen=Listening((ip_address(config.listen_ip),), config.listen_port),
                dest=(dest, config.dest_port) if dest is not None else None,
            )
        )
        if (lines := self._lines()) != self._said:
            self._said = lines
            for line in lines:
                self._context.limited(f"way {line}", line)

    def _lines(self) -> tuple[str, ...]:
        """What a person should know, when it is new."""
        config, state = self._context.config, self._state
        if config.forward is Forward.OFF:
            return ()
        if state.why:
            return (f"nothing is forwarded: {state.why}",)
        blind = not state.ipv6 and any(address.version == 6 for address in config.address)
        return (
            *((_NO_IPV6,) if blind else ()),
            *(f"the chain {chain} may drop what is forwarded; see `qre-tool check`" for chain in state.closed),
        )

    def status(self) -> ForwardStatus:
        """As the last look found it."""
        return ForwardStatus(
            mode=self._context.config.forward,
            why=self._state.why[:_LONGEST],
            uplinks=tuple(map(_shown, self._state.uplinks[:MOST_UPLINKS])),
            ipv6=self._state.ipv6,
            closed=tuple(str(each)[:_LONGEST] for each in self._state.closed[:MOST_CLOSED]),
        )

    def undo(self) -> None:
        """Take everything back. What cannot be is left to the daemon's parent, which tries again."""
        try:
            self._forwarder.undo()
        except QreError as error:
            self._context.log.debug("%s", error)


def _shown(device: str) -> str:
    """A device's name, which is any bytes, as text."""
    return device.encode(errors="surrogateescape").decode(errors="replace")
