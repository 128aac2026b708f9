"""Stateless resets that the user data plane recognises, and what only looks like one: RFC 9000 section 10.3."""

from __future__ import annotations

import secrets

import pytest

from qre.dataplane.protocol import LossReason
from qre.ends import Role
from qre.wire.datagram import DATAGRAM_HEAD
from qre.workers.dataplane.session.session_life import LifeState
from tests.support.dataplane import ROUTED_CID, SERVER_ADDRESS
from tests.support.driven import ELSEWHERE, FIRST, INNER, SECOND, TOKEN, Driven, issued

C, S = Role.CLIENT, Role.SERVER


def reset(size: int, token: bytes = TOKEN) -> bytes:
    """As any short-header packet looks, and the token."""
    return bytes([0x40 | secrets.randbelow(64)]) + secrets.token_bytes(size - 17) + token


@pytest.mark.parametrize("client_cid", [b"", FIRST], ids=["no connection ID", "one of its own"])
def test_a_stateless_reset_of_any_length_ends_the_session(client_cid: bytes) -> None:
    """Half of them look like packets of a key phase that there are no keys for."""
    for size in (21, 22, 28, 29, 36, 37, 40, 43, 43, 43, 43, 60, 60, 60, 1200):
        driven = Driven(C, reset_token=TOKEN, client_connection_id=client_cid)
        driven.raw(reset(size))
        assert driven.session.state is LifeState.ENDED and not driven.session.packets.failed_opens
        driven.takes()
        assert driven.lost() == [(LossReason.RESET, 0)], size
        assert not driven.ends.drops[C], size


def test_a_reset_of_another_version_of_quic_is_one() -> None:
    """Section 10.3: any datagram that ends so, for a long header may come to be allowed."""
    driven = Driven(C, reset_token=TOKEN)
    driven.raw(b"\xc0" + reset(60)[1:])
    assert driven.session.state is LifeState.ENDED


def test_a_key_phase_without_keys_hides_no_reset() -> None:
    for next_keys in ({"next_keys": None}, {}):
        for _ in range(40):
            driven = Driven(C, reset_token=TOKEN, **next_keys)
            driven.raw(reset(50))
            assert driven.session.state is LifeState.ENDED


@pytest.mark.parametrize("client_cid", [b"", FIRST], ids=["no connection ID", "one of its own"])
def test_what_only_looks_like_a_reset_ends_nothing_and_is_counted(client_cid: bytes) -> None:
    driven = Driven(C, reset_token=TOKEN, client_connection_id=client_cid)
    for wrong in (reset(60)[:-1] + b"\0", reset(60) + b"\0", TOKEN, bytes([0x40]) * 4 + TOKEN):
        driven.raw(wrong)
    driven.raw(reset(60), ELSEWHERE)
    assert driven.session.state is LifeState.ESTABLISHED
    drops = driven.ends.drops[C]
    assert drops["wrong-address"] == 1 and sum(drops.values()) == 5


def test_a_packet_of_another_connection_id_spoils_none_that_came_with_it() -> None:
    driven = Driven(C, client_connection_id=FIRST)
    packet = driven.peer.seal_datagrams([DATAGRAM_HEAD + INNER], driven.now)[0]
    got = driven.session.open_datagrams([reset(60), packet], SERVER_ADDRESS, 0, driven.now)
    assert got == [DATAGRAM_HEAD + INNER] and driven.ends.drops[C] == {"unknown-cid": 1}


def test_only_the_token_of_the_connection_id_in_use_ends_the_session() -> None:
    driven = Driven(C, cid_sequence=1, reset_token=bytes(16))
    driven.says(issued(2, 1, bytes([0x0B] * 20)))
    driven.raw(reset(60))
    assert driven.session.state is LifeState.ESTABLISHED, "a spare one's"
    driven.says(issued(3, 2, bytes([0x0C] * 20), secrets.token_bytes(16)))
    driven.raw(reset(60, bytes(16)))
    assert driven.session.state is LifeState.ESTABLISHED, "the one that was given back"
    driven.raw(reset(60))
    assert driven.session.state is LifeState.ENDED, "now it is used"


def test_a_server_hears_the_reset_of_a_client_that_has_connection_ids() -> None:
    driven = Driven(S, client_connection_id=FIRST)
    datagram = bytes([0x41]) + ROUTED_CID + reset(60)[21:]
    driven.raw(datagram)
    assert driven.session.state is LifeState.ESTABLISHED
    driven.says(issued(1, 1, SECOND))
    driven.raw(datagram, ELSEWHERE)
    assert driven.session.state is LifeState.ESTABLISHED
    driven.raw(datagram)
    assert driven.session.state is LifeState.ENDED
