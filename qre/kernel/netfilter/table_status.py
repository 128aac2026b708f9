"""What is said of a server's nftables tables, as it travels between processes."""

from __future__ import annotations

from typing import Annotated

import msgspec

from qre.ends import Forward
from qre.structs import U64, Port, Struct, Text

#: Of what a server says of its forwarding: devices, and chains of other firewalls.
MOST_UPLINKS, MOST_CLOSED = 64, 16


class SiteTcpPort(Struct, frozen=True, kw_only=True):
    """A TCP port of Listen's address, over one version of IP. ``why``: why its connections are not passed to Dest;
    empty: they are."""

    port: Port
    ip: Annotated[int, msgspec.Meta(ge=4, le=6)] = 4
    connections: U64 = 0
    why: Text = ""


class ForwardStatus(Struct, frozen=True, kw_only=True):
    """``why``: why nothing is forwarded; empty: it is. ``closed``: firewall chains that drop what is forwarded,
    unless a rule lets it pass."""

    mode: Forward
    why: Text = ""
    uplinks: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MOST_UPLINKS)] = ()
    ipv6: bool = False
    closed: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MOST_CLOSED)] = ()
