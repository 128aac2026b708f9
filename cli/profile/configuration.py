"""``strip``, ``showconf``, ``genkey``, ``pubkey``, ``genshortid``, ``version``: commands that need no privilege."""

from __future__ import annotations

import os
import sys

from qre.cli.commands import Options
from qre.errors import MachineError, UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qre.config.model import GlobalConfig, Profile

MAX_KEY_INPUT = 4096


def strip(arguments: list[str], options: Options) -> int:
    """A profile of the configuration directory as normalised JSON; the global file must be right, too."""
    from qre.config.profile import load_profile
    from qre.config.settings import load_global
    from qre.config.values import check_profile_name

    name = check_profile_name(arguments[0])
    _print_json(load_profile(name, load_global(os.environ), os.environ), options)
    return 0


def showconf(arguments: list[str], options: Options) -> int:
    """A file of either kind as normalised JSON, told apart by its keys."""
    from qre.config.kind import load_file

    _print_json(load_file(arguments[0]), options)
    return 0


def genkey(arguments: list[str], options: Options) -> int:
    """A new X25519 private key, clamped (RFC 7748 §5) as `wg genkey` prints it."""
    del arguments, options
    from binascii import b2a_base64

    warn_of_readers("key")
    print(b2a_base64(clamped(os.urandom(32)), newline=False).decode())
    return 0


def clamped(random: bytes) -> bytes:
    """An X25519 private key of 32 random bytes (RFC 7748 §5)."""
    key = bytearray(random)
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return bytes(key)


def genshortid(arguments: list[str], options: Options) -> int:
    """Eight random bytes in hex."""
    del arguments, options
    warn_of_readers("short id")
    print(fresh_short_id().hex())
    return 0


def fresh_short_id() -> bytes:
    """Eight random bytes, of which the last is not zero: profiles leave zeros at the end out, and a client's section
    takes sixteen digits."""
    drawn = os.urandom(8)
    return drawn if drawn[-1] else fresh_short_id()


def pubkey(arguments: list[str], options: Options) -> int:
    """The public key of the private key on standard input."""
    del arguments, options
    from qre.config.values import parse_key, show_key

    if sys.stdin is None:
        raise UserError("standard input", "it is closed", "write `qre-tool pubkey < FILE`")
    data = sys.stdin.buffer.read(MAX_KEY_INPUT + 1)
    try:
        private = parse_key(data.decode("ascii", "replace").strip())
    except UserError as error:
        raise UserError("standard input", error.why, "give it the output of `qre-tool genkey`") from None
    print(show_key(public_key(private)))
    return 0


def public_key(private: bytes) -> bytes:
    """X25519 public key (RFC 7748)."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def version(arguments: list[str], options: Options) -> int:
    """The version of this program."""
    del arguments, options
    from qre import __version__

    print(f"qre-tool {__version__}")
    return 0


def _print_json(config: Profile | GlobalConfig, options: Options) -> None:
    from qre.config.normalise import to_json

    show_keys = "--show-keys" in options.flags or os.environ.get("QRE_HIDE_KEYS") == "never"
    text = to_json(config, show_keys)
    if text != to_json(config, show_keys=False):
        refuse_readers()
    elif getattr(config, "client", None) is not None:
        warn_of_readers("short id")
    print(text, end="")


def refuse_readers(remedy: str = "set umask 077 first") -> None:
    """Raise UserError where standard output is a file that other users can read."""
    if others_read_output():
        raise UserError("standard output", "others can read the file that the secret would go to", remedy)


def warn_of_readers(what: str) -> None:
    """As `wg genkey` does: say when a secret goes into a file that others can read."""
    if others_read_output():
        print(f"qre-tool: others can read the file with the {what}; set umask 077 first", file=sys.stderr)


def others_read_output() -> bool:
    """Whether standard output is a file that other users can read. Raises MachineError when it is closed."""
    import stat

    try:
        status = os.fstat(1)
    except OSError as error:
        raise MachineError("standard output", error.strerror or str(error), "give it somewhere to write") from None
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o077)
