"""Processes of a tunnel killed while packets flow: they come back, keys go on changing, no packet number repeats.

The daemons run with keys that last two seconds, under a running ping, captured at both ends from before the first
packet on; the last test of the tunnel decrypts everything that was on the wire.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.capture import KeyLog, decrypt
from tests.support.daemons import PATIENCE, Daemon, wait_for
from tests.support.namespaces import Namespace
from tests.support.ping import answered, answers_in_order
from tests.support.tunnel import PORT, SERVER_INNER, Tunnel

#: In one process of a run with several: the last test reads what all have caused.
pytestmark = pytest.mark.xdist_group("kills")
SETTINGS = "RekeyInterval = 2s\nReconnectMin = 500ms\nReconnectMax = 1s\n"
PING_INTERVAL = 0.005
#: A server that was away for so long (seconds) has got a new session: on a busy machine workers take long to begin.
RENEWED = 2.0
#: What a data plane that is killed may take with it: what it had read and not yet written, and what is still on its
#: way under keys that it alone had. Its replacement finds the rest in the sockets; most often nothing is lost.
MOST_LOST = 100
#: Ninth death of a worker within a minute ends the daemon: so often at most is each killed at random moments.
RANDOM_DEATHS = 4
RANDOM_SECONDS = 14


class Pings:
    """A ping that runs until it is stopped, and what was answered."""

    def __init__(self, namespace: Namespace, address: str, log: Path) -> None:
        self.log = log
        command = ["stdbuf", "-oL", "ping", "-n", "-i", str(PING_INTERVAL), address]
        self.process = namespace.popen(command, log=log)

    def answered(self) -> list[int]:
        """Sequence numbers in the order of their answers."""
        return answers_in_order(self.log.read_text())

    def wait(self) -> int:
        """Until answers come again; the sequence number of a new one."""
        before = self.answered()
        wait_for("answers to pings", lambda: len(self.answered()) > len(before))
        return self.answered()[-1]

    def lost(self, first: int, last: int) -> int:
        """How many of these sequence numbers were never answered."""
        return len(set(range(first, last + 1)) - set(self.answered()))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)


class Run:
    """The tunnel with everything that watches it."""

    def __init__(self, stack: ExitStack) -> None:
        self.tunnel = tunnel = stack.enter_context(Tunnel(SETTINGS))
        self.second = tunnel.second_client()
        self.log = stack.enter_context(KeyLog())
        self.dumps = tunnel.captures(stack)
        self.log.watch(tunnel.server.start())
        tunnel.server.wait_ready()
        self.log.watch(tunnel.client.start())
        tunnel.client.wait_ready().wait_session()
        wait_for("the session in the key log", lambda: len(self.log.sessions) == 1)
        (self.session_id,) = self.log.sessions
        self.pings = Pings(tunnel.lab.client, SERVER_INNER, tunnel.directory / "ping.log")
        stack.callback(self.pings.stop)
        self.pings.wait()

    def daemon(self, side: str) -> Daemon:
        return self.tunnel.server if side == "server" else self.tunnel.client

    def follow(self) -> None:
        """The client's session from here on: a server that was away for longer than two seconds has got a new one."""
        wait_for("one session", lambda: len(self.show(self.tunnel.client)["sessions"]) == 1)
        (session,) = self.show(self.tunnel.client)["sessions"]
        self.session_id = bytes.fromhex(session["session_id"])
        wait_for("its keys in the key log", lambda: self.session_id in self.log.epochs)

    @property
    def epoch(self) -> int:
        return self.log.epochs[self.session_id]

    def show(self, daemon: Daemon) -> dict[str, Any]:
        """The one device of this daemon."""
        (device,) = json.loads(daemon.tool("--json", "show", daemon.profile))["devices"]
        assert isinstance(device, dict)
        return device

    def wait_for_workers(self, daemon: Daemon) -> None:
        def ready() -> bool:
            return {process["stage"] for process in self.show(daemon)["processes"]} == {"ready"}

        wait_for(f"all workers of {daemon.profile}", ready, interval=0.5)

    def assert_whole(self, daemon: Daemon) -> None:
        """STATUS and ``show`` are those of a daemon that works, and the session is the one it has."""
        wait_for(f"a STATUS without restarts of {daemon.profile}", lambda: "restarting" not in statuses(daemon)[-1])
        device = self.show(daemon)
        assert device["up"]
        assert device["status"] == statuses(daemon)[-1]
        assert {process["stage"] for process in device["processes"]} == {"ready"}
        sessions = {session["session_id"]: session for session in device["sessions"]}
        assert self.session_id.hex() in sessions, f"the session is gone: {daemon.said()[-2000:]}"
        assert abs(sessions[self.session_id.hex()]["key_epoch"] - self.epoch) <= 1
        if daemon is self.tunnel.server:
            assert device["cid_map"]["in_sync"]
            assert device["shared_loader"]["attached"]
        assert (self.tunnel.directory / "run" / "client0.ready").exists()

    def connect_second(self) -> None:
        """A client that was not there before gets a session, uses it, and leaves."""
        self.log.watch(self.second.start())
        self.second.wait_ready().wait_session()
        assert answered(self.tunnel.lab.client, SERVER_INNER, "-I", "client1") == 5
        assert self.second.stop() == 0


def statuses(daemon: Daemon) -> list[str]:
    """Every STATUS= so far."""
    assert daemon.notify is not None
    return [line.removeprefix("STATUS=") for line in daemon.notify.poll() if line.startswith("STATUS=")]


