"""Usage lines and defaults of fields, shared by the help and the manual page."""

from __future__ import annotations

from qre.cli.commands import COMMANDS
from qre.cli.defaults import defaults_of


def default_rows(name: str) -> dict[str, str]:
    """The fields of each row of the table of defaults -> their default."""
    return {", ".join(row.fields): row.text for row in defaults_of(name)}


def usage(name: str) -> str:
    """How a command is written."""
    command = COMMANDS[name]
    return " ".join(filter(None, ("qre-tool", name, "[OPTIONS]" if command.options else "", command.arguments)))
