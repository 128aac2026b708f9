"""The values of the configuration: from the text after ``=`` to the model's type, one function a kind.

Each raises UserError with the cause (``why``) and, where the key's example is not enough, a ``remedy``; the caller
adds file, line and key. Functions for credentials never repeat the text.
"""

from __future__ import annotations

import binascii
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface

from qre.config.keys import did_you_mean
from qre.config.model import DnsSettings, HostPort, SocketAddress
from qre.config.syntax import quoted
from qre.ends import LIKE_DEST, MAX_CLIENTS, Dataplane, Forward, Role, WhenDestIsDown
from qre.errors import UserError
from qre.wire.overhead import ETHERNET_MTU, largest_inner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    from qre.addresses import Address, Interface, Network

    T = TypeVar("T")

PROFILE_NAME_LENGTH = 64
DEVICE_LENGTH = 15  # IFNAMSIZ - 1
MAX_PREFIXES = 256
MAX_SHORT_IDS = MAX_CLIENTS
#: Addresses of one client: as many as it may ask for.
MAX_ADDRESSES = 8
MAX_TIME_DIFF_MS = 86_400_000
#: Name servers and search domains.
MAX_DNS = 16
#: TCP ports that are passed to Dest.
MAX_SITE_PORTS = 16
#: Of routed connection IDs that this server makes itself, in bytes.
ROUTED_CID_LENGTHS = (17, 20)
MIN_MTU, MAX_MTU = 576, largest_inner(ETHERNET_MTU)
LOG_LEVELS = ("debug", "info", "warning", "error")

_NAME_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SITE_TCP: dict[str, tuple[int, ...] | None] = {"auto": None, "off": ()}
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


def wrong(why: str, remedy: str = "") -> UserError:
    """The error of a value; its place is added by the caller."""
    return UserError("", why, remedy)


def is_profile_name(name: str) -> bool:
    """ASCII letters, digits, ``.``, ``-``, ``_``; not a leading dot; 1 to 64 characters."""
    return 1 <= len(name) <= PROFILE_NAME_LENGTH and not name.startswith(".") and _NAME_CHARACTERS.issuperset(name)


def check_profile_name(name: str) -> str:
    """The name itself. Raises UserError for an invalid name, before it becomes part of a path."""
    if not is_profile_name(name):
        rule = "use 1 to 64 of the ASCII letters, digits, `.`, `-`, `_`, with no leading `.`"
        raise UserError(f"profile {quoted(name)}", "it is not a profile name", rule)
    return name


def parse_device(text: str) -> str:
    """An interface name that the kernel accepts (dev_valid_name) and that can be a sysctl directory."""
    size = len(text.encode(errors="surrogateescape"))
    if not 1 <= size <= DEVICE_LENGTH:
        raise wrong(f"{quoted(text)} is not 1 to {DEVICE_LENGTH} bytes long")
    if text in (".", "..", "all", "default"):
        raise wrong(f"the kernel does not accept {text} as an interface name")
    for letter in text:
        if letter in "/:%" or letter.isspace() or not letter.isprintable():
            raise wrong(f"{quoted(text)} has {quoted(letter)}, which is not allowed in an interface name")
    return text


def parse_number(text: str, low: int, high: int) -> int:
    """ASCII digits alone, from ``low`` to ``high``, both included. Raises UserError."""
    if not (text.isascii() and text.isdigit()) or len(text) > 20 or not low <= int(text) <= high:
        raise wrong(f"{quoted(text)} is not a number from {low} to {high}")
    return int(text)


