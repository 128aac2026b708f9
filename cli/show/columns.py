"""For people: everything within 100 columns, as tables or as lines that are folded, and amounts short enough."""

from __future__ import annotations

import re
from collections.abc import Sequence

WIDTH = 100
_GAP = "  "
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SPANS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


class Column:
    """``least``: how far it may be narrowed, what is cut ends in ``…``; 0: never."""

    def __init__(self, title: str, *, least: int = 0, right: bool = False) -> None:
        self.title = title
        self.least = least
        self.right = right


def draw(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int = WIDTH) -> str:
    """The title and the rows, each line at most ``width`` wide. The widest column that may be narrowed is narrowed
    first."""
    widths = [
        max(len(text) for text in (column.title, *given)) for column, *given in zip(columns, *rows, strict=True)
    ]
    spare = width - len(_GAP) * (len(columns) - 1)
    while sum(widths) > spare:
        narrowed = [at for at, column in enumerate(columns) if column.least and widths[at] > column.least]
        if not narrowed:
            break
        widths[max(narrowed, key=lambda at: widths[at])] -= 1
    lines = [[column.title for column in columns], *rows]
    return "\n".join(_line(columns, widths, line)[:width] for line in lines)


def _line(columns: Sequence[Column], widths: Sequence[int], texts: Sequence[str]) -> str:
    cells = []
    for column, width, text in zip(columns, widths, texts, strict=True):
        cut = text if len(text) <= width else f"{text[: width - 1]}…"
        cells.append(cut.rjust(width) if column.right else cut.ljust(width))
    return _GAP.join(cells).rstrip()


#: What is in backquotes is typed as a whole, so it is never folded.
_PIECES = re.compile(r"(?:`[^`]*`|[^\s`]|`)+")


def folded(text: str, indent: int, width: int = WIDTH) -> str:
    """``text`` behind ``indent`` columns of its line: what does not fit goes on below, under its beginning."""
    lines = [""]
    for piece in _PIECES.findall(text):
        longer = f"{lines[-1]} {piece}" if lines[-1] else piece
        if lines[-1] and len(longer) > width - indent:
            lines.append(piece)
        else:
            lines[-1] = longer
    return f"\n{' ' * indent}".join(lines)


def short_size(count: int | None) -> str:
    """Bytes in at most 8 characters: ``1.25 MiB``, ``12.5 MiB``, ``125 MiB``; ``-`` when unknown."""
    if count is None:
        return "-"
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    if not unit:
        return f"{count} B"
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {_UNITS[unit]}"


def short_ago(seconds: float) -> str:
    """``now``, ``12 s``, ``3 min``, ``2 h``, ``5 d``."""
    for length, unit in _SPANS:
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "now"
