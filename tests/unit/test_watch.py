"""watch: what `show` tells, again and again, with rates; on a pipe and on a terminal, until Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from qre.cli.main import FAILURE, main
from qre.cli.show.watch import frame, rates
from tests.support.daemons import PATIENCE
from tests.unit.test_show_text import SERVER

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-P", "-m", "qre.cli.main", "watch"]


@contextmanager
def watching(*words: str, **how: Any) -> Iterator[subprocess.Popen[Any]]:
    """The command while it runs; it is gone at the end, whatever it was told."""
    with subprocess.Popen([*COMMAND, *words, "Interval=0.1"], **how) as process:
        try:
            yield process
        finally:
            process.kill()


class Daemon:
    """Answers on a control socket; at each look 10,240 bytes and 10 packets more have come in."""

    def __init__(self, directory: Path) -> None:
        self.looks = 0
        self.listen = SERVER["listen"]
        self.path = directory / "qre0.sock"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                if not connection.makefile().readline():
                    return
                connection.sendall(json.dumps({"ok": True, "device": self._described()}).encode() + b"\n")

    def _described(self) -> dict[str, Any]:
        self.looks += 1
        grown = {"rx_bytes": self.looks * 10_240, "rx_packets": self.looks * 10}
        session = {**SERVER["sessions"][0], **grown}
        return {**SERVER, "listen": self.listen, "counters": {**SERVER["counters"], **grown}, "sessions": [session]}

    def close(self) -> None:
        """An empty call ends the thread."""
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(self.path))
        self._thread.join()
        self._socket.close()


@pytest.fixture(autouse=True)
def program(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started elsewhere finds this program."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def daemon(machine: Path) -> Iterator[Daemon]:
    daemon = Daemon(machine / "run")
    yield daemon
    daemon.close()


def test_a_pipe_gets_one_block_after_another_with_rates_from_the_second_on(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", "qre0", "Interval=0.2", "Count=3"]) == 0
    blocks = capsys.readouterr().out.split("interface: qre0\n")[1:]
    assert len(blocks) == daemon.looks == 3
    assert "\033" not in "".join(blocks)
    assert "  rate: " not in blocks[0]
    for block in blocks[1:]:
        device, session = re.findall(r"  rate: ([0-9.]+) KiB/s \((\d+) packets/s\) received, 0 B/s \(0 ", block)
        assert device == session
        assert abs(float(device[0]) - float(device[1])) <= 1  # of 1024 bytes each


def test_all_devices_are_watched_when_none_is_named(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "Count=1"]) == 0
    assert capsys.readouterr().out.startswith("interface: qre0\n")


def test_nothing_to_see_is_told_and_looked_for_again(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "interval=0.1", "count=2"]) == 0
    assert capsys.readouterr().out == "nothing is up\n\nnothing is up\n"


def test_a_device_must_be_there_at_first_and_may_go_away_later(machine: Path) -> None:
    done = subprocess.run([*COMMAND, "qre0"], capture_output=True, text=True, check=False, cwd=machine)
    assert (done.returncode, done.stdout) == (FAILURE, "")
    assert done.stderr.startswith("qre-tool: device qre0 : it is not up; ")
    daemon = Daemon(machine / "run")
    with watching("qre0", stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "interface: qre0\n"
        daemon.close()
        assert any(line.startswith("qre-tool: device qre0 : it is not up") for line in watch.stdout)
        daemon.path.unlink()
        daemon = Daemon(machine / "run")
        assert any(line == "interface: qre0\n" for line in watch.stdout)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(PATIENCE) == 0
    daemon.close()


def test_ctrl_c_on_a_terminal_ends_it_well_and_leaves_the_terminal_as_it_was(daemon: Daemon) -> None:
    """The screen is drawn over in place: home, every line cleared behind its text, the rest cleared."""
    terminal, other = pty.openpty()
    with watching(stdin=other, stdout=other, stderr=other, start_new_session=True) as watch:
        os.close(other)
        seen = b""
        while seen.count(b"interface") < 3:
            seen += os.read(terminal, 65_536)
        watch.send_signal(signal.SIGINT)
        try:
            while piece := os.read(terminal, 65_536):
                seen += piece
        except OSError:
            pass  # nobody has the other end any more
        assert watch.wait(PATIENCE) == 0
    os.close(terminal)
    assert b"Traceback" not in seen
    assert seen.count(b"\033[H") == seen.count(b"\033[?7l") == seen.count(b"\033[?7h") >= 3
    assert seen.rindex(b"\033[?7h") > seen.rindex(b"\033[?7l")
    assert b"Every 0.1 s: qre-tool show" in seen


def test_who_stops_reading_ends_it(daemon: Daemon) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with watching(stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as watch:
        assert watch.stdout is not None and watch.stderr is not None
        watch.stdout.readline()
        watch.stdout.close()
        assert watch.wait(PATIENCE) == 141
        assert watch.stderr.read() == b""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["Interval=0"], "field Interval : '0' is not a number of seconds from 0.1 to 3600; write Interval=1"),
        (["Interval=nan"], "field Interval : 'nan' is not a number of seconds from 0.1 to 3600; write Interval=1"),
        (["Interval=1e3"], "field Interval : '1e3' is not a number of seconds from 0.1 to 3600; write Interval=1"),
        (["Interval=."], "field Interval : '.' is not a number of seconds from 0.1 to 3600; write Interval=1"),
        (["Interval=3601"], "field Interval : '3601' is not a number of seconds from 0.1 to 3600; write Interval=1"),
        (["Count=0"], "field Count : '0' is not a number from 1 to 1000000000; write Count=10"),
        (["Count=-1"], "field Count : '-1' is not a number from 1 to 1000000000; write Count=10"),
        (["a", "b"], "watch : 2 devices are given, and it takes one; leave it out to see all"),
        (["Intervall=1"], "field 'Intervall' : there is no such field; did you mean Interval?"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], machine: Path
) -> None:
    assert main(["watch", *words]) == FAILURE
    assert capsys.readouterr().err == f"qre-tool: {told}\n"


def test_a_counter_that_began_anew_has_no_rate() -> None:
    before = {"rx_bytes": 1000, "tx_bytes": 0, "rx_packets": 10, "tx_packets": 0}
    after = {"rx_bytes": 3000, "tx_bytes": 50, "rx_packets": 14, "tx_packets": 1}
    assert rates(before, after, 2.0) == {"rx_bytes": 1000, "tx_bytes": 25, "rx_packets": 2, "tx_packets": 0.5}
    assert rates(after, before, 2.0) is None
    assert rates(None, after, 2.0) is None
    assert rates(before, None, 2.0) is None
    assert rates(before, after, 0.0) is None


def test_what_the_terminal_has_no_rows_for_is_counted() -> None:
    drawn = frame([str(number) for number in range(10)], 5, clear=True)
    assert re.sub(r"\033\[[?0-9]*[A-Za-z]", "", drawn) == "0\n1\n2\n… 7 more lines\n"
    assert frame(["a"], 24, clear=False).count("\n") == 1
    assert frame(["a", "b", "c"], 1, clear=False)
