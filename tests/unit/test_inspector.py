"""What the inspector of pending flows says about first flights, good ones and everything else."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import pytest
from aioquic.quic.crypto import CryptoPair
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from qre.errors import UntrustedInputError
from qre.quic.server.inspector import (
    MAX_DATAGRAMS,
    MAX_HELLO,
    STRANGER,
    UNDECIDED,
    Authenticated,
    HelloInspector,
    Verdict,
)
from qre.quic.tls.client_hello import ClientHello, parse_client_hello_untrusted
from qre.reality.authenticator import RANDOM_END, RANDOM_OFFSET
from qre.reality.replay import random_hash
from qre.wire.initial import CryptoStream, crypto_frames_untrusted, parse_initial_header_untrusted
from qre.wire.packet import Header
from tests.support.fake_client import FakeClient
from tests.support.untrusted import read_or_refused

NOW = 1_800_000_000
KEY = X25519PrivateKey.from_private_bytes(bytes(range(32)))
SHORT_ID = bytes.fromhex("0123456789abcdef")
DCID = bytes(range(8))


def inspector(**changes: object) -> HelloInspector:
    arguments: dict[str, object] = {
        "server_name": "site.test",
        "private_key": KEY,
        "short_ids": frozenset({SHORT_ID}),
        "max_time_diff_ms": 60_000,
    }
    return HelloInspector(**(arguments | changes))  # type: ignore[arg-type]  # keyword arguments of a test


def fake(**changes: object) -> FakeClient:
    arguments: dict[str, object] = {
        "public_key": KEY.public_key().public_bytes_raw(),
        "short_id": SHORT_ID,
        "unix_time": NOW,
    }
    return FakeClient(**(arguments | changes))  # type: ignore[arg-type]  # keyword arguments of a test


def hello_of(client: FakeClient) -> bytes:
    """The ClientHello message of a first flight that is not sent."""
    client.connect(("192.0.2.1", 443), 0.0)
    stream = next(iter(client._crypto_streams.values()))
    return bytes(stream.sender._buffer)


def initial(frames: bytes, number: int, dcid: bytes = DCID, size: int = 1250) -> bytes:
    """A client's Initial that fills a datagram, padding at the end of the payload."""
    pair = CryptoPair()
    pair.setup_initial(cid=dcid, is_client=True, version=1)
    header_length = 1 + 4 + 1 + len(dcid) + 1 + 1 + 2 + 2
    payload = frames.ljust(size - header_length - 16, b"\x00")
    header = (
        b"\xc1\x00\x00\x00\x01"
        + bytes([len(dcid)])
        + dcid
        + b"\x00\x00"
        + (len(payload) + 2 + 16 | 0x4000).to_bytes(2, "big")
        + number.to_bytes(2, "big")
    )
    return pair.encrypt_packet(header, payload, number)


def crypto(message: bytes, start: int, end: int) -> bytes:
    data = message[start:end]
    return b"\x06" + (start | 0x4000).to_bytes(2, "big") + (len(data) | 0x4000).to_bytes(2, "big") + data


def verdicts(subject: HelloInspector, datagrams: list[bytes], now: int = NOW) -> list[Verdict]:
    return [subject.datagram_received(data, now * 1000) for data in datagrams]


def split(message: bytes, seed: int) -> list[bytes]:
    """As Chromium does: two datagrams, each with shuffled CRYPTO frames and PINGs between."""
    rng = random.Random(seed)
    cuts = sorted({0, len(message), *(rng.randrange(1, len(message)) for _ in range(12))})
    pieces = [crypto(message, a, b) for a, b in itertools.pairwise(cuts)]
    rng.shuffle(pieces)
    groups: list[list[bytes]] = [[], []]
    room = [1150, 1150]
    for piece in pieces:
        place = 0 if room[0] >= len(piece) and rng.random() < 0.5 else 1
        place = place if room[place] >= len(piece) else 1 - place
        room[place] -= len(piece)
        groups[place].append(piece + b"\x01" * rng.randrange(3))
    return [initial(b"".join(group), number) for number, group in enumerate(groups, 1)]


def test_a_client_with_the_right_key_and_short_id_is_authenticated() -> None:
    client = fake()
    subject = inspector()
    said = verdicts(subject, client.first_flight(0.0))
    assert said[:-1] == [UNDECIDED] * (len(said) - 1)
    found = said[-1]
    assert isinstance(found, Authenticated)
    assert found.short_id == SHORT_ID
    assert found.unix_time == NOW
    assert found.original_destination_cid == client.original_destination_connection_id
    assert found.random_hash == random_hash(found.client_hello[RANDOM_OFFSET:RANDOM_END])
    assert found.secrets == client.tls.secrets
    assert "hidden" in repr(found.secrets)


