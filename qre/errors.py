"""The one exception hierarchy, sorted by who can act on it.

A message names the thing, the cause and the remedy; the command line prints it as one line and exits with 2.
No key, and nothing derived from one, is ever put into a message.
"""


class QreError(Exception):
    """Base of all exceptions that QRE raises on purpose.

    ``what`` is the thing that failed, ``why`` the cause, ``remedy`` what the reader can do.
    """

    def __init__(self, what: str, why: str = "", remedy: str = "") -> None:
        super().__init__(what, why, remedy)
        self.what = what
        self.why = why
        self.remedy = remedy

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
