"""A client and a server started and stopped again and again, every fourth time cut off by SIGTERM at some moment of
the start: the exit status is the documented one, and nothing is left.

A short run each time; ``make test-cycles`` sets QRE_CYCLES_ALL for the long one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.cycles import ENDINGS, Cycles
from tests.support.daemons import Daemon
from tests.support.ping import answered
from tests.support.tunnel import SERVER_INNER, Tunnel

ALL = bool(os.environ.get("QRE_CYCLES_ALL"))
CLIENTS, SERVERS = (200, 50) if ALL else (8, 4)
SEED = int(os.environ.get("QRE_CYCLES_SEED", "1"))

pytestmark = [pytest.mark.root, pytest.mark.timeout(7200 if ALL else 600)]


@pytest.fixture(scope="module")
def tunnel() -> Iterator[Tunnel]:
    """A client that takes all of its machine's traffic: its rules and routes must go with it."""
    with Tunnel("ReconnectMin = 500ms\nReconnectMax = 1s\n") as made:
        made.edit("client0", "AllowedIPs", "0.0.0.0/0")
        yield made


def check_ended_as_documented(cycles: Cycles, count: int) -> None:
    """Whole ones with 0, cut ones with 0, or with 143 before there was anything to undo."""
    print({kind: dict(statuses) for kind, statuses in cycles.statuses.items()})
    assert set(cycles.statuses["whole"]) == {0}
    assert set(cycles.statuses["cut"]) <= ENDINGS
    assert sum(sum(statuses.values()) for statuses in cycles.statuses.values()) == count


def test_a_server_begins_and_ends_as_often_as_one_likes(tunnel: Tunnel) -> None:
    cycles = Cycles(tunnel, tunnel.server, Daemon.wait_ready, SEED)
    cycles.run(SERVERS)
    check_ended_as_documented(cycles, SERVERS)


def test_a_client_begins_and_ends_as_often_as_one_likes(tunnel: Tunnel) -> None:
    tunnel.server.start().wait_ready()

    def whole(daemon: Daemon) -> None:
        daemon.wait_ready().wait_session()
        assert answered(tunnel.lab.client, SERVER_INNER) == 5

    cycles = Cycles(tunnel, tunnel.client, whole, SEED)
    cycles.run(CLIENTS)
    check_ended_as_documented(cycles, CLIENTS)
