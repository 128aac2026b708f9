"""What arrives at a live session's port and is not its peer's is dropped and counted, and changes nothing else.

``QRE_HOSTILE_PACKETS`` packets (100,000 unless set), half of them to each end.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from tests.support.kernels import cache
from tests.support.short_headers import WHOLE, Keys, Shot, write_shots
from tests.support.vm import Vm

pytestmark = pytest.mark.timeout(1800)
LIBRARY = ". /tmp/library\n"
PACKETS = int(os.environ.get("QRE_HOSTILE_PACKETS", "100000"))
BASE = 65536
CID = b"\x09" * 20
#: enum qre_drop, of the receiving side; 0: left to the socket's queue.
PASSED, MALFORMED, NO_KEYS, DECRYPT_FAILED, REPLAYED, BELOW_BASE, WRONG_ADDRESS = 0, 5, 6, 7, 8, 9, 10
SERVER_PORT, CLIENT_PORT = 443, 5555
LARGEST = 1472  # of a UDP payload, as the handshake told the peer
_numbers = iter(range(30_000, 40_000))


def keyed(number: int, pattern: str) -> str:
    """As ``key`` of lib.sh."""
    return f"{number:08x}{pattern[8:]}"


class End(msgspec.Struct, frozen=True):
    """One end under fire, as who shoots knows it: the keys that it receives with, now and after an update."""

    name: str
    address: str
    port: int
    peer_port: int
    now: Keys
    later: Keys

    @property
    def shooter(self) -> str:
        """The namespace that shoots."""
        return "b" if self.name == "a" else "a"


class Session(msgspec.Struct, frozen=True):
    """Key material of number ``number``: lib.sh's, and that of the next epoch."""

    number: int

    def ends(self) -> tuple[End, End]:
        k1, k2 = (keyed(self.number, pattern) for pattern in (bytes(range(16)).hex(), bytes(range(16, 32)).hex()))
        h1, h2 = bytes(range(0x20, 0x30)), bytes(range(0x30, 0x40))
        i1, i2 = bytes(range(0x40, 0x4C)), bytes(range(0x50, 0x5C))
        to_server = Keys(bytes.fromhex(k2), i2, h2, CID), Keys(self.later("b"), i2, h2, CID)
        to_client = Keys(bytes.fromhex(k1), i1, h1, b""), Keys(self.later("a"), i1, h1, b"")
        return (
            End("a", "10.9.0.1", SERVER_PORT, CLIENT_PORT, *to_server),
            End("b", "10.9.0.2", CLIENT_PORT, SERVER_PORT, *to_client),
        )

    def later(self, sender: str) -> bytes:
        return hashlib.sha256(f"{self.number} {sender}".encode()).digest()[:16]

    def script(self) -> str:
        """Both ends up with next keys, and so quiet that no number is used unless somebody pings."""
        a, b = self.later("a").hex(), self.later("b").hex()
        i1, i2 = bytes(range(0x40, 0x4C)).hex(), bytes(range(0x50, 0x5C)).hex()
        common = "IdleMs=3600000 KeepaliveMs=0"
        return f"""
            net_up
            MORE_A="{common} NextTxKey={a} NextTxIv={i1} NextRxKey={b} NextRxIv={i2}"
            MORE_B="{common} NextTxKey={b} NextTxIv={i2} NextRxKey={a} NextRxIv={i1}"
            tunnel_up {self.number}
            for each in a b; do
                ip netns exec $each sysctl -qw net.ipv6.conf.qre0.disable_ipv6=1
            done
            sysctl -qw net.core.netdev_max_backlog=20000
            $B ping -c 10 -i 0.05 -W 5 -q 10.77.0.1
            sleep 1  # acknowledgements that are due leave, and nothing follows them
        """


@contextmanager
def standing_session(vm: Vm) -> Iterator[Session]:
    """Of keys that no other has had; nothing is left of it, nor did the kernel complain."""
    made = Session(next(_numbers))
    vm.check(LIBRARY + made.script())
    yield made
    vm.check(LIBRARY + "net_down")
    assert vm.splats() == []


