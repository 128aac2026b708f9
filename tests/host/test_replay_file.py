"""A server that cannot record a hello recognises nobody, and says so; it serves again when it can."""

from __future__ import annotations

import json

import pytest

from qre.reality.replay import FILE_LENGTH
from tests.support.daemons import wait_for
from tests.support.lone_daemon import fill, small_disk
from tests.support.site import PAGE, visit
from tests.support.tunnel import PORT, Tunnel

pytestmark = pytest.mark.root


def test_a_full_disk_makes_every_client_a_stranger_until_there_is_room() -> None:
    with (
        Tunnel("ReconnectMin = 500ms\nReconnectMax = 1s\n") as tunnel,
        small_disk(tunnel.directory / "small") as disk,
    ):
        tunnel.server.environment["QRE_STATE_DIR"] = str(disk)
        tunnel.server.start().wait_ready()
        assert "has no room (No space left on device)" in tunnel.server.said()
        filler = fill(disk)
        tunnel.client.start().wait_ready()
        words = "clients are not recognised: the replay file cannot be written (No space left on device)"
        wait_for("STATUS", lambda: words in str(tunnel.server.notify and tunnel.server.notify.poll()))
        assert words in json.loads(tunnel.server.tool("--json", "show", "server0"))["devices"][0]["status"]
        wait_for("the client's words", lambda: "replay file" in tunnel.client.said())
        assert visit(tunnel.lab.client, tunnel.lab.SERVER, tunnel.site.authority, PORT) == PAGE
        filler.unlink()
        tunnel.client.wait_session()
        assert words not in json.loads(tunnel.server.tool("--json", "show", "server0"))["devices"][0]["status"]
        tunnel.client.stop()
        tunnel.server.stop()


def test_a_disk_that_is_full_later_takes_no_client_away() -> None:
    with Tunnel() as tunnel, small_disk(tunnel.directory / "small", "2m") as disk:
        tunnel.server.environment["QRE_STATE_DIR"] = str(disk)
        tunnel.server.start().wait_ready()
        (replay,) = disk.glob("*.replay")
        assert replay.stat().st_blocks * 512 >= FILE_LENGTH
        fill(disk)
        tunnel.client.start().wait_ready().wait_session()
        assert "replay" not in tunnel.server.said()
        tunnel.client.stop()
        tunnel.server.stop()
