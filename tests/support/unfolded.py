"""What `show` and `check` print, with every line whole again that they have folded for people."""

from __future__ import annotations

import re

#: Below the beginning of a value: no other line of theirs is indented so far.
_FOLD = re.compile(r"\n {5,}")


def unfolded(text: str) -> str:
    """A line an item."""
    return _FOLD.sub(" ", text)
