"""``qre-tool``: finds the command, passes its arguments, and turns every failure into one line and exit status 2.

Loads nothing but the table of commands; a command's module is imported when it is called. No failure prints a
traceback unless QRE_DEBUG=1.
"""

from __future__ import annotations

# `signal` itself loads enum, a third of what `help` and completion take. No stub describes the module below it.
import _signal  # type: ignore[import-not-found]
import os
import sys

from qre.cli import standard_output
from qre.cli.commands import COMMANDS, GLOBAL_OPTIONS, SYNONYMS, Command, Options
from qre.errors import MachineError, PassingError, QreError, UserError, UserErrors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

FAILURE = 2
#: What may pass by itself (PassingError).
PASSING = 1
INTERRUPTED = 130  # 128 + SIGINT
NOBODY_READS = 141  # 128 + SIGPIPE, as if the signal had ended us
#: Modules that the distribution brings -> its package.
_DEBIAN = {"bcc": "python3-bpfcc", "seccomp": "python3-seccomp", "capng": "python3-cap-ng"}
_COMPLETE = "__complete"  # called by the scripts of `completion`, not by people; every word after it is an argument


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names in any encoding can be printed
    try:
        status = _run(words)
        _flush()
    except Exception as error:
        if os.environ.get("QRE_DEBUG") == "1":
            raise
        return _report(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _run(words: list[str]) -> int:
    if words[:1] == [_COMPLETE]:
        return _call("qre.cli.completion:complete", words[1:], Options())
    name, rest, options, wants_help = _split(words)
    if name is None:
        if wants_help:
            return _call("qre.cli.help.help:help_command", [], options)
        raise UserError("command", "none is given", "run `qre-tool help`")
    command = COMMANDS.get(name)
    if command is None:
        here = SYNONYMS.get(name.lower())
        remedy = f"write `qre-tool {here}`" if here else _remedy(name, COMMANDS, "help")
        raise UserError(f"command {_quoted(name)}", "there is no such command", remedy)
    if wants_help:
        return _call("qre.cli.help.help:help_command", [name], options)
    rest = _check_words(name, command, rest, options)
    if options.dry_run and not command.dry_run:
        raise UserError("option --dry-run", f"{name} has no plan to print", "leave the option out")
    return _call(command.target, rest, options)


def _split(words: list[str]) -> tuple[str | None, list[str], Options, bool]:
    """The command, its own arguments, the global options wherever they stand, and whether help is asked for."""
    options = Options()
    name: str | None = None
    rest: list[str] = []
    wants_help = False
    for index, word in enumerate(words):
        if word == "--":
            rest += words[index:]
            break
        if word == "--json":
            options.json = True
        elif word == "--dry-run":
            options.dry_run = True
        elif word in ("--help", "-h"):
            wants_help = True
        elif word == "--version" and name is None:
            name = "version"
        elif name is None and word.startswith("-"):
            raise UserError(
                f"option {_quoted(word)}", "there is no such option", _remedy(word, GLOBAL_OPTIONS, "help")
            )
        elif name is None:
            name = word
        else:
            rest.append(word)
    return name, rest, options, wants_help


def _check_words(name: str, command: Command, rest: list[str], options: Options) -> list[str]:
    """The words without flags, which are added to ``options``. Refuses unknown options, and
    arguments that are missing or too many."""
    own = [option.partition(" ")[0] for option in command.options]
    with_value = [option.partition(" ")[0] for option in command.options if " " in option]
    kept: list[str] = []
    count = 0
    words = iter(rest)
    for word in words:
        if word == "--":
            others = list(words)
            count += len(others)
            kept += [word, *others] if with_value else others
        elif not word.startswith("-") or word == "-":
            count += 1
            kept.append(word)
        else:
            option, equals, _ = word.partition("=")
            if option not in own or (equals and option not in with_value):
                remedy = _remedy(option, [*own, *GLOBAL_OPTIONS], f"help {name}")
                raise UserError(f"option {_quoted(word)}", f"{name} has no such option", remedy)
            if option not in with_value:
                options.flags.add(option)
                continue
            value = None if equals else next(words, None)
            if not equals and value is None:
                raise UserError(f"option {option}", "its value is missing", f"see `qre-tool help {name}`")
            kept += [word] if value is None else [word, value]
    _check_count(name, command.arguments, count)
    return kept


def _check_count(name: str, arguments: str, count: int) -> None:
    expected = arguments.split()
    plain = [argument for argument in expected if "=" not in argument]  # the command itself checks its fields
    least = sum(not argument.startswith("[") for argument in plain)
    usage = f"write `{f'qre-tool {name} {arguments}'.rstrip()}`"
    if count < least:
        raise UserError(name, f"{plain[count]} is missing", usage)
    if plain == expected and count > len(expected):
        takes = f"it takes {len(expected)}" if expected else "it takes none"
        raise UserError(name, f"{count} arguments are given, and {takes}", usage)


def _call(target: str, rest: list[str], options: Options) -> int:
    module, _, name = target.partition(":")
    function = getattr(__import__(module, fromlist=("_",)), name)
    quiet = _signal.getsignal(_signal.SIGINT) == _signal.SIG_DFL  # as the script qre-tool leaves it
    if quiet:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    try:
        status: int = function(rest, options)
    finally:
        if quiet:
            _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    return status


def _remedy(word: str, choices: Iterable[str], topic: str) -> str:
    from qre.config.keys import did_you_mean

    return did_you_mean(word, choices, f"see `qre-tool {topic}`")


def _quoted(word: str) -> str:
    return word if word.isprintable() and word and len(word) <= 64 else repr(word[:64])


# --- failures ---


def _report(error: Exception) -> int:
    """One line on standard error for each error; none when only the reader of standard output is gone."""
    if isinstance(error, BrokenPipeError) and not _is_read():
        standard_output.silence()
        return NOBODY_READS
    try:
        _flush()  # output from before the failure comes first
    except (BrokenPipeError, MachineError):
        standard_output.silence()
    for each in error.errors if isinstance(error, UserErrors) else (error,):
        complain(each)
    return PASSING if isinstance(error, PassingError) else FAILURE


def _flush() -> None:
    """Flush standard output while a failure can still be reported."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise MachineError("standard output", error.strerror or str(error), "give it somewhere to write") from None


def complain(error: Exception) -> None:
    """``qre-tool: <what> : <why>; <what to do>``."""
    priority = ""
    if "JOURNAL_STREAM" in os.environ:
        from qre.ipc.journal import ERROR, priority_mark

        priority = priority_mark(ERROR)
    try:
        print(priority + error_line(error), file=sys.stderr, flush=True)
    except OSError:
        return  # there is no reader; the exit status remains


def error_line(error: Exception) -> str:
    """The line for an error, without control characters."""
    what, why, remedy = _describe(error)
    line = f"qre-tool: {what}" + (f" : {why}" if why else "") + (f"; {remedy}" if remedy else "")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


def _describe(error: Exception) -> tuple[str, str, str]:
    if isinstance(error, QreError):
        return error.what, error.why, error.remedy
    if isinstance(error, ImportError):
        name = error.name or "a Python module"
        debian = _DEBIAN.get(name.partition(".")[0])
        remedy = f"apt install {debian}" if debian else "install QRE with what it depends on (`make setup`)"
        return name, f"cannot be loaded: {error.msg}", remedy
    if isinstance(error, OSError) and error.strerror:
        what = error.filename if isinstance(error.filename, str) else "system call"
        return what, error.strerror, "check its path, owner and mode, or run qre-tool as root"
    return (
        "internal error",
        f"{type(error).__name__}: {error}",
        "run it again with QRE_DEBUG=1 and report what it prints",
    )


def _is_read() -> bool:
    """Whether the other end of standard output is open."""
    import select

    poll = select.poll()
    poll.register(1, 0)
    return not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))  # a pipe, a socket


if __name__ == "__main__":
    sys.exit(main())