def test_a_hello_for_the_previous_key_is_taken_too_and_shares_that_keys_secrets() -> None:
    fresh = X25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
    for key in (KEY, fresh):
        client = fake(public_key=key.public_key().public_bytes_raw())
        found = verdicts(inspector(private_key=fresh, previous_key=KEY), client.first_flight(0.0))[-1]
        assert isinstance(found, Authenticated) and found.secrets == client.tls.secrets
    third = X25519PrivateKey.from_private_bytes(bytes(range(2, 34)))
    for changes in ({"private_key": fresh}, {"private_key": fresh, "previous_key": third}):
        assert verdicts(inspector(**changes), fake().first_flight(0.0))[-1] is STRANGER


@pytest.mark.parametrize("seed", range(20))
def test_the_hello_may_come_in_any_pieces_and_order(seed: int) -> None:
    message = hello_of(fake(hybrid=seed % 2 == 0))
    datagrams = split(message, seed)
    assert isinstance(verdicts(inspector(), datagrams)[-1], Authenticated)
    assert isinstance(verdicts(inspector(), datagrams[::-1])[-1], Authenticated)


def test_half_a_hello_is_undecided_however_often_it_comes() -> None:
    first, second = split(hello_of(fake()), 1)
    subject = inspector()
    assert verdicts(subject, [first, first, first]) == [UNDECIDED] * 3
    assert isinstance(subject.datagram_received(second, NOW * 1000), Authenticated)


@pytest.mark.parametrize(
    ("client", "server"),
    [
        ({"short_id": b"\x01".ljust(8, b"\x00")}, {}),
        ({"public_key": X25519PrivateKey.generate().public_key().public_bytes_raw()}, {}),
        ({"unix_time": NOW - 61}, {}),
        ({"unix_time": NOW + 61}, {}),
        ({"server_name": "other.test"}, {}),
        ({}, {"server_name": "other.test"}),
        ({}, {"short_ids": frozenset()}),
    ],
)
def test_anybody_else_is_a_stranger(client: dict[str, object], server: dict[str, object]) -> None:
    assert verdicts(inspector(**server), fake(**client).first_flight(0.0))[-1] is STRANGER


def test_the_time_is_not_checked_when_the_difference_is_0() -> None:
    client = fake(unix_time=NOW - 10_000_000)
    assert isinstance(verdicts(inspector(max_time_diff_ms=0), client.first_flight(0.0))[-1], Authenticated)


def test_any_changed_byte_of_the_hello_makes_a_stranger() -> None:
    message = hello_of(fake(hybrid=False))
    for position in range(0, len(message), 7):
        changed = bytearray(message)
        changed[position] ^= 1
        said = verdicts(inspector(), [initial(crypto(bytes(changed), 0, len(changed)), 1)])[-1]
        assert not isinstance(said, Authenticated)


def test_a_session_id_makes_a_stranger() -> None:
    client = fake(session_id=bytes(32))
    assert verdicts(inspector(), client.first_flight(0.0))[-1] is STRANGER


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\xc0",
        bytes(1200),
        b"\x40" + bytes(1300),
        b"\xc0\x00\x00\x00\x01" + b"\xff" * 1300,
        b"\xc0\x6b\x33\x43\xcf\x08" + bytes(1300),  # QUIC version 2
        b"\xc0\x1a\x2a\x3a\x4a\x08" + bytes(1300),  # a reserved version
        b"\xe0\x00\x00\x00\x01\x08" + bytes(1300),  # Handshake
        initial(b"\x06\x00\x01\x01", 1)[:1100],  # too small a datagram
        initial(b"\x06\x00\x01\x01", 1, dcid=b"short"),
        initial(b"\x1c\x00\x00\x00", 1),  # CONNECTION_CLOSE
        initial(b"\x08\x00", 1),  # STREAM
        initial(b"\x06\x00\x04\x02\x00\x00\x00", 1),  # a ServerHello
        initial(b"\x06\x00\x04\x01\xff\xff\xff", 1),  # a hello of 16 MB
        initial(b"\x06\xc0\x00\x00\x00\x00\x00\x10\x00\x01\x01", 1),  # far away
        initial(b"\x06\x00\x7f\xff\x01", 1),  # cut off
        initial(b"\x02\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00", 1),  # an ACK without end
        initial(crypto(bytes(9), 0, 4) + crypto(b"\x01" * 9, 2, 6), 1),  # contradicts itself
        initial(b"", 1)[:-1] + b"\x00",  # a bad tag
        b"\xc0" * 65_000,
    ],
)
def test_what_is_no_first_flight_is_a_stranger_at_once(data: bytes) -> None:
    assert inspector().datagram_received(data, NOW * 1000) is STRANGER


def test_an_initial_without_crypto_is_undecided_then_a_stranger() -> None:
    subject = inspector()
    said = verdicts(subject, [initial(b"\x01", number) for number in range(1, MAX_DATAGRAMS + 2)])
    assert said == [UNDECIDED] * MAX_DATAGRAMS + [STRANGER]


