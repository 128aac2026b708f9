"""Installed sessions and the prefixes that choose between them."""

from __future__ import annotations

from collections import Counter
from ipaddress import ip_address, ip_network

from qre.dataplane.protocol import SessionDelete, SessionList
from qre.ends import Role
from qre.wire.number import PACKET_NUMBER_BASE
from qre.workers.dataplane.registry import Registry
from qre.workers.dataplane.session.marks import NumberMarks
from qre.workers.dataplane.session.session_life import LifeState
from tests.support.dataplane import fresh_marks, install_of, keys_of, update_of


def packed(text: str) -> bytes:
    return ip_address(text).packed


def registry() -> Registry:
    return Registry(fresh_marks(), Counter(), bytes)


def add(known: Registry, seed: str, *allowed: str, role: Role = Role.SERVER, held: bool = False) -> bytes:
    networks = tuple(map(ip_network, allowed))
    request = install_of(role, seed, connection_id=seed.encode().ljust(20, b"."), allowed_ips=networks, held=held)
    assert known.answer(request, 0).error == ""
    return request.session_id


def route(known: Registry, address: str) -> bytes | None:
    session = known.routes.session_for(packed(address))
    return session.session_id if session else None


def test_the_longest_prefix_decides_for_both_address_families() -> None:
    known = registry()
    wide = add(known, "wide", "10.0.0.0/8", "2001:db8::/32")
    narrow = add(known, "narrow", "10.1.0.0/16", "10.2.3.4/32", "2001:db8:1::/48")
    assert route(known, "10.9.9.9") == wide
    assert route(known, "10.1.9.9") == narrow
    assert route(known, "10.2.3.4") == narrow
    assert route(known, "2001:db8:1::9") == narrow
    assert route(known, "2001:db8:2::9") == wide
    assert route(known, "11.0.0.1") is None
    permits = known.routes.permits
    assert permits(known.sessions[wide], packed("10.9.9.9"))
    assert not permits(known.sessions[wide], packed("10.1.9.9"))
    assert permits(known.sessions[narrow], packed("10.1.9.9"))
    assert not permits(known.sessions[narrow], packed("11.0.0.1"))


def test_without_allowed_ips_everything_passes() -> None:
    known = registry()
    only = add(known, "only")
    assert route(known, "8.8.8.8") == route(known, "2001:db8::1") == only


def test_a_held_session_takes_no_traffic_from_an_established_one() -> None:
    known = registry()
    old = add(known, "old", "10.0.0.2/32")
    new = add(known, "new", "10.0.0.2/32", held=True)
    assert route(known, "10.0.0.2") == old
    known.sessions[new].state = LifeState.ESTABLISHED
    known.routes.forget()
    assert route(known, "10.0.0.2") == new
    known.answer(SessionDelete(id=1, session_id=new, close=False), 0)
    known.remove(known.sessions[new])
    assert route(known, "10.0.0.2") == old


def test_repeating_an_installation_is_harmless_and_changing_it_is_refused() -> None:
    known = registry()
    request = install_of(Role.CLIENT)
    assert known.answer(request, 0).error == ""
    number = next(iter(known.sessions.values())).packets.next_number
    assert known.answer(request, 0).error == ""
    assert next(iter(known.sessions.values())).packets.next_number == number
    assert "installed already" in known.answer(install_of(Role.CLIENT, keys=keys_of(Role.CLIENT, 9)), 0).error
    assert "installed already" in known.answer(install_of(Role.CLIENT, key_epoch=1), 0).error


def test_two_sessions_cannot_have_one_routed_cid() -> None:
    known = registry()
    assert known.answer(install_of(Role.SERVER, "a"), 0).error == ""
    assert "connection id" in known.answer(install_of(Role.SERVER, "b"), 0).error


def test_a_restarted_data_plane_tells_its_epoch_and_goes_on_beyond_its_marks() -> None:
    known = registry()
    marks: NumberMarks = known._marks
    request = install_of(Role.CLIENT)
    known.answer(request, 0)
    session = known.sessions[request.session_id]
    session.phases.confirmed_at = -10.0
    assert known.answer(update_of(request, 1), 0).error == ""
    last = session.packets.next_number
    marks._live.clear()  # as a new process finds it
    again = Registry(marks, Counter(), bytes)
    answer = again.answer(request, 0)
    assert (answer.error, answer.key_epoch) == ("key epoch behind", 1)
    assert again.answer(install_of(Role.CLIENT, key_epoch=1), 0).error == ""
    (mark,) = again.answer(install_of_list(), 0).sessions
    assert mark.packet_number > last + 60_000
    assert mark.packet_number >= PACKET_NUMBER_BASE


def install_of_list() -> SessionList:
    return SessionList(id=9)
