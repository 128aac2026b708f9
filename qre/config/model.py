"""The validated configuration: one interface profile and the global file, as immutable values.

All values were validated by the parser (``qre.config.profile``, ``qre.config.settings``): code that receives a
``Profile`` does not check it again. Durations are in milliseconds, secrets are raw bytes. The classes are plain ones:
``qre-tool strip``, which starts in a few milliseconds, loads this module, so it imports neither dataclasses nor
msgspec, and pathlib only when a path is read.
"""

from __future__ import annotations

import os
from ipaddress import ip_address

from qre.addresses import Address, Interface, Network, address_ports, host_port, outer_networks
from qre.ends import (
    DEFAULT_MTU,
    DEFAULT_TIME_DIFF_MS,
    LIKE_DEST,
    Dataplane,
    EndpointOrder,
    Forward,
    Role,
    WhenDestIsDown,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Self, dataclass_transform
else:

    def dataclass_transform(**_):
        """As ``typing.dataclass_transform``, without loading ``typing``."""
        return lambda cls: cls


class PathField:
    """A path attribute: kept as text, read as a ``pathlib.Path``."""

    def __init__(self, default: str | None) -> None:
        self.default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, value: object | None, owner: type) -> Path | None:
        text = self.default if value is None else vars(value)[self.name]
        if text is None:
            return None
        from pathlib import Path

        return Path(text)

    def __set__(self, value: object, new: object) -> None:
        raise AttributeError(f"{self.name} is read-only")


def path_field(*, default: str | None) -> Any:
    """Declare a path attribute with its default."""
    return PathField(default)


@dataclass_transform(frozen_default=True, field_specifiers=(path_field,))
class Value:
    """Base of the immutable values: like a frozen dataclass, but the class is made without delay.

    Fields are the annotations in order; a class attribute is the default.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cls = type(self)
        names = tuple(cls.__annotations__)
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__} takes {len(names)} arguments, not {len(args)}")
        given = dict(zip(names, args, strict=False))
        for name in kwargs:
            if name in given or name not in cls.__annotations__:
                raise TypeError(f"{cls.__name__} has {'two values for' if name in given else 'no'} {name!r}")
        given |= kwargs
        for name in names:
            kind = cls.__dict__.get(name, _REQUIRED)
            is_path = isinstance(kind, PathField)
            if name in given:
                value = given[name]
                if is_path and value is not None:
                    value = os.fspath(value)
            elif kind is _REQUIRED:
                raise TypeError(f"{cls.__name__} needs {name!r}")
            else:
                value = kind.default if isinstance(kind, PathField) else kind
            self.__dict__[name] = value

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return type(self)(**(vars(self) | changes))


_REQUIRED = object()


class HostPort(Value):
    """``host:port``; the host is a DNS name or a numeric address, not resolved here."""

    host: str
    port: int

    def __str__(self) -> str:
        return host_port(self.host, self.port)


class SocketAddress(Value):
    """A numeric address and a port that is not 0."""

    ip: Address
    port: int

    def __str__(self) -> str:
        return host_port(str(self.ip), self.port)


class Listen(Value):
    """Where a server listens: at one address, which may stand for every one, or at several, of which none does."""

    addresses: tuple[Address, ...]
    port: int

    @property
    def ip(self) -> Address:
        """What its sockets are bound to: for several addresses every one, of IPv4 alone if they all are."""
        if not self.several:
            return self.addresses[0]
        return ip_address("::" if any(each.version == 6 for each in self.addresses) else "0.0.0.0")

    @property
    def several(self) -> tuple[Address, ...]:
        """The only ones of those that it is bound to at which the port is open; none where all are."""
        return self.addresses if len(self.addresses) > 1 else ()

    @property
    def ends(self) -> tuple[tuple[Address, int], ...]:
        """Each address, with the port."""
        return tuple((each, self.port) for each in self.addresses)

    def __str__(self) -> str:
        return address_ports(self.addresses, self.port)


class Hooks(Value):
    """Shell commands; ``%i`` stands for the device."""

    pre_up: tuple[str, ...] = ()
    post_up: tuple[str, ...] = ()
    pre_down: tuple[str, ...] = ()
    post_down: tuple[str, ...] = ()


class ClientSection(Value):
    """What a server's profile says of one client; nobody else may have these addresses and networks."""

    name: str
    short_id: bytes  # 8 bytes
    address: tuple[Interface, ...]  # host prefixes in the tunnel's networks
    allowed_ips: tuple[Network, ...] = ()  # networks behind the client
    endpoints: tuple[HostPort, ...] = ()  # where it finds the server; empty: as the others

    def __repr__(self) -> str:
        return f"ClientSection(name={self.name!r})"


