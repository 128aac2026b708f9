"""docs/tasks.md, typed: every block, in its order, on the machine that it names; and what the task promises."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.container.conftest import AUTHORITY, Ends, Machine, installed
from tests.support.daemons import wait_for
from tests.support.kernels import ROOT
from tests.support.lab import Lab
from tests.support.site import NAME

PAGE = (ROOT / "docs" / "tasks.md").read_text()
NOT_TRIED = re.compile(r"<!-- not tried: (.+) -->")

pytestmark = pytest.mark.timeout(900)  # the first test boots two machines, and may have to make their Debian


class Block(NamedTuple):
    """Commands, the machine that their first line names, and why they are not tried (empty: they are)."""

    machine: str
    commands: str
    why_not: str


def tasks() -> dict[str, list[Block]]:
    """Of the page, in its order."""
    found: dict[str, list[Block]] = {}
    for section in PAGE.split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        blocks = re.findall(
            r"(?:^(<!--[^\n]*-->)\n)?^```sh\n# on the (\w+)[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE
        )
        reasons = [NOT_TRIED.fullmatch(comment) for comment, _, _ in blocks]
        found[title] = [
            Block(machine, commands, why[1] if why else "")
            for (_, machine, commands), why in zip(blocks, reasons, strict=True)
        ]
    return found


TASKS = tasks()
TRIED = [title for title, blocks in TASKS.items() if any(not block.why_not for block in blocks)]


class Typist:
    """Both machines, as they are after installation."""

    def __init__(self, ends: Ends) -> None:
        self.ends = ends
        self.server, self.client = ends.server, ends.client

    def type(self, block: Block) -> str:
        """One block, by one shell; it must succeed. The site of the tests has a name of its own."""
        machine: Machine = getattr(self, block.machine)
        script = f"export SSL_CERT_FILE={AUTHORITY}\ncd /root\n{block.commands.replace('www.example.org', NAME)}"
        return machine.container.check(script, timeout=300)

    def begin(self) -> None:
        for machine in (self.server, self.client):
            machine.container.check(f"systemctl stop {machine.unit}; rm -f /etc/qre/dev/*.conf")
        self.server.container.check(f"echo {Lab.SITE} {NAME} >>/etc/hosts")
        self.client.container.check(f"echo {Lab.SERVER} vpn.example.net >>/etc/hosts")

    def copy(self, block: Block) -> None:
        """What scp would do."""
        copied = re.search(r"scp root@vpn.example.net:(\S+) (\S+)", block.commands)
        assert copied, "nothing else is done by the test itself"
        text = self.server.container.check(f"cd /root; cat {copied[1]}")
        self.client.container.check(
            f"cd /root; umask 077; cat >{copied[2]}/{copied[1].split('/')[-1]}", stdin=f"{text}\n"
        )

    def passes(self) -> None:
        wait_for("packets", self.ends.pass_packets, interval=0.3)


@pytest.fixture(scope="module")
def typist(ends: Ends) -> Iterator[Typist]:
    made = Typist(ends)
    before = [machine.read() for machine in (ends.server, ends.client)]
    made.begin()
    yield made
    for machine, text in zip((ends.server, ends.client), before, strict=True):
        left = "/etc/qre /etc/systemd/system/qred@.service* /usr/bin/qre-tool"
        machine.container.run(f"systemctl disable --now {machine.unit}; rm -rf {left}")
        installed(machine.container, machine.profile, text, ends.tunnel.site.authority.read_text())


def first_tunnel(typist: Typist, said: list[str]) -> None:
    assert f"1. good      {NAME}:443" in said[0]
    assert " received" in said[-1]


def second_client(typist: Typist, said: list[str]) -> None:
    typist.passes()
    assert "alice" in said[0]
    assert typist.server.container.check("stat -c %a /root/alice.conf") == "600"
    assert typist.client.container.check("stat -c %a /etc/qre/dev/alice.conf") == "600"
    try:
        typist.client.container.check("systemctl stop qred@client0; systemctl start qred@alice")
        wait_for("alice", lambda: " 0% packet loss" in typist.client.container.run("ping -c 1 -W 2 10.77.0.1")[1])
    finally:
        typist.client.container.check("systemctl stop qred@alice; systemctl start qred@client0")


def everything(typist: Typist, said: list[str]) -> None:
    assert "dev client0" in said[1]
    assert "9.9.9.9" in said[2]
    wait_for("the site", lambda: typist.client.container.run(f"ping -c 1 -W 2 {Lab.SITE}")[0] == 0)


def behind_server(typist: Typist, said: list[str]) -> None:
    assert "dev client0" in said[-1]
    typist.passes()


def behind_client(typist: Typist, said: list[str]) -> None:
    typist.client.container.check("ip address add 192.168.7.1/24 dev lo")
    typist.server.container.check("ping -c 3 -W 5 192.168.7.1")


def behind_nat(typist: Typist, said: list[str]) -> None:
    assert "/etc/qre/dev/cloud0.conf" in said[0]
    assert typist.server.container.run("ls /etc/qre/dev/cloud0.conf")[0] != 0, "--dry-run wrote it"


def another_port(typist: Typist, said: list[str]) -> None:
    wait_for(
        "the session", lambda: "connected to vpn.example.net:8443" in typist.client.told("StatusText"), interval=0.3
    )
    typist.passes()


def observer(typist: Typist, said: list[str]) -> None:
    assert said[0].startswith(f"1. good      vpn.example.net:443 as {NAME}")
    typist.server.container.check("test -s /root/handshake.pcap && test -s /root/handshake.pcap.keys")


def uninstalled(typist: Typist, said: list[str]) -> None:
    run = typist.client.container.check
    assert "proto 81" not in run("ip route show table all; ip rule show")
    assert "client0" not in run("ip link show")
    assert "qre-" not in run("getent passwd; getent group")
    assert not run(
        "find / -xdev -name '*qre*' -not -path '/proc/*' -not -path '/opt/*' -not -path '/sys/*' | head -5"
    )


PROMISED: dict[str, Callable[[Typist, list[str]], None]] = {
    "A first tunnel": first_tunnel,
    "A second client": second_client,
    "Everything through the tunnel": everything,
    "A network behind the server": behind_server,
    "A network behind a client": behind_client,
    "A server behind NAT": behind_nat,
    "Another port": another_port,
    "What an observer sees": observer,
    "Uninstall": uninstalled,
}


@pytest.mark.parametrize("title", TRIED)
def test_what_the_page_has_one_type_works(typist: Typist, title: str) -> None:
    said = []
    for block in TASKS[title]:
        if "scp " in block.commands:
            typist.copy(block)
        elif not block.why_not:
            said.append(typist.type(block))
    assert title == "Uninstall" or typist.client.told("ActiveState") == typist.server.told("ActiveState") == "active"
    try:
        PROMISED.get(title, lambda typist, said: None)(typist, said)
    except BaseException as error:
        error.add_note("\n".join([*said, *typist.server.journal()[-30:], "---", *typist.client.journal()[-30:]]))
        raise