def refusals(daemon: Daemon) -> list[str]:
    return re.findall(r".*next attempt in.*", daemon.said())


def kill(daemon: Daemon, *names: str) -> None:
    """SIGKILL these processes and wait until others are in their places."""
    before = daemon.workers()
    for name in names:
        os.kill(before[name], signal.SIGKILL)

    def back() -> bool:
        now = daemon.workers()
        return all(now.get(name, before[name]) != before[name] for name in names)

    wait_for(f"{', '.join(names)} of {daemon.profile}", back)


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    with ExitStack() as stack:
        made = Run(stack)
        yield made


@pytest.mark.parametrize(
    ("sides", "names"),
    [
        (("server",), ("handshake",)),
        (("server",), ("bpf_loader",)),
        (("server",), ("dataplane",)),
        (("client",), ("handshake",)),
        (("client",), ("dataplane",)),
        (("server", "client"), ("handshake", "dataplane")),
    ],
    ids="+".join,
)
def test_killed_workers_come_back_and_nothing_else_changes(
    run: Run, sides: tuple[str, ...], names: tuple[str, ...]
) -> None:
    daemons = [run.daemon(side) for side in sides]
    first = run.pings.wait()
    told = [len(statuses(daemon)) for daemon in daemons]
    began = time.monotonic()
    for daemon in daemons:
        kill(daemon, *names)
    run.pings.wait()
    if time.monotonic() - began >= RENEWED:
        run.follow()
    epoch = run.epoch
    run.connect_second()
    wait_for("three more rekeys", lambda: run.epoch >= epoch + 3)
    for daemon, before in zip(daemons, told, strict=True):
        run.assert_whole(daemon)
        for name in names:
            assert any("restarting" in said and name in said for said in statuses(daemon)[before:])
    lost = run.pings.lost(first, run.pings.wait())
    print(f"{'+'.join(sides)}, {'+'.join(names)}: {lost} pings lost, {run.epoch - epoch} rekeys")
    assert lost <= (MOST_LOST * len(sides) if "dataplane" in names else 0)


def test_workers_killed_at_random_moments_cost_packets_or_a_new_session_and_nothing_else(run: Run) -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    first, session_id, done = run.pings.wait(), run.session_id, 0
    left = {
        (side, name): RANDOM_DEATHS
        for side in ("server", "client")
        for name in ("handshake", "dataplane", "netlink", "bpf_loader")
        if (side, name) != ("client", "bpf_loader")
    }
    deadline = time.monotonic() + RANDOM_SECONDS
    while left and (time.monotonic() < deadline or done <= 5):
        time.sleep(dice.uniform(0, 1.2))
        side, name = dice.choice(sorted(left))
        pid = run.daemon(side).workers().get(name)
        if pid is None:
            continue  # it is not back yet, or has not got as far as its name
        os.kill(pid, signal.SIGKILL)
        done += 1
        left[side, name] -= 1
        if not left[side, name]:
            del left[side, name]
    for side in ("server", "client"):
        run.wait_for_workers(run.daemon(side))
    run.pings.wait()
    run.follow()
    epoch = run.epoch
    run.connect_second()
    wait_for("three more rekeys", lambda: run.epoch >= epoch + 3)
    for side in ("server", "client"):
        run.assert_whole(run.daemon(side))
    last = run.pings.wait()
    lost, sent = run.pings.lost(first, last), last - first
    session = "the same session" if run.session_id == session_id else "a new session"
    print(f"seed {seed}: {done} kills, {lost} of {sent} pings lost, {session}")


def test_no_packet_number_was_used_twice_under_one_key(run: Run) -> None:
    """Everything that both ends captured, decrypted: kills of any kind included."""
    wait_for("some generations of keys", lambda: run.epoch >= 3)
    run.pings.wait()
    for dump in run.dumps:
        dump.stop()
    epoch = run.epoch
    assert not run.log.missed
    captured = [datagram for dump in run.dumps for datagram in dump.datagrams()]
    found = decrypt(run.log.sessions.values(), captured, PORT)
    print(
        f"{len(captured)} datagrams captured, {found.packets} different 1-RTT packets, {len(found.undecrypted)} not "
        f"decrypted, {len(run.log.sessions)} sessions, {sum(found.other_flows.values())} packets of other flows"
    )
    print("\n".join(f"{client.profile} {line}" for client in run.tunnel.daemons for line in refusals(client)))
    for session_id, session in run.log.sessions.items():
        for direction in found.sent_by(session_id):
            assert direction.reused() == [], f"{session}: packet numbers used twice under one key"
            assert direction.wrong_phase == 0
            numbers = [number for _, number in direction.ciphertexts]
            assert len(numbers) == len(set(numbers)), "a number under two generations"
            user_space = direction.numbers_of(user_space=True)
            assert user_space, "the handshake's packets"
            assert {epoch for epoch, _ in user_space} == {0}
            assert direction.numbers_of(user_space=False), "the data plane's packets"
    first = found.sent_by(run.session_id)
    for direction in first:
        print(
            f"{len(direction.ciphertexts)} packets in {len(direction.generations)} generations, "
            f"{len(direction.numbers_of(user_space=True))} of user space, up to number {direction.largest}"
        )
        assert len(direction.generations) >= 3
        assert direction.generations == set(range(direction.epoch + 1)), "every generation was used"
    assert abs(first[0].epoch - epoch) <= 1
    assert len(found.undecrypted) <= found.packets // 1000, found.undecrypted[:20]