@pytest.fixture
def session(vm: Vm) -> Iterator[Session]:
    with standing_session(vm) as made:
        yield made


def fields(vm: Vm, namespace: str, command: str, which: str = "") -> dict[str, str]:
    printed = vm.check(LIBRARY + f"ip netns exec {namespace} $TOOLS/qrectl {command} Device=qre0 {which}")
    return dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)


def drops(vm: Vm, namespace: str) -> Counter[int]:
    found = fields(vm, namespace, "device-get")
    return Counter({int(name[4:]): int(value) for name, value in found.items() if name.startswith("Drop")})


def standing(vm: Vm, namespace: str) -> dict[str, str]:
    """What of the session may not change."""
    found = fields(vm, namespace, "session-get", "SessionId=$ID")
    names = ("State", "Confirmed", "KeyEpoch", "RxNumber", "PacketNumber", "RxPackets", "RxBytes", "UnderlayPeerPort")
    return {name: found[name] for name in names}


def fate(end: End, shot: Shot, expected: int) -> int:
    """Why the module drops it, by RFC 9000 and 9001 alone; ``shot`` is not mutable, and no new packet."""
    data, cid = shot.data, end.now.cid
    if not data or data[0] & 0xC0 != 0x40 or data[1 : 1 + len(cid)] != cid:
        return PASSED
    if not 1 + len(cid) + 20 <= len(data) <= LARGEST:
        return MALFORMED
    if not cid and shot.source_port != end.peer_port:
        return WRONG_ADDRESS
    first, number, sealed = end.now.header(data, expected)
    keys = end.later if first & 4 else end.now
    if first & 4 and number <= BASE:  # the lowest of the present phase
        return NO_KEYS
    if len(data) - sealed < 16:
        return MALFORMED
    if not keys.opens(data, expected):
        return DECRYPT_FAILED
    assert number < expected, "this one would be taken"
    return BELOW_BASE if number < BASE else REPLAYED


def arsenal(end: End, expected: int, dice: random.Random) -> list[Shot]:
    """Some thousand datagrams of every kind; none of them is a packet that the end still waits for."""
    keys, cid = end.now, end.now.cid
    ip = bytes.fromhex("4500001c000040004001000000000000000000000800f7ff00000000")
    datagram = b"\x30\0\0" + ip
    made: list[Shot] = []

    def shoot(data: bytes, mutable_from: int = WHOLE, source: int = end.peer_port) -> None:
        made.append(Shot(data, source, end.port, mutable_from))

    strangers = [Keys(dice.randbytes(16), dice.randbytes(12), hp, cid) for hp in (keys.hp, dice.randbytes(16))]
    for round_number in range(300):
        old = BASE + dice.randrange(expected - BASE)
        size = dice.choice((2, 3, 4))
        payload = datagram + dice.randbytes(dice.randrange(1200))
        shoot(keys.seal(old, payload, size=size))  # replayed
        shoot(keys.seal(old, dice.choice((b"\1\1\1\1", b"\x1c\0\0\0", b"\xff" * 40)), size=size, reserved=3))
        shoot(end.later.seal(max(old, BASE + 1), payload, phase=1))  # replayed, of the next phase
        shoot(keys.seal(dice.randrange(BASE), payload))  # below the base
        shoot(keys.seal(expected + dice.randrange(9), payload, phase=1))  # these keys under the other phase's bit
        shoot(end.later.seal(expected + dice.randrange(9), payload, phase=0))
        shoot(end.later.seal(dice.randrange(BASE + 1), payload, phase=1))  # a phase that cannot have begun by then
        for stranger in strangers:
            shoot(stranger.seal(expected + dice.randrange(99), payload, phase=dice.randrange(2), size=size))
        # One byte of the sealed part is changed, behind what the mask is made of.
        shoot(keys.seal(expected + dice.randrange(99), payload), len(cid) + 21)
        whole = keys.seal(expected, payload)
        shoot(whole[: round_number % (len(whole) - 1)])  # cut short
        shoot(keys.seal(expected, payload, size=1)[: 22 + len(cid) + dice.randrange(20)])
        shoot(whole + dice.randbytes(dice.choice((1, 16, 200))))
        shoot(b"\x40" + cid + dice.randbytes(dice.randrange(60)))
        shoot(bytes([0x40 | dice.randrange(64)]) + cid + dice.randbytes(dice.randrange(1400)))
        shoot(bytes([0xC0 | dice.randrange(64)]) + cid + dice.randbytes(dice.randrange(1200)))  # a long header
        shoot(bytes([dice.randrange(64)]) + cid + dice.randbytes(dice.randrange(1200)))  # no fixed bit
        shoot(dice.randbytes(dice.randrange(1400)))
        shoot(whole, source=dice.choice((1, 442, 444, 40_000))) if not cid else shoot(cid + whole)
    for size_over in (1400, 1473, 1600, 4000, 9000, 20_000, 65_000):
        shoot(keys.seal(BASE, datagram + bytes(size_over)))
        shoot(b"\x41" + cid + dice.randbytes(size_over))
    dice.shuffle(made)
    return made


