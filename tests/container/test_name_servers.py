"""DNS with a real systemd-resolved, under the unit: names are asked through the tunnel, and then as before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.container.conftest import Ends
from tests.support.daemons import wait_for
from tests.support.tunnel import SERVER_INNER

ANSWER = "192.0.2.77"
#: Answers every question for an address with ANSWER.
_SERVER = f"""
import socket
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
made.bind(("{SERVER_INNER}", 53))
while True:
    asked, peer = made.recvfrom(512)
    end = asked.index(0, 12) + 5
    is_a = asked[end - 4 : end - 2] == bytes((0, 1))
    answer = bytes.fromhex("c00c00010001000000000004") + socket.inet_aton("{ANSWER}")
    counts = bytes((0, 1, 0, is_a, 0, 0, 0, 0))
    made.sendto(asked[:2] + b"\\x81\\x80" + counts + asked[12:end] + answer * is_a, peer)
"""

pytestmark = pytest.mark.timeout(900)


@contextlib.contextmanager
def name_server(ends: Ends) -> Iterator[None]:
    """On the server's inner address."""
    script = f"cat >/run/names.py <<'END'\n{_SERVER}END\n"
    ends.server.container.check(f"{script}systemd-run --unit=names /usr/bin/python3 /run/names.py")
    try:
        yield
    finally:
        ends.server.container.check("systemctl stop names")


def test_names_are_asked_through_the_tunnel_until_the_daemon_ends_however_it_ends(up: Ends) -> None:
    machine = up.client
    text = machine.read()

    def found() -> bool:
        return ANSWER in machine.container.run("getent ahostsv4 www")[1]

    def asked_as_before() -> bool:
        return SERVER_INNER not in machine.container.check("resolvectl dns; resolvectl domain")

    with name_server(up):
        try:
            machine.write(f"{text}DNS = {SERVER_INNER}, example.internal\n")
            assert not found() and asked_as_before()
            machine.container.check(f"systemctl reload {machine.unit}")
            wait_for("the name", found)
            said = machine.container.check("resolvectl status client0")
            assert SERVER_INNER in said and "example.internal ~." in said and "+DefaultRoute" in said
            assert "systemd-resolved will be told" in machine.container.run("qre-tool check client0")[1]
            machine.container.check(f"kill -KILL {machine.pid}")
            wait_for("the name again", lambda: machine.told("NRestarts") != "0" and found(), interval=0.3)
            machine.container.check(f"systemctl stop {machine.unit}")
            assert asked_as_before()
            machine.start()
            wait_for("the name, after a start", found)
            machine.container.check(f"systemctl kill --signal=KILL {machine.unit}; systemctl stop {machine.unit}")
            wait_for("what it was", asked_as_before)
        finally:
            machine.container.run(f"systemctl stop {machine.unit}")
            machine.write(text)
