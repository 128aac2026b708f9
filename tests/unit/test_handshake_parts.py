"""The small parts of the handshake worker: grants, admission, resets, frames, backoff, steering, resolution."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import random
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.dest_profile import DestProfile
from qre.ends import LIKE_DEST
from qre.errors import MachineError, UntrustedInputError
from qre.ipc.messages import CidAdopt, CidRelease, CidSync, Done, Party
from qre.ipc.steering import Steering
from qre.quic.server.address_grants import Grants
from qre.quic.server.identities import Identities
from qre.reality.cid import cid_key, reset_token
from qre.structs import Message
from qre.visit.candidates import Candidates
from qre.visit.dest import resolve
from qre.visit.dest_address import DestAddress
from qre.visit.probe import Prober, imitable, probe_any
from qre.wire.frames import NewConnectionId, RetireConnectionId, encode_frame
from qre.wire.varint import MAX_VARINT
from qre.workers.handshake.backoff import Backoff
from qre.workers.handshake.port.admission import Admission, TokenBucket
from qre.workers.handshake.sessions.control_frames import parse_control_frames_untrusted
from qre.workers.handshake.sessions.routed_cids import RoutedCids
from qre.workers.handshake.sessions.stateless_reset import SHORTEST
from tests.support.daemons import PATIENCE
from tests.support.untrusted import read_or_refused

ONE, TWO = b"\x01" * 8, b"\x02" * 8
PRIVATE = bytes(range(32))


# --- grants ---


def grants() -> Grants:
    return Grants([ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")], Identities([ONE, TWO]))


def asked(table: Grants, holder: str, short_id: bytes, *wanted: str) -> list[str]:
    return [str(address) for address in table.ask(holder, short_id, [ip_interface(text) for text in wanted])]


def test_a_client_gets_its_addresses_as_host_prefixes() -> None:
    assert asked(grants(), "a", ONE, "10.77.0.2/24", "fd77::2/64") == ["10.77.0.2/32", "fd77::2/128"]


@pytest.mark.parametrize(
    "wanted", ["10.77.0.1/32", "10.77.0.0/32", "10.77.0.255/32", "10.78.0.2/32", "fd78::2/128", "0.0.0.0/0"]
)
def test_our_own_the_networks_and_foreign_addresses_are_not_granted(wanted: str) -> None:
    assert asked(grants(), "a", ONE, wanted) == []


def test_what_is_not_granted_does_not_spoil_the_rest() -> None:
    assert asked(grants(), "a", ONE, "10.99.0.2/32", "10.77.0.2/32", "10.77.0.2/24") == ["10.77.0.2/32"]


def test_an_address_held_by_another_short_id_is_taken() -> None:
    table = grants()
    assert asked(table, "a", ONE, "10.77.0.2/32")
    assert asked(table, "b", TWO, "10.77.0.2/32") == []
    assert asked(table, "c", ONE, "10.77.0.2/32"), "the same client again"
    table.free("a")
    assert asked(table, "b", TWO, "10.77.0.2/32") == [], "the newer session holds it"
    table.free("c")
    assert asked(table, "b", TWO, "10.77.0.2/32")


def test_a_holder_keeps_its_addresses_when_it_becomes_a_session() -> None:
    table = grants()
    asked(table, "handshake", ONE, "10.77.0.2/32")
    table.move("handshake", "session")
    table.free("handshake")
    assert asked(table, "b", TWO, "10.77.0.2/32") == []
    table.free("session")
    table.move("session", "nobody")
    assert asked(table, "b", TWO, "10.77.0.2/32")


def test_sessions_of_the_process_before_hold_theirs() -> None:
    table = grants()
    table.hold("old", ONE, [ip_address("10.77.0.2")])
    assert asked(table, "b", TWO, "10.77.0.2/32") == []


def test_two_hosts_share_a_31_and_routes_are_of_the_families_we_have() -> None:
    table = Grants([ip_interface("10.77.0.0/31")], Identities([ONE, TWO]))
    assert asked(table, "a", ONE, "10.77.0.1/32")
    assert [str(network) for network in table.routes()] == ["0.0.0.0/0"]
    assert len(grants().routes()) == 2
    table.own = (ip_interface("10.99.0.1/24"),)
    assert asked(table, "b", TWO, "10.99.0.2/32")
    assert len(table.ask("c", ONE, [ip_interface(f"10.99.0.{n}/32") for n in range(10, 40)])) == 8


# --- admission ---


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(10, 5)
    assert sum(bucket.take(100.0) for _ in range(100)) == 5
    assert sum(bucket.take(100.0 + n / 100) for n in range(1, 101)) in {9, 10}
    assert bucket.take(99.0) is False, "a clock that steps back gives nothing"


def admitted(admission: Admission, networks: Iterator[str], rate: int, *, opened: bool, seconds: int = 10) -> int:
    """How many of a flood are looked at in its last second; each is of the next network."""
    got = 0
    for number in range(rate * seconds):
        now, network = 100.0 + number / rate, next(networks)
        if admission.take(network, now):
            got += number >= rate * (seconds - 1)
            if opened:
                admission.charge(network, now)
            else:
                admission.waste(now)
    return got


def everywhere() -> Iterator[str]:
    """A thousand networks, in turn."""
    return itertools.cycle(f"10.{number >> 8}.{number & 255}" for number in range(1000))


def test_far_below_the_capacity_nobody_waits() -> None:
    admission = Admission(1000, 4000)
    assert admitted(admission, itertools.repeat("198.51.100"), 400, opened=True) == 400
    assert not admission.waste(110.0), "once is no flood"


@pytest.mark.parametrize("rate", [3000, 20_000])
def test_a_flood_from_everywhere_takes_no_more_than_the_capacity(rate: int) -> None:
    admission = Admission(500, 4000)
    assert 200 <= admitted(admission, everywhere(), rate, opened=True) <= 500 * 2.1


def test_in_a_flood_from_everywhere_a_network_that_had_nothing_gets_in() -> None:
    """But for a few that share both counters with networks of the flood: 3 to 6 of 1,000, whatever names hash to."""
    for round_ in range(10):
        admission = Admission(500, 4000)
        admitted(admission, everywhere(), 3000, opened=True, seconds=3 + round_)
        assert sum(admission.take(f"192.{n}.2", 100.0 + 3 + round_) for n in range(200)) >= 194


def test_a_network_that_takes_most_waits_and_the_others_do_not() -> None:
    admission = Admission(500, 4000)
    assert admitted(admission, itertools.repeat("198.51.100"), 3000, opened=True) <= 500
    assert all(admission.take(f"203.0.{n}", 110.0) for n in range(20))


def test_where_clients_came_from_is_looked_at_first_when_a_flood_from_everywhere_takes_all_there_is() -> None:
    """4,000 a second that open, of always other networks. Who forges a known network takes its share alone."""
    admission = Admission(500, 4000)
    known = [f"198.51.{number}" for number in range(10)]
    for network in known:
        admission.know(network)
    met: dict[str, list[bool]] = {"known": [], "unknown": []}
    for number in range(36000):
        now, forged = 100.0 + number / 6000, number % 3 == 0
        network = known[0] if forged else f"10.{number >> 8}.{number & 255}"
        if admission.take(network, now):
            admission.charge(network, now)
        if number > 18000 and number % 150 == 0:
            met["known"].append(admission.take(known[1 + number // 150 % 9], now))
            met["unknown"].append(admission.take(f"192.0.{number}", now))
    assert all(met["known"]) and sum(met["unknown"]) < len(met["unknown"])
    for number in range(5000):
        admission.know(f"10.{number}")
    assert len(admission._known) == 4096


def test_what_only_looks_like_initials_does_not_cost_the_neighbours_of_its_sender() -> None:
    """Nor whoever shares its address: two thousand a second, of the client's own network."""
    admission = Admission(500, 4000)
    assert admitted(admission, itertools.repeat("203.0.113"), 2000, opened=False) == 2000
    assert admission.take("203.0.113", 110.0)
    assert admission.waste(110.0), "nothing more is done for one of these"
    assert admitted(Admission(500, 4000), everywhere(), 20_000, opened=False) <= 4100