def shot_fates(end: End, shots: list[Shot], expected: int, count: int) -> Counter[int]:
    """How often each reason must be counted when ``count`` of them are sent in turn."""
    summed: Counter[int] = Counter()
    rounds, rest = divmod(count, len(shots))
    for index, shot in enumerate(shots):
        reason = DECRYPT_FAILED if shot.mutable_from != WHOLE else fate(end, shot, expected)
        summed[reason] += rounds + (index < rest)
    return summed


def magazine() -> Path:
    """A file that the guest sees, and whose name it has not asked for before."""
    return cache() / "packets" / secrets.token_hex(8)


def fired(ends: tuple[End, End], files: dict[str, Path], count: int, wait: int) -> str:
    """Both ends at once, with a listener for events in either namespace."""
    script = LIBRARY + "rm -f /tmp/events.?\n"
    for end in ends:
        script += f"ip netns exec {end.name} timeout {wait} $TOOLS/qrectl events {wait} >/tmp/events.{end.name} &\n"
    script += "until_true '[ $(cat /tmp/events.? | grep -c listening) = 2 ]'\n"
    for end in ends:
        sender = f"$TOOLS/packets {files[end.name]} {end.address} {count} 99"
        script += f"ip netns exec {end.shooter} {sender} &\nP{end.name}=$!\n"
    return script + "wait $Pa\nwait $Pb\nsleep 1  # for one event too many, too\n"


