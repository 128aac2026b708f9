"""refresh: a look at a real HTTP/3 site, kept for the daemon, printed for a person; and a site that is not there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.namespaces import Namespace
from tests.support.profiles import SERVER, write_profile
from tests.support.site import NAME, Caddy

TOOL = str(Path(sys.executable).parent / "qre-tool")


class Place:
    """A namespace with a site on its loopback, and a profile that is up there."""

    def __init__(self, directory: Path) -> None:
        self.namespace = Namespace("t-refresh")
        self.directory = directory
        self.caddy: Caddy | None = None
        text = SERVER.replace("www.example.org:443", f"127.0.0.1:443\nServerName = {NAME}")
        write_profile(directory, "qre0", text)

    def start_site(self) -> None:
        self.caddy = Caddy(self.namespace, self.directory / "site", "127.0.0.1")

    def tool(self, *words: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "QRE_CONFIG_DIR": str(self.directory),
            "QRE_GLOBAL_CONFIG": str(self.directory / "none"),
            "QRE_STATE_DIR": str(self.directory / "state"),
            "RUNTIME_DIRECTORY": str(self.directory / "run"),
            "QRE_DATAPLANE": "user",
        }
        if self.caddy is not None:
            environment["SSL_CERT_FILE"] = str(self.caddy.authority)
        command = [*self.namespace.prefix, *prefix, TOOL, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)

    def close(self) -> None:
        if self.caddy is not None:
            self.caddy.stop()
        self.namespace.delete()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    try:
        assert place.tool("up", "qre0").returncode == 0
        yield place
        assert place.tool("down", "qre0").returncode == 0
    finally:
        place.close()
    assert not Path("/run/netns", place.namespace.name).exists()


def told(output: str) -> dict[str, str]:
    return {label: text.strip() for label, _, text in (line.partition(":") for line in output.splitlines())}


def test_a_site_is_looked_at_and_kept(place: Place) -> None:
    place.start_site()
    done = place.tool("refresh", "qre0")
    assert (done.returncode, done.stderr) == (0, "")
    shown = told(done.stdout)
    assert shown["dest"] == f"127.0.0.1:443, server name {NAME}"
    assert shown["reachable"] == "yes"
    assert re.fullmatch(r"fresh, checked (now|\d+ seconds? ago)", shown["profile"])
    assert shown["alpn"] == "h3"
    assert shown["cipher"].startswith("AES_")
    assert re.match(r"\d+ bytes of handshake; datagrams of \d+", shown["flight"])
    assert re.match(r"\d+ bytes, expires \d{4}-\d\d-\d\d", shown["certificate chain"])
    assert shown["http status"] == "200"
    kept = place.directory / "state" / "qre0.dest"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept.read_text())["reachable"] is True


def test_a_site_that_is_gone_is_an_error_and_what_was_seen_of_it_stays_known(place: Place) -> None:
    place.start_site()
    assert place.tool("refresh", "qre0").returncode == 0
    assert place.caddy is not None
    place.caddy.stop()
    (place.directory / "none").write_text("DestProfileTtl = 1s\n")
    time.sleep(1)
    done = place.tool("refresh", "qre0")
    assert done.returncode == 2
    assert done.stderr.startswith("qre-tool: Dest 127.0.0.1:443 : it cannot be reached")
    shown = told(done.stdout)
    assert shown["reachable"] == "no"
    assert re.fullmatch(r"stale, checked \d+ seconds? ago", shown["profile"])
    assert shown["alpn"] == "h3"
    assert json.loads((place.directory / "state" / "qre0.dest").read_text())["reachable"] is False


def test_a_site_that_never_was_there_is_an_error(place: Place) -> None:
    done = place.tool("refresh", "qre0")
    assert done.returncode == 2
    assert told(done.stdout)["profile"] == "none yet"


def test_it_needs_the_capability_to_change_the_network_and_no_other(place: Place) -> None:
    place.start_site()
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-all", "--")
    done = place.tool("refresh", "qre0", prefix=without)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qre-tool: refresh : it needs CAP_NET_ADMIN, which is missing; run it as root")
    assert done.stderr.count("\n") == 1
    assert not (place.directory / "state" / "qre0.dest").exists()
    done = place.tool(
        "refresh", "qre0", prefix=("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all", "--")
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_device_is_an_error(place: Place) -> None:
    done = place.tool("refresh", "qre9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("qre-tool: device qre9 : it is not up")