def test_shares_shrink_with_the_pressure_and_a_clock_that_steps_back_does_no_harm() -> None:
    admission = Admission(1000, 4000)
    shares = [admission.share(rate) for rate in (0, 500, 501, 600, 700, 800, 900, 1000, 5000)]
    assert shares[0] == shares[1] == math.inf and shares == sorted(shares, reverse=True) and shares[-1] == 0.5
    assert admission.take("b", 100.0) and admission.take("b", 50.0) and admission.take("b", 100.0)


# --- stateless resets ---


def test_a_reset_is_shorter_than_its_cause_ends_in_the_token_and_looks_like_a_packet() -> None:
    cids = RoutedCids(PRIVATE, 20, os.urandom)
    cid = cids.like(b"")
    assert cids.of_datagram(b"\x40" + cid + bytes(5)) == cid
    for length in range(1500):
        answer = cids.reset(cid, length)
        if length <= SHORTEST:
            assert answer is None
            continue
        assert answer is not None
        assert SHORTEST <= len(answer) < length
        assert answer[0] & 0xC0 == 0x40
        assert answer[-16:] == reset_token(cid_key(PRIVATE), cid) == cids.reset_token(cid)
    lengths = {len(cids.reset(cid, 1250) or b"") for _ in range(200)}
    assert len(lengths) > 5


