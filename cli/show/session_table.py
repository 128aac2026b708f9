"""A server's sessions as a table, where they are too many to be told one by one; and one client as a whole.

Drawn from the JSON object of a device, as everything of ``show``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from qre.cli.show.columns import Column, draw, folded, short_ago, short_size

#: Of what only a worker knows that is being restarted.
UNKNOWN: Final = "not known just now"
#: As many sessions are told whole.
MOST_WHOLE: Final = 3
_COLUMNS: Final = (
    Column("client", least=8),
    Column("address", least=8),
    Column("endpoint", least=9),
    Column("last", right=True),
    Column("received", right=True),
    Column("sent", right=True),
)
_RATES: Final = (Column("received/s", right=True), Column("sent/s", right=True))


def session_table(device: Mapping[str, Any]) -> str:
    """A line a session, by the client's name, those without one last; then the totals. In `watch` with rates."""
    sessions = sorted(device["sessions"], key=_order)
    rated = "rates" in device
    rows = [(*_row(session), *(_rates(session) if rated else ())) for session in sessions]
    table = draw((*_COLUMNS, *(_RATES if rated else ())), rows)
    return f"{table}\n{folded(_totals(device, sessions), 0)}\n"


def _order(session: Mapping[str, Any]) -> tuple[bool, str, str]:
    return session.get("client") is None, called(session), session["session_id"]


def called(session: Mapping[str, Any]) -> str:
    """The client's name, or its short id where it has none."""
    return session.get("client") or session["short_id"] or f"({UNKNOWN})"


def _row(session: Mapping[str, Any]) -> tuple[str, ...]:
    addresses = [_host(each) for each in session["allowed_ips"]]
    last = session["last_receive_ms"]
    state = short_ago(last / 1000) if last is not None else "never"
    return (
        called(session),
        ", ".join(addresses) or "(all)",
        session["endpoint"],
        "silent" if session.get("health") == "silent" else state,
        short_size(session["rx_bytes"]),
        short_size(session["tx_bytes"]),
    )


def _host(prefix: str) -> str:
    return prefix.removesuffix("/32") if "." in prefix else prefix.removesuffix("/128")


def _rates(session: Mapping[str, Any]) -> tuple[str, str]:
    rates = session.get("rates")
    if not rates:
        return "-", "-"
    return short_size(round(rates["rx_bytes"])), short_size(round(rates["tx_bytes"]))


def _totals(device: Mapping[str, Any], sessions: Sequence[Mapping[str, Any]]) -> str:
    """What all sessions together have; how many clients have none."""
    received, sent = (sum(one[key] for one in sessions) for key in ("rx_bytes", "tx_bytes"))
    told = f"{len(sessions)} sessions: {short_size(received)} received, {short_size(sent)} sent"
    known = [one["rates"] for one in sessions if one.get("rates")]
    if known:
        each = (short_size(round(sum(rates[key] for rates in known))) for key in ("rx_bytes", "tx_bytes"))
        told += "; {}/s received, {}/s sent".format(*each)
    away = sum(not one["connected"] for one in device.get("clients") or ())
    return f"{told}; {away} of {len(device['clients'])} clients not connected" if away else told


def client_lines(client: Mapping[str, Any], now: float) -> Iterator[tuple[str, str]]:
    """What is known of a client beside its sessions; ``now`` is unix time."""
    yield "address", ", ".join(client["address"]) or "(any that is free)"
    yield "connected", "yes" if client["connected"] else "no"
    seen = client["last_seen"]
    yield "last seen", "never since the daemon's start" if seen is None else _ago(max(0.0, now - seen))
    if client["endpoint"]:
        yield "endpoint", client["endpoint"]
    moved = f"{short_size(client['rx_bytes'])} received, {short_size(client['tx_bytes'])} sent"
    yield "transfer in all sessions", moved


def _ago(seconds: float) -> str:
    told = short_ago(seconds)
    return told if told == "now" else f"{told} ago"
