"""Hands a client's profile out: as a file's text, as one link, as a code for a camera, as JSON, or into a file.

Everything here admits its holder to the tunnel. It is never written into a file that others can read, not even for a
moment: where standard output is one, nothing is printed.
"""

from __future__ import annotations

import io
import json
import os
import sys

from qre.cli.profile.configuration import refuse_readers
from qre.cli.profile.private_files import write_all
from qre.cli.show.show_text import wants_colour
from qre.config.client_profile import link_of
from qre.config.keys import did_you_mean
from qre.config.normalise import to_file
from qre.config.syntax import shown
from qre.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from qre.config.model import Profile

JSON_VERSION = 1
FORMS = ("all", "file", "link", "qr")
#: Black on white, whatever the colours of the terminal: not every camera reads the opposite.
_PAPER, _PLAIN = "\033[30;107m", "\033[0m"


class Handout:
    """Where and how the profile is given out, checked before anything is changed. ``form`` empty: all on a terminal,
    else the file; ``path``: the file to write, in place of standard output."""

    def __init__(self, form: str, path: str, *, as_json: bool) -> None:
        if form and form not in FORMS:
            raise UserError("field As", f"{form!r} is not one of {', '.join(FORMS)}", did_you_mean(form, FORMS, ""))
        if path and (form or as_json):
            raise UserError("field File", "a file gets the profile alone", "leave As= and --json out")
        self._json, self._path = as_json, os.path.abspath(path) if path else ""
        self._form = form or ("all" if sys.stdout is not None and sys.stdout.isatty() else "file")
        if self._path and not os.path.isdir(os.path.dirname(self._path)):
            raise UserError("field File", f"{shown(path)}: there is no such directory", "name one that exists")
        if self._path and os.path.lexists(self._path):
            raise UserError("field File", f"{shown(path)} exists already", "name another")
        if not path:
            refuse_readers("write File=PATH, or set umask 077 first")
        if self._form == "qr":
            _check_drawable()

    def write_file(self, client: Profile) -> None:
        """Write it, where a file is wanted. Raises UserError or MachineError, and leaves nothing then."""
        if self._path:
            write_all({self._path: _text(client, link_of(client))})

    def show(self, client: Profile, done: str = "") -> None:
        """Print it, or where it was written; ``done`` says what was done before, for people."""
        link = link_of(client)
        if done and self._form in ("all", "file") and not self._json:
            print(done if self._path else f"# {done}")
        if self._path:
            print(f"wrote {self._path} (mode 0600)")
        elif self._json:
            print(json.dumps(described(client, link), indent=2, sort_keys=True))
        elif self._form == "link":
            print(link)
        elif self._form == "qr":
            print(code(link), end="")
        else:
            print(_text(client, link), end="")
            if self._form == "all" and can_draw():
                print(f"\n{code(link)}", end="")


def _text(client: Profile, link: str) -> str:
    """A profile that says in a comment how it is written as a link."""
    return f"# {link}\n{to_file(client)}"


def described(client: Profile, link: str) -> dict[str, object]:
    """For JSON (docs/json/export.schema.json)."""
    addresses = [str(address) for address in client.address]
    return {
        "version": JSON_VERSION,
        "name": client.name,
        "address": addresses,
        "link": link,
        "profile": to_file(client),
    }


def can_draw() -> bool:
    """Whether standard output can show the blocks of a code."""
    encoding = (sys.stdout.encoding or "") if sys.stdout is not None else ""
    return encoding.lower().replace("-", "").startswith("utf")


def _check_drawable() -> None:
    if not can_draw():
        raise UserError("standard output", "it cannot show a code: its encoding is not UTF-8", "set LC_ALL=C.UTF-8")


def code(link: str) -> str:
    """The QR code of a link, two of its rows a line; UserError when it is too long for one."""
    import segno

    try:
        drawn = segno.make_qr(link, error="l")
    except segno.DataOverflowError:
        raise UserError("QR code", "the profile is too long for one", "hand the file or the link out") from None
    lines = io.StringIO()
    drawn.terminal(out=lines, border=2, compact=True)
    painted = wants_colour()
    return "".join(
        f"{_PAPER}{_swapped(line)}{_PLAIN}\n" if painted else f"{line}\n" for line in lines.getvalue().splitlines()
    )


#: segno draws light modules; on white paper the dark ones are drawn.
_SWAPPED = str.maketrans(" █▀▄", "█ ▄▀")


def _swapped(line: str) -> str:
    return line.translate(_SWAPPED)
