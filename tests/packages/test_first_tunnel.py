"""The user guide's eight commands from two bare machines to a ping, typed as they stand there, and timed."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.container.conftest import AUTHORITY
from tests.packages.conftest import BCC, NEEDS, Packages
from tests.support.container import TREE, Container, booted, image
from tests.support.kernels import ROOT
from tests.support.lab import Lab
from tests.support.site import NAME
from tests.support.tunnel import Tunnel

pytestmark = pytest.mark.timeout(1800)  # it may have to build the packages and to make a Debian

PAGE = ROOT / "docs" / "user-guide.md"
GOAL = 8
#: Debian's installer brings it, debootstrap's smallest variant does not.
PING = "iputils-ping"
#: Said before them, for what a test has of its own: a site's authority and names, and nobody who confirms.
AROUND = f"""
export SSL_CERT_FILE={AUTHORITY}
mkdir -p /root /etc/qre /etc/systemd/system/qred@.service.d
cat >{AUTHORITY}
printf '[Service]\\nEnvironment=SSL_CERT_FILE={AUTHORITY}\\n' >/etc/systemd/system/qred@.service.d/site.conf
echo 'APT::Get::Assume-Yes "true";' >/etc/apt/apt.conf.d/90-nobody-confirms
echo {Lab.SITE} {NAME} >>/etc/hosts
echo {Lab.SERVER} vpn.example.net >>/etc/hosts
cp {TREE}/qre_*.deb /root
apt-get install {PING} >/dev/null
"""


def commands() -> list[tuple[str, str]]:
    """(machine, command) in their order."""
    section = PAGE.read_text().partition("\n## From nothing to a ping\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```sh\n# on the (\w+)\n(.*?)```", section, re.DOTALL)
    return [(machine, line) for machine, text in blocks for line in text.splitlines()]


@pytest.fixture
def bare(packages: Packages) -> Iterator[dict[str, Container]]:
    """Two minimal machines that have what apt would download."""
    system = image((*NEEDS, BCC, PING))
    with ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel())
        made = {
            name: stack.enter_context(
                booted(namespace, name, with_bpf=name == "server", system=system, tree=packages.directory)
            )
            for name, namespace in (("server", tunnel.lab.server), ("client", tunnel.lab.client))
        }
        for container in made.values():
            container.check(AROUND, stdin=tunnel.site.authority.read_text())
        yield made


def test_eight_commands_lead_from_nothing_to_a_ping(
    bare: dict[str, Container], record_property: pytest.RecordProperty
) -> None:
    typed = commands()
    assert len(typed) == GOAL
    link, said, began = "", "", time.monotonic()
    for machine, command in typed:
        began_one = time.monotonic()
        script = f"cd /root\nexport SSL_CERT_FILE={AUTHORITY}\n{command.replace('www.example.org', NAME)}"
        said = bare[machine].check(script, stdin=f"{link}\n" if "import -" in command else "", timeout=600)
        record_property(command, round(time.monotonic() - began_one, 1))
        if found := re.search(r"qre://\S+", said):
            link = found[0]
    record_property("seconds", round(time.monotonic() - began, 1))
    assert "bytes from 10.77.0.1" in said, "the first request may be earlier than the session"
