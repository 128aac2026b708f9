"""Where several servers of one key remember hellos in common: ``valkey://[user:password@]address:port[/database]``,
or ``unix://[user:password@]/path/of/socket[?database]``.

Only addresses, no names: a server must find its store without asking anybody. ``redis://`` means the same, because
Redis speaks the same protocol.
"""

from __future__ import annotations

from qre.config.model import ReplayStore
from qre.config.syntax import quoted
from qre.config.values import parse_ipv4_socket_address, parse_number, wrong
from qre.errors import UserError

_EXAMPLE = "write valkey://10.0.0.5:6379 or unix:///run/valkey/valkey.sock"
_TCP, _UNIX = ("valkey", "redis"), ("unix",)
_ENCRYPTED = ("valkeys", "rediss")
_MAX_DATABASE = 65_535
#: Of sun_path, without its last zero.
_MAX_PATH = 107
_MAX_WORD = 256


def parse_replay_store(text: str) -> ReplayStore:
    """No error repeats more than the scheme: what follows may be a password."""
    scheme, separator, rest = text.partition("://")
    if scheme in _ENCRYPTED:
        raise wrong("QRE does not encrypt on the way to the store", "use a Unix socket, or an address in a tunnel")
    if not separator or scheme not in _TCP + _UNIX:
        raise wrong("it does not begin with valkey://, redis:// or unix://", _EXAMPLE)
    account, at, place = rest.rpartition("@")
    user, _, password = account.partition(":")
    if at and not password:
        raise wrong(
            "there is an @ and no password before it", "write user:password@, or :password@ for the default user"
        )
    mark = "?" if scheme in _UNIX else "/"
    place, _, database = place.partition(mark)
    return ReplayStore(
        _path(place) if scheme in _UNIX else _address(place),
        user=_word(user),
        password=_word(password),
        database=_database(database),
    )


def show_replay_store(store: ReplayStore) -> str:
    """What ``parse_replay_store`` reads."""
    from urllib.parse import quote

    account = f"{quote(store.user, safe='')}:{quote(store.password, safe='')}@" if store.password else ""
    on_path = store.place.startswith("/")
    database = f"{'?' if on_path else '/'}{store.database}" if store.database else ""
    return f"{'unix' if on_path else 'valkey'}://{account}{store.place}{database}"


def _word(text: str) -> str:
    from urllib.parse import unquote

    try:
        word = unquote(text, errors="strict")
    except UnicodeDecodeError:
        word = "\0"
    if len(word) > _MAX_WORD or not (word == "" or word.isprintable()):
        raise wrong("the user or the password is too long, or has letters that nobody can print", _EXAMPLE)
    return word


def _address(text: str) -> str:
    try:
        return str(parse_ipv4_socket_address(text))
    except UserError as error:
        raise wrong(error.why, "write the address as 10.0.0.5:6379: names are not looked up") from None


def _path(text: str) -> str:
    if not text.startswith("/") or len(text.encode(errors="surrogateescape")) > _MAX_PATH or not text.isprintable():
        raise wrong(f"{quoted(text)} is not the absolute path of a socket, of {_MAX_PATH} bytes at most", _EXAMPLE)
    return text


def _database(text: str) -> int:
    return parse_number(text, 0, _MAX_DATABASE) if text else 0