def test_junk_in_the_clients_name_does_not_spoil_a_flow_that_began_well() -> None:
    first, second = split(hello_of(fake()), 3)
    subject = inspector()
    junk = [b"\xc0\x00\x00\x00\x01" + bytes(1300), initial(b"\x01", 9, dcid=b"another one")]
    assert verdicts(subject, [first, *junk]) == [UNDECIDED] * 3
    assert isinstance(subject.datagram_received(second, NOW * 1000), Authenticated)


def test_bytes_behind_the_hello_make_a_stranger() -> None:
    message = hello_of(fake(hybrid=False))
    longer = message + b"\x00"
    assert verdicts(inspector(), [initial(crypto(longer, 0, len(longer)), 1)]) == [STRANGER]


def test_a_verdict_is_final() -> None:
    flight = fake().first_flight(0.0)
    subject = inspector()
    subject.datagram_received(bytes(1200), NOW * 1000)
    assert verdicts(subject, flight)[-1] is STRANGER
    subject = inspector()
    accepted = verdicts(subject, flight)[-1]
    assert subject.datagram_received(bytes(1200), NOW * 1000) is accepted


def test_after_a_relayed_retry_the_same_hello_counts_under_the_new_cid() -> None:
    message = hello_of(fake())
    subject = inspector()
    first, _ = split(message, 5)
    assert subject.datagram_received(first, NOW * 1000) is UNDECIDED
    retry_cid = b"retry source cid"
    subject.retry_relayed(retry_cid)
    middle = len(message) // 2
    said = verdicts(
        subject,
        [
            initial(crypto(message, 0, middle), 3, dcid=retry_cid),
            initial(crypto(message, middle, len(message)), 4, dcid=retry_cid),
        ],
    )[-1]
    assert isinstance(said, Authenticated)
    assert (said.original_destination_cid, said.retry_source_cid) == (DCID, retry_cid)


@settings(max_examples=60)
@given(st.binary(max_size=1500))
def test_any_datagram_gives_a_verdict(data: bytes) -> None:
    assert inspector().datagram_received(data, NOW * 1000) in (UNDECIDED, STRANGER)


@settings(max_examples=60)
@given(st.binary(max_size=1100))
def test_any_payload_gives_a_verdict(payload: bytes) -> None:
    assert inspector().datagram_received(initial(payload, 1), NOW * 1000) in (UNDECIDED, STRANGER)


@settings(max_examples=60)
@given(st.binary(max_size=1100))
def test_any_hello_gives_a_verdict(body: bytes) -> None:
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    assert inspector().datagram_received(initial(crypto(message, 0, len(message)), 1), NOW * 1000) is STRANGER


@settings(max_examples=60)
@given(st.binary(max_size=600))
def test_parsers_raise_only_the_one_exception(data: bytes) -> None:
    for parse, kind in (
        (parse_client_hello_untrusted, ClientHello),
        (parse_initial_header_untrusted, Header),
        (crypto_frames_untrusted, list),
    ):
        found = read_or_refused(parse, data)
        assert found is None or isinstance(found, kind)


@settings(max_examples=80)
@given(st.data())
def test_crypto_data_comes_together_whatever_the_pieces(data: st.DataObject) -> None:
    message = data.draw(st.binary(min_size=1, max_size=64))
    stream = CryptoStream(64, 64)
    pieces = data.draw(st.lists(st.tuples(st.integers(0, len(message)), st.integers(0, len(message))), max_size=20))
    covered: set[int] = set()
    for a, b in pieces:
        stream.add_untrusted(min(a, b), message[min(a, b) : max(a, b)])
        covered |= set(range(min(a, b), max(a, b)))
    whole = next((at for at in range(len(message)) if at not in covered), len(message))
    assert stream.contiguous == message[:whole]
    assert stream.highest == max(covered, default=-1) + 1


def test_crypto_data_is_bounded_in_bytes_and_pieces() -> None:
    stream = CryptoStream(100, 4)
    with pytest.raises(UntrustedInputError):
        stream.add_untrusted(98, b"abc")
    for at in range(0, 8, 2):
        stream.add_untrusted(at, b"x")
    with pytest.raises(UntrustedInputError):
        stream.add_untrusted(20, b"x")


def test_a_flow_keeps_little_memory() -> None:
    pieces = b"".join(crypto(bytes(MAX_HELLO), at, at + 1) for at in range(1, 400, 2))
    datagrams = [initial(pieces, number) for number in range(1, 9)]
    tracemalloc.start()
    subjects = [inspector() for _ in range(50)]
    before = tracemalloc.get_traced_memory()[0]
    for subject in subjects:
        verdicts(subject, datagrams)
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert kept / len(subjects) < 24_000
