"""What a shell offers after TAB: ``qre-tool __complete WORDS…``, and ``completion``, the scripts that ask it.

The scripts contain no lists: they pass the words of the line and print the answer. So the table of commands is the
only source, and existing profiles and devices are offered, too. Loads nothing but that table: it runs at every TAB.

The answer is one offer a line, ``WORD<TAB>MEANING``; a word that ends in ``=`` wants more behind it. A line
``:files`` asks the shell for names of files, behind the field's or option's ``=`` when there is one.
"""

from __future__ import annotations

import os
import sys

from qre.cli.commands import COMMANDS, GLOBAL_OPTIONS, GROUPS, Command, Options
from qre.errors import UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SCRIPTS = {"bash": "qre-tool", "zsh": "_qre-tool", "fish": "qre-tool.fish"}
FILES = ":files"

_CONFIG_DIR, _RUNTIME_DIR, _INTERFACES = "/etc/qre/dev", "/run/qre", "/sys/class/net"
#: At most this many names are offered.
_MOST_NAMES = 1000
_FILE_NAMES = ("FILE", "PATH", "DIRECTORY", "CONFIG", "PCAP")
_SCENARIOS = ("valid-client", "invalid-short-id", "wrong-sni", "malformed-initial", "random-udp")

Offer = tuple[str, str]


def completion(arguments: list[str], options: Options) -> int:
    """Print the script of a shell."""
    del options
    name = SCRIPTS.get(arguments[0])
    if name is None:
        raise UserError("completion", f"{arguments[0]!r} is not one of {', '.join(SCRIPTS)}", "name one of them")
    with open(os.path.join(os.path.dirname(__file__), "shells", name), encoding="utf-8") as file:
        sys.stdout.write(file.read())
    return 0


def complete(arguments: list[str], options: Options) -> int:
    """Print what the last word may become; ``arguments`` are those after ``qre-tool``."""
    del options
    for word, meaning in offers(arguments or [""]):
        if word.isprintable():  # a name with a line break would look like two names
            print(f"{word}\t{meaning}" if meaning else word)
    return 0


def offers(words: list[str]) -> list[Offer]:
    """Word and meaning, in the order of the table; only what begins like the last word."""
    *before, last = words
    line = _Line(before)
    return [(word, meaning) for word, meaning in line.next_words(last) if word.startswith(last) or word == FILES]