def number(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers of that range."""
    return lambda text: parse_number(text, low, high)


def parse_bool(text: str) -> bool:
    """true, yes, on, 1 or false, no, off, 0, in any case."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise wrong(f"{quoted(text)} is neither true nor false", "write true or false")


def parse_duration(text: str, low_ms: int, high_ms: int) -> int:
    """Milliseconds, from a whole number with a unit (ms, s, m, h, d) or without (ms)."""
    digits = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text[len(digits) :].strip().lower() or "ms"
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 15 or unit not in _UNITS_MS:
        raise wrong(f"{quoted(text)} is not a duration", "write a whole number and ms, s, m, h or d, as in 60s")
    value = int(digits) * _UNITS_MS[unit]
    if not low_ms <= value <= high_ms:
        why = f"{quoted(text)} is not from {show_duration(low_ms)} to {show_duration(high_ms)}"
        bare = f"a number without a unit is in milliseconds; did you mean {digits}s?"
        raise wrong(why, bare if text == digits and value < low_ms else "")
    return value


def duration(low_ms: int, high_ms: int) -> Callable[[str], int]:
    """A parser of durations of that range."""
    return lambda text: parse_duration(text, low_ms, high_ms)


def duration_or_off(low_ms: int, high_ms: int) -> Callable[[str], int]:
    """The same, where 0 and ``off`` are 0."""
    return lambda text: 0 if text.lower() in {"0", "off"} else parse_duration(text, low_ms, high_ms)


def show_duration(milliseconds: int) -> str:
    """The shortest way to write it: ``60s``, ``1500ms``, ``1h``."""
    for unit in ("h", "m", "s"):
        if milliseconds and milliseconds % _UNITS_MS[unit] == 0 and (unit != "m" or milliseconds % 300_000 == 0):
            return f"{milliseconds // _UNITS_MS[unit]}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0"


def parse_keepalive(text: str) -> int:
    """Seconds; 0 and ``off`` switch it off."""
    if text.lower() == "off":
        return 0
    try:
        return parse_number(text, 0, 65_535)
    except UserError:
        raise wrong(f"{quoted(text)} is not a number of seconds from 0 to 65535", "write 25, or off") from None


def one_of(text: str, choices: Iterable[str]) -> str:
    """One of these words, in any case."""
    names = tuple(choices)
    if text.lower() in names:
        return text.lower()
    raise wrong(f"{quoted(text)} is not one of {', '.join(names)}", did_you_mean(text, names, ""))


def parse_role(text: str) -> Role:
    """``server`` or ``client``."""
    return Role(one_of(text, Role))


def parse_dataplane(text: str) -> Dataplane:
    """One of the values of Dataplane."""
    return Dataplane(one_of(text, Dataplane))


def parse_forward(text: str) -> Forward:
    """One of the values of Forward."""
    return Forward(one_of(text, Forward))


def parse_switch(text: str) -> bool:
    """``on`` or ``off``."""
    return one_of(text, ("on", "off")) == "on"


def parse_routed_cid_len(text: str) -> int:
    """``dest`` (LIKE_DEST), or a number of bytes."""
    return LIKE_DEST if text == "dest" else number(*ROUTED_CID_LENGTHS)(text)


def parse_when_dest_is_down(text: str) -> WhenDestIsDown:
    """One of the values of WhenDestIsDown."""
    return WhenDestIsDown(one_of(text, WhenDestIsDown))


def parse_site_tcp(text: str) -> tuple[int, ...] | None:
    """``auto`` (None), ``off`` (none), or TCP ports."""
    if text.lower() in _SITE_TCP:
        return _SITE_TCP[text.lower()]
    try:
        return several(text, lambda piece: parse_number(piece, 1, 65_535), MAX_SITE_PORTS)
    except UserError as error:
        raise wrong(error.why, error.remedy or "write auto, off, or ports like 443,80") from None


def show_site_tcp(ports: tuple[int, ...] | None) -> str:
    """As it is written in a file."""
    words = {value: word for word, value in _SITE_TCP.items()}
    return words.get(ports) or ",".join(map(str, ports or ()))


def parse_log_level(text: str) -> str:
    """One of LOG_LEVELS."""
    return one_of(text, LOG_LEVELS)


def several(text: str, parse: Callable[[str], T], most: int) -> tuple[T, ...]:
    """A comma-separated list without repetitions."""
    pieces = [piece.strip() for piece in text.split(",")]
    if len(pieces) > most:
        raise wrong(f"{len(pieces)} entries are more than {most}", "shorten the list")
    values: list[T] = []
    for piece in pieces:
        if not piece:
            raise wrong("an entry of the list is empty", "write the entries with one comma between them")
        value = parse(piece)
        if value in values:
            raise wrong(f"{value} is given twice", "keep it once")
        values.append(value)
    return tuple(values)


def parse_interfaces(text: str) -> tuple[Interface, ...]:
    """Inner addresses with their prefix lengths; without one, the host's own (/32, /128)."""
    return several(text, _parse_interface, MAX_PREFIXES)


def parse_networks(text: str) -> tuple[Network, ...]:
    """Prefixes; bits beyond the length are cleared, as ``wg`` does."""
    return several(text, lambda piece: _cidr(piece).network, MAX_PREFIXES)


def _parse_interface(text: str) -> Interface:
    value = _cidr(text)
    if value.ip.is_unspecified or value.ip.is_multicast or value.ip.is_loopback:
        raise wrong(f"{value} cannot be the address of a tunnel interface", "write one like 10.77.0.2/24")
    return value


def _cidr(text: str) -> Interface:
    address, slash, length = text.partition("/")
    plain = not slash or (length.isascii() and length.isdigit() and len(length) <= 3)  # no netmasks
    try:
        if not plain or "%" in address:
            raise ValueError
        return ip_interface(text)
    except ValueError:
        remedy = "write one as in 10.77.0.2, or with a prefix length, as in 10.77.0.2/24 or fd00:77::2/64"
        raise wrong(f"{quoted(text)} is not an address with a prefix length", remedy) from None


def _split_port(text: str, example: str) -> tuple[str, int]:
    if "/" in text:
        raise wrong(f"{quoted(text)} is a URL or has a path", f"write host and port alone, as in {example}")
    host, colon, port = text.rpartition(":")
    if not colon or not host or text.endswith("]") or _is_ipv6(text):
        raise wrong(f"{quoted(text)} has no port", f"write it with one, as in {example}")
    if host.startswith("[") and host.endswith("]") and _is_ipv6(host[1:-1]):
        host = host[1:-1]
    elif _is_ipv6(host):
        raise wrong(f"{quoted(host)} is an IPv6 address without brackets", f"write [{host}]:{port}")
    elif ":" in host:
        raise wrong(f"{quoted(text)} has more than one colon", f"write it as in {example}")
    if not (port.isascii() and port.isdigit()) or len(port) > 5 or not 1 <= int(port) <= 65_535:
        raise wrong(f"{quoted(port)} is not a port from 1 to 65535", f"write it as in {example}")
    return host, int(port)


def parse_socket_address(text: str) -> SocketAddress:
    """Numeric ``ip:port`` or ``[ip]:port``; 0.0.0.0 is every IPv4 address of this machine, and [::] every address."""
    example = "192.0.2.1:443"
    host, port = _split_port(text, example)
    try:
        address = ip_address(host)
    except ValueError:
        raise wrong(f"{quoted(host)} is not a numeric address", f"write it as in {example}") from None
    return SocketAddress(_of_socket(address, example), port)


def parse_ipv4_socket_address(text: str) -> SocketAddress:
    """The same where nothing but IPv4 is."""
    found = parse_socket_address(text)
    if found.ip.version != 4:
        raise wrong(f"{quoted(text)} is an IPv6 address", "write one of IPv4, as in 192.0.2.1:443")
    return found


def parse_host_port(text: str) -> HostPort:
    """``host:port`` with a DNS name or a numeric address, that of IPv6 in brackets."""
    example = "www.example.org:443"
    host, port = _split_port(text, example)
    if not is_address(host):
        return HostPort(parse_dns_name(host), port)
    return HostPort(str(_of_socket(ip_address(host), example)), port)


def _of_socket(address: Address, example: str) -> Address:
    """The address, unless a packet's sender cannot have it, or it means nothing without the name of a device."""
    strange = isinstance(address, IPv6Address) and (address.ipv4_mapped or address.is_link_local or address.scope_id)
    if strange or address.is_multicast or address == IPv4Address(0xFFFFFFFF):
        raise wrong(f"{address} cannot be the address of a socket", f"write it as in {example}")
    return address


def _is_ipv6(text: str) -> bool:
    """Whether it is an IPv6 address without brackets, with a zone or not."""
    return ":" in text and "]" not in text and is_address(text)


def is_address(text: str) -> bool:
    """Whether ``text`` is a numeric address, of IPv4 or IPv6."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def parse_dns_name(text: str) -> str:
    """A host name in lower case, without a final dot."""
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if not name.isascii():
        raise wrong(f"{quoted(text)} is not ASCII", "write its xn-- form")
    for label in labels:
        letters = label.replace("-", "").replace("_", "")
        if not 1 <= len(label) <= 63 or not letters.isalnum() or label[0] == "-" or label[-1] == "-":
            raise wrong(f"{quoted(text)} is not a DNS name", "write one like www.example.org")
    if len(name) > 253 or labels[-1].isdigit():
        raise wrong(f"{quoted(text)} is not a DNS name", "write one like www.example.org")
    return name


def parse_dns(text: str) -> DnsSettings:
    """Addresses of name servers, and search domains."""
    found = several(text, _name_server_or_domain, MAX_DNS)
    servers = tuple(each for each in found if not isinstance(each, str))
    if not servers:
        raise wrong("it names no server", "write the address of one, like 10.77.0.1")
    return DnsSettings(servers, tuple(each for each in found if isinstance(each, str)))


def _name_server_or_domain(text: str) -> Address | str:
    try:
        address = ip_address(text)
    except ValueError:
        return parse_dns_name(text)
    if address.is_unspecified or address.is_multicast or "%" in text:
        raise wrong(f"{quoted(text)} is not the address of a name server", "write one like 10.77.0.1")
    return address


def parse_key(text: str) -> bytes:
    """32 bytes in base64, as ``qre-tool genkey`` and ``wg genkey`` write them."""
    try:
        key = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        raise wrong("this is not base64", "write the 44 characters that genkey or pubkey printed") from None
    if len(key) != 32 or show_key(key) != text:
        raise wrong("this is not 32 bytes in base64", "write the 44 characters that genkey or pubkey printed")
    return key


def show_key(key: bytes) -> str:
    """A key in base64 on one line, as profiles hold it."""
    return binascii.b2a_base64(key, newline=False).decode()


def parse_time(text: str) -> int:
    """Unix time of a moment in UTC, as ``2026-12-31T00:00:00Z``."""
    from datetime import UTC, datetime  # few profiles have one

    try:
        if len(text) != 20 or not text.isascii():
            raise ValueError
        return int(datetime.strptime(text, _TIME).replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise wrong(f"{quoted(text)} is not a time in UTC", "write one like 2026-12-31T00:00:00Z") from None


def show_time(seconds: int) -> str:
    """Unix time as ``parse_time`` reads it."""
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime(_TIME)


def parse_short_id(text: str) -> bytes:
    """An even number of 0 to 16 hex digits, as 8 bytes padded with zeros on the right."""
    digits = text.isascii() and all(letter in "0123456789abcdefABCDEF" for letter in text)
    if not digits or len(text) > 16 or len(text) % 2:
        raise wrong("a short id is an even number of 0 to 16 hex digits", "write what genshortid printed")
    return bytes.fromhex(text).ljust(8, b"\0")


def parse_short_ids(text: str) -> tuple[bytes, ...]:
    """A list of short ids that differ when padded."""
    pieces = [piece.strip() for piece in text.split(",")]
    if len(pieces) > MAX_SHORT_IDS:
        raise wrong(f"{len(pieces)} ids are more than {MAX_SHORT_IDS}", "shorten the list")
    ids = [parse_short_id(piece) for piece in pieces]
    for position, short_id in enumerate(ids, 1):
        first = ids.index(short_id) + 1
        if first < position:
            why = f"ids {first} and {position} overlap: they are the same 8 bytes once padded with zeros"
            raise wrong(why, "keep one of them")
    return tuple(ids)


def parse_section_short_id(text: str) -> bytes:
    """Sixteen hex digits: all clients hold the same public key, so a short id must not be guessable."""
    if len(text) != 16:
        raise wrong("the short id of a client is 16 hex digits", "write what `qre-tool genshortid` printed")
    return parse_short_id(text)


def parse_hosts(text: str) -> tuple[Interface, ...]:
    """Single addresses, with or without the prefix length of their network, as host prefixes."""
    return several(text, _parse_host, MAX_ADDRESSES)


def _parse_host(text: str) -> Interface:
    value = _parse_interface(text)
    network = value.network
    if network.prefixlen < network.max_prefixlen - 1 and value.ip == network.network_address:
        remedy = "write each address of the client, and networks behind it in AllowedIPs"
        raise wrong(f"{value} is a network, not an address", remedy)
    return ip_interface(f"{value.ip}/{value.max_prefixlen}")


def show_short_id(short_id: bytes) -> str:
    """The shortest text that names it: trailing zero bytes are padding; the empty id is ``00``."""
    return (short_id.rstrip(b"\0") or b"\0").hex()


def parse_path(text: str) -> str:
    """An absolute path, normalised."""
    if not text.startswith("/") or not text.isprintable() or len(text.encode()) > 255:
        raise wrong(f"{quoted(text)} is not an absolute path of at most 255 bytes")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise wrong(f"{quoted(text)} has `..` in it", "write the path without it")
    return "/" + "/".join(parts)


def parse_user(text: str) -> str:
    """A user's name or number, not root."""
    if not _NAME_CHARACTERS.issuperset(text) or not 1 <= len(text) <= 32 or text[0] in ".-":
        raise wrong(f"{quoted(text)} is not a user")
    if text == "root" or (text.isdigit() and int(text) == 0):
        raise wrong("workers do not run as root", "name an unprivileged user")
    return text
