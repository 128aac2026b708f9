"""``check --ready PROFILE``: does the daemon of a profile do its work now? A health check for containers.

Asks the daemon alone: one line, no probe, and 0 only when every worker is there, the device is up, and a server
serves or a client has a session from which answers come.
"""

from __future__ import annotations

import json
import os
from typing import Any

from qre.cli.commands import Options
from qre.cli.show.show import daemon_of
from qre.cli.show.show_text import clean
from qre.config.profile import load_profile
from qre.config.settings import load_global
from qre.errors import MachineError, UserError


def ready(arguments: list[str], options: Options) -> int:
    """Print what the daemon says; MachineError when it is not ready."""
    if not arguments:
        raise UserError("check --ready", "PROFILE is missing", "write `qre-tool check --ready PROFILE`")
    config = load_global(os.environ)
    name = arguments[0]
    described = daemon_of(config, load_profile(name, config, os.environ).device)
    why = why_not(described)
    if options.json:
        status = described["status"] if described is not None else "no daemon runs"
        print(json.dumps({"version": 1, "profile": name, "ready": not why, "status": clean(status)}, sort_keys=True))
    if why:
        raise MachineError(f"profile {name}", f"not ready: {clean(why)}", f"see `qre-tool show {name}`")
    if not options.json and described is not None:
        print(f"ready: {clean(described['status'])}")
    return 0


def why_not(described: dict[str, Any] | None) -> str:
    """Why this daemon is not ready; empty when it is."""
    if described is None:
        return "no daemon runs"
    absent = [one["role"] for one in described["processes"] if one["stage"] != "ready"]
    if absent:
        return f"workers are being started: {', '.join(absent)}"
    if not described["up"]:
        return described["status"] or "it is not up"
    if described["link_up"] is False:
        return "the device is down"
    sessions = described["sessions"] or ()
    if described["role"] == "client" and sessions and all(one.get("health") == "silent" for one in sessions):
        return str(described["status"])
    return ""
