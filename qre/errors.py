"""The one exception hierarchy, sorted by who can act on it.

A message names the thing, the cause and the remedy; the command line prints it as one line and exits with 2.
No key, and nothing derived from one, is ever put into a message.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from qre.causes import Cause


class QreError(Exception):
    """Base of all exceptions that QRE raises on purpose.

    ``what`` is the thing that failed, ``why`` the cause, ``remedy`` what the reader can do. ``cause`` is the cause as
    a type, where there is one, and ``detail`` what is said about this case of it.
    """

    cause: Cause | None = None
    detail = ""

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what, why, remedy)
        self.what = what
        self.why = why
        self.remedy = remedy

    @classmethod
    def of(cls, what: str, cause: Cause, detail: str = "") -> Self:
        """The error with the words of ``cause``; ``detail`` stands behind the reason."""
        from qre.causes import WORDS  # the command line starts without it

        words = WORDS[cause]
        error = cls(what, f"{words.why} ({detail})" if detail else words.why, words.remedy)
        error.cause, error.detail = cause, detail
        return error

    def __str__(self) -> str:
        text = self.what
        if self.why:
            text = f"{text}: {self.why}"
        if self.remedy:
            text = f"{text}; {self.remedy}"
        return text


class UserError(QreError):
    """The user can correct it: a configuration, an argument, an environment variable."""


class UserErrors(UserError):
    """All errors of one source, in its order."""

    def __init__(self, errors: tuple[UserError, ...]) -> None:
        first = errors[0]
        super().__init__(first.what, first.why, first.remedy)
        self.errors = errors

    def __str__(self) -> str:
        return "\n".join(str(error) for error in self.errors)


class MachineError(QreError):
    """This machine refuses: a missing capability, device, kernel feature, file or descriptor."""


class PassingError(MachineError):
    """A daemon that ran and cannot go on, or whose address is not there yet. It may pass by itself: exit status 1, on
    which a service manager starts it again."""


class PeerError(QreError):
    """The peer, or something on the path, violated the protocol."""


class InternalError(QreError):
    """A defect of QRE itself."""


class UntrustedInputError(QreError):
    """Bytes from outside do not parse. The only exception that an ``…_untrusted`` parser may raise."""
