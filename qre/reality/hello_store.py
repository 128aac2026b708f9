"""The memory of hellos that several servers share, in a store that speaks RESP, as Valkey and Redis do. Sans-IO.

One question a hello: ``SET <key> 1 NX EX <seconds>``. The store sets the key unless it is there, in one step; so of
all servers that ask, one alone hears that the hello is new. What is stored is a hash of the hello's random, nothing
else.

Of RESP this needs a command's encoding, and three answers of one line each: ``+OK``, ``$-1`` and ``-`` with an error.
A client library would also parse nested arrays of any size, which nobody here asks for. Whatever else comes is an
UntrustedInputError: the connection is of no use any more.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Final

from qre.errors import UntrustedInputError

_WHERE: Final = "replay store"
#: The longest line is an error's (bytes).
_MAX_LINE: Final = 1024
_MAX_WORDS: Final = 120
_OK: Final = b"+OK"
#: In RESP2 and RESP3: the key was there.
_NULLS: Final = (b"$-1", b"_")


class StoreAnswer(enum.Enum):
    """What the store says of a hello."""

    NEW = "new"
    REPEATED = "repeated"


def key_prefix(public_key: bytes) -> str:
    """Servers of another key may use the same store."""
    return f"qre:hello:{hashlib.sha256(b'qre replay store' + public_key).hexdigest()[:16]}:"


def encode_command(*words: str) -> bytes:
    """An array of bulk strings."""
    pieces = [word.encode() for word in words]
    return b"*%d\r\n" % len(pieces) + b"".join(b"$%d\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


class StoreConnection:
    """One connection: what to send, and what is received. Questions are answered in their order.

    ``greeting`` is sent before all questions, which may come when it is answered (``greeted``).
    """

    def __init__(self, prefix: str, *, user: str = "", password: str = "", database: int = 0) -> None:
        self._prefix = prefix
        self._received = bytearray()
        greetings = [(encode_command("PING"), b"+PONG")]
        if database:
            greetings.insert(0, (encode_command("SELECT", str(database)), _OK))
        if password:
            greetings.insert(0, (encode_command("AUTH", *((user,) if user else ()), password), _OK))
        self.greeting = b"".join(command for command, _ in greetings)
        self._greetings = [answer for _, answer in greetings]
        self._waiting = 0

    @property
    def greeted(self) -> bool:
        """The store has let us in."""
        return not self._greetings

    def ask(self, digest: bytes, seconds: int) -> bytes:
        """The question whether a hello with this hash is new, to be remembered for so long."""
        self._waiting += 1
        return encode_command("SET", self._prefix + digest.hex(), "1", "NX", "EX", str(seconds))

    def received_untrusted(self, data: bytes) -> list[StoreAnswer]:
        """The answers that ``data`` completes. Raises UntrustedInputError with what the store complains of."""
        self._received += data
        *lines, rest = bytes(self._received).split(b"\r\n")
        if len(rest) > _MAX_LINE:
            raise UntrustedInputError(_WHERE, "a line that is too long")
        self._received = bytearray(rest)
        return [answer for line in lines if (answer := self._answer_untrusted(line)) is not None]

    def _answer_untrusted(self, line: bytes) -> StoreAnswer | None:
        """None for that to the greeting."""
        if line.startswith(b"-"):
            raise UntrustedInputError(_WHERE, f"it says {_printable(line[1 : _MAX_WORDS + 1])}")
        if self._greetings and line == self._greetings[0]:
            del self._greetings[0]
            return None
        if self._greetings or not self._waiting or line not in (_OK, *_NULLS):
            raise UntrustedInputError(_WHERE, "what it sends is no answer")
        self._waiting -= 1
        return StoreAnswer.NEW if line == _OK else StoreAnswer.REPEATED


def _printable(text: bytes) -> str:
    return "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in text.decode("latin-1"))
