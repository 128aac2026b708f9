"""``shared-port-handshake-client`` against a real daemon and a real site."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.daemons import PATIENCE, TOOL
from tests.support.lab import Lab
from tests.support.site import NAME
from tests.support.tunnel import CLIENT_INNER, PORT, Tunnel

pytestmark = pytest.mark.root

NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")


@pytest.fixture(scope="module")
def tunnel() -> Iterator[Tunnel]:
    """The server's daemon alone runs."""
    with Tunnel() as made:
        made.server.start().wait_ready()
        yield made


def client(
    tunnel: Tunnel, *fields: str, profile: str = "client0", trusting: bool = True, prefix: tuple[str, ...] = ()
) -> tuple[int, dict[str, str], list[str]]:
    """Status, what was printed as label and text, lines of standard error."""
    environment = [f"{key}={value}" for key, value in tunnel.client.env.items()]
    if not trusting:
        environment.append("SSL_CERT_FILE=")
    words = [TOOL, "shared-port-handshake-client", str(tunnel.profile(profile)), *fields]
    done = subprocess.run(
        [*tunnel.lab.client.prefix, *prefix, "env", *environment, *words],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    printed = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    return done.returncode, printed, done.stderr.splitlines()


def refused(tunnel: Tunnel, *fields: str, profile: str = "client0", trusting: bool = True) -> str:
    status, printed, said = client(tunnel, *fields, profile=profile, trusting=trusting)
    assert (status, printed, len(said)) == (2, {}, 1), said
    return said[0]


def test_what_was_agreed_is_printed_and_no_privilege_is_wanted(tunnel: Tunnel) -> None:
    links = tunnel.lab.client.ip("-o", "link")
    status, printed, said = client(tunnel, prefix=NO_CAPABILITIES)
    assert (status, said) == (0, [])
    server, _, source = printed["server"].partition(", from ")
    assert server == f"{Lab.SERVER}:{PORT}"
    assert source.startswith(f"{Lab.CLIENT}:")
    assert printed["server name"] == NAME
    assert (printed["cipher"], printed["group"]) == ("AES_128_GCM_SHA256", "X25519MLKEM768")
    assert printed["assigned addresses"] == f"{CLIENT_INNER}/32"
    assert re.fullmatch(r"\d+\.\d ms", printed["round trip"])
    assert re.fullmatch(r"(?:[0-9a-f]{2}){4,20}", printed["connection ID"])
    assert printed["session"] == "not installed"
    assert tunnel.lab.client.ip("-o", "link") == links


def test_both_underlays_can_be_given(tunnel: Tunnel) -> None:
    tunnel.edit("lost", "Endpoint", "192.0.2.7:443", like="client0")
    fields = (f"ServerUnderlay={Lab.SERVER}:{PORT}", f"client-underlay={Lab.CLIENT}:5555")
    status, printed, said = client(tunnel, *fields, profile="lost")
    assert (status, said) == (0, [])
    assert printed["server"] == f"{Lab.SERVER}:{PORT}, from {Lab.CLIENT}:5555"


def test_a_server_that_does_not_recognise_us_is_told_in_one_line(tunnel: Tunnel) -> None:
    tunnel.edit("stranger", "RealityShortId", "00ff00ff00ff00ff", like="client0")
    assert "the real site answered" in refused(tunnel, profile="stranger")


def test_a_server_that_proves_nothing_is_refused(tunnel: Tunnel) -> None:
    tunnel.edit("deceived", "RealityShortId", "00ff00ff00ff00fe", like="client0")
    said = refused(tunnel, profile="deceived", trusting=False)
    assert f"no session with {Lab.SERVER}:{PORT} : another host answers in its place" in said


def test_an_address_that_is_not_granted_is_told(tunnel: Tunnel) -> None:
    tunnel.edit("outside", "Address", "10.99.0.2/24", like="client0")
    said = refused(tunnel, profile="outside")
    assert "it is no client's address in the server's networks (10.99.0.2/24: HTTP status 403)" in said


def test_a_server_that_does_not_answer_is_waited_for_and_no_longer(tunnel: Tunnel) -> None:
    assert "no answer in time" in refused(tunnel, f"ServerUnderlay={Lab.SERVER}:9")


def test_a_server_that_cannot_be_reached_is_told_at_once(tunnel: Tunnel) -> None:
    tunnel.lab.client.ip("route", "del", "default")
    said = refused(tunnel, "ServerUnderlay=192.0.2.7:443")
    tunnel.lab.route_client()
    assert "cannot reach 192.0.2.7" in said and "this machine has no route to it" in said


def test_what_cannot_be_begun_is_refused_in_one_line(tunnel: Tunnel) -> None:
    assert "it is not a client profile" in refused(tunnel, profile="server0")
    assert "does not have that address" in refused(tunnel, "ClientUnderlay=192.0.2.8:5555")
    assert "field ServerUnderlay" in refused(tunnel, "ServerUnderlay=site.test:443")
    assert "qre.ko" in refused(tunnel, "InstallSession=true")
