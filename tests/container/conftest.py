"""A server's and a client's machine for the whole ring, installed as the user guide says, and a site."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.support.container import Container, booted
from tests.support.daemons import wait_for
from tests.support.kernels import ROOT
from tests.support.ping import answered
from tests.support.tunnel import SERVER_INNER, Tunnel

GUIDE = ROOT / "docs" / "user-guide.md"
AUTHORITY = "/etc/qre/authority.pem"


def install_lines() -> list[str]:
    """What the user guide has the user type, but for the set-up, which is done."""
    text = GUIDE.read_text().partition("\n## Install from the tree\n")[2]
    found = re.search(r"```sh\nmake setup .*?\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1].splitlines()


@dataclass
class Machine:
    """One end: a container in which ``unit`` is installed and may run."""

    container: Container
    profile: str

    @property
    def unit(self) -> str:
        return f"qred@{self.profile}.service"

    def told(self, name: str) -> str:
        """What systemd says of the unit."""
        return self.container.check(f"systemctl show --value -p {name} {self.unit}")

    @property
    def pid(self) -> int:
        """The daemon's, as the container numbers it."""
        return int(self.told("MainPID"))

    def journal(self) -> list[str]:
        """All that the unit ever logged."""
        return self.container.check(f"journalctl -o cat -u {self.unit}").splitlines()

    def read(self) -> str:
        return self.container.check(f"cat /etc/qre/dev/{self.profile}.conf") + "\n"

    def write(self, text: str) -> None:
        self.container.check(f"umask 077; cat >/etc/qre/dev/{self.profile}.conf", stdin=text)

    def start(self) -> None:
        """Running, whatever a test before has done to it."""
        self.container.check(f"systemctl reset-failed {self.unit} || true; systemctl start {self.unit}")


@dataclass
class Ends:
    """Both machines, and the network between them."""

    tunnel: Tunnel
    server: Machine
    client: Machine

    def up(self) -> None:
        """Both units run, and packets pass."""
        self.server.start()
        self.client.start()
        wait_for("the session", lambda: "connected to" in self.client.told("StatusText"), interval=0.3)
        wait_for("packets", self.pass_packets)

    def pass_packets(self) -> bool:
        """Whether they do now."""
        return answered(self.tunnel.lab.client, SERVER_INNER, wait=3) == 5


def installed(container: Container, profile: str, text: str, authority: str) -> Machine:
    """A machine on which everything was typed that the guide says, and the profile was written."""
    for line in install_lines():
        container.check(line)
    return configured(container, profile, text, authority)


def configured(container: Container, profile: str, text: str, authority: str) -> Machine:
    """A machine on which QRE is installed, with its profile."""
    container.check(f"mkdir -p /etc/qre/dev; cat >{AUTHORITY}", stdin=authority)
    drop_in = f"[Service]\nEnvironment=SSL_CERT_FILE={AUTHORITY}\n"  # the site's certificate is a test's own
    container.check("d=/etc/systemd/system/qred@.service.d; mkdir $d; cat >$d/site.conf", stdin=drop_in)
    container.check("systemctl daemon-reload")
    machine = Machine(container, profile)
    machine.write(text)
    return machine


@pytest.fixture(scope="package")
def ends() -> Iterator[Ends]:
    """The client's machine has no bpffs."""
    with ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel())
        made = {}
        for name, namespace in (("server0", tunnel.lab.server), ("client0", tunnel.lab.client)):
            container = stack.enter_context(booted(namespace, name, with_bpf=name == "server0"))
            text, authority = tunnel.profile(name).read_text(), tunnel.site.authority.read_text()
            made[name] = installed(container, name, text, authority)
        yield Ends(tunnel, made["server0"], made["client0"])


@pytest.fixture
def up(ends: Ends) -> Ends:
    """Both units run, with a session between them."""
    ends.up()
    return ends