def test_one_more_like_dests_has_its_length_and_is_not_known_again() -> None:
    cids = RoutedCids(PRIVATE, LIKE_DEST, os.urandom)
    for routed in (b"caddy"[:4], bytes(8), bytes(20)):
        spare = cids.like(routed)
        assert len(spare) == len(routed) and spare != routed
        assert cids.of_datagram(b"\x40" + spare + bytes(40)) is None


@given(st.binary(max_size=60))
def test_ids_of_others_are_not_ours(data: bytes) -> None:
    assert RoutedCids(PRIVATE, 20, os.urandom).of_datagram(data) is None


# --- control frames ---


def test_frames_that_we_write_are_read() -> None:
    frames = encode_frame(RetireConnectionId(3)) + encode_frame(NewConnectionId(2, 1, bytes(20), bytes(16)))
    frames += encode_frame(RetireConnectionId(70))
    assert parse_control_frames_untrusted(frames).retired == (3, 70)
    assert not parse_control_frames_untrusted(frames).tunnel_ended


def test_frames_of_no_interest_are_skipped() -> None:
    frames = b"\x00\x01\x10\x44\x00\x11\x00\x44\x00\x12\x01\x14\x01\x15\x00\x01\x16\x01\x1e"
    frames += b"\x06\x00\x02ab\x07\x02ab\x0e\x04\x00\x02ab\x19\x05"
    found = parse_control_frames_untrusted(frames)
    assert found.retired == (5,)
    assert not found.tunnel_ended


@pytest.mark.parametrize(
    "frames", [b"\x18", b"\x19", b"\x0a\x00\x05ab", b"\x40", b"\x3f", b"\x02\x00", b"\x06\x00\x09", b""]
)
def test_cut_off_and_unknown_frames_are_refused(frames: bytes) -> None:
    with pytest.raises(UntrustedInputError):
        parse_control_frames_untrusted(frames)


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    found = read_or_refused(parse_control_frames_untrusted, data)
    assert found is None or all(0 <= sequence <= MAX_VARINT for sequence in found.retired)


# --- backoff ---


def test_pauses_double_up_to_a_bound_and_differ() -> None:
    backoff = Backoff(1.0, 60.0, random.Random(1))
    pauses = [backoff.next() for _ in range(200)]
    assert all(1.0 <= pause <= 60.0 for pause in pauses)
    assert pauses[0] <= 1.25
    assert 3.0 <= pauses[2] <= 5.0
    assert len(set(pauses)) > 50
    backoff.reset()
    assert backoff.next() <= 1.25
    assert Backoff(5.0, 1.0, random.Random(1)).next() == 5.0


