"""Workers that were taken over, or have a defect: what the supervisor lets them do."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.daemons import wait_for
from tests.support.flooded_supervisor import largest
from tests.support.lone_daemon import client, server

pytestmark = pytest.mark.root


def test_forged_messages_are_dropped_counted_and_logged_once() -> None:
    with server("handshake=forges") as lone:
        daemon = lone.daemon
        daemon.start().wait_ready().wait_status("forged everything")
        shown = {process["role"]: process for process in daemon.shown()["processes"]}
        assert shown["handshake"]["dropped_messages"] == 12
        assert [process["restarts"] for process in shown.values()] == [0] * 4
        assert "192.0.2.1" not in lone.namespace.ip("addr")
        assert daemon.said().count("dropped a message") == 1


@pytest.mark.parametrize("behaviour", ["hands-up", "unpicklable"])
def test_a_worker_that_abuses_its_descriptor_channel_is_killed(behaviour: str) -> None:
    with client(f"handshake={behaviour}") as lone:
        daemon = lone.daemon
        daemon.start()
        assert daemon.ends() == 1, "it does so each time"
        assert "worker handshake" in daemon.said().splitlines()[-1]
        assert "Traceback" not in daemon.said()
        lone.nothing_left()


def test_a_worker_that_talks_without_end_floods_neither_systemd_nor_the_parent() -> None:
    with client("handshake=chatters") as lone:
        daemon = lone.daemon
        daemon.start().wait_ready().wait_status("last words")
        assert daemon.status() == "last words MAINPID=1 [2J", "no other assignment, nothing for a terminal"
        assert daemon.notify is not None
        told = [line for line in daemon.notify.poll() if line.startswith("STATUS=chatter")]
        assert len(told) < 500
        assert daemon.shown()["processes"][-1]["restarts"] == 0


def test_a_worker_that_floods_the_supervisor_neither_fills_it_nor_ends_another_worker() -> None:
    with server("handshake=floods") as lone:
        daemon = lone.daemon
        daemon.start().wait_ready().wait_status("flooded")
        assert largest(daemon.processes()["supervisor"]) < 64 << 20
        assert [process["restarts"] for process in daemon.shown()["processes"]] == [0] * 4


@pytest.fixture
def journal() -> Iterator[tuple[socket.socket, socket.socket, str]]:
    """What the journal listens on, the datagram socket of another program beside it, and the path of the first."""
    with tempfile.TemporaryDirectory() as directory, ExitStack() as held:
        Path(directory).chmod(0o755)
        path = f"{directory}/journal"
        made = [held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in range(2)]
        for each, place in zip(made, (path, f"{path}.other"), strict=True):
            each.bind(place)
            Path(place).chmod(0o666)
        yield made[0], made[1], path


def test_what_the_journal_reads_gives_a_worker_no_way_to_other_programs(
    journal: tuple[socket.socket, socket.socket, str],
) -> None:
    """It has no socket of the journal; its lines come from the supervisor, with the fields of the worker."""
    reads, other, path = journal
    entries: list[list[str]] = []

    def read() -> None:
        while entry := reads.recv(8192):
            entries.append(entry.decode().splitlines())

    reader = threading.Thread(target=read)
    reader.start()
    with client("handshake=points") as lone:
        daemon = lone.daemon
        daemon.log.touch()
        stream = daemon.log.stat()
        daemon.environment |= {"JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino}", "QRE_STRANGE_JOURNAL": path}
        daemon.start().wait_ready()
        assert "reached by []" in daemon.wait_status("reached by")
        assert daemon.stop() == 0
    with pytest.raises(BlockingIOError):
        other.recv(100, socket.MSG_DONTWAIT)
    reads.shutdown(socket.SHUT_RD)
    reader.join()
    ours = ["SYSLOG_IDENTIFIER=qre-tool", "QRE_PROCESS=handshake", "QRE_PROFILE=client0", "QRE_DEVICE=client0"]
    assert ["MESSAGE=qre-tool handshake: a line of its own", "PRIORITY=4", *ours] in entries
    assert ["MESSAGE=QRE_DEVICE=forged", "PRIORITY=6", *ours] in entries


def test_too_many_deaths_end_the_daemon_with_a_failure_and_everything_taken_back() -> None:
    with client("handshake=dies") as lone:
        daemon = lone.daemon
        daemon.start()
        started = time.monotonic()
        assert daemon.ends() == 1
        assert time.monotonic() - started > 3, "after pauses"
        assert daemon.said().splitlines()[-1] == "qre-tool: daemon client0 : worker handshake died too often"
        lone.nothing_left()


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("dies-starting", "worker handshake ended while the daemon started"),
        ("refuses", "this machine has no left shoe; buy a pair"),
        ("fails", "internal error (ValueError)"),
        ("hangs-starting", "handshake did not answer Start"),
    ],
)
def test_a_daemon_whose_worker_cannot_start_ends_at_once_with_the_reason(behaviour: str, words: str) -> None:
    with client(f"handshake={behaviour}") as lone:
        daemon = lone.daemon
        daemon.start()
        assert daemon.ends() == 2
        assert words in daemon.said().splitlines()[-1]
        assert "0123456789" not in daemon.said(), "what an exception holds is not told"
        assert daemon.notify is not None
        assert "READY=1" not in daemon.notify.poll()
        lone.nothing_left()


def test_a_hung_worker_is_found_killed_and_replaced_and_the_watchdog_is_not_fed_meanwhile() -> None:
    with client("dataplane=hangs") as lone:
        daemon = lone.daemon
        daemon.start().wait_ready()
        first = daemon.workers()["dataplane"]
        wait_for("another dataplane worker", lambda: daemon.workers().get("dataplane", first) != first)
        assert "worker dataplane hangs; it is killed" in daemon.said()
        assert daemon.notify is not None
        for _ in range(3):  # it hangs 0.3 s after each start: nobody is alive for long
            daemon.notify.poll()
            daemon.notify.received.clear()
            time.sleep(0.5)
        assert daemon.notify.poll().count("WATCHDOG=1") <= 2


def test_a_worker_that_does_not_stop_is_killed_and_the_end_is_in_order_all_the_same() -> None:
    with client("handshake=hangs-stopping,dataplane=hangs-stopping,netlink=hangs-stopping") as lone:
        daemon = lone.daemon
        daemon.start().wait_ready()
        assert daemon.stop() == 0, "in the time that it gives itself"
        lone.nothing_left()


def test_a_client_gets_a_bounded_number_of_sockets() -> None:
    with client("handshake=asks") as lone:
        daemon = lone.daemon
        daemon.start().wait_ready()
        assert "too many are in use" in daemon.wait_status("8 sockets")


def test_a_servers_worker_gets_no_socket_that_leads_past_a_tunnel() -> None:
    with server("handshake=asks") as lone:
        daemon = lone.daemon
        daemon.start().wait_ready()
        assert "SocketRequest" in daemon.wait_status("0 sockets")


def test_a_restarted_client_is_handed_its_sockets_again() -> None:
    with client("handshake=holds") as lone:
        daemon = lone.daemon
        daemon.start().wait_ready().wait_status("socket 1 is here")
        daemon.kill_worker("handshake")
        assert "socket [1] is here again" in daemon.wait_status("again")
