"""The demultiplexer in the running kernel, with real sockets on loopback."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from qre.config.model import Listen
from qre.errors import MachineError
from qre.kernel.bpf_pins import check_pin_dir, paths, pin, unpin
from qre.kernel.bpf_program import (
    CID_ROUTES,
    MAX_ROUTES,
    SLOT_KERNEL,
    SLOT_USER,
    SOCKETS,
    Maps,
    create,
    load,
)
from qre.kernel.udp.control_messages import family_of
from tests.support.namespaces import run
from tests.support.network import ip
from tests.support.reuseport import Group, short_packet

CID = bytes(range(20))


@pytest.fixture
def group() -> Iterator[Group]:
    made = Group()
    yield made
    made.close()


def test_an_adopted_cid_is_steered_to_the_data_plane_until_it_is_released(group: Group) -> None:
    for _ in range(20):
        assert group.slot_of(short_packet(CID)) == SLOT_USER
    group.maps.adopt(CID)
    for _ in range(20):
        assert group.slot_of(short_packet(CID)) == SLOT_KERNEL
    assert list(group.maps.adopted()) == [CID]
    assert group.maps.release(CID)
    assert not group.maps.release(CID)
    assert group.slot_of(short_packet(CID)) == SLOT_USER


def test_what_is_no_short_packet_with_a_known_cid_goes_to_user_space(group: Group) -> None:
    group.maps.adopt(CID)
    for packet in (
        b"\x40",
        b"\x40" + CID[:19],  # too short by one
        b"",
        b"\xc0" + CID + bytes(1200),  # a long header
        short_packet(bytes(20)),
        short_packet(CID[1:] + b"\x00"),
        os.urandom(1) + os.urandom(1400),
    ):
        assert group.slot_of(packet) == SLOT_USER
    assert group.slot_of(b"\x40" + CID) == SLOT_KERNEL  # just long enough


@pytest.mark.parametrize("length", [17, 18, 19, 20])
def test_the_routed_length_is_set_at_load(length: int) -> None:
    group = Group(length)
    try:
        group.maps.adopt(CID[:length])
        assert group.slot_of(short_packet(CID)) == SLOT_KERNEL
        assert group.slot_of(short_packet(CID[:-1] + b"\x99")) == (SLOT_USER if length == 20 else SLOT_KERNEL)
    finally:
        group.close()


def test_listeners_do_not_know_each_others_cids(group: Group) -> None:
    with Group(18) as other:
        group.maps.adopt(CID)
        other.maps.adopt(CID[:18])
        assert (group.slot_of(short_packet(CID)), other.slot_of(short_packet(CID))) == (SLOT_KERNEL, SLOT_KERNEL)
        group.maps.release(CID)
        assert (group.slot_of(short_packet(CID)), other.slot_of(short_packet(CID))) == (SLOT_USER, SLOT_KERNEL)
        other.pair[1].close()
        assert (group.slot_of(short_packet(CID)), other.slot_of(short_packet(CID))) == (SLOT_USER, SLOT_USER)


@pytest.mark.parametrize("value", [0, 2, 0xFFFFFFFF])
def test_a_route_to_no_slot_but_the_data_planes_goes_to_user_space(
    group: Group, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qre.kernel.bpf_program.SLOT_KERNEL", value)
    group.maps.adopt(CID)
    assert group.slots_of(short_packet(CID)) == {SLOT_USER}


def test_nothing_is_dropped_while_both_slots_are_empty(group: Group) -> None:
    group.maps.adopt(CID)
    first, second = group.pair
    replacement = group.another()
    first.close()
    second.close()
    group.pair = [replacement]  # in the group, but in no slot
    assert group.slots_of(short_packet(CID)) == {0}


@pytest.mark.parametrize("length", [16, 21])
def test_a_connection_id_of_another_length_is_not_steered(length: int) -> None:
    group = Group(length)
    try:
        group.maps.adopt(CID)
        assert group.slot_of(short_packet(CID)) == SLOT_USER
    finally:
        group.close()


def test_a_closed_socket_leaves_its_packets_to_the_other_until_it_is_replaced(group: Group) -> None:
    group.maps.adopt(CID)
    group.pair[1].close()
    assert group.slot_of(short_packet(CID)) == SLOT_USER
    replacement = group.another()
    group.pair[1] = replacement
    group.maps.slot_in(SLOT_KERNEL, replacement.fileno())
    assert group.slot_of(short_packet(CID)) == SLOT_KERNEL


def test_after_detach_the_kernel_spreads_packets_by_itself(group: Group) -> None:
    Maps.detach(group.pair[0].fileno())
    Maps.detach(group.pair[0].fileno())  # twice is no error
    assert {group.slot_of(short_packet(CID)) for _ in range(64)} == {SLOT_USER, SLOT_KERNEL}


@pytest.mark.parametrize(
    ("ours", "others"),
    [
        (["192.0.2.1", "2001:db8::1"], ["192.0.2.2", "2001:db8::2", "127.0.0.1", "::1"]),
        (["192.0.2.1", "192.0.2.2"], ["127.0.0.1"]),
        (["2001:db8::1", "2001:db8::2"], ["192.0.2.1", "::1"]),
    ],
)
def test_at_an_address_that_listen_does_not_name_the_port_is_closed(
    network: None, ours: list[str], others: list[str]
) -> None:
    for address in ("192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128", "2001:db8::2/128"):
        ip("address", "add", address, "dev", "lo")
    listen = Listen(tuple(map(ip_address, ours)), 443)
    with Group(port=listen) as group:
        group.maps.adopt(CID)
        for address in ours:
            group.address = (address, 443)
            assert group.slots_of(short_packet(CID)) == {SLOT_KERNEL}
            assert group.slots_of(b"\xc0" + CID + bytes(1200)) == {SLOT_USER}
        for address in others:
            for packet in (short_packet(CID), b"\xc0" + CID + bytes(1200)):
                assert refused((address, 443), packet)
        assert not select.select(group.pair, [], [], 0)[0]


def refused(address: tuple[str, int], packet: bytes) -> bool:
    """Whether an ICMP error says that the port is closed."""
    with socket.socket(family_of(address[0]), socket.SOCK_DGRAM) as sender:
        sender.settimeout(2)
        sender.connect(address)
        sender.send(packet)
        try:
            sender.recv(1)
        except ConnectionRefusedError:
            return True
        return False


def test_a_full_map_refuses_and_names_the_bound(group: Group) -> None:
    for number in range(MAX_ROUTES):
        group.maps.adopt(number.to_bytes(20, "big"))
    with pytest.raises(MachineError, match="4096"):
        group.maps.adopt(b"\xff" * 20)
    assert len(list(group.maps.adopted())) == MAX_ROUTES


def test_objects_of_another_shape_are_refused(group: Group) -> None:
    with pytest.raises(MachineError, match="type or sizes differ"):
        Maps(*map(os.dup, (group.maps.sockets, group.maps.cid_routes, group.maps.program)))


def test_only_the_program_that_steers_by_these_maps_is_taken_for_ours(group: Group) -> None:
    ours = (group.maps.cid_routes, group.maps.sockets)
    Maps(*map(os.dup, (*ours, group.maps.program))).close()
    with Group() as other:
        for program, why in ((other.maps.program, "other maps"), (ours[0], "another program"), (0, "program")):
            with pytest.raises(MachineError, match=why):
                Maps(*map(os.dup, (*ours, program)))
    fresh = create(CID_ROUTES), create(SOCKETS)
    with pytest.raises(MachineError, match="other maps"):
        Maps(*fresh, os.dup(group.maps.program))


def test_what_is_no_elf_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF" + bytes(2 << 20)):
        path = tmp_path / "elf"
        path.write_bytes(content)
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(MachineError):
            load(fd, 20)
        os.close(fd)


def test_pins_are_made_and_removed_as_a_whole(group: Group, tmp_path: Path) -> None:
    directory = tmp_path / "bpf"
    directory.mkdir()
    run("mount", "-t", "bpf", "bpf", str(directory))
    try:
        check_pin_dir(directory)
        fds = [group.maps.cid_routes, group.maps.sockets, group.maps.program]
        pin(directory, "qre0", fds)
        pin(directory, "qre0", fds)  # what a dead daemon left is replaced
        assert sorted(directory.glob("*-qre0")) == sorted(paths(directory, "qre0"))
        unpin(directory, "qre0")
        pin(directory, "eth.100", fds)  # a BPF file system takes no dots
        unpin(directory, "eth.100")
        with pytest.raises(MachineError):
            pin(directory, "qre0", [*fds[:2], os.open("/dev/null", os.O_RDONLY)])
        assert not list(directory.glob("*-qre0"))
    finally:
        run("umount", str(directory))


def test_a_pin_directory_that_is_no_bpf_file_system_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(Exception, match="mount -t bpf bpf"):
            check_pin_dir(path)
