"""Every call of the reference, run as it writes them and in its order, on qre.ko: each succeeds.

What a call needs comes before it, and is in BEFORE; what it may leave out is left out once and given once in each
form of its name.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator

import pytest

from tests.support.reference_calls import Call, calls
from tests.support.vm import Vm
from tests.vm.test_commands import CID, LIBRARY, OTHER_CID, Answer

pytestmark = pytest.mark.timeout(3000)
SERVER_FILE, CLIENT_FILE = "/etc/qre/dev/qre0.conf", "/etc/qre/dev/qre1.conf"
READY = "/tmp/e/ready"
#: Not ip-netns(8): that one hides what is mounted below /sys.
INSIDE = "nsenter --net=/run/netns/a --"
#: What stands in the place of the reference's words; a command in front means there only.
VALUES = {
    "profile": "qre0", "device": "qre0", "config": SERVER_FILE, "server-config": SERVER_FILE,
    "client-config": CLIENT_FILE, "pcap": "/tmp/e/handshake.pcap", "path": READY,
    "BpfElf": "/tmp/e/qre_reuseport.bpf.o", "bpffs-dir": "/sys/fs/bpf", "Device": "qre0", "ms": "1",
    "cidr": "10.77.0.1/24", "mtu": "1380", "host:port": "10.9.0.2:443", "sni": "example.com", "seconds": "25",
    "ip:port": "10.9.0.1:443", "ClientUnderlay": "10.9.0.1:50443",
    "shared-port-loader Listen": "10.9.0.1:4433", "shared-port-loader-check Listen": "10.9.0.1:4433",
    "shared-port-loader UserspaceSocketFd": "{udp 10.9.0.1:4433}",
    "adopt-cid ConnectionId": OTHER_CID, "release-cid ConnectionId": OTHER_CID, "ConnectionId": CID,
    "u64": "0", "PacketNumber": "65536",
    "ip": "10.9.0.1", "port": "4434", "UnderlayPeerIPv4": "10.9.0.2", "UnderlayPeerPort": "5555",
    "register-cid-map fd": "{map /sys/fs/bpf/qre-cid-routes}", "register-shared-socket fd": "{udp 10.9.0.1:8443}",
    "daemon options": "--config-dir /etc/qre/dev --global-config /etc/qre/qre.conf --state-dir /var/lib/qre "
    "--bpf-elf /tmp/e/qre_reuseport.bpf.o --pin-dir /sys/fs/bpf --server-underlay 10.9.0.1:444 "
    "--client-underlay 10.9.0.2:5555 --run-for-ms 1",
}  # fmt: skip
SET = (
    "set", "qre0", "role", "server", "Address=10.77.0.1/24", "Listen=10.9.0.1:443", "MTU=1380", "Dest=10.9.0.2:443",
    "ServerName=example.com",
)  # fmt: skip
GONE = (("down", "qre0"), ("down", "qre1"))
#: What comes before a call, by its command or by its first words.
BEFORE: dict[str, tuple[tuple[str, ...], ...]] = {
    "show": (*GONE, ("up", "qre0")),
    "--dry-run up": GONE,
    "reload": (*GONE, ("up", "qre0")),
    "--dry-run down": (*GONE, ("up", "qre0")),
    "refresh": (*GONE, ("up", "qre0")),
    "syncconf": GONE,
    "set": GONE,
    "install-session": (*GONE, SET),
    "shared-port-loader": (*GONE, SET),
    "shared-port-loader-check": (*GONE, SET),
    "shared-port-session-demo": GONE,
    "session-demo": GONE,
    "create-cid-map": (*GONE, SET),
}
#: Run by themselves, because they stay, or are a server that another one needs.
APART = ("daemon", "shared-port-handshake-daemon", "shared-port-handshake-client")


@pytest.fixture
def machine(vm: Vm) -> Iterator[Vm]:
    """Namespace a with the reference's own paths: /etc/qre and /sys/fs/bpf; nothing is left of it."""
    vm.check(
        LIBRARY
        + """
        net_up
        umount /etc 2>/dev/null || true
        mkdir -p /tmp/e
        mount -t tmpfs tmpfs /tmp/e
        mkdir -p /tmp/e/upper /tmp/e/work /tmp/e/bin
        modprobe overlay
        mount -t overlay overlay -o lowerdir=/etc,upperdir=/tmp/e/upper,workdir=/tmp/e/work /etc
        mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
        chmod 755 /sys/fs/bpf
        cp $CHECKOUT/workers/bpf_loader/qre_reuseport.bpf.o /tmp/e
        printf '#!/bin/sh\\nexec "$@"\\n' >/tmp/e/bin/sudo
        chmod 755 /tmp /tmp/e /tmp/e/bin/sudo
        mkdir -p /etc/qre/dev
        printf "RelayIdle = 30s\\nWhenDestIsDown = imitate\\n" >/etc/qre/qre.conf
        $A $QRE init Endpoint=10.9.0.1:443 Dest=10.9.0.2:443 ServerName=example.com ServerProfile=qre0 \\
            ClientProfile=qre1
        """,
        300,
    )
    yield vm
    vm.run(
        LIBRARY
        + """
        net_down
        rm -f /sys/fs/bpf/[qQ]*
        umount /etc
        umount /tmp/e
        rm -rf /tmp/e /var/lib/qre /run/qre
        """
    )
    assert vm.splats() == []


