"""``Key = Value`` lines: from the bytes of a file to entries, and all errors at once.

Both configuration files have this syntax: ``#`` comments, blank lines, keys in any case, one ``[Interface]`` header
without effect. The bytes may be anything: every input ends in entries and problems, in bounded time and memory.
Errors never repeat the value of a key that holds a credential, nor a line without a key: it may be a private key that
was pasted on a line of its own.
"""

from __future__ import annotations

import os
import stat

from qre.config.keys import GLOBAL_KEYS, HOOK_KEYS, LIST_KEYS, PROFILE_KEYS, SECRET_KEYS, did_you_mean
from qre.config.model import Value
from qre.errors import UserError, UserErrors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from typing import NoReturn, TypeVar

    T = TypeVar("T")

MAX_FILE = 1 << 20
#: Room for the longest list: 1,024 short ids, on one line or on one line each.
MAX_LINE = 32_768
MAX_ENTRIES = 2048
MAX_PROBLEMS = 100
_MAX_KEY = 32
_BOM = b"\xef\xbb\xbf"


class Entry(Value):
    """One line: the canonical key and the text of its value."""

    line: int
    key: str
    text: str


class Problems:
    """Collects the errors of one source; ``place`` names it: a path, the environment, the arguments."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._errors: list[tuple[int, UserError]] = []
        self._left_out = 0

    def add(self, line: int, key: str, why: str, remedy: str = "") -> None:
        """``line`` 0: the source as a whole; ``key`` may be empty."""
        if self.full:
            self._left_out += 1
            return
        what = f"{self.place}:{line}" if line else self.place
        self._errors.append((line, UserError(f"{what}: {key}" if key else what, why, remedy)))

    @property
    def full(self) -> bool:
        """Whether a further problem would only be counted."""
        return len(self._errors) >= MAX_PROBLEMS

    def errors(self) -> list[UserError]:
        """In the order of the lines, then those of the source as a whole."""
        found = [error for _, error in sorted(self._errors, key=lambda item: item[0] or 1 << 62)]
        if self._left_out:
            found.append(UserError(self.place, f"{self._left_out} more errors", "correct the first ones"))
        return found

    def raise_if_any(self) -> None:
        """Raise what was collected."""
        if self._errors:
            raise UserErrors(tuple(self.errors()))


class NoSuchFileError(UserError):
    """A configuration file does not exist."""


class Values:
    """The entries of one source, to be taken key by key; what does not parse becomes a problem."""

    def __init__(self, entries: list[Entry], problems: Problems, examples: Mapping[str, str]) -> None:
        self.problems = problems
        self.examples = examples
        self.all: dict[str, list[Entry]] = {}
        for entry in entries:
            self.all.setdefault(entry.key, []).append(entry)

    def __contains__(self, key: str) -> bool:
        return key in self.all

    def line(self, key: str) -> int:
        """The line number of the key; 0 when it is absent."""
        return self.all[key][0].line if key in self.all else 0

    def get(self, key: str, parse: Callable[[str], T]) -> T | None:
        """The parsed value; None when the key is absent or its value is wrong (which is recorded). The lines of a
        list are one list; an error names the first line that is wrong by itself."""
        if key not in self.all:
            return None
        entries = self.all[key]
        joined = Entry(entries[0].line, key, ", ".join(entry.text for entry in entries))
        entry = joined
        try:
            for entry in [*entries, joined] if len(entries) > 1 else [joined]:
                value = parse(entry.text)
            return value
        except UserError as error:
            self.problems.add(entry.line, key, error.why, error.remedy or f"write {self.example(key)}")
        return None

    def require(self, key: str, parse: Callable[[str], T]) -> T | None:
        """Like ``get``; an absent key is a problem."""
        if key not in self.all:
            self.problems.add(0, key, "is missing", f"add {self.example(key)}")
        return self.get(key, parse)

    def example(self, key: str) -> str:
        """A ``key = value`` to show in a remedy."""
        example = self.examples.get(key, "…")
        return f"{key} = {example}" if " " not in example else f"{key} = ({example})"


def read_config(path: str) -> tuple[bytes, os.stat_result]:
    """The bytes and the stat result of a configuration file. Raises UserError unless it is readable, regular and
    bounded."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: opening a device may have an effect
            _refuse_kind(path, os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                _refuse_kind(path, status.st_mode)
            data = bytearray()
            while len(data) <= MAX_FILE and (piece := os.read(descriptor, 1 << 16)):
                data += piece
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        if os.path.islink(path):
            raise UserError(shown(path), "is a dangling symbolic link", "make it point to a file") from None
        raise NoSuchFileError(shown(path), "there is no such file", "check the name and the directory") from None
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(shown(path), f"cannot be read: {why}", "check its path, owner and mode") from None
    if len(data) > MAX_FILE:
        raise UserError(shown(path), f"is larger than {MAX_FILE} bytes", "name a configuration file of QRE")
    return bytes(data), status


def shown(path: str) -> str:
    """A path for an error, always on one line."""
    return path if path.isprintable() and path else repr(path)


def _refuse_kind(path: str, mode: int) -> NoReturn:
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise UserError(shown(path), f"is {kind}, not a file", "name a regular file")


def check_owner(path: str, status: os.stat_result, holds_key: bool, problems: Problems) -> None:
    """Refuse a file that others can change, or that holds a key and others can read; the remedy is the command that
    fixes it."""
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid not in (0, os.geteuid()):
        who = "root" if os.geteuid() == 0 else "root or you"
        problems.add(0, "", f"belongs to uid {status.st_uid}, not to {who}", f"chown root:root {shown(path)}")
    if holds_key and mode & 0o066:
        problems.add(0, "", f"holds a key, and others can read it (mode {mode:04o})", f"chmod 600 {shown(path)}")
    elif mode & 0o022:
        problems.add(0, "", f"others can change it (mode {mode:04o})", f"chmod go-w {shown(path)}")


def parse_entries(data: bytes, known: Collection[str], problems: Problems) -> list[Entry]:
    """The entries of ``data`` with a key of ``known``, once each except for hooks and lists; everything else becomes
    a problem."""
    by_form = {key.lower(): key for key in known}
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    header = 0
    for number, raw in enumerate(data.removeprefix(_BOM).split(b"\n"), 1):
        line = _text_of_line(raw, number, problems)
        if not line or line.startswith("#"):
            continue
        if not line.replace("\t", " ").isprintable():
            problems.add(number, "", "the line has a control or invisible character", "write plain text")
            continue
        if line.startswith("["):
            header = _header(line, number, header, problems)
            continue
        name, equals, text = line.partition("=")
        key = _known_key(name.strip(), bool(equals), number, by_form, problems)
        if key is None:
            continue
        if key in seen and key not in HOOK_KEYS and key not in LIST_KEYS:
            remedy = "keep one of the two lines"
            problems.add(number, key, f"is given twice: line {seen[key]} has it already", remedy)
            continue
        if len(entries) == MAX_ENTRIES:
            problems.add(number, "", f"more than {MAX_ENTRIES} lines with keys", "shorten the file")
            break
        seen.setdefault(key, number)
        if key not in HOOK_KEYS:  # the shell handles comments and quoted # itself
            text = text.partition("#")[0]
        entries.append(Entry(number, key, text.strip()))
    return entries


def _text_of_line(raw: bytes, number: int, problems: Problems) -> str:
    """The line without surrounding blanks; empty when the line has an error."""
    if len(raw) > MAX_LINE:
        problems.add(number, "", f"the line is longer than {MAX_LINE} bytes", "shorten it")
        return ""
    if b"\0" in raw:
        problems.add(number, "", f"byte {raw.index(0) + 1} of the line is NUL", "write plain text")
        return ""
    try:
        return raw.decode().strip(" \t\r")
    except UnicodeDecodeError as error:
        problems.add(number, "", f"byte {error.start + 1} of the line is not UTF-8", "save the file as UTF-8")
        return ""


def _header(line: str, number: int, before: int, problems: Problems) -> int:
    """The number of the first line with a header; any other section is a problem."""
    name = line.partition("#")[0].strip()
    if name.lower() != "[interface]":
        remedy = (
            "a file has at most the one header [Interface]; the other end is named by Endpoint or RealityShortIds"
        )
        problems.add(number, "", f"{quoted(name)} is not a section of QRE", remedy)
    elif before:
        problems.add(number, "", f"[Interface] is given twice: line {before} has it already", "keep the first")
    return before or number


def _known_key(name: str, equals: bool, number: int, by_form: dict[str, str], problems: Problems) -> str | None:
    if not equals:
        problems.add(number, "", "the line has no `=`", "write Key = Value, or begin a comment with #")
        return None
    if not name:
        problems.add(number, "", "there is no key before `=`", "write Key = Value")
        return None
    key = by_form.get(name.lower())
    if key is not None:
        return key
    if len(name) > _MAX_KEY or not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
        problems.add(number, "", "what stands before `=` is not a key", "write Key = Value")
        return None
    for others, place in ((GLOBAL_KEYS, "the global file (qre.conf)"), (PROFILE_KEYS, "an interface profile")):
        other = {key.lower(): key for key in others}.get(name.lower())
        if other is not None:
            problems.add(number, other, f"is a key of {place}", "move the line there")
            return None
    keys = tuple(by_form.values())
    remedy = "" if problems.full else did_you_mean(name, keys, f"the keys are {', '.join(keys)}")
    problems.add(number, name, "unknown key", remedy)
    return None


def quoted(text: str) -> str:
    """A value for an error: quoted, on one line, not too long."""
    return repr(text if len(text) <= 64 else f"{text[:60]}…")


def holds_credential(entries: list[Entry]) -> bool:
    """Whether the file admits its reader to a tunnel: a private key, or a short id with its public key."""
    return any(entry.key in SECRET_KEYS for entry in entries)