class _Line:
    """The words before the last one, by kind."""

    def __init__(self, words: list[str]) -> None:
        self.name = ""
        self.command: Command | None = None
        self.plain: list[str] = []  # arguments that are neither options nor fields
        self.given: set[str] = set()  # options and fields, in one form
        self.values: dict[str, str] = {}
        self.pending = ""  # an option whose value comes next
        self.only_words = False  # after --
        for word in words:
            self._take(word)

    def _take(self, word: str) -> None:
        if self.pending:
            self.values[self.pending] = word
            self.pending = ""
        elif word == "--":
            self.only_words = True
        elif word.startswith("-") and word != "-" and not self.only_words:
            option, equals, value = word.partition("=")
            self.given.add(option)
            self.values[option] = value
            if not equals and self._value_of(option):
                self.pending = option
        elif self.command is None:
            self.name = word
            self.command = COMMANDS.get(word, _UNKNOWN)
        elif _form(word.partition("=")[0]).isalnum() and "=" in word:
            self.given.add(_form(word.partition("=")[0]))
        else:
            self.plain.append(word)

    def _value_of(self, option: str) -> str:
        """What the option's value is called; empty when it has none."""
        own = self.command.options if self.command is not None else {}
        return next((value for name, _, value in (key.partition(" ") for key in own) if name == option), "")

    def next_words(self, last: str) -> Iterator[Offer]:
        if self.pending:
            yield from self._values(self._value_of(self.pending))
        elif last.startswith("-") and not self.only_words:
            yield from self._options(last)
        elif self.command is None:
            yield from ((name, command.summary) for name, command in COMMANDS.items())
        elif "=" in last:
            yield from self._field_values(last)
        else:
            yield from self._arguments()

    def _options(self, last: str) -> Iterator[Offer]:
        option, equals, _ = last.partition("=")
        if equals:
            yield from (
                (f"{option}={word}" if word != FILES else FILES, meaning)
                for word, meaning in self._values(self._value_of(option))
            )
            return
        own = self.command.options if self.command is not None else {}
        for text, meaning in (own | GLOBAL_OPTIONS).items():
            name = text.partition(" ")[0]
            refused = name == "--dry-run" and self.command is not None and not self.command.dry_run
            if name not in self.given and not refused:
                yield name, meaning

    def _arguments(self) -> Iterator[Offer]:
        """The next plain argument, then the fields that are not given yet."""
        assert self.command is not None
        expected = [word for word in self.command.arguments.split() if "=" not in word]
        index = len(self.plain)
        if expected and index >= len(expected) and expected[-1].rstrip("]").endswith("…"):
            index = len(expected) - 1
        required = index < len(expected) and not expected[index].startswith("[")
        if index < len(expected):
            yield from self._values(expected[index].strip("[]…"))
        if not required or "…" in expected[index]:
            for field, value in self.command.fields().items():
                if _form(field) not in self.given:
                    yield f"{field}=", value

    def _field_values(self, last: str) -> Iterator[Offer]:
        assert self.command is not None
        name = last.partition("=")[0]
        for field, value in self.command.fields().items():
            if _form(field) == _form(name):
                for word, meaning in self._values(value):
                    yield (word if word == FILES else f"{name}={word}"), meaning

    def _values(self, kind: str) -> Iterator[Offer]:
        """What a placeholder of the table stands for."""
        if kind == "COMMAND":
            yield from ((name, command.summary) for name, command in COMMANDS.items())
        elif kind == "PROFILE":
            servers = self.name in GROUPS["Clients by name"]
            yield from ((name, "profile") for name in self._profiles() if not servers or self._is_server(name))
        elif kind == "DEVICE":
            yield from ((name, "device") for name in _devices())
        elif kind == "CLIENT":
            yield from ((name, "client") for name in self._clients())
        elif kind == "SCENARIO":
            yield from ((name, "") for name in _SCENARIOS)
        elif kind.endswith(_FILE_NAMES):
            yield FILES, ""
        elif kind and not kind.isupper():  # literal words
            yield from ((word, "") for word in kind.split("|") if word.replace("-", "").isalnum() and word.islower())

    def _profiles(self) -> list[str]:
        return sorted(name.removesuffix(".conf") for name in _names(self._directory()) if name.endswith(".conf"))

    def _is_server(self, name: str) -> bool:
        """As far as its keys say."""
        lines = _read(os.path.join(self._directory(), f"{name}.conf"), 1 << 20).lower().splitlines()
        return any(line.replace(" ", "").startswith(("listen=", "role=server")) for line in lines)

    def _directory(self) -> str:
        return self.values.get("--config-dir") or os.environ.get("QRE_CONFIG_DIR") or _CONFIG_DIR

    def _clients(self) -> list[str]:
        """The sections of the profile that is named before."""
        path = os.path.join(self._directory(), f"{os.path.basename(self.plain[0])}.conf")
        headers = (line.strip() for line in _read(path, 1 << 20).splitlines() if line.lstrip().startswith("[Client "))
        names = (header.partition("]")[0].removeprefix("[Client ").strip() for header in headers)
        return sorted(names)[:_MOST_NAMES]


_UNKNOWN = Command("", "", "")


def _devices() -> list[str]:
    """Devices of running daemons, of qre.ko, and those whose alias says that they are QRE's."""
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0] or _RUNTIME_DIR
    found = {name.removesuffix(".sock") for name in _names(runtime) if name.endswith(".sock")}
    for name in _names(_INTERFACES):
        directory = os.path.join(_INTERFACES, name)
        kernel = "DEVTYPE=qre\n" in _read(os.path.join(directory, "uevent"))
        if kernel or _read(os.path.join(directory, "ifalias")).startswith("qre:"):
            found.add(name)
    return sorted(found)


def _names(directory: str) -> Iterable[str]:
    """The visible entries of a directory; none when it cannot be read."""
    try:
        return [name for name in os.listdir(directory)[:_MOST_NAMES] if not name.startswith(".")]
    except OSError:
        return []


def _read(path: str, most: int = 4096) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(most)
    except OSError:
        return ""


def _form(field: str) -> str:
    """One form for all in which a field may be written."""
    return field.lower().replace("-", "").replace("_", "")
