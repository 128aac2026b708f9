"""From the configuration to the settings of the processes: the public part for all, the secrets for one."""

from __future__ import annotations

import fcntl
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import msgspec

import qre
from qre.addresses import closed_beside, host_port
from qre.config.model import SHORTEST_RELAY_IDLE_MS, ClientSection, GlobalConfig, Profile
from qre.dest_profile import DestProfile
from qre.device.kernel_module import check_outer, outer_ipv6
from qre.ends import Dataplane, EndpointOrder, Role
from qre.ipc.messages import ServerAddress, WorkerConfig
from qre.kernel.capabilities import missing_capabilities
from qre.kernel.qre_family import Qre
from qre.profile_secrets import KnownClient, ProfileSecrets, ServerKey
from qre.structs import encoder

_FIXED_SIZE = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
#: Of the memfds that outlive the workers, in bytes.
MEMFD_SIZES = {"session_secrets": 1 << 21, "number_marks": 1 << 20}


@dataclass(frozen=True)
class DaemonOptions:
    """Options of the command line that are not in the configuration or in ``Profile.underlay``."""

    run_for_ms: int | None = None
    register_cid_map: bool = True


def worker_config(
    profile: Profile,
    config: GlobalConfig,
    dest_profile: DestProfile | None,
    dataplane: Dataplane = Dataplane.USER,
    table: int = 0,
) -> WorkerConfig:
    """The public settings, which every worker gets; ``table`` is that of the device's routes. Raises UserError for
    outer packets that the data plane cannot send."""
    made = WorkerConfig(
        profile=profile.name,
        device=profile.device,
        role=profile.role,
        address=profile.address,
        mtu=profile.mtu,
        keepalive_s=profile.keepalive_s,
        allowed_ips=profile.allowed_ips,
        routes=profile.routes,
        table=table,
        outer=profile.outer,
        closed=closed_beside(profile.routes, profile.leak_protection),
        server_name=(profile.server or profile.client or _none(profile)).server_name,
        user_dataplane=dataplane is not Dataplane.KERNEL,
        outer_version=_outer_version(profile, dataplane),
        splits=dataplane is not Dataplane.KERNEL or _module_splits(),
        routed_cid_len=config.routed_cid_len,
        dest_profile_ttl_ms=config.dest_profile_ttl_ms,
        when_dest_is_down=config.when_dest_is_down,
        site_tcp=config.site_tcp,
        ttl=_default_ttl(),
        rekey_interval_ms=config.rekey_interval_ms,
        idle_timeout_ms=config.idle_timeout_ms,
        reconnect_min_ms=config.reconnect_min_ms,
        reconnect_max_ms=config.reconnect_max_ms,
        session_lifetime_ms=config.session_lifetime_ms if _port_is_free(profile) else 0,
        relay_max_flows=config.relay_max_flows,
        relay_max_flows_per_prefix=config.relay_max_flows_per_prefix,
        relay_idle_ms=max(config.relay_idle_ms, SHORTEST_RELAY_IDLE_MS),
        log_level=config.log_level,
        dest_profile=dest_profile,
    )
    return _with_server(made, profile) if profile.server is not None else _with_client(made, profile)


def _with_server(made: WorkerConfig, profile: Profile) -> WorkerConfig:
    server, listen = profile.server, profile.listen
    if server is None or listen is None:
        _none(profile)
    seen, dest = made.dest_profile, host_port(server.dest.host, server.dest.port)
    return msgspec.structs.replace(
        made,
        dest_profile=None if seen is not None and seen.dest not in {"", dest} else seen,  # of the Dest before
        sends_errors=not missing_capabilities(["CAP_NET_RAW"]),
        listen_ip=str(listen.ip),
        listen_port=listen.port,
        listen_only=listen.several,
        dest_host=server.dest.host,
        dest_port=server.dest.port,
        max_time_diff_ms=server.max_time_diff_ms,
        forward=server.forward,
        replay_store=server.replay_place,
    )


def _with_client(made: WorkerConfig, profile: Profile) -> WorkerConfig:
    endpoint = profile.endpoint
    if endpoint is None:
        _none(profile)
    return msgspec.structs.replace(
        made,
        endpoint_host=endpoint.host,
        endpoint_port=endpoint.port,
        others=tuple(ServerAddress(host=it.endpoint.host, port=it.endpoint.port) for it in profile.other_servers),
        endpoint_order=profile.client.endpoint_order if profile.client is not None else EndpointOrder.LISTED,
    )


def _outer_version(profile: Profile, dataplane: Dataplane) -> Literal[0, 4, 6]:
    """Of a client's outer packets, where nothing else is possible; 0: either."""
    check_outer(profile, dataplane)
    given = profile.underlay.client
    if dataplane is Dataplane.KERNEL and not outer_ipv6():
        return 4
    return given.ip.version if given is not None else 0


def _module_splits() -> bool:
    """Whether the loaded module sends and joins packets in two datagrams, which one of before does not. Raises
    ModuleMissingError."""
    with Qre() as qre:
        return qre.splits


def _port_is_free(profile: Profile) -> bool:
    """Whether a client may have a second socket beside one that it uses."""
    return profile.underlay.client is None or not profile.underlay.client.port


def _default_ttl() -> int:
    """The TTL of this machine's packets: what a socket says, since a unit hides /proc/sys."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        return made.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)


def _none(profile: Profile) -> NoReturn:
    raise AssertionError(f"profile {profile.name} has no side")


def secrets_memfd(profile: Profile) -> int:
    """A sealed memfd with the secrets, for the handshake worker alone."""
    if profile.role is Role.SERVER and profile.server is not None:
        store = profile.server.replay_store
        secrets = ProfileSecrets(
            private_key=profile.server.private_key,
            previous_key=profile.server.previous_key,
            previous_key_until=profile.server.previous_key_until,
            short_ids=profile.server.accepted_ids,
            clients=tuple(_known_client(section) for section in profile.server.clients),
            store_user=store.user if store is not None else "",
            store_password=store.password if store is not None else "",
            store_database=store.database if store is not None else 0,
        )
    elif profile.client is not None:
        others = ((each.public_key, each.short_id) for each in profile.other_servers)
        secrets = ProfileSecrets(
            public_key=profile.client.public_key,
            short_id=profile.client.short_id,
            others=tuple(ServerKey(public_key=key, short_id=short_id) for key, short_id in others),
        )
    else:
        _none(profile)
    fd = os.memfd_create("profile_secrets", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(encoder().encode(secrets))
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FIXED_SIZE | fcntl.F_SEAL_WRITE)
    return fd


def _known_client(section: ClientSection) -> KnownClient:
    return KnownClient(
        name=section.name,
        short_id=section.short_id,
        address=section.address,
        allowed_ips=section.allowed_ips,
    )


def empty_memfd(name: str) -> int:
    """The memfd of this name: of fixed size, it outlives the workers that map it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MEMFD_SIZES[name])
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _FIXED_SIZE)  # its contents change
    return fd


def empty_memfds() -> dict[str, int]:
    """All of them, for a daemon that begins."""
    return {name: empty_memfd(name) for name in MEMFD_SIZES}


def bpf_elf(config: GlobalConfig) -> Path:
    """The compiled program: the configured one, or the package's, which lies beside the worker that loads it."""
    if config.bpf_elf is not None:
        return config.bpf_elf
    return Path(qre.__path__[0]) / "workers" / "bpf_loader" / "qre_reuseport.bpf.o"
