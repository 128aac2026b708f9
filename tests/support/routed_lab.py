"""A lab with a router between client and server, two addresses a host, and files in /etc that change under way.

    client ──10.90.1.0/24── router ──10.90.3.0/24── server ──10.90.2.0/24── site
      .2 .3                  .1 .1                   .2 .4      .1           .2

Client and server have default routes by way of the router, and the site by way of the server. The attributes are
those of ``namespaces.Lab``, so that ``Tunnel`` takes either.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.support.daemons import Daemon
from tests.support.namespaces import Lab, join

#: A name server that nobody reaches.
NOWHERE = "10.255.255.53"
#: Not for copies: nothing that a test starts needs it.
_SECRET = ("shadow", "shadow-", "gshadow", "gshadow-")


class RoutedLab(Lab):
    """See the module."""

    CLIENT = "10.90.1.2"
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
        self.uplink_device, self.site_device = join(
            self.server, f"{self.SERVER_TO_SITE}/24", self.site, f"{self.SITE}/24"
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
        for namespace in (self.router, self.server):
            namespace.run("sysctl", "-qw", "net.ipv4.ip_forward=1")

    def unplug_client(self) -> None:
        """The client's cable: its link, addresses' routes and default route are gone."""
        self.client.ip("link", "set", self.client_device, "down")

    def plug_client(self) -> None:
        """The cable is back, and what a DHCP client would do then."""
        self.client.ip("link", "set", self.client_device, "up")
        self.client.ip("route", "replace", "default", "via", self.CLIENT_GATEWAY)


def resolvers() -> set[str]:
    """The name servers of this machine, which the namespaces' programs ask, too."""
    words = [line.split() for line in Path("/etc/resolv.conf").read_text().splitlines()]
    return {entry[1] for entry in words if entry[:1] == ["nameserver"] and "." in entry[1]} | {NOWHERE}


def private_etc(daemon: Daemon, directory: Path) -> PrivateEtc:
    """Give a daemon that is not started yet an /etc of its own."""
    made = PrivateEtc(directory / f"etc-{daemon.profile}")
    daemon.etc = made.path
    return made


@dataclass
class PrivateEtc:
    """A copy of /etc that its daemon has in place of the machine's; without a resolver at first."""

    path: Path

    def __post_init__(self) -> None:
        shutil.copytree(
            "/etc", self.path, symlinks=True, ignore_dangling_symlinks=True, ignore=shutil.ignore_patterns(*_SECRET)
        )
        self.path.chmod(0o755)
        self.remove("resolv.conf")
        self.replace("hosts", "127.0.0.1 localhost\n")

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def replace(self, name: str, text: str) -> None:
        """As DHCP clients, NetworkManager and editors do: a new file, renamed over the old one."""
        new = self.path / f"{name}.new"
        new.write_text(text)
        new.chmod(0o644)
        os.rename(new, self.path / name)

    def link(self, name: str, target: str) -> None:
        """Point it elsewhere, at once."""
        new = self.path / f"{name}.new"
        new.symlink_to(target)
        os.rename(new, self.path / name)
