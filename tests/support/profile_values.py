"""Profiles and global settings as values, for tests that need no file."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from qre.config.model import ClientSettings, GlobalConfig, Hooks, HostPort, Listen, Profile, ServerSettings
from qre.ends import Dataplane, Role


def client_profile(
    name: str = "tunnel",
    *,
    device: str = "qre0",
    address: tuple[str, ...] = ("10.77.0.2/24", "fd77::2/64"),
    mtu: int = 1380,
    allowed_ips: tuple[str, ...] = (),
    hooks: Hooks | None = None,
) -> Profile:
    return Profile(
        name=name,
        device=device,
        role=Role.CLIENT,
        address=tuple(ipaddress.ip_interface(text) for text in address),
        client=ClientSettings(HostPort("vpn.example", 443), "vpn.example", bytes(31) + b"\1", bytes(8)),
        mtu=mtu,
        allowed_ips=tuple(ipaddress.ip_network(text) for text in allowed_ips),
        hooks=hooks or Hooks(),
    )


def server_profile(name: str = "server", *, device: str = "qre0", port: int = 443) -> Profile:
    return Profile(
        name=name,
        device=device,
        role=Role.SERVER,
        address=(ipaddress.ip_interface("10.77.0.1/24"),),
        server=ServerSettings(
            Listen((ipaddress.IPv4Address("127.0.0.1"),), port),
            HostPort("site.example", 443),
            "site.example",
            bytes(32),
            (bytes(8),),
        ),
    )


def global_config(directory: Path, dataplane: Dataplane = Dataplane.USER) -> GlobalConfig:
    return GlobalConfig(
        config_dir=directory / "dev",
        state_dir=directory / "state",
        runtime_dir=directory / "run",
        dataplane=dataplane,
    )