def test_hostile_packets_are_dropped_and_counted_and_change_nothing(vm: Vm, session: Session) -> None:
    dice = random.Random(1)
    ends = session.ends()
    files: dict[str, Path] = {}
    due: dict[str, Counter[int]] = {}
    before, standing_before = {}, {}
    try:
        for end in ends:
            before[end.name], standing_before[end.name] = drops(vm, end.name), standing(vm, end.name)
            expected = int(standing_before[end.name]["RxNumber"]) + 1
            assert BASE + 10 <= expected < BASE + 100
            shots = arsenal(end, expected, dice)
            files[end.name] = magazine()
            write_shots(files[end.name], shots)
            due[end.name] = shot_fates(end, shots, expected, PACKETS // 2)
            assert len(due[end.name]) == (6 if end.now.cid else 7), "a reason that is never tried"
        vm.check(
            fired(ends, files, PACKETS // 2, 3600)
            + "pkill -x qrectl\n"
            + 'cat /tmp/events.a /tmp/events.b | sort -u >/tmp/events; [ "$(cat /tmp/events)" = listening ]',
            120 + PACKETS / 500,
        )
        for end in ends:
            counted = drops(vm, end.name) - before[end.name]
            assert counted == Counter({reason: n for reason, n in due[end.name].items() if reason != PASSED})
            assert standing(vm, end.name) == standing_before[end.name]
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)
    printed = vm.check(LIBRARY + "$B ping -c 10 -i 0.05 -W 5 -q 10.77.0.1\n$A ping -c 10 -i 0.05 -W 5 -q 10.77.0.2\n")
    assert printed.count(" 0% packet loss") == 2, printed


#: Payload, reserved bits, and the error that RFC 9000 has for it.
VIOLATIONS = {
    "no frame at all": (b"", 0, 0x0A),
    "reserved bits": (b"\1\1\1\1", 3, 0x0A),
    "an unknown frame": (b"\x1f\0\0\0", 0, 0x07),
    "a frame type of two bytes": (b"\x40\x01\0\0", 0, 0x07),
    "an ACK cut short": (b"\0\0\x02\x05", 0, 0x07),
    "an ACK below zero": (b"\x02\x05\0\0\x06", 0, 0x07),
    "an ACK of what was never sent": (b"\x02\xbf\xff\xff\xff\0\0\0", 0, 0x0A),
    "a STREAM beyond its packet": (b"\x0a\0\x20\0", 0, 0x07),
    "CRYPTO beyond its packet": (b"\x06\0\x20\0", 0, 0x07),
    "an empty NEW_TOKEN": (b"\0\0\x07\0", 0, 0x07),
    "too many streams": (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff", 0, 0x07),
    "a CID retired before it is there": (b"\x18\1\2\x08" + bytes(24), 0, 0x07),
    "a PATH_CHALLENGE cut short": (b"\x1a" + bytes(7), 0, 0x07),
    "a DATAGRAM beyond its packet": (b"\x31\x7f\xff\0\0", 0, 0x07),
    "a DATAGRAM and then no frame": (
        b"\x31\x1e\0\0" + bytes.fromhex("4500001c0000400040010000 0a4d0002 0a4d0001 0800f7ff00000000") + b"\x1f",
        0,
        0x07,
    ),
}
#: What only the other role may send, or nobody to whom this role has given what it is about: RFC 9000 section 19.
OF_ONE_ROLE = {
    "a": {  # a server, whose client has no connection IDs
        "HANDSHAKE_DONE of a client": (b"\x1e\1\1\1", 0, 0x0A),
        "twelve hundred of them": (b"\x1e" * 1200, 0, 0x0A),
        "NEW_TOKEN of a client": (b"\x07\1t\1", 0, 0x0A),
        "a CID for a peer that uses none": (b"\x18\1\0\x08" + bytes(24), 0, 0x0A),
        "the retirement of a CID never issued": (b"\x19\2\1\1", 0, 0x0A),
        "a STREAM that only the server sends": (b"\x0a\3\1x", 0, 0x05),
        "the reset of a stream of the server's": (b"\x04\7\0\0", 0, 0x05),
        "STOP_SENDING to who does not send": (b"\x05\2\0\1", 0, 0x05),
        "a window for who does not send": (b"\x11\2\0\1", 0, 0x05),
    },
    "b": {  # a client, which has given none
        "the retirement of a CID never issued": (b"\x19\0\1\1", 0, 0x0A),
        "a STREAM that only the client sends": (b"\x0a\2\1x", 0, 0x05),
        "STREAM_DATA_BLOCKED on a stream of the client's": (b"\x15\6\0\1", 0, 0x05),
        "STOP_SENDING to who does not send": (b"\x05\3\0\1", 0, 0x05),
    },
}


def events_of(printed: str) -> list[dict[str, str]]:
    """What ``qrectl events`` said, an event a block."""
    blocks = [[line.split("=", 1) for line in block.splitlines() if "=" in line] for block in printed.split("\n\n")]
    return [dict(block) for block in blocks if block]


@pytest.mark.parametrize("under_fire", ["a", "b"], ids=["server", "client"])
def test_authentic_packets_that_break_quic_close_the_session(vm: Vm, session: Session, under_fire: str) -> None:
    """A session for each violation, besides the one that is there already and stays."""
    end = next(end for end in session.ends() if end.name == under_fire)
    violations = VIOLATIONS | OF_ONE_ROLE[under_fire]
    standing_before, drops_before = standing(vm, under_fire), drops(vm, under_fire)
    installs, shots = "", []
    for index, (payload, reserved, _) in enumerate(violations.values()):
        number, cid, port = next(_numbers), bytes([index + 16]) * 20, 6000 + index
        keys = Session(number).ends()[0 if under_fire == "a" else 1].now
        keys = Keys(keys.key, keys.iv, keys.hp, cid if under_fire == "a" else b"")
        packet = keys.seal(BASE + 5000, payload, reserved=reserved)
        ports = (port, SERVER_PORT) if under_fire == "a" else (SERVER_PORT, port)
        shots.append(Shot(packet, *ports))
        installs += f"one_more {number} {cid.hex()} {port}\n"
    file = magazine()
    write_shots(file, shots)
    shooter = end.shooter
    try:
        vm.check(
            LIBRARY
            + f"""
            one_more() {{
                local t1 t2 id=$2${{2:0:24}} common="Device=qre0 ConnectionId=$2 ClientConnectionId= KeyEpoch=0"
                t1=$(key "$1" $K1) t2=$(key "$1" $K2)
                common="$common SessionId=$id PacketNumber=65536 IdleMs=3600000 KeepaliveMs=0"
                $A $TOOLS/qrectl session-install $common TxKey=$t1 RxKey=$t2 TxHpKey=$H1 RxHpKey=$H2 TxIv=$I1 \\
                    RxIv=$I2 AllowedIPs=10.78.0.2/32 UnderlayLocalIPv4=10.9.0.1 UnderlayLocalPort=443 \\
                    UnderlayPeerIPv4=10.9.0.2 UnderlayPeerPort=$3
                $B $TOOLS/qrectl session-install $common TxKey=$t2 RxKey=$t1 TxHpKey=$H2 RxHpKey=$H1 TxIv=$I2 \\
                    RxIv=$I1 AllowedIPs=10.78.0.1/32 UnderlayLocalIPv4=10.9.0.2 UnderlayLocalPort=$3 \\
                    UnderlayPeerIPv4=10.9.0.1 UnderlayPeerPort=443
            }}
            {installs}
            sleep 2  # acknowledgements that are due leave, and nothing follows them
            rm -f /tmp/events.?
            $A $TOOLS/qrectl events 600 >/tmp/events.a &
            $B $TOOLS/qrectl events 600 >/tmp/events.b &
            until_true '[ $(cat /tmp/events.? | grep -c listening) = 2 ]'
            ip netns exec {shooter} $TOOLS/packets {file} {end.address} {len(shots)} 1
            sleep 3  # for one event too many, too
            pkill -x qrectl
            """
        )
    finally:
        file.unlink()
    told = {name: events_of(vm.check(f"cat /tmp/events.{name}")) for name in ("a", "b")}
    for index, (what, (_, _, error)) in enumerate(violations.items()):
        session_id = (bytes([index + 16]) * 32).hex()
        mine = [event for event in told[under_fire] if event.get("SessionId") == session_id]
        assert [(event["Event"], event.get("Loss"), event.get("ErrorCode")) for event in mine] == [
            ("2", "6", str(error))
        ], what
        # The other end was told, and by the same code.
        heard = [event for event in told[shooter] if event.get("SessionId") == session_id]
        assert [(event["Event"], event.get("Loss"), event.get("ErrorCode")) for event in heard] == [
            ("2", "2", str(error))
        ], what
    counted = drops(vm, under_fire) - drops_before
    assert counted == Counter({MALFORMED: len(violations)}), "one each, and nothing of them was delivered"
    assert standing(vm, under_fire) == standing_before
    printed = vm.check(LIBRARY + "$B ping -c 5 -i 0.05 -W 5 -q 10.77.0.1")
    assert " 0% packet loss" in printed, printed
