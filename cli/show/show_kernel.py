"""``show`` for a device of qre.ko without a daemon: ``supervisor/daemon_status.py``'s object, from the kernel.

Counters need no capability; the rest needs CAP_NET_ADMIN. Values that need that, a daemon or the profile's saved
state are null without it.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from qre.addresses import host_port
from qre.dest_profile import DestProfile
from qre.device.kernel_module import LOADED
from qre.device.state import ProfileState
from qre.ends import Role
from qre.kernel.answers import KernelDevice, KernelSession
from qre.kernel.qre_family import Qre
from qre.structs import plain

Description = dict[str, Any]


def kernel_devices(states: dict[str, ProfileState], but: frozenset[str]) -> list[Description]:
    """Every qre.ko device of this namespace except the named ones; ``states``: saved states by device."""
    if not LOADED.exists():
        return []  # asking for the family would make the kernel load the module
    with Qre() as qre:
        found = [
            (device, qre.sessions(device.name) if device.whole else None)
            for device in qre.devices()
            if device.name not in but
        ]
    return [describe(device, sessions, states.get(device.name)) for device, sessions in found]


def describe(device: KernelDevice, sessions: list[KernelSession] | None, state: ProfileState | None) -> Description:
    """One device; ``sessions`` None: the caller may not see them."""
    counters = _counters_alone(device)
    if sessions is None:
        return counters
    server = device.role is Role.SERVER
    return counters | {
        "up": any(session.status.state == "established" for session in sessions),
        "status": "no daemon runs",
        "allowed_ips": [str(network) for network in state.allowed_ips] if state is not None else [],
        "listen": host_port(*device.listen) if device.listen is not None else None,
        "endpoint": device.endpoint or None,
        "dest": device.dest or None,
        "server_name": device.server_name or None,
        "persistent_keepalive": device.keepalive_s,
        "dest_profile": plain(_dest_profile(device.dest_profile)),
        "sessions": [plain(session.status) for session in sessions],
        "adopted_cids": [cid.hex() for cid in _adopted(device, sessions)] if server else [],
        "cid_map": _cid_map(device, sessions) if server else None,
        "shared_socket": _shared_socket(device) if server else None,
        "shared_loader": _loader(device) if server else None,
    }


def _counters_alone(device: KernelDevice) -> Description:
    """What the kernel shows to every user, with all keys of the object."""
    up, addresses, profile = _link(device.name)
    hidden = "endpoint, dest, sessions, connection IDs and the shared port"
    return {
        "device": device.name,
        "profile": profile or None,
        "role": device.role.value if device.role is not None else None,
        "dataplane": "kernel",
        "daemon_pid": None,
        "up": None,
        "status": f"{device.sessions} {'session' if device.sessions == 1 else 'sessions'}; root also sees {hidden}",
        "remedy": "",
        "mtu": device.mtu,
        "address": addresses,
        "allowed_ips": None,
        "listen": None,
        "endpoint": None,
        "dest": None,
        "server_name": None,
        "persistent_keepalive": None,
        "link_up": up,
        "counters": plain(device.counters),
        "handshake": None,
        "site_tcp": None,
        "forward": None,
        "dest_profile": None,
        "sessions": None,
        "clients": None,
        "adopted_cids": None,
        "cid_map": None,
        "shared_socket": None,
        "shared_loader": None,
        "processes": [],
    }


def _link(name: str) -> tuple[bool, list[str], str]:
    """Whether it is up, its addresses, and the profile that has it."""
    from qre.kernel.rtnl import Rtnl
    from qre.kernel.tun import ALIAS_PREFIX, claimed

    with Rtnl() as rtnl:
        link = rtnl.link(name)
        if link is None:
            return False, [], ""
        addresses = [str(entry.interface) for entry in rtnl.addresses(link)]
    return link.up, addresses, link.alias.removeprefix(ALIAS_PREFIX) if claimed(link) else ""


def _adopted(device: KernelDevice, sessions: list[KernelSession]) -> list[bytes]:
    return [*device.cids, *(cid for session in sessions for cid in session.status.cids)]


def _cid_map(device: KernelDevice, sessions: list[KernelSession]) -> Description:
    """The map belongs to the namespace: its entries are those of all devices, the connection IDs those of this
    one."""
    mapped = device.cid_map
    return {
        "registered": mapped is not None,
        "id": mapped.map_id if mapped is not None else None,
        "path": None,
        "entries": mapped.entries if mapped is not None else 0,
        "connection_ids": [cid.hex() for cid in _adopted(device, sessions)] if mapped is not None else [],
        "in_sync": mapped is not None and not mapped.missing,
        "sync_failures": mapped.sync_failures if mapped is not None else 0,
    }


def _shared_socket(device: KernelDevice) -> Description:
    shared = device.shared_socket
    return {
        "registered": shared is not None,
        "local": host_port(shared.ip, shared.port) if shared is not None else None,
        "rx_packets": shared.rx if shared is not None else 0,
        "passed_packets": shared.passed if shared is not None else 0,
    }


def _loader(device: KernelDevice) -> Description | None:
    loader = device.loader
    if loader is None:
        return None
    return {
        "attached": os.path.exists(f"/proc/{loader.pid}"),
        "program": loader.program,
        "pin_dir": loader.pin_dir,
        "routed_cid_len": loader.cid_length,
        "pid": loader.pid,
    }


def _dest_profile(data: bytes) -> DestProfile | None:
    """The Dest profile stored with the device; None when it does not parse."""
    try:
        return msgspec.json.decode(data, type=DestProfile) if data else None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
