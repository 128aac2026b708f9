"""Changes to the text of a server's profile that leave everything else as its author wrote it. Sans-IO.

Takes and returns the whole file. Where things stand is said by ``parse_entries``, as when the file is read; the
caller has checked that it is valid, and reads the result again before it writes it.
"""

from __future__ import annotations

from qre.config.keys import PROFILE_KEYS
from qre.config.model import ClientSection
from qre.config.normalise import client_values
from qre.config.syntax import SECTION, Entry, Problems, parse_entries
from qre.config.values import parse_short_id


def add_section(text: str, section: ClientSection) -> str:
    """With a section at the end."""
    lines = [f"[Client {section.name}]"]
    for key, value in client_values(section).items():
        written = value if isinstance(value, str) else ", ".join(value)
        lines += [f"{key} = {written}"] if written else []
    return "\n".join([*_without_blank_end(text.split("\n")), "", *lines, ""])


def remove_section(text: str, name: str) -> str:
    """Without the section, and without the comment that stands directly above its header. KeyError when there is
    none."""
    header, last = _section(text, name)
    lines = text.split("\n")
    first = header.line - 1
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    before, after = lines[:first], lines[last:]
    while before and not before[-1].strip() and after and not after[0].strip():
        after = after[1:]
    return "\n".join([*_without_blank_end([*before, *after]), ""])


def rename_section(text: str, name: str, new: str) -> str:
    """With another name in the section's header; a comment behind it stays. KeyError when there is none."""
    header, _ = _section(text, name)
    lines = text.split("\n")
    line = lines[header.line - 1]
    lines[header.line - 1] = f"[Client {new}]{line[line.index(']') + 1 :]}"
    return "\n".join(lines)


def remove_short_id(text: str, short_id: bytes) -> str:
    """Without this entry of RealityShortIds; a line that has no other goes."""
    lines = text.split("\n")
    for entry in reversed(_interface(text)):
        if entry.key == "RealityShortIds":
            ids = [each.strip() for each in entry.text.split(",")]
            left = [each for each in ids if parse_short_id(each) != short_id]
            if len(left) < len(ids):
                lines[entry.line - 1 : entry.line] = [f"RealityShortIds = {', '.join(left)}"] if left else []
    return "\n".join(lines)


def set_key(text: str, key: str, value: str | None) -> str:
    """With this value of a key of the interface, which is no hook; None: without the key. The lines of a list become
    one."""
    lines = text.split("\n")
    entries = _entries(text)
    there = [entry.line for entry in _interface(text) if entry.key == key]
    written = [f"{key} = {value}"] if value is not None else []
    if there:
        for line in there[:0:-1]:
            del lines[line - 1]
        lines[there[0] - 1 : there[0]] = written
        return "\n".join(lines)
    section = next((entry for entry in entries if entry.key == SECTION), None)
    if section is None:
        return "\n".join([*_without_blank_end(lines), *written, ""])
    at = max((entry.line for entry in _interface(text)), default=0)
    return "\n".join([*lines[:at], *written, *lines[at:]])


def keys_of(text: str) -> list[str]:
    """The keys of the interface that the file has, each once, in their order."""
    return list(dict.fromkeys(entry.key for entry in _interface(text)))


def _entries(text: str) -> list[Entry]:
    return parse_entries(text.encode(), PROFILE_KEYS, Problems(""))


def _interface(text: str) -> list[Entry]:
    entries = _entries(text)
    end = next((at for at, entry in enumerate(entries) if entry.key == SECTION), len(entries))
    return entries[:end]


def _section(text: str, name: str) -> tuple[Entry, int]:
    """Its header, and the line number of its last entry."""
    found: Entry | None = None
    last = 0
    for entry in _entries(text):
        if entry.key == SECTION and found is not None:
            break
        if entry.key == SECTION and entry.text == name:
            found = entry
        last = entry.line
    if found is None:
        raise KeyError(name)
    return found, last


def _without_blank_end(lines: list[str]) -> list[str]:
    left = list(lines)
    while left and not left[-1].strip():
        left.pop()
    return left
