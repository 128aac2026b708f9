"""A session of qre.ko in the guest whose other end is tests/vm/guest/peer.c, which does what it is told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from qre.ends import Role
from qre.wire.number import PACKET_NUMBER_BASE
from tests.support.vm import Vm

_LIBRARY = ". /tmp/library\n"
#: Where each end is: namespace, address of each version of IP.
_SERVER, _CLIENT = ("a", {4: "10.9.0.1", 6: "fd09::1"}), ("b", {4: "10.9.0.2", 6: "fd09::2"})
SERVER_PORT, CLIENT_PORT = 443, 5555
ROUTED_CID = "09" * 20
#: There when what runs beside the peer has ended.
_OVER = "/tmp/over"
_PATIENT_MS = 600_000


@contextmanager
def ready_for_peers(vm: Vm) -> Iterator[None]:
    """Both namespaces, and the ciphers that the peer uses; nothing is left, and the kernel did not complain."""
    vm.check(_LIBRARY + "modprobe -a algif_aead algif_skcipher; net_up")
    yield
    vm.run("pkill -x qrectl")
    vm.check(_LIBRARY + "net_down")
    assert vm.splats() == []


class Got(msgspec.Struct, frozen=True):
    """A packet that came to the peer. ``payload`` is without its padding, and the zeros that stood before it."""

    socket: int
    number: int
    size: int
    tos: int
    cid: str
    payload: bytes

    @property
    def acknowledges(self) -> bool:
        return self.payload[:1] in (b"\2", b"\3")


class GuestPeer:
    """``role`` is that of the kernel's end, qre0 in its namespace; keys are those of number ``keys``, used once."""

    def __init__(self, vm: Vm, role: Role, keys: int, *, cid: str = ROUTED_CID, client_cid: str = "") -> None:
        self.vm = vm
        self.role = role
        self.keys = keys
        self.cid, self.client_cid = cid, client_cid
        (self.namespace, addresses), (self.peer_namespace, peer_addresses) = (
            (_SERVER, _CLIENT) if role is Role.SERVER else (_CLIENT, _SERVER)
        )
        self.address, self.peer_address = addresses[vm.outer], peer_addresses[vm.outer]
        other = 10 - vm.outer
        #: A port of the peer's with addresses of the other version of IP, behind its number.
        self.of_other_version = f",{addresses[other]},{peer_addresses[other]}"
        self.port, self.peer_port = (SERVER_PORT, CLIENT_PORT) if role is Role.SERVER else (CLIENT_PORT, SERVER_PORT)
        self.session_id = f"{keys:08x}" * 8

    def _keys(self) -> str:
        """Shell that sets the keys of both directions."""
        return f"t1=$(key {self.keys} $K1) t2=$(key {self.keys} $K2)\n"

    def install(self, more: str = "", *, device: bool = True, local: str = "") -> None:
        """``more``: further fields of SESSION_INSTALL; ``local``: another own address than the namespace's. With
        ``device`` qre0 is made, too, and has an address. Unless told, no session ends because a guest is slow."""
        self.check(self.installation(more, device=device, local=local))

    def installation(self, more: str = "", *, device: bool = True, local: str = "") -> str:
        """Shell that does what ``install`` does."""
        if "IdleMs=" not in more:
            more += f" IdleMs={_PATIENT_MS}"
        ours, theirs = (1, 2) if self.role is Role.SERVER else (2, 1)
        inside = 1 if self.role is Role.SERVER else 2
        return (
            (
                f"""
                $K $TOOLS/qrectl device-set Device=qre0 Role={ours} MTU=1380
                $K sysctl -qw net.ipv6.conf.qre0.disable_ipv6=1
                ip -n {self.namespace} addr add 10.77.0.{inside}/24 dev qre0
                ip -n {self.namespace} link set qre0 up
                """
                if device
                else ""
            )
            + f"""
            $K $TOOLS/qrectl session-install Device=qre0 SessionId={self.session_id} ConnectionId={self.cid} \\
                ClientConnectionId={self.client_cid} KeyEpoch=0 PacketNumber={PACKET_NUMBER_BASE} \\
                TxKey=$t{ours} RxKey=$t{theirs} TxHpKey=$H{ours} RxHpKey=$H{theirs} TxIv=$I{ours} RxIv=$I{theirs} \\
                $(underlay {local or self.address} {self.port} {self.peer_address} {self.peer_port}) {more}
            """
        )

    def _start(self, ports: tuple[int | str, ...]) -> str:
        """The peer's command line; it has its session's port and these."""
        ours, theirs = (1, 2) if self.role is Role.SERVER else (2, 1)
        keys = f"$t{theirs}:$I{theirs}:$H{theirs}:$t{ours}:$I{ours}:$H{ours}"
        length = len(self.client_cid if self.role is Role.SERVER else self.cid) // 2
        words = " ".join(map(str, (self.peer_port, *ports)))
        return f"$P $TOOLS/peer {keys} {length} {self.address} {self.port} {self.peer_address} {words}"

    def says(
        self, commands: str, *, ports: tuple[int | str, ...] = (), meanwhile: str = "", timeout: float = 120
    ) -> list[Got]:
        """Run the peer with these commands; what came to it. They begin a life of it: numbers are the base's again
        unless told. ``meanwhile``: shell that runs beside it; ``until DONE`` waits for its end."""
        cid = self.cid if self.role is Role.SERVER else self.client_cid
        lines = [f"cid {cid}"] if cid else []
        lines += [line.strip() for line in commands.strip().splitlines()]
        printed = self.check(
            f"rm -f {_OVER}; cat >/tmp/commands <<'END'\n"
            + "\n".join(lines).replace("until DONE", f"until {_OVER}")
            + f"\nEND\n(trap 'touch {_OVER}' EXIT\n{meanwhile}) >/dev/null 2>&1 &\n"
            + f"{self._start(ports)} </tmp/commands\nwait",
            timeout,
        )
        return packets_of(printed)

    def check(self, script: str, timeout: float = 120) -> str:
        """Shell in the guest: $K and $P are the namespaces of the kernel's end and the peer."""
        ways = f"K='ip netns exec {self.namespace}' P='ip netns exec {self.peer_namespace}'\n"
        return self.vm.check(_LIBRARY + ways + self._keys() + script, timeout)

    def fields(self, command: str, which: str = "") -> dict[str, str]:
        printed = self.check(f"$K $TOOLS/qrectl {command} Device=qre0 {which}")
        return dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)

    def session(self) -> dict[str, str]:
        return self.fields("session-get", f"SessionId={self.session_id}")

    def drops(self) -> dict[int, int]:
        """By enum qre_drop."""
        found = self.fields("device-get")
        return {int(name[4:]): int(value) for name, value in found.items() if name.startswith("Drop")}

    def listen(self, groups: str = "") -> None:
        """Begin to collect events; ``groups``: one of them alone."""
        self.check(
            f"""
            $K $TOOLS/qrectl events 600 {groups} >/tmp/events{groups} 2>&1 </dev/null &
            until_true "grep -q listening /tmp/events{groups}"
            """
        )

    def events(self, groups: str = "") -> list[dict[str, str]]:
        """What was told since; the listener goes on."""
        blocks = self.check(f"cat /tmp/events{groups}").split("\n\n")
        found = [dict(re.findall(r"^(\w+)=(.*)$", block, re.MULTILINE)) for block in blocks]
        return [event for event in found if "Event" in event]


def packets_of(printed: str) -> list[Got]:
    found = []
    for line in printed.splitlines():
        match line.split():
            case ["got", socket, number, size, tos, cid, payload]:
                data = b"" if payload == "-" else bytes.fromhex(payload)
                bare = "" if cid == "-" else cid
                found.append(Got(int(socket), int(number), int(size), int(tos), bare, data))
            case ["bad", *_]:
                raise AssertionError(f"the peer cannot open a packet:\n{printed}")
    return found
