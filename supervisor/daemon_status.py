"""The JSON object of ``show`` for a daemon, composed from the workers' own status. No keys.

Byte strings are hex, ages and durations milliseconds. A part that a role does not have (a client has no BPF map), or
whose worker is being restarted, is null. A client that has a name is told by it, and its short id is null. A server
that has joined another's port has no loader: it describes the front's, as registered with qre.ko.
``cli/show/show.py`` draws its text from this object and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qre.addresses import address_ports, host_port
from qre.dataplane.status import SessionStatus, SharedPort
from qre.ends import Role
from qre.ipc.messages import (
    DataplaneStatus,
    HandshakeStatus,
    LoaderStatus,
    NetlinkStatus,
    Party,
    WorkerConfig,
)
from qre.kernel.bpf_pins import paths
from qre.structs import plain
from qre.supervisor.crew import Crew

#: How often the counters are looked at (seconds): a server may have a thousand sessions.
_LOOKS: Final = {Role.CLIENT: 2.0, Role.SERVER: 5.0}


async def describe(crew: Crew) -> dict[str, Any]:
    """The whole object."""
    config, setup = crew.config, crew.setup
    server = config.role is Role.SERVER
    netlink = await crew.status(Party.NETLINK)
    kernel = netlink if isinstance(netlink, NetlinkStatus) and not config.user_dataplane else None
    dataplane = kernel.dataplane if kernel is not None else await crew.status(Party.DATAPLANE)
    handshake = await crew.status(Party.HANDSHAKE)
    loader = await crew.status(Party.BPF_LOADER)
    adopted = _adopted(dataplane, kernel)
    listen = address_ports(config.listen, config.listen_port) if server else ""
    if config.joined:
        port = kernel.shared_port if kernel is not None else None
        cid_map, shared_loader = (
            front_map(port, adopted or [], setup.front_device),
            front_loader(port, setup.front_device),
        )
    else:
        cid_map = _cid_map(loader, kernel, setup.pin_dir, adopted, config.device)
        shared_loader = _loader(loader, setup.pin_dir)
    return {
        **_configured(config),
        "daemon_pid": os.getppid(),
        "up": crew.state.up,
        "status": crew.text,
        "remedy": crew.state.remedy,
        "link_up": netlink.link_up if isinstance(netlink, NetlinkStatus) else None,
        "restored": netlink.restored if isinstance(netlink, NetlinkStatus) else {},
        "counters": plain(dataplane.counters) if isinstance(dataplane, DataplaneStatus) else None,
        "handshake": _handshake(handshake),
        **_rules(netlink),
        "dest_profile": plain(crew.dest.profile and crew.dest.profile.without_visits()),
        **_who(crew, dataplane, handshake),
        "adopted_cids": plain(adopted) if server else [],
        "cid_map": cid_map if server else None,
        "shared_socket": _shared_socket(kernel, listen) if server else None,
        "shared_loader": shared_loader if server else None,
        "processes": [
            {
                "role": party.value,
                "pid": member.pid,
                "stage": member.life.stage.value,
                "restarts": member.life.restarts,
                "dropped_messages": member.router.dropped,
            }
            for party, member in crew.members.items()
        ],
    }


def _configured(config: WorkerConfig) -> dict[str, Any]:
    server = config.role is Role.SERVER
    return {
        "device": config.device,
        "profile": config.profile,
        "role": config.role.value,
        "dataplane": "user" if config.user_dataplane else "kernel",
        "mtu": config.mtu,
        "address": plain(config.address),
        "allowed_ips": plain(config.allowed_ips),
        "listen": address_ports(config.listen, config.listen_port) if server else None,
        "endpoint": None if server else host_port(config.endpoint_host, config.endpoint_port),
        "endpoints": None if server else endpoints_of(config),
        "dest": host_port(config.dest_host, config.dest_port) if server else None,
        "server_name": config.server_name,
        "persistent_keepalive": config.keepalive_s,
    }


def endpoints_of(config: WorkerConfig) -> list[str]:
    """All servers of a client, in the order of its profile."""
    others = (host_port(each.host, each.port) for each in config.others)
    return [host_port(config.endpoint_host, config.endpoint_port), *others]


def _rules(netlink: object) -> dict[str, Any]:
    """What a server's nftables tables do."""
    known = isinstance(netlink, NetlinkStatus)
    return {key: plain(getattr(netlink, key)) if known else None for key in ("site_tcp", "forward")}


async def watch_traffic(crew: Crew) -> None:
    """Look at the counters every few seconds, and report what they say, until cancelled."""
    log, said = logging.getLogger("qre.supervisor"), False
    while True:
        await asyncio.sleep(_LOOKS[crew.config.role])
        status = await crew.status(Party.DATAPLANE if crew.config.user_dataplane else Party.NETLINK)
        dataplane = status.dataplane if isinstance(status, NetlinkStatus) else status
        if not isinstance(dataplane, DataplaneStatus):
            continue
        before = crew.traffic.words
        crew.traffic.look(dataplane.sessions, dataplane.counters, time.monotonic())
        crew.accounts.look(dataplane.sessions, time.time())
        if crew.traffic.words != before:
            crew.report_state()
        if bool(crew.traffic.words) is not said:
            said = not said
            log.log(logging.WARNING if said else logging.INFO, "%s", crew.traffic.words or "packets pass again")


