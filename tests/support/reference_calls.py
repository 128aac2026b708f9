"""The calls of the qre-tool reference, as it writes them: read from tests/data, and filled with values.

A line stands for several calls when something may be left out, is one of several, or has more names: without what may
be left out, and with all of it in each form that a field's name has, each time with the next alternative. The plan
comes before what it is the plan of.
"""

from __future__ import annotations

import re
import secrets
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from qre.config.keys import snake_case

DATA = Path(__file__).resolve().parents[1] / "data" / "reference-calls.txt"
#: Other names that fields of ``set`` have, as the reference lists them.
SET_ALIASES = {
    "Address": ("address",),
    "Listen": ("listen",),
    "Endpoint": ("endpoint",),
    "MTU": ("mtu",),
    "Dest": ("dest",),
    "ServerName": ("server-name", "server_name", "sni"),
    "PersistentKeepalive": ("persistent-keepalive", "persistent_keepalive"),
}
#: Of a comment: the call below it is run elsewhere, and this is why.
_ELSEWHERE = "# not in a guest: "
_GROUP = re.compile(r"\[([^\[\]]*)\]")
_FORMS = (str, lambda name: snake_case(name).replace("_", "-"), snake_case)


@dataclass(frozen=True)
class Call:
    """``line`` is the reference's, ``words`` are what follows qre-tool."""

    line: str
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        return next(word for word in self.words if not word.startswith("-"))


def elsewhere() -> dict[str, str]:
    """Each call that is not run in a guest, and why."""
    found = DATA.read_text().splitlines()
    return {below: line.removeprefix(_ELSEWHERE) for line, below in pairwise(found) if line.startswith(_ELSEWHERE)}


def lines() -> list[str]:
    """Each call of the reference in one line."""
    text = re.sub(r"^#.*\n", "", DATA.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def calls(values: Mapping[str, str]) -> Iterator[Call]:
    """All that can be run in a guest, in the reference's order. ``values``: ``<word>`` or ``Field`` -> what stands
    there, or the same behind ``command ``."""
    fields = ""
    others = elsewhere()
    for line in lines():
        if line in others:
            continue
        if "install-session" in line:  # `update-session <device> ...` takes the same
            fields = line.partition("<device> ")[2]
        written = line.replace("<device> ...", f"<device> {fields}").replace(">...", ">")
        for text, number in _variants(written):
            yield Call(line, tuple(_filled(shlex.split(text), number, values)))


def _variants(line: str) -> Iterator[tuple[str, int]]:
    """The line without what may be left out, and with it; which alternative of each value, and form of each name."""
    if "[--dry-run]" in line:
        yield line.replace("[--dry-run]", "--dry-run").replace("[options]", ""), 0
        yield line.replace("[--dry-run]", "").replace("[options]", "options"), 0
        return
    least, whole = _GROUP.sub("", line), _GROUP.sub(r"\1", line)
    yield least, 0
    alternatives = max(word.count("|") + 1 for word in line.split())
    if least != whole or " set " in line or alternatives > 1:
        forms = 1 + max(map(len, SET_ALIASES.values())) if " set " in line else len(_FORMS)
        for number in range(max(forms, alternatives)):
            yield whole, number


def _filled(words: list[str], number: int, values: Mapping[str, str]) -> Iterator[str]:
    words = [word for word in words if word not in ("sudo", "qre-tool")]
    command = next(word for word in words if not word.startswith("-"))
    for word in words:
        name, equals, value = word.partition("=")
        if word == "options":
            yield from values[f"{command} options"].split()
        elif not equals:
            yield _value(word, command, "", number, values)
        else:
            written = _alias(name, number) if command == "set" else _FORMS[number % len(_FORMS)](name)
            yield f"{written}={_value(value, command, name, number, values)}"


def _alias(name: str, number: int) -> str:
    names = (name, *SET_ALIASES[name])
    return names[number % len(names)]


def _value(text: str, command: str, field: str, number: int, values: Mapping[str, str]) -> str:
    """A value that the reference writes itself, one of its alternatives, or one of ours."""
    if ".." in text:
        return text.split("..")[number % 2]
    plain = text.strip("<>")
    if "|" in plain:
        alternatives = plain.split("|")
        return alternatives[number % len(alternatives)]
    if not text.startswith("<"):
        return text
    for key in (f"{command} {field}", field, f"{command} {plain}", plain):
        if key in values:
            return values[key]
    if found := re.fullmatch(r"(\d+)hex", plain):
        return secrets.token_hex(int(found[1]) // 2)
    raise KeyError(f"{command} {field} {text}")
