"""``show``: devices that are up, their sessions and counters; never keys.

A device with a daemon is described by the daemon (``supervisor/daemon_status.py`` defines the object), a qre.ko
device without a daemon by the kernel (``show_kernel``), a TUN device of `up` by its saved state and the kernel: as
the same object, with nulls for what only a daemon knows.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from qre.cli.commands import Options
from qre.cli.show.session_table import UNKNOWN
from qre.cli.show.show_text import render, render_client
from qre.config.keys import did_you_mean
from qre.config.model import GlobalConfig
from qre.config.settings import load_global
from qre.config.syntax import quoted
from qre.device.control_client import SHOW_TIMEOUT, NoDaemonError, ask_daemon, control_devices
from qre.device.state import ProfileState, load_state, saved_profiles
from qre.ends import Role
from qre.errors import MachineError, UserError

Description = dict[str, Any]

#: Of the object; what is only added to it does not change this (docs/show.schema.json).
JSON_VERSION = 1


def show(arguments: list[str], options: Options) -> int:
    """``show [DEVICE] [CLIENT]``: all devices, the one of this name (a profile's name will do), or a client of it."""
    config = load_global(os.environ)
    described = [device(config, arguments[0])] if arguments else devices(config)
    if len(arguments) > 1:
        described = [of_client(described[0], arguments[1])]
    if options.json:
        print(json.dumps({"version": JSON_VERSION, "devices": described}, indent=2, sort_keys=True))
    elif len(arguments) > 1:
        sys.stdout.write(render_client(described[0]))
    else:
        sys.stdout.write(render(described) or _nothing(config))
    return 0


def _nothing(config: GlobalConfig) -> str:
    """What to say when nothing is up: nothing, as wg(8), unless that is not all."""
    from qre.device.lifecycle_down import left_tables

    if not left_tables(config, ""):
        return ""
    told = "a daemon left the rules of its default route, and nothing leaves this machine"
    return f"nothing is up: {told}; `qre-tool down PROFILE` removes them\n"


def devices(config: GlobalConfig) -> list[Description]:
    """Every device that a daemon holds, that is in qre.ko, or that a profile is up on, sorted by name."""
    from qre.cli.show.show_kernel import kernel_devices

    found: dict[str, Description] = {}
    for name in control_devices(config):
        described = daemon_of(config, name)
        if described is not None:
            found[name] = described
    states = {state.device: state for profile in saved_profiles(config) if (state := load_state(config, profile))}
    for described in kernel_devices(states, frozenset(found)):
        found[described["device"]] = described
    for state in states.values():
        if state.device not in found and (described := _from_kernel(state)) is not None:
            found[state.device] = described
    return [found[name] for name in sorted(found)]


def device(config: GlobalConfig, name: str) -> Description:
    """The device of this name, or of the profile of this name."""
    if "/" not in name and (described := daemon_of(config, name)) is not None:
        return described
    everything = devices(config)
    for key in ("device", "profile"):
        for described in everything:
            if described[key] == name:
                return described
    known = [described["device"] for described in everything]
    raise UserError(f"device {name}", "it is not up", did_you_mean(name, known, "see `qre-tool show`"))


def of_client(described: Description, name: str) -> Description:
    """The device with this client and its sessions alone; by its name, or its short id where it has none. Raises
    UserError when there is no such client."""
    clients = described.get("clients")
    if clients is None and described.get("daemon_pid") is not None and described["role"] == Role.SERVER:
        why = f"its clients are {UNKNOWN}: a worker is being restarted"
        raise MachineError(f"device {described['device']}", why, "ask again in a second")
    if not clients:
        why = "only the daemon of a server knows clients" if clients is None else "it has no client"
        raise UserError(f"device {described['device']}", why, f"see `qre-tool show {described['device']}`")
    called = {one["name"] or one["short_id"]: one for one in clients}
    found = called.get(name)
    if found is None:
        remedy = did_you_mean(name, called, "see `qre-tool list-clients`")
        raise UserError(f"client {quoted(name)}", f"{described['device']} has no such client", remedy)
    key = "client" if found["name"] else "short_id"
    sessions = [one for one in described["sessions"] or () if one[key] == name]
    return described | {"clients": [found], "sessions": sessions}


def daemon_of(config: GlobalConfig, name: str) -> Description | None:
    """The daemon's answer; None when no daemon runs (its socket may have outlived it)."""
    try:
        answer = ask_daemon(config, name, "show", SHOW_TIMEOUT)
    except NoDaemonError:
        return None
    described = answer.get("device")
    if not isinstance(described, dict) or described.get("device") != name:
        raise MachineError(f"device {name}", "its daemon sent an unknown answer", "see its log")
    return described


def _from_kernel(state: ProfileState) -> Description | None:
    """A TUN that is up without a daemon; None when it is gone."""
    from qre.kernel.rtnl import Rtnl
    from qre.kernel.tun import is_ours

    with Rtnl() as rtnl:
        link = rtnl.link(state.device)
        if link is None or not is_ours(link, state.profile):
            return None
        addresses = [str(entry.interface) for entry in rtnl.addresses(link) if entry.ours]
    return {
        "device": state.device,
        "profile": state.profile,
        "role": state.role.value,
        "dataplane": "user",
        "daemon_pid": None,
        "up": False,
        "status": "no daemon runs",
        "remedy": "",
        "mtu": link.mtu,
        "address": addresses,
        "allowed_ips": [str(network) for network in state.allowed_ips],
        "listen": (state.underlay or state.listen) if state.role is Role.SERVER else None,
        "endpoint": None,
        "dest": None,
        "server_name": None,
        "persistent_keepalive": None,
        "link_up": link.up,
        "counters": None,
        "handshake": None,
        "site_tcp": None,
        "forward": None,
        "dest_profile": None,
        "sessions": [],
        "clients": None,
        "adopted_cids": [],
        "cid_map": None,
        "shared_socket": None,
        "shared_loader": None,
        "processes": [],
    }
