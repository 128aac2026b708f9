"""The store in which servers of one key remember hellos: its place in a profile, and what is said on the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qre.config.model import ReplayStore
from qre.config.normalise import to_file, to_json
from qre.config.replay_store import parse_replay_store, show_replay_store
from qre.errors import UntrustedInputError, UserError, UserErrors
from qre.reality.hello_store import StoreAnswer, StoreConnection, encode_command, key_prefix
from tests.support.config_parsers import parse_profile
from tests.support.profiles import SERVER

DIGEST = bytes(range(16))
PREFIX = key_prefix(bytes(32))
QUESTION = encode_command("SET", PREFIX + DIGEST.hex(), "1", "NX", "EX", "121")


# --- in a profile ---


@pytest.mark.parametrize(
    ("text", "store"),
    [
        ("valkey://10.0.0.5:6379", ReplayStore("10.0.0.5:6379")),
        ("redis://10.0.0.5:6379/3", ReplayStore("10.0.0.5:6379", database=3)),
        ("valkey://:p%40ss%2F@10.0.0.5:6379", ReplayStore("10.0.0.5:6379", password="p@ss/")),
        ("valkey://qre:a:b@10.0.0.5:6379/0", ReplayStore("10.0.0.5:6379", user="qre", password="a:b")),
        ("unix:///run/valkey/valkey.sock", ReplayStore("/run/valkey/valkey.sock")),
        ("unix://qre:x@/run/v.sock?7", ReplayStore("/run/v.sock", user="qre", password="x", database=7)),
    ],
)
def test_a_place_is_read_and_written(text: str, store: ReplayStore) -> None:
    assert parse_replay_store(text) == store
    assert parse_replay_store(show_replay_store(store)) == store


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("10.0.0.5:6379", "does not begin with valkey://"),
        ("http://10.0.0.5:6379", "does not begin with valkey://"),
        ("valkeys://10.0.0.5:6379", "does not encrypt"),
        ("rediss://10.0.0.5:6379", "does not encrypt"),
        ("valkey://store.example:6379", "names are not looked up"),
        ("valkey://10.0.0.5", "names are not looked up"),
        ("valkey://secret@10.0.0.5:6379", "no password before it"),
        ("valkey://10.0.0.5:6379/x", "not a number"),
        ("valkey://10.0.0.5:6379/65536", "not a number"),
        ("unix://run/valkey.sock", "absolute path"),
        ("unix:///" + "x" * 108, "absolute path"),
        ("valkey://:%00@10.0.0.5:6379", "nobody can print"),
        ("valkey://:%ff@10.0.0.5:6379", "nobody can print"),
        ("valkey://:" + "x" * 300 + "@10.0.0.5:6379", "too long"),
    ],
)
def test_what_is_no_place_is_refused_in_words_without_the_password(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        parse_replay_store(text)
    assert "secret" not in str(caught.value)


def test_a_profile_has_it_and_shows_it_only_where_keys_are_shown() -> None:
    profile = parse_profile((SERVER + "ReplayStore = valkey://:hush@10.0.0.5:6379\n").encode(), "qre0", "qre0.conf")
    assert profile.server is not None
    assert profile.server.replay_store == ReplayStore("10.0.0.5:6379", password="hush")
    assert "hush" not in to_json(profile, show_keys=False) + repr(profile) + repr(profile.server)
    assert "hush" in to_json(profile, show_keys=True)
    assert parse_profile(to_file(profile).encode(), "qre0", "qre0.conf") == profile
    with pytest.raises(UserErrors) as caught:
        parse_profile((SERVER + "ReplayStore = valkey://:hush@10.0.0.5\n").encode(), "qre0", "qre0.conf")
    assert "hush" not in str(caught.value)


# --- on the wire ---


def greeted() -> StoreConnection:
    made = StoreConnection(PREFIX)
    assert made.received_untrusted(b"+PONG\r\n") == []
    assert made.greeted
    return made


def test_a_command_is_an_array_of_strings() -> None:
    assert encode_command("SET", "ä", "") == b"*3\r\n$3\r\nSET\r\n$2\r\n\xc3\xa4\r\n$0\r\n\r\n"


def test_an_account_and_a_database_come_first() -> None:
    made = StoreConnection(PREFIX, user="qre", password="x", database=2)
    commands = encode_command("AUTH", "qre", "x") + encode_command("SELECT", "2") + encode_command("PING")
    assert made.greeting == commands
    assert made.received_untrusted(b"+OK\r\n+OK\r\n+PO") == [] and not made.greeted
    assert made.received_untrusted(b"NG\r\n") == [] and made.greeted
    assert StoreConnection(PREFIX, password="x").greeting == encode_command("AUTH", "x") + encode_command("PING")


def test_questions_are_answered_in_their_order_however_they_arrive() -> None:
    made = greeted()
    assert [made.ask(DIGEST, 121) for _ in range(4)] == [QUESTION] * 4
    found = [answer for byte in b"+OK\r\n$-1\r\n_\r\n+OK\r\n" for answer in made.received_untrusted(bytes([byte]))]
    assert found == [StoreAnswer.NEW, StoreAnswer.REPEATED, StoreAnswer.REPEATED, StoreAnswer.NEW]


def test_servers_of_another_key_remember_apart() -> None:
    assert key_prefix(bytes(32)) != key_prefix(bytes(31) + b"\1")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", "it says OOM command not allowed"),
        (b"-\xff\x00\r\n", r"it says \?\?"),
        (b":1\r\n", "is no answer"),
        (b"*1\r\n", "is no answer"),
        (b"+OK\r\n+OK\r\n", "is no answer"),
        (b"HTTP/1.1 400 Bad Request\r\n", "is no answer"),
        (b"+" * 1100, "too long"),
    ],
)
def test_what_a_store_should_not_say_ends_the_connection(data: bytes, why: str) -> None:
    made = greeted()
    made.ask(DIGEST, 121)
    with pytest.raises(UntrustedInputError, match=why):
        made.received_untrusted(data)


def test_a_wrong_password_is_told() -> None:
    made = StoreConnection(PREFIX, password="x")
    with pytest.raises(UntrustedInputError, match="WRONGPASS"):
        made.received_untrusted(b"-WRONGPASS invalid username-password pair or user is disabled.\r\n")


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_give_answers_or_an_end(pieces: list[bytes]) -> None:
    made = greeted()
    for _ in range(3):
        made.ask(DIGEST, 121)
    answers = []
    try:
        for piece in pieces:
            answers += made.received_untrusted(piece)
    except UntrustedInputError:
        pass
    assert len(answers) <= 3
