"""``Key = Value`` lines: from the bytes of a file to entries, and all errors at once.

Both configuration files have this syntax: ``#`` comments, blank lines, keys in any case, one ``[Interface]`` header
without effect; in a profile ``[Client NAME]`` sections may follow. The bytes may be anything: every input ends in
entries and problems, in bounded time and memory.
Errors never repeat the value of a key that holds a credential, nor a line without a key: it may be a private key that
was pasted on a line of its own.
"""

from __future__ import annotations

import os
import stat

from qre.config.keys import (
    GLOBAL_KEYS,
    HOOK_KEYS,
    LIST_KEYS,
    PROFILE_KEYS,
    SECRET_KEYS,
    SECTION_KEYS,
    did_you_mean,
    nearest,
)
from qre.config.model import Value
from qre.errors import UserError, UserErrors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import NoReturn, TypeVar

    T = TypeVar("T")

MAX_FILE = 1 << 20
#: Room for the longest list: 2,000 short ids, on one line or on one line each.
MAX_LINE = 65_536
#: Of the interface, and with those of sections.
MAX_KEYS, MAX_ENTRIES = 2048, 16_384
MAX_PROBLEMS = 100
_MAX_KEY = 32
_BOM = b"\xef\xbb\xbf"
#: The key of an entry that begins a section: the entry's text is the section's name.
SECTION = "[Client]"


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


class SectionProblems(Problems):
    """Those of one section, collected with all others of the file: each names the section."""

    def __init__(self, problems: Problems, header: Entry) -> None:
        self._all = problems
        self._header = header

    def add(self, line: int, key: str, why: str, remedy: str = "") -> None:
        """``line`` 0: the section as a whole."""
        name = f"[Client {self._header.text}]" if self._header.text else SECTION
        self._all.add(line or self._header.line, f"{name} {key}".strip(), why, remedy)

    @property
    def full(self) -> bool:
        """As of the whole file."""
        return self._all.full


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
    a problem.

    In a profile an entry SECTION begins each section, and the section's own entries follow it.
    """
    part = _Part(known, problems)
    entries: list[Entry] = []
    for number, raw in enumerate(data.removeprefix(_BOM).split(b"\n"), 1):
        line = _text_of_line(raw, number, problems)
        if not line or line.startswith("#"):
            continue
        if not line.replace("\t", " ").isprintable():
            problems.add(number, "", "the line has a control or invisible character", "write plain text")
            continue
        entry = part.header(line, number) if line.startswith("[") else part.entry(line, number)
        if entry is None:
            continue
        most = MAX_ENTRIES if part.in_section else MAX_KEYS
        if len(entries) >= most:
            problems.add(number, "", f"more than {most} lines with keys", "shorten the file")
            break
        entries.append(entry)
    return entries


class _Part:
    """The part of a file that is being read: the interface's keys, or one section."""

    def __init__(self, known: Collection[str], problems: Problems) -> None:
        self._known = known
        self._problems = problems
        self._by_form = {key.lower(): key for key in known}
        self._seen: dict[str, int] = {}
        self._interface = 0  # the line of [Interface]
        self.in_section = False

    def header(self, line: str, number: int) -> Entry | None:
        """The entry of a section; None for [Interface], and for what is neither."""
        text = line.partition("#")[0].strip()
        word, _, name = text.removeprefix("[").removesuffix("]").strip().partition(" ")
        if text.lower() == "[interface]":
            if self._interface:
                why = f"[Interface] is given twice: line {self._interface} has it already"
                self._problems.add(number, "", why, "keep the first")
            elif self.in_section:
                self._problems.add(number, "", "[Interface] comes after a section", "move it to the top")
            self._interface = self._interface or number
            return None
        if not self._means_client(word):
            remedy = (
                "a file has at most the one header [Interface]; the other end is named by Endpoint or RealityShortIds"
            )
            self._problems.add(number, "", f"{quoted(text)} is not a section of QRE", remedy)
            return None
        if word.lower() != "client" or not text.endswith("]"):
            remedy = f"did you mean [Client {name.strip() or 'NAME'}]?"
            self._problems.add(number, "", f"{quoted(text)} is not a section of QRE", remedy)
        self.in_section, self._seen = True, {}
        self._by_form = {key.lower(): key for key in SECTION_KEYS}
        return Entry(number, SECTION, name.strip())

    def _means_client(self, word: str) -> bool:
        if self._known is not PROFILE_KEYS:
            return False
        return word.lower() == "client" or (
            not self._problems.full and nearest(word, ("Client", "Interface")) == "Client"
        )

    def entry(self, line: str, number: int) -> Entry | None:
        """The entry of a line ``Key = Value``; None when it is a problem."""
        name, equals, text = line.partition("=")
        key = self._key(name.strip(), bool(equals), number)
        if key is None:
            return None
        if key in self._seen and key not in HOOK_KEYS and key not in LIST_KEYS:
            remedy = "keep one of the two lines"
            self._problems.add(number, key, f"is given twice: line {self._seen[key]} has it already", remedy)
            return None
        self._seen.setdefault(key, number)
        if key not in HOOK_KEYS:  # the shell handles comments and quoted # itself
            text = text.partition("#")[0]
        return Entry(number, key, text.strip())

    def _key(self, name: str, equals: bool, number: int) -> str | None:
        problems = self._problems
        if not equals:
            problems.add(number, "", "the line has no `=`", "write Key = Value, or begin a comment with #")
            return None
        if not name:
            problems.add(number, "", "there is no key before `=`", "write Key = Value")
            return None
        key = self._by_form.get(name.lower())
        if key is not None:
            return key
        if len(name) > _MAX_KEY or not name.replace("-", "").replace("_", "").isalnum() or not name.isascii():
            problems.add(number, "", "what stands before `=` is not a key", "write Key = Value")
            return None
        elsewhere = self._elsewhere(name.lower())
        if elsewhere is not None:
            problems.add(number, *elsewhere)
            return None
        keys = tuple(self._by_form.values())
        remedy = "" if problems.full else did_you_mean(name, keys, f"the keys are {', '.join(keys)}")
        problems.add(number, name, "unknown key", remedy)
        return None

    def _elsewhere(self, form: str) -> tuple[str, str, str] | None:
        """Key, cause and remedy for a key that belongs to another file, or to another part of this one."""
        places: tuple[tuple[Iterable[str], str, str], ...] = (
            (GLOBAL_KEYS, "is a key of the global file (qre.conf)", "move the line there"),
            (PROFILE_KEYS, "is a key of an interface profile", "move the line there"),
        )
        if self.in_section:
            remedy = "move the line above the first [Client NAME]"
            interface = [key for key in PROFILE_KEYS if "ShortId" not in key]  # ShortId is meant
            places = (places[0], (interface, "is a key of the interface, not of a client", remedy))
        elif self._known is PROFILE_KEYS:
            remedy = "move the line below such a header"
            places = (places[0], (SECTION_KEYS, "is a key of a [Client NAME] section", remedy))
        for keys, why, remedy in places:
            key = {key.lower(): key for key in keys}.get(form)
            if key is not None:
                return key, why, remedy
        return None


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


def quoted(text: str) -> str:
    """A value for an error: quoted, on one line, not too long."""
    return repr(text if len(text) <= 64 else f"{text[:60]}…")


def holds_credential(entries: list[Entry]) -> bool:
    """Whether the file admits its reader to a tunnel: a private key, or a short id with its public key."""
    return any(entry.key in SECRET_KEYS for entry in entries)
