"""What a client has transferred is added up over its sessions, and when it was last heard is kept."""

from __future__ import annotations

from typing import Any

from qre.dataplane.status import SessionStatus
from qre.profile_secrets import ListedClient
from qre.supervisor.client_accounts import MOST, ClientAccounts

NOW = 1_800_000_000.0
ALICE, BOB = b"alice...", b"bob....."


def session(number: int, short_id: bytes = ALICE, **values: Any) -> SessionStatus:
    given = {
        "session_id": number.to_bytes(32, "big"), "connection_id": bytes(20), "client_connection_id": b"",
        "short_id": short_id, "state": "established", "key_epoch": 0, "tx_packet_number": 0, "rx_packet_number": 0,
        "endpoint": "192.0.2.7:1000", "allowed_ips": (), "age_ms": 10_000, "last_receive_ms": 2_000,
        "rx_packets": 1, "rx_bytes": 100, "tx_packets": 2, "tx_bytes": 1000, "cids": (),
    }  # fmt: skip
    return SessionStatus(**(given | values))


def described(accounts: ClientAccounts, name: str = "alice", short_id: bytes = ALICE) -> dict[str, Any]:
    (one,) = accounts.describe([ListedClient(name=name, short_id=short_id)])
    return one


def test_sessions_of_one_client_are_one_account() -> None:
    accounts = ClientAccounts()
    accounts.look([session(1)], NOW)
    accounts.look([session(1, rx_bytes=150), session(2, rx_bytes=7, endpoint="192.0.2.8:2", last_receive_ms=0)], NOW)
    assert (described(accounts)["rx_bytes"], described(accounts)["endpoint"]) == (157, "192.0.2.8:2")
    accounts.look([session(2, rx_bytes=9, endpoint="192.0.2.8:2")], NOW + 5)
    accounts.look([session(2, rx_bytes=9, endpoint="192.0.2.8:2")], NOW + 5)  # nothing is counted twice
    assert described(accounts) == {
        "name": "alice", "short_id": None, "address": [], "connected": True, "endpoint": "192.0.2.8:2",
        "last_seen": int(NOW) + 3, "rx_bytes": 159, "tx_bytes": 2000, "rx_packets": 2, "tx_packets": 4,
    }  # fmt: skip


def test_a_client_that_has_left_keeps_its_account_and_one_that_never_came_has_an_empty_one() -> None:
    accounts = ClientAccounts()
    accounts.look([session(1)], NOW)
    accounts.look([], NOW + 60)
    left = described(accounts)
    assert (left["connected"], left["last_seen"], left["rx_bytes"]) == (False, int(NOW) - 2, 100)
    never = described(accounts, "bob", BOB)
    assert (never["connected"], never["endpoint"], never["last_seen"], never["tx_bytes"]) == (False, None, None, 0)


def test_a_session_that_is_not_confirmed_is_nobodys_visit() -> None:
    accounts = ClientAccounts()
    accounts.look([session(1, state="held")], NOW)
    assert described(accounts)["last_seen"] is None
    accounts.look([session(1, state="closing")], NOW)
    assert described(accounts)["connected"] is False


def test_counters_that_began_anew_take_nothing_away() -> None:
    accounts = ClientAccounts()
    accounts.look([session(1, rx_bytes=100)], NOW)
    accounts.look([session(1, rx_bytes=40)], NOW)  # a data plane that was restarted
    accounts.look([session(1, rx_bytes=50)], NOW)
    assert described(accounts)["rx_bytes"] == 110


def test_clients_are_listed_by_name_and_those_without_one_last() -> None:
    listed = [ListedClient(name=name, short_id=bytes([number] * 8)) for number, name in enumerate(("b", None, "a"))]
    assert [one["name"] for one in ClientAccounts().describe(listed)] == ["a", "b", None]


def test_accounts_are_bounded_and_the_longest_silent_is_forgotten() -> None:
    accounts = ClientAccounts()
    for number in range(MOST + 2):
        accounts.look([session(number, number.to_bytes(8, "big"))], NOW + number)
    assert described(accounts, "first", bytes(8))["last_seen"] is None
    assert described(accounts, "last", (MOST + 1).to_bytes(8, "big"))["last_seen"] == int(NOW) + MOST - 1
