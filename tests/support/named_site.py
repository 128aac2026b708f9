"""A site whose name has an address of each version of IP."""

from __future__ import annotations

from tests.support.lab import Ipv6Lab, Lab
from tests.support.private_etc import private_etc
from tests.support.site import Caddy
from tests.support.tunnel import PORT, Tunnel

_NAME = "dest.example"


def site_with_a_name(tunnel: Tunnel, addresses: str) -> Caddy:
    """The server's Dest, by name: the site serves at these addresses of the two, separated by a space."""
    tunnel.edit("server0", "Dest", f"{_NAME}:{PORT}")
    etc = private_etc(tunnel.server, tunnel.directory)
    tunnel.site.stop()
    site = Caddy(tunnel.lab.site, tunnel.directory / "site", addresses, PORT)
    tunnel.stack.callback(site.stop)
    etc.replace("hosts", f"127.0.0.1 localhost\n{Lab.SITE} {_NAME}\n{Ipv6Lab.SITE} {_NAME}\n")
    return site