# --- steering ---


class FakeLoader:
    """A loader that remembers what it was told, and may be away."""

    def __init__(self) -> None:
        self.present: set[bytes] = {b"stale"}
        self.away = 0
        self.told: list[str] = []

    async def request(self, to: Party, message: Message) -> Message:
        assert to is Party.BPF_LOADER
        self.told.append(type(message).__name__)
        if self.away:
            self.away -= 1
            raise MachineError("bpf_loader", "it is being restarted")
        match message:
            case CidSync(connection_ids=cids):
                self.present = set(cids)
            case CidAdopt(connection_id=cid):
                self.present.add(cid)
            case CidRelease(connection_id=cid):
                self.present.discard(cid)
        return Done()


def steer(loader: FakeLoader, *wants: frozenset[bytes], complaints: list[str] | None = None) -> None:
    async def work() -> None:
        steering = Steering(loader.request, (complaints if complaints is not None else []).append)
        task = asyncio.create_task(steering.run())
        for want in wants:
            steering.want(want)
            for cid in want:
                await steering.adopted(cid, 30)
            await asyncio.sleep(0.01)  # what it does at once is done, and not what it puts off
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())


def test_the_map_follows_the_sessions() -> None:
    loader = FakeLoader()
    steer(loader, frozenset({b"a"}), frozenset({b"a", b"b"}), frozenset({b"c"}))
    assert loader.present == {b"c"}
    assert loader.told[0] == "CidSync"
    assert loader.told.count("CidSync") == 1


def test_a_loader_that_was_away_is_told_everything_again() -> None:
    loader, complaints = FakeLoader(), list[str]()
    loader.away = 3
    steer(loader, frozenset({b"a", b"b"}), complaints=complaints)
    assert loader.present == {b"a", b"b"}
    assert not complaints, "a restart is no news"


