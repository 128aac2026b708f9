"""What the worst packets of a peer that holds the keys cost qre.ko, in instructions of the receiving machine.

``python -m tests.bench.worst``. One boot of a stock kernel whose one CPU takes a nanosecond of its own time for
every instruction: what sending a datagram over veth takes is what receiving it costs, and a constant besides. Every
packet is as large as one may be, and made to cost as much as it can: many small frames, acknowledgements of many
ranges while sixteen control frames are in flight, challenges. The end under fire is a server. Beside each cost is how
often that of a packet of the same size with one inner packet it is. Asserts nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from qre.wire.frames import encode_ack
from qre.wire.varint import encode_varint
from tests.bench.vm import QEMU, guest, prepare
from tests.support.kernels import build, cache, kernels
from tests.support.short_headers import Keys, Shot, write_shots
from tests.support.vm import Vm, booted

COUNT = 40
BASE = 65_536
#: Of the payload: what is left of 1,472 bytes by header, connection ID, number and tag.
ROOM = 1472 - 1 - 20 - 4 - 16
CID = "09" * 20
#: Every packet's number, and every session's keys, are used once.
_FIRST_PORT = 6000


class Kind(msgspec.Struct, frozen=True):
    """``payload`` makes that of the packet with this number; ``damage``: it is sealed under other keys."""

    title: str
    payload: Callable[[int], bytes]
    damage: bool = False


def _filled(frame: bytes, room: int = ROOM) -> Callable[[int], bytes]:
    return lambda number: frame * (room // len(frame))


def _inner(size: int) -> bytes:
    """An IPv4 packet that goes nowhere: its protocol is nobody's."""
    addresses = bytes([10, 77, 0, 2, 10, 77, 0, 1])
    return (
        bytes([0x45, 0])
        + size.to_bytes(2, "big")
        + bytes([0, 0, 0x40, 0, 64, 254, 0, 0])
        + addresses
        + bytes(size - 20)
    )


def _datagrams(size: int) -> bytes:
    inner = _inner(size)
    return b"\x31" + encode_varint(2 + size) + b"\0\0" + inner


def _ranges(count: int) -> bytes:
    """An ACK of every second number below what the session has sent before; it acknowledges none of its controls."""
    last = BASE - 4
    return encode_ack([(last - 2 * at, last - 2 * at) for at in range(count)], 0, ())


KINDS = (
    Kind("one inner packet", lambda number: b"\x30\0\0" + _inner(ROOM - 3)),
    Kind("not authentic", lambda number: b"\x30\0\0" + _inner(ROOM - 3), damage=True),
    Kind("PADDING", lambda number: b"\x01" + bytes(ROOM - 1)),
    Kind("PATH_CHALLENGE, 160 of them", _filled(b"\x1a12345678")),
    Kind("PATH_RESPONSE, 160 of them", _filled(b"\x1b12345678")),
    Kind("ACK, 512 ranges", lambda number: _ranges(512).ljust(ROOM, b"\0")),
    Kind("ACK, 130 of one range", _filled(encode_ack([(BASE - 4, BASE - 4)], 0, ()))),
    Kind("ACK, 30 of 13 ranges", _filled(_ranges(13))),
    Kind("MAX_DATA, 717 of them", _filled(b"\x10\x09")),
    Kind("one STREAM", lambda number: b"\x08\0" + bytes(ROOM - 2)),
    Kind("HANDSHAKE_DONE (closes)", _filled(b"\x1e")),
    Kind("inner packets, 57 of 20 bytes", _filled(_datagrams(20))),
    Kind("empty inner packets, 358", _filled(b"\x31\2\0\0")),
    Kind("DATAGRAMs of another stream, 358", _filled(b"\x31\2\4\0")),
)


def install(vm: Vm, number: int, port: int) -> Keys:
    """A session of its own with sixteen frames in flight; what its packets are sealed with."""
    cid = f"{number:02x}" * 20
    guest(
        vm,
        f"""
        t1=$(key {500 + number} $K1) t2=$(key {500 + number} $K2)
        $B $TOOLS/blast {port} >/dev/null 2>&1 &
        $A $TOOLS/qrectl session-install Device=qre0 SessionId={f"{number:02x}" * 32} ConnectionId={cid} \\
            ClientConnectionId= TxKey=$t1 RxKey=$t2 TxHpKey=$H1 RxHpKey=$H2 TxIv=$I1 RxIv=$I2 KeyEpoch=0 \\
            PacketNumber={BASE} UnderlayLocalIPv4=10.9.0.1 UnderlayLocalPort=443 UnderlayPeerIPv4=10.9.0.2 \\
            UnderlayPeerPort={port} IdleMs=3600000 AllowedIPs=10.77.0.2/32
        for id in $(seq 16); do
            $A $TOOLS/qrectl frame-send Device=qre0 SessionId={f"{number:02x}" * 32} FrameId=$id Frames=1000
        done
        """,
    )
    key = f"{500 + number:08x}" + bytes(range(0x10, 0x20)).hex()[8:]
    return Keys(bytes.fromhex(key), bytes(range(0x50, 0x5C)), bytes(range(0x30, 0x40)), bytes.fromhex(cid))


def measure(vm: Vm, number: int, kind: Kind, file: Path) -> tuple[int, int]:
    """Bytes and instructions of one packet of this kind."""
    port = _FIRST_PORT + number
    keys = install(vm, number, port)
    if kind.damage:
        keys = Keys(bytes(16), keys.iv, keys.hp, keys.cid)
    shots = [Shot(keys.seal(BASE + at, kind.payload(BASE + at)), port, 443) for at in range(COUNT)]
    write_shots(file, shots)
    printed = guest(vm, f"$B $TOOLS/packets {file} 10.9.0.1 {COUNT} 1")
    found = re.search(r"nanoseconds (\d+)", printed)
    assert found is not None, printed
    return len(shots[0].data), int(found[1]) // COUNT


def main() -> None:
    kernel = kernels()[0]
    modules = {"MODULE": build(kernel)[0] / "qre.ko"}
    print(f"Linux {kernel.release}, one CPU at an instruction a nanosecond; {COUNT} packets of each kind", flush=True)
    directory = cache() / "packets"
    found: list[tuple[str, int, int]] = []
    with booted(kernel, cpus=1, qemu=QEMU) as vm:
        prepare(vm, modules)
        guest(vm, "modprobe -a udp_tunnel ip6_udp_tunnel; insmod $MODULE")
        guest(
            vm,
            """
            $A $TOOLS/qrectl device-set Device=qre0 Role=1 MTU=1380
            $A sysctl -qw net.ipv6.conf.qre0.disable_ipv6=1
            ip -n a addr add 10.77.0.1/24 dev qre0
            ip -n a link set qre0 up
            """,
        )
        for number, kind in enumerate(KINDS, 1):
            file = directory / f"worst-{number}"
            try:
                found.append((kind.title, *measure(vm, number, kind, file)))
            finally:
                file.unlink(missing_ok=True)
        complaints = vm.splats()
    tell(found)
    for line in complaints:
        print(f"the kernel complained: {line}")
    sys.exit(bool(complaints))


def tell(found: list[tuple[str, int, int]]) -> None:
    ordinary = found[0][2]
    print(f"\n{'':34}{'bytes':>8}{'instructions':>14}{'a byte':>8}{'ordinary':>10}")
    for title, size, cost in found:
        print(f"{title:34}{size:>8}{cost:>14}{cost / size:>8.1f}{cost / ordinary:>9.2f}x")


if __name__ == "__main__":
    main()
