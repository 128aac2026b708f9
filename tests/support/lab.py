"""A lab of network namespaces for client, server and site; files in /etc that change under way are ``private_etc``'s.

    client ──10.90.1.0/24── router ──10.90.3.0/24── server ──10.90.2.0/24── site
      .2 .3                  .1 .1                   .2 .4      .1           .2

Client and server have two addresses each and default routes by way of the router, and the site one by way of the
server.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.namespaces import Namespace, join

#: A name server that nobody reaches.
NOWHERE = "10.255.255.53"


class NeighbourLab:
    """Client and server in one network: ``client —10.90.1.0/24— server —10.90.2.0/24— site``."""

    CLIENT = "10.90.1.2"
    SERVER = "10.90.1.1"
    SERVER_TO_SITE = "10.90.2.1"
    SITE = "10.90.2.2"

    def __init__(self) -> None:
        self.namespaces: list[Namespace] = []
        try:
            self.client, self.server, self.site = (self._add(name) for name in ("client", "server", "site"))
            self.uplink_device, self.site_device = join(
                self.server, f"{self.SERVER_TO_SITE}/24", self.site, f"{self.SITE}/24"
            )
            self._join()
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        """The way between client and server."""
        self.client_device, self.server_device = join(
            self.client, f"{self.CLIENT}/24", self.server, f"{self.SERVER}/24"
        )

    def _add(self, name: str) -> Namespace:
        namespace = Namespace(name)
        self.namespaces.append(namespace)
        return namespace

    def close(self) -> None:
        for namespace in self.namespaces:
            namespace.delete()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Lab(NeighbourLab):
    """See the module."""

    CLIENT_SECOND = "10.90.1.3"
    CLIENT_GATEWAY = "10.90.1.1"
    SERVER = "10.90.3.2"
    SERVER_SECOND = "10.90.3.4"
    SERVER_GATEWAY = "10.90.3.1"

    def _join(self) -> None:
        self.router = self._add("router")
        self.client_device, self.client_gateway_device = join(
            self.client, f"{self.CLIENT}/24", self.router, f"{self.CLIENT_GATEWAY}/24"
        )
        self.server_gateway_device, self.server_device = join(
            self.router, f"{self.SERVER_GATEWAY}/24", self.server, f"{self.SERVER}/24"
        )
        self.client.ip("addr", "add", f"{self.CLIENT_SECOND}/24", "dev", self.client_device)
        self.server.ip("addr", "add", f"{self.SERVER_SECOND}/24", "dev", self.server_device)
        for namespace, gateway in (
            (self.client, self.CLIENT_GATEWAY),
            (self.server, self.SERVER_GATEWAY),
            (self.site, self.SERVER_TO_SITE),
        ):
            namespace.ip("route", "add", "default", "via", gateway)
        self.router.ip("route", "add", "10.90.2.0/24", "via", self.SERVER)
        for resolver in resolvers():  # default routes lead there, and nobody answers: say so at once
            for namespace in (self.client, self.server, self.site):
                namespace.ip("route", "add", "unreachable", f"{resolver}/32")
        self.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")

    def unplug_client(self) -> None:
        """The client's cable: its link, addresses' routes and default route are gone."""
        self.client.ip("link", "set", self.client_device, "down")

    def plug_client(self) -> None:
        """The cable is back, and what a DHCP client would do then."""
        self.client.ip("link", "set", self.client_device, "up")
        self.route_client()

    def route_client(self) -> None:
        """The default route, which goes with the address or the link."""
        self.client.ip("route", "replace", "default", "via", self.CLIENT_GATEWAY)

    def unplug_server(self) -> None:
        self.server.ip("link", "set", self.server_device, "down")

    def plug_server(self) -> None:
        self.server.ip("link", "set", self.server_device, "up")
        self.server.ip("route", "replace", "default", "via", self.SERVER_GATEWAY)


def resolvers() -> set[str]:
    """The name servers of this machine, which the namespaces' programs ask, too."""
    words = [line.split() for line in Path("/etc/resolv.conf").read_text().splitlines()]
    return {entry[1] for entry in words if entry[:1] == ["nameserver"] and "." in entry[1]} | {NOWHERE}
