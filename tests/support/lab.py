"""A lab of network namespaces for client, server and site; files in /etc that change under way are ``private_etc``'s.

    client ──10.90.1.0/24── router ──10.90.3.0/24── server ──10.90.2.0/24── site
      .2 .3                  .1 .1                   .2 .4      .1           .2

Client and server have two addresses each and default routes by way of the router, and the site one by way of the
server.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.namespaces import Namespace, join

#: A name server that nobody reaches.
NOWHERE = "10.255.255.53"


def _add_second(namespace: Namespace, device: str, address: str) -> None:
    """An address that nothing chooses for itself while there is another one."""
    preference = ("preferred_lft", "0") if ":" in address else ()
    namespace.ip("addr", "add", address, "dev", device, *preference)


class NeighbourLab:
    """Client and server in one network: ``client —10.90.1.0/24— server —10.90.2.0/24— site``."""

    LENGTH = 24
    CLIENT = "10.90.1.2"
    SERVER = "10.90.1.1"
    SERVER_TO_SITE = "10.90.2.1"
    SITE = "10.90.2.2"

    def __init__(self) -> None:
        self.namespaces: list[Namespace] = []
        try:
            self.client, self.server, self.site = (self._add(name) for name in ("client", "server", "site"))
            self.uplink_device, self.site_device = join(
                self.server,
                f"{self.SERVER_TO_SITE}/{self.LENGTH}",
                self.site,
                f"{self.SITE}/{self.LENGTH}",
            )
            self._join()
        except BaseException:
            self.close()
            raise

    def _join(self) -> None:
        """The way between client and server."""
        self.client_device, self.server_device = join(
            self.client, f"{self.CLIENT}/{self.LENGTH}", self.server, f"{self.SERVER}/{self.LENGTH}"
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
        length = self.LENGTH
        self.router = self._add("router")
        self.client_device, self.client_gateway_device = join(
            self.client, f"{self.CLIENT}/{length}", self.router, f"{self.CLIENT_GATEWAY}/{length}"
        )
        self.server_gateway_device, self.server_device = join(
            self.router, f"{self.SERVER_GATEWAY}/{length}", self.server, f"{self.SERVER}/{length}"
        )
        _add_second(self.client, self.client_device, f"{self.CLIENT_SECOND}/{length}")
        _add_second(self.server, self.server_device, f"{self.SERVER_SECOND}/{length}")
        self._route(type(self))
        for resolver in resolvers():  # default routes lead there, and nobody answers: say so at once
            for namespace in (self.client, self.server, self.site):
                namespace.ip("route", "add", "unreachable", f"{resolver}/32")
        self.router.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def _route(self, lab: type[Lab]) -> None:
        """The ways between the networks of this lab's addresses."""
        site = ipaddress.ip_network(f"{lab.SITE}/{lab.LENGTH}", strict=False)
        for namespace, to, gateway in (
            (self.client, "default", lab.CLIENT_GATEWAY),
            (self.server, "default", lab.SERVER_GATEWAY),
            (self.site, "default", lab.SERVER_TO_SITE),
            (self.router, str(site), lab.SERVER),
        ):
            namespace.ip(f"-{site.version}", "route", "add", to, "via", gateway)

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


class Ipv6Lab(Lab):
    """The same, with IPv6 in place of IPv4."""

    LENGTH = 64
    CLIENT, CLIENT_SECOND, CLIENT_GATEWAY = "2001:db8:1::2", "2001:db8:1::3", "2001:db8:1::1"
    SERVER, SERVER_SECOND, SERVER_GATEWAY = "2001:db8:3::2", "2001:db8:3::4", "2001:db8:3::1"
    SERVER_TO_SITE, SITE = "2001:db8:2::1", "2001:db8:2::2"


class DualLab(Lab):
    """The same with both: each end of the IPv4 lab has the address of the IPv6 lab, too."""

    def _join(self) -> None:
        super()._join()
        other = Ipv6Lab
        for namespace, device, address in (
            (self.client, self.client_device, other.CLIENT),
            (self.router, self.client_gateway_device, other.CLIENT_GATEWAY),
            (self.router, self.server_gateway_device, other.SERVER_GATEWAY),
            (self.server, self.server_device, other.SERVER),
            (self.server, self.uplink_device, other.SERVER_TO_SITE),
            (self.site, self.site_device, other.SITE),
        ):
            namespace.ip("addr", "add", f"{address}/{other.LENGTH}", "dev", device)
        _add_second(self.client, self.client_device, f"{other.CLIENT_SECOND}/{other.LENGTH}")
        _add_second(self.server, self.server_device, f"{other.SERVER_SECOND}/{other.LENGTH}")
        self._route(other)


def resolvers() -> set[str]:
    """The name servers of this machine, which the namespaces' programs ask, too."""
    words = [line.split() for line in Path("/etc/resolv.conf").read_text().splitlines()]
    return {entry[1] for entry in words if entry[:1] == ["nameserver"] and "." in entry[1]} | {NOWHERE}
