"""What a command is: its function, its arguments, its options; and the options that are given. Loads nothing."""

from __future__ import annotations


class Options:
    """The given options: the global ones, and the command's own options without a value (``flags``)."""

    __slots__ = ("dry_run", "flags", "json")

    def __init__(self, json: bool = False, dry_run: bool = False, flags: set[str] | None = None) -> None:
        self.json = json
        self.dry_run = dry_run
        self.flags = flags if flags is not None else set()


class Command:
    """``arguments``: the words after the name, as help shows them; those in brackets may be left out, those with
    ``=`` are fields, which the command itself looks after. ``dry_run``: it can print its plan, or changes nothing
    anyway."""

    __slots__ = ("arguments", "dry_run", "options", "summary", "target", "text")

    def __init__(
        self,
        target: str,
        arguments: str,
        summary: str,
        *,
        options: dict[str, str] | None = None,
        text: str = "",
        dry_run: bool = False,
    ) -> None:
        self.target = target
        self.arguments = arguments
        self.summary = summary
        self.options = options or {}  # name, with its value's name after a blank when it takes one -> meaning
        self.text = text
        self.dry_run = dry_run

    def fields(self) -> dict[str, str]:
        """Every field that ``arguments`` and ``text`` speak of as ``Name=VALUE`` -> what they call its value."""
        found: dict[str, str] = {}
        for word in f"{self.arguments} {self.text}".split():
            name = ""
            for part in word.strip("[](),;:.`…").split("|"):  # A=PATH|B=FD are two fields, A=true|false is one
                before, equals, value = part.partition("=")
                if equals and before.isalnum() and before[0].isupper() and before != "Key":
                    name = before if before not in found else ""
                    if name:
                        found[name] = value.strip("[]…")
                elif name:
                    found[name] += f"|{part}"
        return found
