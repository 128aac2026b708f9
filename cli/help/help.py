"""``help``, ``help COMMAND``, ``COMMAND --help``: from the table of commands and their examples."""

from __future__ import annotations

from qre.cli.commands import COMMANDS, GLOBAL_OPTIONS, GROUPS, SYNONYMS, Options
from qre.cli.help.examples import EXAMPLES
from qre.cli.help.usage import default_rows, usage
from qre.cli.laboratory import LABORATORY
from qre.errors import UserError

_WIDEST = 36


def help_command(arguments: list[str], options: Options) -> int:
    """Print the help of everything, or of one command; with ``--man`` the manual page of all of them."""
    if "--man" in options.flags:
        from qre.cli.help.man_page import man_page

        if arguments:
            raise UserError("help --man", "the manual page is about all commands", "write `qre-tool help --man`")
        print(man_page(), end="")
        return 0
    if not arguments:
        print(general_help(), end="")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        from qre.config.keys import did_you_mean

        here = SYNONYMS.get(name.lower(), "").partition(" ")[0]
        remedy = f"see `qre-tool help {here}`" if here else did_you_mean(name, COMMANDS, "see `qre-tool help`")
        raise UserError(f"command {name}", "there is no such command", remedy)
    print(command_help(name), end="")
    return 0


def general_help() -> str:
    """The text of ``qre-tool help``: every command below its heading, the global options and the exit statuses."""
    lines = ["Usage: qre-tool [OPTIONS] COMMAND [ARGUMENTS]"]
    width = max(len(name) for commands in GROUPS.values() for name in commands if commands is not LABORATORY)
    for heading, commands in GROUPS.items():
        rows = {name: command.summary for name, command in commands.items()}
        lines += ["", f"{heading}:", *_rows(rows, width)]
    lines += ["", "Options, before or after the command:", *_rows(GLOBAL_OPTIONS)]
    lines += ["", "`qre-tool help COMMAND` tells more."]
    lines += ["Exit status: 0 success, 2 failure, 1 the end of a daemon that may pass by itself."]
    return "\n".join(lines) + "\n"


def command_help(name: str) -> str:
    """The text of ``qre-tool help NAME``. ``name`` is a key of COMMANDS."""
    command = COMMANDS[name]
    lines = [f"Usage: {usage(name)}", "", f"{command.summary[0].upper()}{command.summary[1:]}."]
    if command.text:
        lines += ["", command.text.rstrip()]
    if defaults := default_rows(name):
        lines += ["", "When a field is not given:", *_rows(defaults)]
    options = command.options | GLOBAL_OPTIONS
    if not command.dry_run:
        del options["--dry-run"]
    lines += ["", "Options:", *_rows(options)]
    lines += ["", "Examples:", *_examples(name)]
    return "\n".join(lines) + "\n"


def _examples(name: str) -> list[str]:
    """Each call below what it does."""
    lines = []
    for call, meaning in EXAMPLES.get(name, ()):
        lines += [f"  # {meaning}"] if meaning else []
        lines.append(f"  {call}")
    return lines


def _rows(options: dict[str, str], least: int = 0) -> list[str]:
    """Two columns, the first at least so wide; a term too wide for it has a line of its own."""
    width = max((len(option) for option in options if len(option) <= _WIDEST), default=0)
    width = max(width, least)
    lines = []
    for option, meaning in options.items():
        fits = len(option) <= _WIDEST
        lines += [] if fits else [f"  {option}"]
        lines.append(f"  {option if fits else '':<{width}}  {meaning}")
    return lines
