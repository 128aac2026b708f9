"""``watch``: the text of ``show``, repeated with rates from the counters, until Ctrl-C or ``Count``.

A terminal is redrawn in place; a pipe or a file gets one block after another, separated by an empty line. The first
reading must succeed, as in ``show``; a device that disappears later is waited for.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from qre.cli.commands import Options
from qre.cli.defaults import WATCH_INTERVAL
from qre.cli.fields import parse_fields
from qre.cli.main import error_line
from qre.cli.show.show import device, devices
from qre.cli.show.show_text import render
from qre.config.model import GlobalConfig
from qre.config.settings import load_global
from qre.config.syntax import quoted
from qre.errors import QreError, UserError

Description = dict[str, Any]

_MIN_INTERVAL, _MAX_INTERVAL = 0.1, 3600.0
_MAX_COUNT = 1_000_000_000
_COUNTERS = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")
#: Cursor to the corner, lines cut at the edge instead of wrapped; clear to the end of a line, of the screen.
_HOME, _CUT, _WRAP, _CLEAR_LINE, _CLEAR_REST = "\033[H", "\033[?7l", "\033[?7h", "\033[K", "\033[J"


def watch(arguments: list[str], options: Options) -> int:
    """``watch [DEVICE] [Interval=SECONDS] [Count=NUMBER]``."""
    del options
    name, interval, count = _read(arguments)
    config = load_global(os.environ)
    try:
        _watch(config, name, interval, count)
    except KeyboardInterrupt:
        if sys.stdout.isatty():
            print()
    return 0


def _read(arguments: list[str]) -> tuple[str | None, float, int]:
    """The device, the seconds between two readings, their number (0: no limit)."""
    plain = [word for word in arguments if "=" not in word]
    fields = parse_fields([word for word in arguments if "=" in word], (), ("Interval", "Count"), command="watch")
    if len(plain) > 1:
        raise UserError("watch", f"{len(plain)} devices are given, and it takes one", "leave it out to see all")
    interval = _interval(fields.get("Interval", WATCH_INTERVAL))
    return plain[0] if plain else None, interval, _count(fields["Count"]) if "Count" in fields else 0


def _interval(text: str) -> float:
    digits = text.replace(".", "", 1)
    if digits.isascii() and digits.isdigit() and len(text) <= 16 and _MIN_INTERVAL <= float(text) <= _MAX_INTERVAL:
        return float(text)
    why = f"{quoted(text)} is not a number of seconds from {_MIN_INTERVAL:g} to {_MAX_INTERVAL:g}"
    raise UserError("field Interval", why, "write Interval=1")


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 10 and 1 <= int(text) <= _MAX_COUNT:
        return int(text)
    raise UserError("field Count", f"{quoted(text)} is not a number from 1 to {_MAX_COUNT}", "write Count=10")


def _watch(config: GlobalConfig, name: str | None, interval: float, count: int) -> None:
    last = Look(config, name)
    last.raise_error()
    looks, due = 1, last.time
    _show(last.text(), interval, first=True)
    while looks != count:
        due = max(due + interval, time.monotonic())  # missed readings are skipped
        time.sleep(max(0.0, due - time.monotonic()))
        look = Look(config, name)
        look.rate(last)
        _show(look.text(), interval, first=False)
        looks, last = looks + 1, look


class Look:
    """One reading of all devices, or why it failed."""

    def __init__(self, config: GlobalConfig, name: str | None) -> None:
        self.devices: list[Description] = []
        self.error: QreError | None = None
        try:
            self.devices = [device(config, name)] if name is not None else devices(config)
        except QreError as error:
            self.error = error
        self.time = time.monotonic()

    def raise_error(self) -> None:
        """For the first reading, which must succeed."""
        if self.error is not None:
            raise self.error

    def rate(self, before: Look) -> None:
        """Add ``rates`` to every device and session that the previous reading also had."""
        elapsed = self.time - before.time
        known = {described["device"]: described for described in before.devices}
        for described in self.devices:
            old = known.get(described["device"])
            if old is None:
                continue
            described["rates"] = rates(old["counters"], described["counters"], elapsed)
            sessions = {session["session_id"]: session for session in old["sessions"] or ()}
            for session in described["sessions"] or ():
                session["rates"] = rates(sessions.get(session["session_id"]), session, elapsed)

    def text(self) -> str:
        """As ``show`` draws it."""
        if self.error is not None:
            return f"{error_line(self.error)}\n"
        return render(self.devices) or "nothing is up\n"


def rates(before: Description | None, after: Description | None, elapsed: float) -> dict[str, float] | None:
    """Bytes and packets per second; None when unknown or when the counters restarted."""
    if not before or not after or elapsed <= 0:
        return None
    grown = {key: after[key] - before[key] for key in _COUNTERS}
    if min(grown.values()) < 0:
        return None
    return {key: count / elapsed for key, count in grown.items()}


def _show(text: str, interval: float, *, first: bool) -> None:
    if sys.stdout.isatty():
        title = f"Every {interval:g} s: qre-tool show    {time.strftime('%H:%M:%S')}    Ctrl-C ends"
        size = shutil.get_terminal_size()
        sys.stdout.write(frame([title, "", *text.splitlines()], size.lines, clear=first))
    else:
        sys.stdout.write(text if first else f"\n{text}")
    sys.stdout.flush()


def frame(lines: Sequence[str], rows: int, *, clear: bool) -> str:
    """The output that redraws ``lines`` in place; lines beyond the terminal's height are left out.

    Every mode is reset within it, so the terminal is unchanged however the command ends.
    """
    if len(lines) > rows - 1:
        hidden = len(lines) - (rows - 2)
        lines = [*lines[: max(0, rows - 2)], f"… {hidden} more lines"]
    drawn = "".join(f"{line}{_CLEAR_LINE}\n" for line in lines)
    return f"{_HOME}{_CLEAR_REST if clear else ''}{_CUT}{drawn}{_CLEAR_REST}{_WRAP}"
