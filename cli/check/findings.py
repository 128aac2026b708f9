"""What ``check`` found about one item: yes, no or unknown, with what was examined and the remedy."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterator, Sequence

from qre.config.model import Value
from qre.errors import QreError, UserErrors

AS_ROOT = "run it as root"


class YesNo(enum.StrEnum):
    """The values are printed as they are."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "?"


class Finding(Value):
    """One line. ``instead``: what replaces the item; empty when the item is needed."""

    name: str
    answer: YesNo
    seen: str
    remedy: str = ""
    instead: str = ""

    @property
    def needed(self) -> bool:
        """Whether the device cannot come up without it."""
        return not self.instead

    @property
    def stops(self) -> bool:
        """Whether something that is needed is missing or unknown."""
        return self.needed and self.answer is not YesNo.YES


Findings = Iterator[Finding]


def look(name: str, looks: Callable[[], Findings]) -> Findings:
    """What ``looks`` finds. A failure of it is a finding, too, so that the other items are still examined."""
    try:
        yield from looks()
    except ImportError as error:
        module = (error.name or "a module").partition(".")[0]
        yield Finding(
            name, YesNo.UNKNOWN, f"this check needs {module}, which cannot be loaded", "see python packages"
        )
    except QreError as error:
        yield refused(name, error)
    except OSError as error:
        yield Finding(name, YesNo.NO, f"{error.filename or 'this machine'}: {error.strerror or error}", AS_ROOT)


def refused(name: str, error: QreError, otherwise: str = "see docs/user-guide.md") -> Finding:
    """A no for the reason of ``error``, or the first of its reasons; a ? when this user may not know.

    ``otherwise``: the remedy when the error has none.
    """
    errors: Sequence[QreError] = error.errors if isinstance(error, UserErrors) else (error,)
    first = errors[0]
    seen = ": ".join(filter(None, (first.what, first.why)))
    if len(errors) > 1:
        seen += f" (and {len(errors) - 1} more)"
    if isinstance(error.__cause__, PermissionError) and os.geteuid() != 0:
        return Finding(name, YesNo.UNKNOWN, seen, AS_ROOT)
    return Finding(name, YesNo.NO, seen, first.remedy or otherwise)
