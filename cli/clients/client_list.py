"""``list-clients``: every client of a server, connected or not, with what its daemon knows of it.

Without a daemon the profile alone speaks. No key and no short id is printed, except where a short id is all there
is to call a client by.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from qre.cli.clients.profile_change import load_server
from qre.cli.commands import Options
from qre.cli.show.columns import Column, draw, short_ago, short_size
from qre.cli.show.session_table import UNKNOWN
from qre.cli.show.show import daemon_of
from qre.cli.show.show_text import clean, plural
from qre.config.model import Profile
from qre.config.settings import load_global
from qre.config.values import show_short_id

JSON_VERSION = 1
_UNKNOWN = {
    "connected": None,
    "endpoint": None,
    "last_seen": None,
    "rx_bytes": None,
    "tx_bytes": None,
    "rx_packets": None,
    "tx_packets": None,
}
_COLUMNS = (
    Column("client", least=8),
    Column("address", least=8),
    Column("last seen", right=True),
    Column("received", right=True),
    Column("sent", right=True),
    Column("endpoint", least=9),
)


def list_clients(arguments: list[str], options: Options) -> int:
    """``list-clients PROFILE``."""
    config = load_global(os.environ)
    profile = load_server(arguments[0], config)
    described = daemon_of(config, profile.device)
    clients = listed(profile, described)
    if options.json:
        answer = {"version": JSON_VERSION, "profile": profile.name, "running": described is not None}
        print(json.dumps({**answer, "clients": clients}, indent=2, sort_keys=True))
    else:
        sys.stdout.write(table(clients, time.time()))
        if described is None:
            print("no daemon runs: who is connected is not known")
        elif described.get("clients") is None:
            print(f"who is connected is {UNKNOWN}: a worker of the daemon is being restarted")
    return 0


def listed(profile: Profile, described: dict[str, Any] | None) -> list[dict[str, Any]]:
    """One object a client, by name; those without a name last."""
    settings = profile.server
    if settings is None:
        raise AssertionError("the profile is a server's")
    known = {one["name"] or one["short_id"]: one for one in (described or {}).get("clients") or ()}
    found = []
    for section in settings.clients:
        addresses = [str(address.ip) for address in section.address]
        found.append(_client(section.name, section.short_id, addresses, known))
    named = {section.short_id for section in settings.clients}
    found += [_client(None, short_id, [], known) for short_id in settings.short_ids if short_id not in named]
    return sorted(found, key=lambda one: (one["name"] is None, one["name"] or one["short_id"]))


def _client(
    name: str | None, short_id: bytes, addresses: list[str], known: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    account = known.get(name or short_id.hex(), {})
    told = {key: account.get(key, nothing) for key, nothing in _UNKNOWN.items()}
    shown = {"short_id": show_short_id(short_id)} if name is None else {"short_id": None}
    return {"name": name, "address": addresses, **shown, **told}


def table(clients: list[dict[str, Any]], now: float) -> str:
    """As a person reads it."""
    rows = [
        (
            clean(one["name"] or one["short_id"]),
            ", ".join(one["address"]) or "-",
            _seen(one, now),
            short_size(one["rx_bytes"]),
            short_size(one["tx_bytes"]),
            clean(one["endpoint"] or "-"),
        )
        for one in clients
    ]
    if all(one["connected"] is None for one in clients):
        return f"{draw(_COLUMNS, rows)}\n{plural(len(clients), 'client')}\n"
    connected = sum(bool(one["connected"]) for one in clients)
    amounts = [sum(one[key] or 0 for one in clients) for key in ("rx_bytes", "tx_bytes")]
    totals = f"{plural(len(clients), 'client')}, {connected} connected"
    moved = f"{short_size(amounts[0])} received, {short_size(amounts[1])} sent"
    return f"{draw(_COLUMNS, rows)}\n{totals}; {moved}\n"


def _seen(one: dict[str, Any], now: float) -> str:
    if one["last_seen"] is None:
        return "never" if one["connected"] is not None else "-"
    return short_ago(max(0.0, now - one["last_seen"]))