class DnsSettings(Value):
    """Name servers, at least one, and search domains."""

    servers: tuple[Address, ...]
    domains: tuple[str, ...] = ()

    @property
    def entries(self) -> list[str]:
        """The value of the key, entry by entry."""
        return [*map(str, self.servers), *self.domains]


class ReplayStore(Value):
    """A store of hellos that several servers share. ``place``: ``address:port``, or the path of a Unix socket."""

    place: str
    user: str = ""
    password: str = ""
    database: int = 0

    def __repr__(self) -> str:
        return f"ReplayStore(place={self.place!r})"


class ServerSettings(Value):
    listen: Listen
    dest: HostPort
    server_name: str
    private_key: bytes  # X25519, 32 bytes
    short_ids: tuple[bytes, ...]  # each padded to 8 bytes
    max_time_diff_ms: int = DEFAULT_TIME_DIFF_MS  # 0: no time check
    clients: tuple[ClientSection, ...] = ()
    previous_key: bytes = b""  # X25519, or none: hellos for it are accepted, too
    previous_key_until: int = 0  # unix time in seconds
    client_endpoints: tuple[HostPort, ...] = ()  # where clients find this server; empty: where it listens
    client_allowed_ips: tuple[Network, ...] = ()  # what clients send through the tunnel
    client_dns: DnsSettings | None = None  # what their machines ask for names
    forward: Forward = Forward.OFF
    replay_store: ReplayStore | None = None

    @property
    def replay_place(self) -> str:
        """That of the store; empty without one."""
        return self.replay_store.place if self.replay_store is not None else ""

    @property
    def accepted_ids(self) -> tuple[bytes, ...]:
        """Every short id that is let in: those of the list, then those of sections alone."""
        return (*self.short_ids, *(c.short_id for c in self.clients if c.short_id not in self.short_ids))

    def __repr__(self) -> str:
        return f"ServerSettings(listen={self.listen}, dest={self.dest}, server_name={self.server_name!r})"


class ServerPlace(Value):
    """Where a client finds one of its servers, and what admits it there."""

    endpoint: HostPort
    public_key: bytes  # X25519, 32 bytes
    short_id: bytes  # padded to 8 bytes

    def __repr__(self) -> str:
        return f"ServerPlace(endpoint={self.endpoint})"


class ClientSettings(Value):
    endpoint: HostPort
    server_name: str
    public_key: bytes  # X25519, 32 bytes
    short_id: bytes  # padded to 8 bytes
    others: tuple[ServerPlace, ...] = ()  # further servers
    endpoint_order: EndpointOrder = EndpointOrder.LISTED
    leak_protection: bool = True
    dns: DnsSettings | None = None

    @property
    def endpoints(self) -> tuple[HostPort, ...]:
        """Every server's, in the order of the profile."""
        return (self.endpoint, *(each.endpoint for each in self.others))

    def __repr__(self) -> str:
        return f"ClientSettings(endpoint={self.endpoint}, server_name={self.server_name!r})"


class UnderlayOverride(Value):
    """Outer addresses that the command line gives in place of the profile's; None: the profile's."""

    server: SocketAddress | None = None
    client: SocketAddress | None = None


