"""What a parser of untrusted bytes does with any bytes: it reads them, or refuses them with the one exception."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from qre.errors import UntrustedInputError

Found = TypeVar("Found")


def read_or_refused(parse: Callable[[bytes], Found], data: bytes) -> Found | None:
    """What ``parse`` made of ``data``; None: it refused. Any other exception fails the test."""
    try:
        return parse(data)
    except UntrustedInputError:
        return None