def test_a_loader_that_stays_away_is_complained_of_and_does_not_hold_a_client_for_ever() -> None:
    async def work() -> list[str]:
        loader, complaints = FakeLoader(), list[str]()
        loader.away = 1 << 30
        steering = Steering(loader.request, complaints.append)
        task = asyncio.create_task(steering.run())
        steering.want(frozenset({b"a"}))
        with pytest.raises(MachineError, match="in time"):
            await steering.adopted(b"a", 0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return complaints

    assert asyncio.run(work()) == []


# --- resolution ---


def test_numeric_addresses_need_no_resolver() -> None:
    assert asyncio.run(resolve("192.0.2.1", 443)) == ((socket.AF_INET, ("192.0.2.1", 443)),)
    assert asyncio.run(resolve("2001:db8::1", 443)) == ((socket.AF_INET6, ("2001:db8::1", 443)),)
    with pytest.raises(MachineError, match="IPv4"):
        asyncio.run(resolve("2001:db8::1", 443, family=socket.AF_INET))


@pytest.mark.skipif(not Path("/etc/hosts").exists(), reason="no /etc/hosts: localhost is no name here")
def test_names_are_resolved_and_bad_ones_say_so() -> None:
    ((family, address), *_) = asyncio.run(resolve("localhost", 443))
    assert address[0] in {"127.0.0.1", "::1"}
    assert family in {socket.AF_INET, socket.AF_INET6}
    for name in ("no-such-name.invalid", "a" * 64 + ".example", ".."):
        with pytest.raises(MachineError, match="cannot resolve"):
            asyncio.run(resolve(name, 443))


def test_an_address_that_cannot_be_refreshed_stays() -> None:
    async def work() -> list[str]:
        failures: list[str] = []
        dest = DestAddress("no-such-name.invalid", 443, failures.append)
        assert dest.current is None
        await dest.first()
        assert dest.current is None
        dest._found = ((socket.AF_INET, ("192.0.2.1", 443)),)
        await dest.first()
        assert dest.current is not None
        return failures

    assert len(asyncio.run(work())) == 2


A, B, C = ((socket.AF_INET, (f"192.0.2.{number}", 443)) for number in (1, 2, 3))


def test_what_answered_is_tried_first_and_what_failed_last() -> None:
    candidates = Candidates()
    assert candidates.order((A, B, C)) == [A, B, C]
    candidates.answered(B)
    assert candidates.order((A, B, C)) == [B, C, A]
    assert candidates.order((A, C)) == [A, C], "the name has other addresses now"
    candidates.failed(B, (A, B, C))
    assert candidates.order((A, B, C)) == [C, A, B]
    candidates.failed(C, (A, B, C))
    assert candidates.order((A, B, C)) == [A, B, C]


# --- looking at Dest ---


def profile(**changes: object) -> DestProfile:
    return DestProfile(**({"reachable": True, "checked_at": 0, "scid_length": 4} | changes))  # type: ignore[arg-type]  # a test's


def look(
    answers: list[DestProfile | str], *, last: DestProfile | None, looks: int
) -> tuple[list[DestProfile], list[str]]:
    found: list[DestProfile] = []
    complaints: list[str] = []

    async def work() -> None:
        enough = asyncio.Event()

        async def visit(dest: object, patience: float) -> DestProfile:
            answer = answers.pop(0)
            if isinstance(answer, str):
                raise MachineError("Dest", answer)
            return answer

        async def remember(seen: DestProfile) -> None:
            found.append(seen)
            if len(found) >= max(looks, 1):
                enough.set()

        prober = Prober(
            DestAddress("192.0.2.1", 443, complaints.append), visit, remember, complaints.append, ttl=3600, last=last
        )
        task = asyncio.create_task(prober.run())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(enough.wait(), PATIENCE if looks else 0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())
    return found, complaints


def test_dest_is_looked_at_when_nothing_is_known() -> None:
    found, complaints = look([profile()], last=None, looks=1)
    assert found == [profile()]
    assert not complaints


def test_the_address_of_dest_that_answers_is_used_from_then_on() -> None:
    seen: list[tuple[object, float]] = []

    async def work() -> DestAddress:
        dest = DestAddress("name.example", 443, lambda text: None)
        dest._found = (A, B, C)
        answered = asyncio.Event()

        async def visit(address: object, patience: float) -> DestProfile:
            seen.append((address, patience))
            if address == A:
                raise MachineError("Dest", "silent")
            return profile()

        async def remember(seen: DestProfile) -> None:
            answered.set()

        task = asyncio.create_task(Prober(dest, visit, remember, print, ttl=3600, last=None).run())
        await asyncio.wait_for(answered.wait(), PATIENCE)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return dest

    dest = asyncio.run(work())
    assert [address for address, _ in seen] == [A, B] and dest.current == B
    assert seen[0][1] < 3, "while there is another one, a silent address is left soon"
    assert dest.candidates() == [B, C, A]


def test_a_dest_of_which_no_address_answers_names_them_all() -> None:
    async def visit(address: object, patience: float) -> DestProfile:
        raise MachineError("Dest", "silent")

    with pytest.raises(MachineError) as caught:
        asyncio.run(probe_any((A, B), visit))
    assert "192.0.2.1: Dest: silent; 192.0.2.2: Dest: silent" in str(caught.value)


def test_a_fresh_look_is_not_repeated() -> None:
    found, _ = look([profile()], last=profile(checked_at=int(time.time())), looks=0)
    assert found == []


def test_a_dest_that_cannot_be_reached_is_reported_and_still_imitated() -> None:
    found, complaints = look(["no route to host"], last=profile(cipher="X"), looks=1)
    assert not found[0].reachable
    assert found[0].cipher == "X"
    assert "no route" in found[0].warnings[0]
    assert len(complaints) == 1
    again = imitable(found[0])
    assert again is not None
    assert again.reachable
    found, _ = look(["no route to host"], last=None, looks=1)
    assert imitable(found[0]) is None
    assert imitable(None) is None