def preparations(call: Call) -> tuple[tuple[str, ...], ...]:
    written = " ".join(call.words)
    found = [need for words, need in BEFORE.items() if written.startswith(f"{words} ") or written == words]
    found += [need for words, need in BEFORE.items() if words == call.command and need not in found]
    before = found[0] if found else ()
    if call.command == "register-cid-map" and "BpfMapFd" in written:
        before = (*before, ("unregister-cid-map",))
    return before


def until(call: Call) -> str:
    """Of a call that stays: what is there when it has done all that it does."""
    if any(word.lower().replace("_", "").replace("-", "").startswith("runforms=") for word in call.words):
        return ""
    port = next((word.rpartition(":")[2] for word in call.words if word.startswith("Listen=")), "")
    return {
        "shared-port-loader": f"/sys/fs/bpf/qre_reuseport_demux-10-9-0-1-{port}",
        "shared-port-session-demo": "/proc/sys/net/ipv4/conf/qre1",
    }.get(call.command, "")


def made() -> list[Call]:
    """The calls, each with values that fit: a session that is updated is the one that was installed last, a
    connection ID has the routed length, and who is handed a socket has a port of its own."""
    found: list[Call] = []
    for call in calls(VALUES):
        words = list(call.words)
        if call.command == "install-session" and len(words) > 13:
            place = _place(words, "nextrxhpkey")
            words[place] = f"{words[place].partition('=')[0]}={words[_place(words, 'rxhpkey')].partition('=')[2]}"
        if call.command == "update-session":
            installed = [each for each in found if each.command == "install-session"][-1].words
            names = [word.partition("=")[0] for word in words[2:]]
            given = [word.partition("=")[2] for word in installed[2:]]
            words[2:] = [f"{name}={value}" for name, value in zip(names, given, strict=False)]
        if call.command == "shared-port-loader-check" and any(word.endswith("=17") for word in words):
            words = [word.replace(CID, CID[: 2 * 17]) for word in words]
        if call.command == "shared-port-loader" and any("{udp" in word for word in words):
            words = [word.replace(":4433", ":4435") for word in words]
        found.append(Call(call.line, tuple(words)))
    return found


def _place(words: list[str], field: str) -> int:
    """Where a field stands, in whatever form."""
    names = [re.sub("[-_]", "", word.partition("=")[0].lower()) for word in words]
    return names.index(field)


def test_every_call_of_the_reference_as_it_is_written(machine: Vm) -> None:
    run: list[tuple[str, ...]] = []
    at: dict[int, Call] = {}
    for call in made():
        if call.command in APART:
            continue
        run += preparations(call)
        at[len(run)] = call
        path = until(call)
        run.append((f"{{until {path}}}", *call.words) if path else call.words)
    printed = machine.check(
        LIBRARY
        + f"""
        cat >/tmp/e/commands <<'END'\n{json.dumps(run)}\nEND
        cd $CHECKOUT
        {INSIDE} .venv/bin/python -m tests.support.guest_commands /tmp/e/commands
        """,
        1800,
    )
    answers = [Answer(*each) for each in json.loads(printed.splitlines()[-1])]
    failed = [(call.line, call.words, answers[number]) for number, call in at.items() if answers[number].status]
    # In a guest there is no web site: that it is not there is what `refresh` finds.
    refused = [(words, answer) for _, words, answer in failed if words[0] == "refresh"]
    assert len(refused) == 1 and "10.9.0.2:443" in refused[0][1].error, refused
    told = [f"{' '.join(words)}: {answer.error}" for _, words, answer in failed if words[0] != "refresh"]
    assert not told, "\n".join(told)
    shown = [json.loads(answers[n].out) for n, call in at.items() if call.words == ("--json", "show", "qre0")]
    assert [device["devices"][0]["device"] for device in shown] == ["qre0", "qre0"]


@pytest.mark.guest_python
def test_the_daemons_of_the_reference_as_it_writes_them(machine: Vm) -> None:
    by_command = {command: [call for call in made() if call.command == command] for command in APART}
    scripts = []
    for call in by_command["daemon"]:
        scripts.append(f"sudo qre-tool {' '.join(call.words)}")
    least, whole = by_command["shared-port-handshake-daemon"][:2]
    held = " ".join(word for word in whole.words if not word.startswith("RunForMs="))
    scripts.append(
        f"sudo qre-tool {held} & front=$!\n"
        f"for i in $(seq 300); do [ -e {READY} ] && break; sleep 1; done\n"
        + "\n".join(
            f"sudo qre-tool {' '.join(call.words)}\nqre-tool down qre1"
            for call in by_command["shared-port-handshake-client"]
        )
        + "\nkill $front; wait $front"
    )
    scripts.append(f"sudo qre-tool {' '.join(whole.words)}")
    scripts.append(
        f"sudo qre-tool {' '.join(least.words)} & front=$!\n"
        "for i in $(seq 300); do [ -e /sys/fs/bpf/QRE_SOCKETS-qre0 ] && break; sleep 1; done\n"
        "kill $front; wait $front"
    )
    for script in scripts:
        printed = machine.check(
            LIBRARY
            + f"cat >/tmp/e/script <<'END'\nset -ex\n{script}\nEND\n"
            + f"export PATH=/tmp/e/bin:$CHECKOUT/.venv/bin:$PATH; {INSIDE} bash /tmp/e/script 2>&1",
            1200,
        )
        assert "Traceback" not in printed
    assert machine.run("ip -n a link show type qre | grep .")[0] == 1
    assert secrets