def _health(crew: Crew, session: SessionStatus) -> dict[str, Any]:
    judged = crew.traffic.judgements.get(session.session_id)
    if judged is None:
        return {"health": None}
    return {"health": judged.health.value, "unanswered_ms": round(judged.unanswered * 1000)}


def _adopted(dataplane: object, kernel: NetlinkStatus | None) -> list[bytes] | None:
    """The connection IDs that lead to this device; None while nobody knows them."""
    if not isinstance(dataplane, DataplaneStatus):
        return None
    own = kernel.connection_ids if kernel is not None else ()
    return [*(cid for session in dataplane.sessions for cid in session.cids), *own]


def _who(crew: Crew, dataplane: object, handshake: object) -> dict[str, Any]:
    """The sessions, which the data plane knows, and a server's clients, whose names the handshake worker knows: of a
    worker that is not there, nothing is told, rather than that there is nobody."""
    server = crew.config.role is Role.SERVER
    clients = handshake.clients if isinstance(handshake, HandshakeStatus) else None
    if not isinstance(dataplane, DataplaneStatus):
        return {"sessions": None, "clients": None}
    crew.accounts.look(dataplane.sessions, time.time())
    names = {one.short_id: one.name for one in clients} if clients is not None else None
    return {
        "sessions": [
            plain(session) | named(session.short_id, names, server=server) | _health(crew, session)
            for session in dataplane.sessions
        ],
        "clients": crew.accounts.describe(clients) if server and clients is not None else None,
    }


def named(short_id: bytes, names: Mapping[bytes, str | None] | None, *, server: bool) -> dict[str, str | None]:
    """Whose session it is: by name where a server's profile gives one, else by short id. ``names`` None: unknown."""
    name = names.get(short_id) if names is not None else None
    told = name is None and (names is not None or not server)
    return {"client": name, "short_id": short_id.hex() if told else None}


def _handshake(status: object) -> dict[str, Any] | None:
    if not isinstance(status, HandshakeStatus):
        return None
    kept = ("pending_flows", "relay_flows", "handshakes", "strangers", "rekeys", "excesses")
    return {name: getattr(status, name) for name in kept}


def _cid_map(
    status: object, kernel: NetlinkStatus | None, pin_dir: str, adopted: list[bytes] | None, device: str
) -> dict[str, Any] | None:
    """The map as the loader sees it; on the kernel's data plane also as qre.ko sees it."""
    if not isinstance(status, LoaderStatus):
        return None
    told = {
        "registered": True,
        "id": status.map_id,
        "path": str(paths(Path(pin_dir), device)[0]),
        "entries": status.map_entries,
        "connection_ids": [cid.hex() for cid in status.connection_ids],
        "in_sync": set(adopted) == set(status.connection_ids) if adopted is not None else None,
        "sync_failures": status.sync_failures,
    }
    port = kernel.shared_port if kernel is not None else None
    if port is not None:
        told["registered"] = port.map_id == status.map_id or port.mirrored_by_loader
        told["sync_failures"] = status.sync_failures + port.sync_failures
        told["mirrored_by"] = Party.BPF_LOADER.value if port.mirrored_by_loader else "kernel"
    return told


def _shared_socket(kernel: NetlinkStatus | None, listen: str) -> dict[str, Any]:
    if kernel is None or kernel.shared_port is None:
        return {"registered": True, "local": listen}
    port = kernel.shared_port
    return {
        "registered": bool(port.socket),
        "local": port.socket or listen,
        "rx_packets": port.rx_packets,
        "passed_packets": port.passed_packets,
    }


def _loader(status: object, pin_dir: str) -> dict[str, Any] | None:
    if not isinstance(status, LoaderStatus):
        return None
    return {
        "attached": status.attached,
        "program": status.program,
        "pin_dir": pin_dir,
        "routed_cid_len": status.routed_cid_len,
    }


# --- of a port that we have joined ---


def front_map(port: SharedPort | None, adopted: list[bytes], front: str) -> dict[str, Any] | None:
    """The front's map: entries of all devices behind the port, connection IDs of this one."""
    if port is None:
        return None
    registered = port.map_id is not None
    pin_dir = port.loader.pin_dir if port.loader is not None else ""
    return {
        "registered": registered,
        "id": port.map_id,
        "path": str(paths(Path(pin_dir), front)[0]) if pin_dir and front else None,
        "entries": port.map_entries,
        "connection_ids": [cid.hex() for cid in adopted] if registered else [],
        "in_sync": registered and not port.map_missing,
        "sync_failures": port.sync_failures,
        "mirrored_by": "kernel",
        "front": front or None,
    }


def front_loader(port: SharedPort | None, front: str) -> dict[str, Any] | None:
    """The ``loader`` object of show's JSON; None unless the port has a loader."""
    if port is None or port.loader is None:
        return None
    return {
        "attached": os.path.exists(f"/proc/{port.loader.pid}"),
        "program": port.loader.program,
        "pin_dir": port.loader.pin_dir,
        "routed_cid_len": port.loader.routed_cid_len,
        "front": front or None,
    }
