"""Tables in the paragraph above a module's code: read as rows, to be compared with the table that drives."""

from __future__ import annotations

import re
from types import ModuleType


def drawn_rows(module: ModuleType) -> list[tuple[str, ...]]:
    """The cells of each row below the dashes; ``-`` is an empty one."""
    lines = (module.__doc__ or "").splitlines()
    (start,) = (number for number, line in enumerate(lines) if re.fullmatch(r" +(-+ +)+-+", line))
    rows = []
    for line in lines[start + 1 :]:
        if not line.strip():
            break
        rows.append(tuple("" if cell == "-" else cell for cell in re.split(r" {2,}", line.strip())))
    return rows
