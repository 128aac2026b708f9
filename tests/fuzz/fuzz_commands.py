"""Calls of qre-tool and its files, of real and broken parts: ``python -m tests.fuzz.fuzz_commands [CASES [NUMBER]]``.

The oracle: the status is 0 or 2 (141 when nobody reads), nothing hangs, a failure says at least one line that begins
with the program's name, and none is a traceback or an internal error. It runs as nobody, in a network of its own and
without capabilities, so that no call can do harm; started as another user than root it stays what it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import signal
import sys
import tempfile
from pathlib import Path
from random import Random
from typing import Final

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from qre.cli.commands import COMMANDS, GLOBAL_OPTIONS
from qre.cli.main import main
from qre.config.keys import snake_case

_NOBODY: Final = 65_534
_CLONE_NEWNET: Final = 0x4000_0000
_LIMIT: Final = 120  # seconds that one call may take, also on a machine with much else to do
_FILES: Final = (
    "server0.conf",
    "client0.conf",
    "fuzzed.conf",
    "dev",
    "fifo",
    "/dev/zero",
    "/dev/null",
    "nowhere",
    "",
)
#: They speak or wait by design, and take no notice of what they are told before.
_LEFT_OUT: Final = ("watch", "pubkey")
_JUNK: Final = (
    "", "-", "--", "=", "==", "\n", "\t", "\udcff", "\x1b[31m", "é", "١٢", "٣.٤", "x" * 300, "A" * 70_000, "%i",
    "$(id)", "`id`",
    "../../etc", "/", "0", "-1", "18446744073709551616", "1e9", "0x10", "true", "FALSE", "nan", "10.0.0.0/33", "::/0",
    "1.2.3.4:65536", "[::1]:443", "host:0", "a" * 64 + ".example", "00", "0" * 41, "gg" * 20, "22" * 20, "{}",
    "\u202e",
)  # fmt: skip
_CONFIG_VALUES: Final = (
    "server", "client", "10.77.0.1/24", "fd00::1/64", "0.0.0.0:443", "192.0.2.1:443", "site.example:443", "1380",
    "true",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "01,02", "30s", "5m", "qre0", "/nonexistent", "debug", "user",
)  # fmt: skip


class Generator:
    """Everything from one source of randomness, which hypothesis makes simpler once there is a find."""

    def __init__(self, random: Random) -> None:
        self._random = random
        from qre.config.keys import GLOBAL_KEYS, PROFILE_KEYS

        self._keys = [*GLOBAL_KEYS, *PROFILE_KEYS]

    def words(self) -> list[str]:
        pick = self._random.choice
        words = [pick([name for name in COMMANDS if name not in _LEFT_OUT])] if self._random.random() < 0.95 else []
        command = COMMANDS.get(words[0]) if words else None
        if command is not None:
            for argument in command.arguments.split():
                if "=" not in argument and self._random.random() < 0.8:
                    words.append(self._argument(argument))
            for field in command.fields():
                if self._random.random() < 0.4:
                    words.append(f"{self._form(field)}={self._value()}")
            options = [option.partition(" ")[0] for option in command.options]
            if options and self._random.random() < 0.3:
                words += [pick(options), self._value()][: self._random.randint(1, 2)]
        for _ in range(self._random.choice((0, 0, 0, 1, 2))):
            words.insert(self._random.randint(0, len(words)), self._random.choice((*_JUNK, *GLOBAL_OPTIONS)))
        return [word.replace("\0", "") for word in words]

    def _argument(self, name: str) -> str:
        if "CONFIG" in name or "FILE" in name or "PCAP" in name:
            return self._random.choice(_FILES)
        if "PROFILE" in name:
            return self._random.choice(("server0", "client0", "fuzzed", *_JUNK))
        return self._random.choice((*name.strip("[]…").lower().split("|"), *_JUNK))

    def _form(self, field: str) -> str:
        forms = (field, field.lower(), snake_case(field), snake_case(field).replace("_", "-"), field.upper())
        return self._random.choice(forms)

    def _value(self) -> str:
        return self._random.choice((*_JUNK, *_CONFIG_VALUES, *_FILES))

    def file(self) -> bytes:
        """A configuration file, more or less."""
        lines = []
        for _ in range(self._random.randint(0, 14)):
            key = self._random.choice((*self._keys, *_JUNK[:12]))
            lines.append(f"{self._form(key) if key.isalpha() else key} = {self._value()}")
        if self._random.random() < 0.2:
            lines.insert(0, self._random.choice(("[Interface]", "[Peer]", "\ufeff[Interface]", "[", "# comment")))
        data = self._random.choice(("\n", "\r\n", "\r")).join(lines).encode("utf-8", "surrogateescape")
        if self._random.random() < 0.3:
            at = self._random.randint(0, len(data))
            data = data[:at] + self._random.randbytes(self._random.randint(1, 40)) + data[at:]
        return data + b"\n" * self._random.randint(0, 1)


class Hang(BaseException):
    """A call did not end."""


def _hang(number: int, frame: object) -> None:
    raise Hang


def try_one(words: list[str]) -> str:
    """What is wrong with how the call ended; empty when nothing is."""
    out, error = io.StringIO(), io.StringIO()
    signal.alarm(_LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            status = main(words)
    except Hang:
        return "it hangs"
    except BaseException as raised:  # noqa: BLE001 - whatever it is, it is a find
        return f"it raised {type(raised).__name__}: {raised}"
    finally:
        signal.alarm(0)
    said = error.getvalue()
    if status not in (0, 2):
        return f"status {status}"
    if "Traceback" in said or "internal error" in said:
        return f"it says {said[:600]!r}"
    if status and not said.startswith("qre-tool: "):
        return f"it fails with {said[:300]!r}"
    return ""


def confine(directory: Path) -> None:
    """Nobody, in a network of its own."""
    if os.geteuid() == 0:
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        for path in (directory, *directory.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    for name in ("QRE_CONFIG_DIR", "QRE_STATE_DIR", "RUNTIME_DIRECTORY"):
        os.environ[name] = str(directory / "dev")
    os.environ |= {"QRE_GLOBAL_CONFIG": str(directory / "none"), "QRE_DATAPLANE": "user", "QRE_MODULE_LOAD": "false"}
    os.chdir(directory)


def prepare(directory: Path) -> None:
    """A pair of profiles, and what is no file."""
    (directory / "dev").mkdir()
    os.environ |= {"QRE_CONFIG_DIR": str(directory / "dev"), "QRE_GLOBAL_CONFIG": str(directory / "none")}
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["init", "Endpoint=192.0.2.1:443", "Dest=192.0.2.2:443", "ServerName=site.example"]) == 0
    for name in ("server0.conf", "client0.conf"):
        os.link(directory / "dev" / name, directory / name)
    os.mkfifo(directory / "fifo")


def run(cases: int, number: int) -> int:
    """0: nothing was found; 1: the simplest call that fails is printed. ``number`` makes the cases the same again."""
    signal.signal(signal.SIGALRM, _hang)
    with tempfile.TemporaryDirectory(prefix="qre-fuzz-") as name:
        directory = Path(name)
        prepare(directory)
        pid = os.fork()
        if pid:  # who made the directory removes it
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        status = 1
        try:
            confine(directory)
            _search(directory, cases, number)
            status = 0
        except BaseException as error:  # noqa: BLE001 - the child ends here, whatever it was
            print(f"{type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(status)


def _search(directory: Path, cases: int, number: int) -> None:
    @seed(number)
    @settings(max_examples=cases, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def search(random: Random) -> None:
        generator = Generator(random)
        for place in (directory / "fuzzed.conf", directory / "dev" / "fuzzed.conf"):
            place.touch(mode=0o600)
            place.write_bytes(generator.file())
        words = generator.words()
        wrong = try_one(words)
        assert not wrong, f"{words!r:.400}: {wrong}"

    search()


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    sys.exit(run(*(numbers + [50_000, 1][len(numbers) :])))
