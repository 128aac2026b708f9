"""A stranger's packet with the connection ID of a session of qre.ko reaches the user's socket as it was sent; what is
the peer's, or above the budget, does not."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from qre.ends import Role
from qre.kernel.abi import Drop
from tests.support.guest_peer import ROUTED_CID, GuestPeer, ready_for_peers
from tests.support.kernels import cache
from tests.support.short_headers import Keys, Shot, write_shots
from tests.support.vm import Vm

pytestmark = [pytest.mark.timeout(900)]
_numbers = iter(range(72_000, 73_000))
CID = bytes.fromhex(ROUTED_CID)
BASE = 65_536
#: As kmod/strays.c has it: so many a second.
BUDGET = 500
STRANGER = 6000


@contextmanager
def served(vm: Vm) -> Iterator[GuestPeer]:
    """A server's session on the shared socket, which a process has that prints what comes to it."""
    with ready_for_peers(vm):
        peer = GuestPeer(vm, Role.SERVER, next(_numbers))
        peer.check(
            """
            $K $TOOLS/qrectl device-set Device=qre0 Role=1 MTU=1380
            $K $TOOLS/qrectl hold 10.9.0.1 443 register >/tmp/held </dev/null &
            until_true 'grep -q held /tmp/held'
            """
        )
        peer.install("IdleMs=3600000")
        yield peer


@pytest.fixture
def server(vm: Vm) -> Iterator[GuestPeer]:
    with served(vm) as peer:
        yield peer


def shoot(peer: GuestPeer, shots: Sequence[Shot], count: int = 0) -> None:
    file = cache() / "packets" / secrets.token_hex(8)
    write_shots(file, list(shots))
    try:
        peer.check(f"$P $TOOLS/packets {file} {peer.address} {count or len(shots)} 1")
    finally:
        file.unlink()


def heard(peer: GuestPeer, count: int) -> list[tuple[str, bytes]]:
    """What came to the socket, from where; once so many did, and no more follow."""
    printed = peer.check(f"until_true '[ $(grep -c ^got /tmp/held) -ge {count} ]'; sleep 0.5; cat /tmp/held")
    lines = [line.split() for line in printed.splitlines() if line.startswith("got")]
    return [(source, bytes.fromhex(data)) for _, source, _, data in lines]


def of_strangers(peer: GuestPeer, dice: random.Random) -> list[bytes]:
    """What bears the session's ID and does not open, of every size and for every reason."""
    key, iv, hp = (dice.randbytes(size) for size in (16, 12, 16))
    stranger = Keys(key, iv, hp, CID)
    made = [bytes([0x40 | dice.randrange(64)]) + CID + dice.randbytes(size) for size in range(40)]
    made += [stranger.seal(BASE + dice.randrange(99), dice.randbytes(size)) for size in (4, 700, 1200, 1430)]
    made += [stranger.seal(BASE, dice.randbytes(size)) for size in (1440, 3000, 20_000)]  # above any packet of ours
    made += [b"\x44" + CID + dice.randbytes(300) for _ in range(20)]  # half of them: a phase without keys
    return made


def test_what_a_stranger_sends_reaches_the_socket_as_it_was(server: GuestPeer) -> None:
    before = server.session()
    sent = of_strangers(server, random.Random(1))
    shoot(server, [Shot(data, STRANGER, 443) for data in sent])
    assert heard(server, len(sent)) == [(f"10.9.0.2:{STRANGER}", data) for data in sent]
    assert server.drops() == {}
    after = server.session()
    for name in ("State", "RxNumber", "PacketNumber", "RxPackets", "UnderlayPeerPort"):
        assert after.get(name) == before.get(name)
    # The same from the peer's own address is noise, and a packet of the peer's is one wherever it comes from.
    shoot(server, [Shot(data, server.peer_port, 443) for data in sent])
    server.says("send 0 01\nsend 1 01 0 65536\nwait 300", ports=(STRANGER,))
    assert len(heard(server, len(sent))) == len(sent)
    drops = server.drops()
    assert drops.pop(Drop.REPLAYED) == 1
    assert sum(drops.values()) == len(sent) and Drop.STRAY not in drops
    assert server.session()["RxNumber"] == str(BASE)


@pytest.mark.guest_python
def test_a_train_of_a_strangers_packets_comes_car_by_car(server: GuestPeer) -> None:
    """What UDP-GSO sends crosses a veth pair as one packet."""
    server.check(
        f"""
        $P python3 -c '
import socket
cid = bytes.fromhex("{ROUTED_CID}")
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
made.bind(("10.9.0.2", {STRANGER}))
made.setsockopt(socket.IPPROTO_UDP, 103, 200)
made.sendto(b"".join((b"@" + cid + b"%02d" % car).ljust(200, b"x") for car in range(20)), ("10.9.0.1", 443))
'
        """
    )
    assert [data[21:23] for _, data in heard(server, 20)] == [b"%02d" % car for car in range(20)]
    assert server.drops() == {}


def test_strays_are_passed_on_within_a_budget(server: GuestPeer) -> None:
    count = 5000
    began = float(server.check("cut -d' ' -f1 /proc/uptime"))
    shoot(server, [Shot(b"\x40" + CID + bytes(40), STRANGER, 443)], count)
    lasted = float(server.check("cut -d' ' -f1 /proc/uptime")) - began
    passed, dropped = int(server.fields("device-get")["SharedPassed"]), server.drops()
    assert set(dropped) == {Drop.STRAY} and passed + dropped[Drop.STRAY] == count
    assert BUDGET <= passed <= BUDGET * (2 + int(lasted))
    server.says("send 0 01\nwait 300")
    assert server.session()["RxNumber"] == str(BASE), "the session is none the worse"


def test_what_comes_from_port_0_is_the_sockets_alone(server: GuestPeer) -> None:
    """Nobody can be answered there, so no session looks at it, and no budget is spent."""
    count = 4 * BUDGET
    shoot(server, [Shot(b"\x40" + CID + bytes(40), 0, 443)], count)
    assert int(server.fields("device-get")["SharedPassed"]) == count
    assert server.drops() == {}
    server.says("send 0 01\nwait 300")
    assert server.session()["RxNumber"] == str(BASE)


@pytest.mark.guest_python
def test_an_asynchronous_cipher_gives_strays_back_as_well(vm: Vm) -> None:
    """pcrypt makes one of any; 7.2 does, too, and says EEXIST all the same."""
    with served(vm) as first:
        driver = first.session()["AeadDriver"]
    vm.check(
        f"""
        modprobe -a pcrypt algif_aead
        python3 -c '
import contextlib, socket
with contextlib.suppress(FileExistsError):
    socket.socket(38, socket.SOCK_SEQPACKET).bind(("aead", "pcrypt({driver})"))
'
        """
    )
    try:
        with served(vm) as server:
            assert server.session()["AeadDriver"] == f"pcrypt({driver})"
            sent = of_strangers(server, random.Random(2))
            shoot(server, [Shot(data, STRANGER, 443) for data in sent])
            assert sorted(heard(server, len(sent))) == sorted((f"10.9.0.2:{STRANGER}", data) for data in sent)
            assert server.drops() == {}
            server.says("send 0 01\nwait 300")
            assert server.session()["RxNumber"] == str(BASE)
    finally:
        vm.check("rmmod pcrypt")
    assert vm.splats() == []
