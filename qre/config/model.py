"""The validated configuration: one interface profile and the global file, as immutable values.

Everything here has passed the rules of the parser (``qre.config.profile``, ``qre.config.globals``): code that
receives a ``Profile`` does not check it again. Durations are in milliseconds, secrets are raw bytes.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path

import msgspec

from qre.session import DEFAULT_MTU, Dataplane, Role

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network


class HostPort(msgspec.Struct, frozen=True):
    """``host:port``; the host is a DNS name or a numeric address, not resolved here."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class SocketAddress(msgspec.Struct, frozen=True):
    """A numeric IPv4 address and a port that is not 0."""

    ip: IPv4Address
    port: int

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}"


class Hooks(msgspec.Struct, frozen=True):
    """Shell commands; ``%i`` stands for the device."""

    pre_up: tuple[str, ...] = ()
    post_up: tuple[str, ...] = ()
    pre_down: tuple[str, ...] = ()
    post_down: tuple[str, ...] = ()


class ServerSettings(msgspec.Struct, frozen=True):
    listen: SocketAddress
    dest: HostPort
    server_name: str
    private_key: bytes  # X25519, 32 bytes
    short_ids: tuple[bytes, ...]  # each padded to 8 bytes
    max_time_diff_ms: int = 60_000  # 0: no time check

    def __repr__(self) -> str:
        return f"ServerSettings(listen={self.listen}, dest={self.dest}, server_name={self.server_name!r})"


class ClientSettings(msgspec.Struct, frozen=True):
    endpoint: HostPort
    server_name: str
    public_key: bytes  # X25519, 32 bytes
    short_id: bytes  # padded to 8 bytes

    def __repr__(self) -> str:
        return f"ClientSettings(endpoint={self.endpoint}, server_name={self.server_name!r})"


class Profile(msgspec.Struct, frozen=True):
    """One interface. Exactly one of ``server`` and ``client`` is set, as ``role`` says."""

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


class GlobalConfig(msgspec.Struct, frozen=True):
    """The global file with environment and options applied (option, environment, file, default)."""

    config_dir: Path = Path("/etc/qre/dev")
    state_dir: Path = Path("/var/lib/qre")
    runtime_dir: Path = Path("/run/qre")
    module_load: bool = True
    dataplane: Dataplane = Dataplane.AUTO
    bpf_elf: Path | None = None  # None: the one installed with the package
    bpf_pin_dir: Path = Path("/sys/fs/bpf")
    routed_cid_len: int = 20
    dest_profile_ttl_ms: int = 3_600_000
    rekey_interval_ms: int = 120_000
    idle_timeout_ms: int = 60_000
    reconnect_min_ms: int = 1_000
    reconnect_max_ms: int = 60_000
    relay_max_flows: int = 4096
    relay_max_flows_per_prefix: int = 64
    relay_idle_ms: int = 30_000
    user: str | None = None  # None: one unprivileged uid a role
    log_level: str = "info"
