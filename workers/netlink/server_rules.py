"""The nftables tables of a server while its daemon runs: TCP to Dest, and the tunnel's way to other networks."""

from __future__ import annotations

import msgspec

from qre.freed_memory import give_back
from qre.ipc.messages import DestAddressReport, NetlinkStatus
from qre.ipc.tasks import Tasks
from qre.ipc.worker import WorkerContext
from qre.workers.netlink.firewall_news import FirewallNews
from qre.workers.netlink.tcp_face import TcpFace
from qre.workers.netlink.tunnel_way import TunnelWay


class ServerRules:
    """What is wanted follows the configuration, and where the handshake worker last said that Dest is."""

    def __init__(self, context: WorkerContext, tasks: Tasks) -> None:
        config = context.config
        self._dest = DestAddressReport(address=config.dest_address, for_ipv6=config.dest_for_ipv6)
        self._face = TcpFace(context)
        self._way = TunnelWay(context)
        self.look()
        self._news = FirewallNews(self.look, lambda: self._face.hindered or self._way.hindered, tasks)

    def look(self) -> None:
        """Compare and mend now."""
        self._face.look(self._dest)
        self._way.look(self._dest.address)
        give_back()  # libnftables takes megabytes for a moment

    def follow(self, dest: DestAddressReport) -> None:
        """Dest is somewhere else now."""
        self._dest = dest
        self.look()

    def told(self, status: NetlinkStatus) -> NetlinkStatus:
        """``status`` with what is passed and forwarded."""
        return msgspec.structs.replace(status, site_tcp=self._face.status(), forward=self._way.status())

    def undo(self) -> None:
        """Take everything back."""
        self._face.undo()
        self._way.undo()

    def close(self) -> None:
        """No more looks; what is in place stays."""
        self._news.close()
