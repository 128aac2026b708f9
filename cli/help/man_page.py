"""qre-tool(8), made of the table of commands and their examples: roff for the macros of man(7), in plain ASCII.

``qre-tool help --man`` prints it, so an installed page always describes the version that printed it.
"""

from __future__ import annotations

from qre import __version__
from qre.cli.commands import COMMANDS, GLOBAL_OPTIONS, GROUPS
from qre.cli.help.examples import EXAMPLES
from qre.cli.help.usage import default_rows, usage

_WIDTH = 76  # of a line that is not filled
_ESCAPES = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti", "…": "..."}

_DESCRIPTION = """\
QRE is a VPN whose packets on the wire are an ordinary HTTP/3 connection. qre-tool is its one entry point: it creates
and checks configurations, runs both ends of a tunnel, shows their state, and has commands that test each part.
"""
_FIELDS = """\
Arguments of the form Key=Value are fields. A field's name may be written as ServerName, server-name, server_name or
servername. Those in brackets may be left out. A word -- ends the options.
"""
_ENVIRONMENT = {
    "QRE_CONFIG_DIR": "the directory of the profiles",
    "QRE_GLOBAL_CONFIG": "the global configuration file; optional",
    "QRE_HIDE_KEYS": "never: strip and showconf print secrets",
    "QRE_LOG": "how much a daemon says: debug, info, warning or error",
    "NO_COLOR": "not empty: no colours on a terminal, either",
    "QRE_DEBUG": "1: a failure prints where in the program it happened",
}
_FILES = {
    "/etc/qre/qre.conf": "the global configuration; optional",
    "/etc/qre/dev/*.conf": "the profiles",
    "/var/lib/qre": "the state of profiles that are up",
    "/run/qre": "the control sockets of running daemons",
}
_EXIT_STATUS = """\
0 is success. 2 is failure, with one line on standard error: what failed, why, and what to do. Wrong arguments or a
wrong configuration change nothing. 1 is the end of a daemon that ran and could not go on, or whose address was not
there yet: it may pass by itself, and a service manager starts it again. A signal ends a command silently, with 128
plus its number: 130 after Ctrl-C, 143 when SIGTERM ends up, reload or down, 141 when standard output is closed. A
daemon that is stopped by SIGTERM or SIGINT and ends cleanly exits with 0.
"""


def man_page() -> str:
    """The whole page."""
    lines = [
        f'.TH QRE\\-TOOL 8 "" "QRE {_escaped(__version__)}" "System Administration"',
        ".nh",
        ".ad l",
        ".SH NAME",
        "qre\\-tool \\- a VPN inside of HTTP/3",
        ".SH SYNOPSIS",
        ".B qre\\-tool",
        '.RI [ OPTIONS ] " COMMAND " [ ARGUMENTS ]',
        ".SH DESCRIPTION",
        *_text(_DESCRIPTION),
        ".PP",
        *_text(_FIELDS),
        ".SH OPTIONS",
        "Before or after the command:",
        *_definitions(GLOBAL_OPTIONS),
    ]
    for heading, commands in GROUPS.items():
        lines.append(f'.SH "{_escaped(heading.partition(":")[0]).upper()}"')
        for name in commands:
            lines += _command(name)
    lines += [".SH ENVIRONMENT", *_definitions(_ENVIRONMENT), "The others are in", ".BR qre.conf (5)."]
    lines += [".SH FILES", *_definitions(_FILES)]
    lines += [".SH EXIT STATUS", *_text(_EXIT_STATUS), ".SH SEE ALSO", ".BR qre.conf (5)"]
    return "\n".join(lines) + "\n"


def _command(name: str) -> list[str]:
    command = COMMANDS[name]
    words = usage(name).split()
    lines = [f".SS {_escaped(name)}", f"\\fB{_escaped(' '.join(words[:2]))}\\fR", *_text(" ".join(words[2:]))]
    lines += [".PP", *_text(f"{command.summary[0].upper()}{command.summary[1:]}.")]
    lines += _explained(command.text)
    if defaults := default_rows(name):
        lines += [*_text("When a field is not given:"), *_definitions(defaults)]
    lines += _definitions(command.options)
    for call, meaning in EXAMPLES.get(name, ()):
        comment = _broken(meaning, "# ", "# ", "") if meaning else []
        lines += _literal([*comment, *_broken(call, "", "  ", " \\")])
    return lines


def _explained(text: str) -> list[str]:
    """Paragraphs; indented lines are rows of a table: a term, blanks, its meaning."""
    lines = [".PP"]
    for line in text.rstrip().split("\n"):
        term, _, meaning = line.strip().partition("  ")
        if not line.startswith(" "):
            lines += _text(line)
        elif meaning:
            lines += [".TP", _protected(term), *_text(meaning)]
        else:
            lines += [".PP", _protected(term)]
    return [*lines, ".PP"]


def _definitions(entries: dict[str, str]) -> list[str]:
    lines = []
    for term, meaning in entries.items():
        lines += [".TP", f"\\fB{_escaped(term)}\\fR", *_text(meaning)]
    return [*lines, ".PP"] if lines else []


def _literal(lines: list[str]) -> list[str]:
    """Lines that are not filled."""
    return [".PP", ".nf", ".in 2n", *(_protected(line) for line in lines), ".in", ".fi", ".PP"]


def _broken(text: str, first: str, following: str, end: str) -> list[str]:
    """``text`` on as many lines as a terminal of 80 columns needs; ``end`` is written where a line goes on."""
    lines = [first]
    for word in text.split(" "):
        if lines[-1] not in (first, following) and len(lines[-1]) + 1 + len(word) > _WIDTH:
            lines[-1] += end
            lines.append(following)
        lines[-1] += word if lines[-1] in (first, following) else f" {word}"
    return lines


def _text(text: str) -> list[str]:
    return [_protected(line) for line in text.strip().split("\n") if line]


def _protected(line: str) -> str:
    """Escape a line that begins like a roff request."""
    escaped = _escaped(line)
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def _escaped(text: str) -> str:
    return "".join(_ESCAPES.get(letter, letter if letter.isascii() else "?") for letter in text)
