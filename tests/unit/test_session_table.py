"""The table of many sessions: within 100 columns whatever the names are, sorted, with totals."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.cli.clients.client_list import table
from qre.cli.show.columns import WIDTH, Column, draw, short_ago, short_size
from qre.cli.show.show import of_client
from qre.cli.show.show_text import render, render_client, wants_colour
from qre.errors import UserError
from tests.unit.test_show_text import NOW, SERVER


def session(number: int, name: str | None, **more: Any) -> dict[str, Any]:
    (whole,) = SERVER["sessions"]
    return {
        **whole, "session_id": f"{number:064x}", "client": name, "short_id": None if name else f"{number:016x}",
        "allowed_ips": [f"10.77.0.{number}/32"], "rx_bytes": number << 20, "tx_bytes": number << 10, **more,
    }  # fmt: skip


def client(number: int, name: str | None, **more: Any) -> dict[str, Any]:
    return {
        "name": name, "short_id": None if name else f"{number:016x}", "address": [f"10.77.0.{number}"],
        "connected": True, "endpoint": "203.0.113.5:40000", "last_seen": int(NOW) - 90, "rx_bytes": number << 20,
        "tx_bytes": number << 10, "rx_packets": 1, "tx_packets": 1, **more,
    }  # fmt: skip


def server(count: int, **more: Any) -> dict[str, Any]:
    named = [None if number == 1 else f"client-{count - number:02}" for number in range(1, count + 1)]
    return {
        **SERVER,
        "sessions": [session(number, name) for number, name in enumerate(named, 1)],
        "clients": [client(number, name) for number, name in enumerate(named, 1)],
        **more,
    }


def lines_of(device: dict[str, Any]) -> list[str]:
    return render([device], now=NOW, colour=False).partition("\n\n")[2].splitlines()


def test_three_sessions_are_told_whole_and_more_are_a_table() -> None:
    assert render([server(3)], now=NOW, colour=False).count("session: ") == 3
    title, *rows, totals = lines_of(server(50))
    assert title.split() == ["client", "address", "endpoint", "last", "received", "sent"]
    names = [row.split()[0] for row in rows]
    assert names == [*(f"client-{number:02}" for number in range(49)), f"{1:016x}"]
    assert rows[0].split() == ["client-00", "10.77.0.50", "203.0.113.5:40000", "3", "s", "50.0", "MiB", "50.0", "KiB"]
    assert totals == "50 sessions: 1.25 GiB received, 1.25 MiB sent"


def test_who_is_not_there_is_counted() -> None:
    device = server(5)
    device["clients"] += [client(9, "away", connected=False)]
    assert lines_of(device)[-1].endswith("; 1 of 6 clients not connected")


def test_watch_has_rates_for_each_and_for_all() -> None:
    rates = {"rx_bytes": 2048.0, "tx_bytes": 10.4, "rx_packets": 1.0, "tx_packets": 1.0}
    device = server(5, rates=rates)
    for each in device["sessions"][:2]:
        each["rates"] = rates
    title, *rows, totals = lines_of(device)
    assert title.split()[-2:] == ["received/s", "sent/s"]
    assert sorted(row.split()[-1] for row in rows) == ["-", "-", "-", "B", "B"]
    assert "; 4.00 KiB/s received, 21 B/s sent" in totals
    assert max(map(len, [title, *rows])) <= WIDTH


@settings(max_examples=60)
@given(st.lists(st.text(max_size=64), min_size=4, max_size=8), st.booleans())
def test_no_line_is_too_long_and_none_steers_a_terminal(names: list[str], rated: bool) -> None:
    wide = {"allowed_ips": ["fd00:77:1234:5678:9abc:def0:1234:5678/128"] * 3, "endpoint": "255.255.255.255:65535",
            "rx_bytes": 1 << 62, "tx_bytes": 1023 << 20}  # fmt: skip
    sessions = [session(number, name, **wide) for number, name in enumerate(names, 1)]
    device = {**SERVER, "sessions": sessions, "clients": [], **({"rates": {}} if rated else {})}
    shown = lines_of(device)
    assert max(map(len, shown[:-1])) <= WIDTH
    assert all(letter.isprintable() for line in shown for letter in line)


def test_one_client_is_told_whole() -> None:
    device = of_client(server(50), "client-07")
    shown = render_client(device, now=NOW, colour=False)
    assert shown.startswith("client: client-07\n  address: 10.77.0.43\n  connected: yes\n  last seen: 1 min ago\n")
    assert shown.count("session: ") == 1
    assert "transfer in all sessions: 43.0 MiB received, 43.0 KiB sent" in shown
    with pytest.raises(UserError, match=r"did you mean client-07\?"):
        of_client(server(50), "client_07")
    with pytest.raises(UserError, match="only the daemon of a server knows clients"):
        of_client(SERVER | {"clients": None, "daemon_pid": None}, "client-07")


def test_colour_is_switched_off_by_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert wants_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour()
    monkeypatch.setenv("NO_COLOR", "")  # as if it were not set
    assert wants_colour()
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour()


def test_a_list_of_clients_says_who_was_never_there() -> None:
    never = client(2, "bob", connected=False, last_seen=None, endpoint=None, rx_bytes=0, tx_bytes=0)
    shown = table([client(1, "alice"), never, client(3, "carol", connected=None, last_seen=None)], NOW)
    rows = [re.split(r"  +", row) for row in shown.splitlines()]
    assert [row[2] for row in rows[1:4]] == ["1 min", "never", "-"]
    assert rows[-1][0].startswith("3 clients, 1 connected; ")


@pytest.mark.parametrize(
    ("count", "told"),
    [(None, "-"), (0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (12_800, "12.5 KiB"), (1023 << 10, "1.00 MiB"),
     (1 << 62, "4096 PiB")],
)  # fmt: skip
def test_short_sizes(count: int | None, told: str) -> None:
    assert short_size(count) == told
    assert len(told) <= 8


def test_short_ages() -> None:
    assert [short_ago(seconds) for seconds in (0.5, 59, 60, 7200, 90_000)] == ["now", "59 s", "1 min", "2 h", "1 d"]


def test_the_widest_column_gives_way_first() -> None:
    drawn = draw((Column("a", least=2), Column("b", right=True)), [("x" * 40, "1"), ("y", "22")], 20)
    assert drawn.splitlines() == ["a                  b", f"{'x' * 15}…   1", "y                 22"]