class Profile(Value):
    """One interface. Exactly one of ``server`` and ``client`` is set, as ``role`` says.

    ``server.listen`` and ``client.endpoint`` are those of the file. Use ``listen`` and ``endpoint``, which apply the
    overrides: plan and run both do.
    """

    name: str
    device: str
    role: Role
    address: tuple[Interface, ...]
    server: ServerSettings | None = None
    client: ClientSettings | None = None
    mtu: int = DEFAULT_MTU
    keepalive_s: int = 0  # 0: off
    allowed_ips: tuple[Network, ...] = ()  # empty: pass all, no routes
    hooks: Hooks = Hooks()
    underlay: UnderlayOverride = UnderlayOverride()

    @property
    def routes(self) -> tuple[Network, ...]:
        """The prefixes that are routed to the device: AllowedIPs, and those of every client."""
        clients = self.server.clients if self.server is not None else ()
        return tuple(dict.fromkeys((*self.allowed_ips, *(each for one in clients for each in one.allowed_ips))))

    @property
    def listen(self) -> Listen | None:
        """Where a server listens, override included; None for a client."""
        if self.server is None:
            return None
        given = self.underlay.server
        return Listen((given.ip,), given.port) if given is not None else self.server.listen

    @property
    def endpoint(self) -> HostPort | None:
        """The address of a client's server, override included; None for a server."""
        if self.client is None:
            return None
        given = self.underlay.server
        return HostPort(str(given.ip), given.port) if given is not None else self.client.endpoint

    @property
    def dns(self) -> DnsSettings | None:
        """What a client's machine asks for names while the tunnel is up; None: what it asked before."""
        return self.client.dns if self.client is not None else None

    @property
    def leak_protection(self) -> bool:
        """Whether IPv6 may not lead past a tunnel that takes all of IPv4; of a client."""
        return self.client is not None and self.client.leak_protection

    @property
    def other_servers(self) -> tuple[ServerPlace, ...]:
        """A client's servers beside ``endpoint``; none when that is an override."""
        return self.client.others if self.client is not None and self.underlay.server is None else ()

    @property
    def outer_ipv6(self) -> bool:
        """Whether its outer packets are, or may be, IPv6, by its addresses: a name of a client's may be anywhere."""
        if self.listen is not None:
            return self.listen.ip.version == 6
        endpoints = (self.endpoint, *(each.endpoint for each in self.other_servers))
        return any(each is not None and ":" in each.host for each in endpoints)

    @property
    def outer(self) -> tuple[Network, ...]:
        """Where the tunnel's own packets may go."""
        found = outer_networks(self.endpoint.host if self.endpoint is not None else None)
        more = (network for each in self.other_servers for network in outer_networks(each.endpoint.host))
        return tuple(dict.fromkeys((*found, *more)))


#: How long a visitor's connection to Dest stays idle at the least (milliseconds): a stranger who is cut off sooner
#: than the site would cut him can tell.
SHORTEST_RELAY_IDLE_MS = 180_000


class GlobalConfig(Value):
    """The global file with environment and options applied (option, environment, file, default)."""

    config_dir: Path = path_field(default="/etc/qre/dev")
    state_dir: Path = path_field(default="/var/lib/qre")
    runtime_dir: Path = path_field(default="/run/qre")
    module_load: bool = True
    dataplane: Dataplane = Dataplane.AUTO
    bpf_elf: Path | None = path_field(default=None)  # None: the one installed with the package
    bpf_pin_dir: Path = path_field(default="/sys/fs/bpf")
    routed_cid_len: int = LIKE_DEST
    dest_profile_ttl_ms: int = 3_600_000
    when_dest_is_down: WhenDestIsDown = WhenDestIsDown.SILENT
    site_tcp: tuple[int, ...] | None = None  # TCP ports; empty: off; None: auto, Listen's and 80
    rekey_interval_ms: int = 120_000
    idle_timeout_ms: int = 60_000
    reconnect_min_ms: int = 1_000
    reconnect_max_ms: int = 60_000
    session_lifetime_ms: int = 1_800_000  # 0: off
    relay_max_flows: int = 4096
    relay_max_flows_per_prefix: int = 64
    relay_idle_ms: int = SHORTEST_RELAY_IDLE_MS
    metrics_client_names: bool = False
    user: str | None = None  # None: one unprivileged uid a role
    log_level: str = "info"
