"""Session secrets in their memfd: whole records only, whatever died; nothing of what has ended."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_interface
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.dataplane.protocol import Underlay, underlay_of
from qre.ends import Role
from qre.errors import MachineError
from qre.quic.handed_over import HandedOver
from qre.supervisor.parent.process_settings import empty_memfd
from qre.workers.handshake.sessions.secrets import (
    COPIES,
    COPY_LENGTH,
    EARLIER_SIZE,
    MAGIC,
    SIZE,
    SLOT,
    SLOTS,
    SecretsStore,
    SessionRecord,
    encode_record,
    parse_record_untrusted,
)
from tests.support.two_ends import handed_over_pair
from tests.support.untrusted import read_or_refused

UNDERLAY = underlay_of(("192.0.2.1", 443), ("192.0.2.2", 40_000))


def record_of(seed: int = 0, role: Role = Role.SERVER) -> SessionRecord:
    return SessionRecord(role, handed_over_pair(seed)[role], UNDERLAY)


@pytest.fixture
def fd() -> Iterator[int]:
    made = empty_memfd("session_secrets")
    yield made
    os.close(made)


cids = st.binary(min_size=1, max_size=20)
addresses = st.lists(
    st.one_of(
        st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
    ).map(lambda pair: ip_interface(f"{pair[0]}/{pair[1]}")),
    max_size=8,
).map(tuple)
ports = st.integers(1, 65_535)


def underlays(version: Literal[4, 6]) -> st.SearchStrategy[Underlay]:
    address = st.ip_addresses(v=version)
    return st.builds(Underlay, local_ip=address, local_port=ports, peer_ip=address, peer_port=ports)


secrets = st.binary(min_size=32, max_size=32)
keys = st.binary(min_size=16, max_size=16)
numbers = st.integers(0, (1 << 63) - 1)
records = st.builds(
    SessionRecord,
    role=st.sampled_from(Role),
    handed_over=st.builds(
        HandedOver,
        session_id=secrets,
        routed_cid=cids,
        client_cid=st.binary(max_size=20),
        tx_secret=secrets,
        rx_secret=secrets,
        tx_hp_key=keys,
        rx_hp_key=keys,
        key_epoch=numbers,
        peer_idle_ms=numbers,
        peer_ack_delay_exponent=st.integers(0, 20),
        peer_max_ack_delay_ms=st.integers(0, 16_383),
        peer_max_udp_payload=st.integers(0, 65_535),
        reset_token=st.none() | keys,
        addresses=addresses,
        short_id=st.binary(min_size=8, max_size=8),
        retire_sequence=st.none() | numbers,
        next_cid_sequence=numbers,
        splits=st.booleans(),
        next_packet_number=st.just(0),
    ),
    underlay=st.sampled_from((4, 6)).flatmap(underlays),
    socket_number=numbers,
    confirmed=st.booleans(),
    settled=st.booleans(),
    spare_cid=st.binary(max_size=20),
    spare_sequence=numbers,
)


@given(records)
def test_a_record_is_read_as_it_was_written(record: SessionRecord) -> None:
    data = encode_record(record)
    assert len(data) == COPY_LENGTH
    assert parse_record_untrusted(data) == record


@given(st.binary(min_size=COPY_LENGTH, max_size=COPY_LENGTH) | st.binary(max_size=600))
def test_any_bytes_are_a_record_or_refused(data: bytes) -> None:
    record = read_or_refused(parse_record_untrusted, data)
    assert record is None or parse_record_untrusted(encode_record(record)) == record


@given(records, st.integers(0, COPY_LENGTH - 1), st.integers(1, 255))
def test_a_damaged_record_is_read_whole_or_refused(record: SessionRecord, at: int, change: int) -> None:
    data = bytearray(encode_record(record))
    data[at] ^= change
    found = read_or_refused(parse_record_untrusted, bytes(data))
    assert found is None or parse_record_untrusted(encode_record(found)) == found


def test_sessions_outlive_the_process(fd: int) -> None:
    store = SecretsStore(fd)
    made = [record_of(seed) for seed in range(5)]
    for record in made:
        store.put(record)
    store.put(made[1].at(7))
    store.remove(made[2].session_id)
    store.close()
    again = SecretsStore(fd)
    found, damaged = again.load()
    assert damaged == 0
    assert {record.session_id: record for record in found} == {
        record.session_id: record for record in (made[0], made[1].at(7), made[3], made[4])
    }
    again.put(record_of(9))
    assert len(SecretsStore(fd).load()[0]) == 5


def test_a_store_takes_the_pages_that_its_sessions_fill() -> None:
    fd = empty_memfd("session_secrets")
    store = SecretsStore(fd)
    store.lock()
    assert store.load() == ([], 0)
    store.put(record_of())
    assert os.fstat(fd).st_blocks * 512 <= 2 * mmap.PAGESIZE < SIZE
    assert len(SecretsStore(fd).load()[0]) == 1


class Killed(Exception):
    """The process dies here."""


class DyingMap:
    """A map that dies at its nth store, or in the middle of it."""

    def __init__(self, inner: object, stores: int, *, torn: bool) -> None:
        self.inner, self.stores, self.torn = inner, stores, torn

    def __getitem__(self, key: object) -> object:
        return self.inner[key]  # type: ignore[index]  # a mmap

    def __setitem__(self, key: object, value: object) -> None:
        if self.stores == 0:
            if self.torn and isinstance(key, slice) and isinstance(value, bytes):
                half = (key.stop - key.start) // 2
                self.inner[key.start : key.start + half] = value[:half]  # type: ignore[index]  # a mmap
            raise Killed
        self.stores -= 1
        self.inner[key] = value  # type: ignore[index]  # a mmap


@pytest.mark.parametrize("torn", [False, True])
def test_a_process_killed_while_it_writes_leaves_the_old_or_the_new_record(torn: bool) -> None:
    before = record_of().at(3)
    after = before.at(4)
    outcomes = set()
    for stores in range(4):
        fd = empty_memfd("session_secrets")
        store = SecretsStore(fd)
        store.put(record_of())
        store.put(before)
        store._map = DyingMap(store._map, stores, torn=torn)  # type: ignore[assignment]  # it dies
        with contextlib.suppress(Killed):
            store.put(after)
        again = SecretsStore(fd)
        found, damaged = again.load()
        assert damaged == 0
        assert found in ([before], [after])
        outcomes.add(found[0].key_epoch)
        other = before if found == [after] else after
        assert other.handed_over.tx_secret not in again._map[:], "what a killed writer left is wiped"
        os.close(fd)
    assert outcomes == {3, 4}


def test_nothing_is_left_of_a_session_that_ended(fd: int) -> None:
    store = SecretsStore(fd)
    for epoch in range(4):
        store.put(record_of().at(epoch))
    store.remove(record_of().session_id)
    store.remove(record_of().session_id)
    assert os.pread(fd, SIZE, 0) == MAGIC.ljust(SIZE, b"\0")


def test_only_the_current_secrets_are_there(fd: int) -> None:
    store = SecretsStore(fd)
    for epoch in range(4):
        store.put(record_of().at(epoch))
    image = os.pread(fd, SIZE, 0)
    for epoch in range(3):
        assert record_of().at(epoch).handed_over.tx_secret not in image
    assert record_of().at(3).handed_over.tx_secret in image


def test_damaged_slots_are_wiped_and_the_others_kept(fd: int) -> None:
    store = SecretsStore(fd)
    for seed in range(4):
        store.put(record_of(seed))
    image = bytearray(os.pread(fd, SIZE, 0))
    image[SLOT] = 9  # no known state
    start = 2 * SLOT + COPIES[0]
    image[start + 40] = 77  # no known role
    image[3 * SLOT : 4 * SLOT] = image[4 * SLOT : 5 * SLOT]  # a session twice
    os.pwrite(fd, bytes(image), 0)
    again = SecretsStore(fd)
    found, damaged = again.load()
    assert damaged == 3
    assert [record.session_id for record in found] == [record_of(3).session_id]
    assert os.pread(fd, SLOT, SLOT) == bytes(SLOT)


def test_the_store_is_bounded(fd: int) -> None:
    store = SecretsStore(fd)
    record = record_of()
    for number in range(SLOTS):
        assert not store.full
        store.put(replace(record, handed_over=replace(record.handed_over, session_id=number.to_bytes(32, "big"))))
    assert store.full
    with pytest.raises(MachineError, match="no room"):
        store.put(record)
    store.remove(bytes(32))
    store.put(record)


def test_that_of_a_daemon_of_an_earlier_version_is_gone_on_with() -> None:
    """systemd kept it; it has room for fewer."""
    earlier = os.memfd_create("earlier", os.MFD_CLOEXEC)
    os.ftruncate(earlier, EARLIER_SIZE)
    SecretsStore(earlier).put(record_of())
    found, damaged = SecretsStore(earlier).load()
    assert [record.session_id for record in found] == [record_of().session_id] and not damaged
    os.close(earlier)


def test_too_many_addresses_are_refused() -> None:
    record = record_of()
    many = tuple(ip_interface(f"10.0.0.{number}/32") for number in range(9))
    with pytest.raises(MachineError, match="addresses"):
        encode_record(replace(record, handed_over=replace(record.handed_over, addresses=many)))


def test_wiping_leaves_nothing(fd: int) -> None:
    store = SecretsStore(fd)
    store.put(record_of())
    store.close(wipe=True)
    assert os.pread(fd, SIZE, 0) == bytes(SIZE)


def test_what_is_no_memfd_of_secrets_is_refused() -> None:
    small = os.memfd_create("small", os.MFD_CLOEXEC)
    with pytest.raises(MachineError, match="bytes long"):
        SecretsStore(small)
    os.ftruncate(small, SIZE)
    os.pwrite(small, b"else", 0)
    with pytest.raises(MachineError, match="other data"):
        SecretsStore(small)
    os.close(small)
    with pytest.raises(MachineError):
        SecretsStore(small)


def test_a_record_shows_no_secret() -> None:
    record = record_of()
    for text in (repr(record), str(record), repr([record])):
        assert record.handed_over.tx_secret.hex()[:16] not in text
        assert repr(record.handed_over.tx_secret)[2:10] not in text
