"""A file whose pages are sent, through the tunnel or at its port, is unchanged: nothing is sealed or opened in them.

GCM writes before it verifies: whoever opened in place would let anybody who may read a file change it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import wait_for
from tests.support.short_headers import Keys
from tests.support.vm import Vm
from tests.vm.test_hostile_packets import (
    BASE,
    DECRYPT_FAILED,
    LIBRARY,
    REPLAYED,
    End,
    Session,
    drops,
    magazine,
    standing_session,
)

pytestmark = pytest.mark.timeout(1800)
#: Of a datagram: most of them lie across a page's end.
SIZE = 1233
DATAGRAMS = 150
#: A file on a file system that is mounted read-only, and one that is nothing but page cache.
FILES = ("/tmp/disk.d/file", "/dev/shm/qre-file")


@pytest.fixture
def session(vm: Vm) -> Iterator[Session]:
    """The tunnel, and somewhere for files."""
    with standing_session(vm) as made:
        yield made
    vm.check("umount /tmp/disk.d; rm -rf /tmp/disk /tmp/disk.d /dev/shm/qre-file /tmp/original")
    assert vm.splats() == []


def lay(vm: Vm, original: str) -> None:
    """Both files, of the bytes that the shell command ``original`` writes to /tmp/original."""
    vm.check(
        LIBRARY
        + f"""
        modprobe -a loop ext4
        mountpoint -q /dev/shm || {{ mkdir -p /dev/shm; mount -t tmpfs tmpfs /dev/shm; }}
        {original}
        truncate -s 32M /tmp/disk
        mkfs.ext4 -q -F /tmp/disk
        mkdir -p /tmp/disk.d
        mount -o loop /tmp/disk /tmp/disk.d
        for file in {" ".join(FILES)}; do
            cp /tmp/original $file
            chmod 444 $file
        done
        sync
        mount -o remount,ro /tmp/disk.d
        """
    )


def assert_unchanged(vm: Vm) -> None:
    """Neither what a mapping shows nor what reading does, in memory and from the disk."""
    vm.check(
        LIBRARY
        + f"""
        for file in {" ".join(FILES)}; do
            $TOOLS/pagecache mapped $file | cmp - /tmp/original
            cmp $file /tmp/original
        done
        echo 3 >/proc/sys/vm/drop_caches
        for file in {" ".join(FILES)}; do
            cmp $file /tmp/original
        done
        """
    )


def test_a_file_sent_through_the_tunnel_is_unchanged(vm: Vm, session: Session) -> None:
    lay(vm, "head -c 3000001 /dev/urandom >/tmp/original")
    for file in FILES:
        for sender, receiver, address in (("a", "b", "10.77.0.2"), ("b", "a", "10.77.0.1")):
            vm.check(
                LIBRARY
                + f"""
                ip netns exec {receiver} $TOOLS/pagecache sink {address} 7777 >/tmp/arrived &
                sink=$!
                until_listens {receiver} 7777
                ip netns exec {sender} timeout 100 $TOOLS/pagecache stream {file} {address} 7777
                wait $sink
                cmp /tmp/arrived /tmp/original
                rm /tmp/arrived
                """
            )
    vm.check(
        LIBRARY
        + f"""
        $A $TOOLS/qrectl hold 10.77.0.1 7777 >/dev/null &
        until_true "$A ss -Hlun | grep -q :7777"
        for file in {" ".join(FILES)}; do
            for how in sendfile splice vmsplice; do
                $B $TOOLS/pagecache $how $file 10.77.0.1 7777 10.77.0.2 0 16384
            done
        done
        pkill -x qrectl
        """
    )
    assert_unchanged(vm)


def packets(end: End) -> tuple[bytes, int]:
    """Packets with the live CID, all of SIZE bytes, none of them new; how many of them are authentic."""
    dice = random.Random(2)
    room = SIZE - 1 - len(end.now.cid) - 4 - 16
    forged = Keys(dice.randbytes(16), end.now.iv, end.now.hp, end.now.cid)
    made, authentic = [], 0
    for index in range(DATAGRAMS):
        payload = b"\x30\0\0" + dice.randbytes(room - 3)
        keys = (end.now, forged)[index % 2]
        authentic += keys is end.now
        made.append(keys.seal(BASE + index % 8, payload))
    assert {len(packet) for packet in made} == {SIZE}
    return b"".join(made), authentic


@pytest.mark.parametrize("under_fire", ["a", "b"], ids=["server", "client"])
def test_a_file_spliced_into_the_port_is_unchanged(vm: Vm, session: Session, under_fire: str) -> None:
    end = next(end for end in session.ends() if end.name == under_fire)
    content, authentic = packets(end)
    file: Path = magazine()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    try:
        lay(vm, f"cp {file} /tmp/original")
    finally:
        file.unlink()
    source = "10.9.0.2 0"
    if under_fire == "b":  # a client listens to its server's address alone: that end makes room
        vm.check(LIBRARY + "$A $TOOLS/qrectl session-del Device=qre0 SessionId=$ID")
        source = "10.9.0.1 443"
    before = drops(vm, under_fire)
    for spliced in FILES:
        for how in ("sendfile", "splice", "vmsplice"):
            sender = f"$TOOLS/pagecache {how} {spliced} {end.address} {end.port} {source} {SIZE}"
            vm.check(LIBRARY + f"ip netns exec {end.shooter} {sender}")
    # All of them came as far as the AEAD.
    rounds = 3 * len(FILES)
    wait_for("the packets", lambda: (drops(vm, under_fire) - before).total() >= rounds * DATAGRAMS)
    counted = drops(vm, under_fire) - before
    assert counted == {REPLAYED: rounds * authentic, DECRYPT_FAILED: rounds * (DATAGRAMS - authentic)}
    assert_unchanged(vm)
