"""Who may have which address and which network: sections, last holders, shares. And what a file remembers of it."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.config.model import ClientSection, GlobalConfig
from qre.config.sections import MAX_NETWORKS
from qre.dataplane.protocol import SessionMark, digest
from qre.ends import MAX_CLIENTS, Role
from qre.quic.server.address_grants import Denial, Grants
from qre.quic.server.address_leases import CAPACITY, FILE_LENGTH, RECORD_LENGTH, Leases
from qre.quic.server.identities import Identities
from qre.structs import encoder
from qre.supervisor.parent.process_settings import secrets_memfd, worker_config
from qre.supervisor.parent_messages import MAX_SIZE, Setup
from qre.wire.close_reason import CloseReason
from qre.workers.handshake.main import parse_profile_secrets_untrusted
from qre.workers.handshake.sessions.session_state import Settings, allowed_ips, stale
from qre.workers.handshake.worker_settings import identities
from tests.support.profile_values import server_profile
from tests.unit.test_handshake_secrets import record_of

ONE, TWO, THREE = b"\1" * 8, b"\2" * 8, b"\3" * 8
OWN = [ip_interface("10.77.0.1/24"), ip_interface("fd77::1/64")]
LAPTOP = ClientSection(
    "laptop",
    ONE,
    (ip_interface("10.77.0.2/32"), ip_interface("fd77::2/128")),
    (ip_network("192.168.7.0/24"), ip_network("10.77.0.0/16")),
)


def grants(*others: bytes, leases: Leases | None = None) -> Grants:
    return Grants(OWN, Identities(others, [LAPTOP], OWN), leases)


def asked(table: Grants, holder: str, short_id: bytes, *wanted: str) -> list[str]:
    return [str(address.ip) for address in table.ask(holder, short_id, [ip_interface(text) for text in wanted])]


def why(table: Grants, short_id: bytes, wanted: str) -> list[str]:
    return [table.words(each) for each in table.denials(short_id, [ip_interface(wanted)])]


# --- sections ---


def test_a_section_has_its_addresses_and_nothing_else() -> None:
    table = grants(TWO)
    assert asked(table, "a", ONE, "10.77.0.2/24", "fd77::2/64", "10.77.0.3/24") == ["10.77.0.2", "fd77::2"]
    assert why(table, ONE, "10.77.0.3/24") == ["10.77.0.3 is not in its section"]
    assert asked(table, "b", ONE, "10.77.0.2/24"), "its next session, too"


def test_a_short_id_that_is_in_no_list_gets_nothing() -> None:
    table = grants(ONE)
    assert asked(table, "a", TWO, "10.77.0.9/24") == []
    assert why(table, TWO, "10.77.0.9/24") == ["10.77.0.9 is asked for by a short id that is in no list"]


def test_nobody_else_has_the_address_of_a_section_whether_that_client_is_there_or_not() -> None:
    table = grants(TWO)
    assert asked(table, "b", TWO, "10.77.0.2/24") == []
    assert why(table, TWO, "10.77.0.2/24") == ["10.77.0.2 belongs to client laptop"]
    assert asked(table, "b", TWO, "10.77.0.2/24", "10.77.0.3/24") == ["10.77.0.3"]


def test_a_reload_takes_from_sessions_what_a_section_has_now() -> None:
    table = Grants(OWN, Identities([ONE, TWO], (), OWN))
    two, three = [ip_address("10.77.0.2")], [ip_address("10.77.0.3")]
    assert table.still_its(TWO, two)
    table.identities = Identities([TWO], [LAPTOP], OWN)
    assert not table.still_its(TWO, two)
    assert table.still_its(TWO, three)
    assert table.still_its(ONE, two)
    assert not table.still_its(ONE, three)


@pytest.mark.parametrize("own", ["10.79.0.1/24", "10.77.0.2/24", "10.77.0.3/30"])
def test_a_reload_takes_from_sessions_what_lies_outside_our_networks_now(own: str) -> None:
    """Or is our own address, or the broadcast address of our network."""
    table = Grants(OWN, Identities([ONE, TWO], [], OWN))
    mine, other = [ip_address("10.77.0.2" if own != "10.77.0.3/30" else "10.77.0.3")], [ip_address("fd77::2")]
    assert table.still_its(TWO, mine) and table.still_its(TWO, other)
    table.own = (ip_interface(own), ip_interface("fd77::1/64"))
    assert not table.still_its(TWO, mine)
    assert not table.still_its(TWO, [*other, *mine]), "one of them is enough"
    assert table.still_its(TWO, other)


# --- last holders ---


def test_an_address_is_its_last_holders_until_that_has_another() -> None:
    table = grants(TWO, THREE)
    assert asked(table, "a", TWO, "10.77.0.9/24")
    assert why(table, THREE, "10.77.0.9/24") == [f"10.77.0.9 is in use by client {TWO.hex()}"]
    table.leases.put(TWO, [ip_address("10.77.0.9")])
    table.free("a")
    assert why(table, THREE, "10.77.0.9/24") == [f"10.77.0.9 was last used by client {TWO.hex()}"]
    assert asked(table, "b", THREE, "10.77.0.9/24") == []
    assert asked(table, "a", TWO, "10.77.0.9/24")
    table.free("a")
    table.leases.put(TWO, [ip_address("10.77.0.8")])
    assert asked(table, "b", THREE, "10.77.0.9/24") == ["10.77.0.9"]


def test_a_section_takes_an_address_from_its_last_holder_and_a_removed_short_id_has_none() -> None:
    leases = Leases()
    leases.put(TWO, [ip_address("10.77.0.2"), ip_address("10.77.0.9")])
    table = grants(TWO, THREE, leases=leases)
    assert asked(table, "a", ONE, "10.77.0.2/24") == ["10.77.0.2"]
    table.identities = Identities([THREE], [LAPTOP], OWN)
    assert asked(table, "b", THREE, "10.77.0.9/24") == ["10.77.0.9"]


# --- shares ---


def test_one_short_id_has_no_more_than_its_share_however_many_sessions_it_begins() -> None:
    table = grants(TWO, THREE)
    got = [asked(table, f"h{n}", TWO, *(f"10.77.0.{8 * n + k}/24" for k in range(3, 11))) for n in range(30)]
    assert [len(each) for each in got] == [8, 8] + [0] * 28
    assert {each.denial for each in table.denials(TWO, [ip_interface("10.77.0.99/24")])} == {Denial.SHARE}
    assert asked(table, "again", TWO, "10.77.0.3/24") == ["10.77.0.3"], "what it has it may have again"
    assert asked(table, "v6", TWO, "fd77::9/64") == ["fd77::9"], "of each network a share"
    table.free("h0")
    assert len(asked(table, "later", TWO, *(f"10.77.0.{n}/24" for n in range(100, 110)))) == 7
    assert asked(table, "other", THREE, "10.77.0.120/24") == ["10.77.0.120"]


def test_a_small_network_is_shared_among_all_short_ids() -> None:
    own = [ip_interface("10.77.0.1/29")]  # five more hosts
    table = Grants(own, Identities([ONE, TWO], (), own))
    assert len(asked(table, "a", ONE, *(f"10.77.0.{n}/29" for n in range(2, 7)))) == 2
    assert len(asked(table, "b", TWO, *(f"10.77.0.{n}/29" for n in range(2, 7)))) == 2
    crowded = Grants(own, Identities([bytes([n]) * 8 for n in range(1, 100)], (), own))
    assert len(asked(crowded, "a", ONE, "10.77.0.2/29", "10.77.0.3/29")) == 1


# --- networks ---


def test_networks_are_their_clients_and_never_hold_the_tunnels_own_addresses() -> None:
    known = Identities([TWO], [LAPTOP], OWN, [ip_network("10.5.0.0/16")])
    behind = known.behind(ONE)
    assert ip_network("192.168.7.0/24") in behind
    assert not any(each.overlaps(ip_network("10.77.0.0/24")) for each in behind)
    assert known.behind(TWO) == ()
    assert [str(network) for network in known.unowned] == ["10.5.0.0/16"]


@pytest.mark.parametrize(("listed", "its", "nobodys"), [([ONE], ["10.5.0.0/16"], 0), ([ONE, TWO], [], 1)])
def test_allowed_ips_of_the_interface_are_the_only_clients_or_nobodys(
    listed: list[bytes], its: list[str], nobodys: int
) -> None:
    known = Identities(listed, (), OWN, [ip_network("10.5.0.0/16"), ip_network("10.77.0.0/25")])
    assert ([str(network) for network in known.behind(ONE)], len(known.unowned)) == (its, nobodys)


def test_who_it_is() -> None:
    known = Identities([TWO], [LAPTOP], OWN)
    assert (known.who(ONE), known.who(TWO)) == ("laptop", TWO.hex())
    assert known.short_ids == {ONE, TWO}


def test_a_session_that_the_data_plane_has_with_other_networks_does_not_go_on() -> None:
    known, old = Identities([], [LAPTOP], OWN), Identities([ONE], (), OWN)
    session = record_of(role=Role.SERVER)
    session = replace(session, handed_over=replace(session.handed_over, short_id=ONE))
    before, now = (Settings(0, 0, 0, 0, behind=each.behind) for each in (old, known))
    mark = SessionMark(
        session_id=session.session_id,
        connection_id=b"\1" * 20,
        key_epoch=session.key_epoch,
        packet_number=0,
        confirmed=True,
        routed=digest(allowed_ips(session, before)),
    )
    assert stale(session, before, mark) is None
    end = stale(session, now, mark)
    assert end is not None
    assert end.reason is CloseReason.CHANGED


def test_a_clients_session_from_before_other_allowed_ips_does_not_go_on_either() -> None:
    session = record_of(role=Role.CLIENT)
    before, now, all_of_it = (
        Settings(0, 0, 0, 0, allowed_ips=tuple(map(ip_network, networks)))
        for networks in (["10.77.0.0/24"], ["10.77.0.0/24", "192.168.7.0/24"], [])
    )
    mark = SessionMark(
        session_id=session.session_id,
        connection_id=b"\1" * 20,
        key_epoch=session.key_epoch,
        packet_number=0,
        confirmed=True,
        routed=digest(before.allowed_ips),
    )
    assert stale(session, before, mark) is None
    end = stale(session, now, mark)
    assert end is not None and end.reason is CloseReason.CHANGED
    assert stale(session, all_of_it, mark) is None, "how a data plane lists everything is its own matter"


# --- the file ---


def kept(image: bytearray, change: tuple[int, bytes] | None) -> None:
    if change is not None:
        image[change[0] : change[0] + len(change[1])] = change[1]


HOST = st.one_of(st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**128 - 1).map(IPv6Address))
SHORT_ID = st.sampled_from([bytes([n]) * 8 for n in range(1, 5)])


@given(st.lists(st.tuples(SHORT_ID, st.lists(HOST, max_size=8)), max_size=20))
def test_what_was_written_is_remembered(puts: list[tuple[bytes, list[IPv4Address | IPv6Address]]]) -> None:
    leases, image = Leases(), bytearray(FILE_LENGTH)
    for short_id, hosts in puts:
        kept(image, leases.put(short_id, hosts))
    again = Leases(bytes(image))
    for short_id, hosts in dict(puts).items():
        assert again.had(short_id) == leases.had(short_id) == frozenset(hosts)
    for change in again.keep([]):
        kept(image, change)
    assert not any(image)


@given(st.binary(max_size=4 * RECORD_LENGTH))
def test_any_bytes_are_read(image: bytes) -> None:
    leases = Leases(image)
    assert leases.holder(ip_address("10.77.0.2")) is None
    assert leases.put(ONE, [ip_address("10.77.0.2")]) is not None


def test_a_record_with_a_wrong_bit_is_free() -> None:
    image = bytearray(FILE_LENGTH)
    kept(image, Leases().put(ONE, [ip_address("10.77.0.2")]))
    assert Leases(bytes(image)).holder(ip_address("10.77.0.2")) == ONE
    rng = random.Random(1)
    for _ in range(50):
        damaged = bytearray(image)
        damaged[rng.randrange(149)] ^= 1 << rng.randrange(8)
        assert Leases(bytes(damaged)).holder(ip_address("10.77.0.2")) is None


def test_a_full_file_takes_no_more_and_has_room_when_one_is_forgotten() -> None:
    leases = Leases()
    for number in range(CAPACITY):
        assert leases.put(number.to_bytes(8, "big"), [ip_address(number)]) is not None
    assert leases.put(b"another!", [ip_address("10.0.0.1")]) is None
    leases.keep([number.to_bytes(8, "big") for number in range(1, CAPACITY)])
    assert leases.put(b"another!", [ip_address("10.0.0.1")]) is not None
    assert leases.put(b"another!", [ip_address("10.0.0.1")]) is None, "nothing changed"


def test_the_largest_profile_reaches_the_processes() -> None:
    clients = tuple(
        ClientSection(
            f"{number:064d}",
            number.to_bytes(8, "big"),
            tuple(ip_interface(f"fdff:ffff:ffff:ffff:ffff:ffff:{number:x}:{each + 1}/128") for each in range(8)),
            (ip_network(f"2001:ffff:ffff:ffff:ffff:ffff:ffff:{number:x}/128"),) if number < MAX_NETWORKS else (),
        )
        for number in range(MAX_CLIENTS)
    )
    made = server_profile()
    assert made.server is not None
    networks = tuple(ip_network(f"2002:ffff:ffff:ffff:ffff:ffff:ffff:{number:x}/128") for number in range(256))
    profile = made.replace(server=made.server.replace(short_ids=(), clients=clients), allowed_ips=networks)
    config = worker_config(profile, GlobalConfig(), None)
    assert len(encoder().encode(Setup(config=config, runtime_dir="/run/qre", pin_dir="/sys/fs/bpf"))) < MAX_SIZE
    secrets = parse_profile_secrets_untrusted(secrets_memfd(profile))
    assert identities(config, secrets).sections == {client.short_id: client for client in clients}
