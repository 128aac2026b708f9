"""Types for addresses and networks of either family, used everywhere between the parser and the socket."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network
