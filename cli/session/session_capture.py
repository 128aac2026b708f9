"""``session-capture``: what a client and a server would send each other, as a file for Wireshark. Nothing is sent.

Raw IPv4, as the client's network card would see it: its own datagrams when they leave, the server's when they arrive.
The file is a classic pcap, and the output says what it shows and what is missing. With a name in ``.pcapng`` it is
pcapng, and a comment in it says so (``capinfos``, Wireshark's capture file properties, and the first packet). With
KeyLog=true the secrets lie beside it in ``<file>.keys`` (Wireshark: TLS, (Pre)-Master-Secret log). Both are written
whole or not at all.
"""

from __future__ import annotations

import io
import os
import random
import stat
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import dpkt
from dpkt.pcapng import (
    EnhancedPacketBlockLE,
    InterfaceDescriptionBlockLE,
    PcapngOptionLE,
    SectionHeaderBlockLE,
    Writer,
)

from qre.cli.commands import Options
from qre.cli.fields import parse_fields
from qre.cli.session.recorded_site import RECORDED, recorded_site
from qre.cli.session.session_ends import PATH, UNDERLAYS, check_both_or_none, session_ends
from qre.cli.session.session_plan import run_plan
from qre.config.keys import did_you_mean
from qre.config.model import Profile, SocketAddress
from qre.config.profile import load_profile_file
from qre.config.syntax import quoted
from qre.config.values import parse_bool
from qre.dest_profile import DestProfile
from qre.device.state import write_atomically
from qre.errors import MachineError, PeerError, UserError
from qre.quic.in_memory.plan import FLIGHT_TIME
from qre.quic.in_memory.strangers import Stranger, flight, is_taken_for_ours
from qre.visit.visitor_files import load_fingerprint

VALID: Final = "valid-client"
_ALIASES: Final = {"valid": VALID}
SCENARIOS: Final = (VALID, *(each.value for each in Stranger))
_LINKTYPE_RAW: Final = 101
_TTL: Final = 64
_HOPS: Final = 8
#: Datagrams of one flight are this far apart (seconds): 1,250 bytes at a gigabit.
_SPACING: Final = 0.00001
_COMMENT: Final = 1  # opt_comment
_WITH_COMMENT: Final = ".pcapng"
_LONGEST_PACKET: Final = 65_535
_FILE_HEADER: Final = struct.Struct(
    "<IHHiIII"
)  # of a pcap: magic, version, zone, accuracy, longest packet, link type
_PACKET_HEADER: Final = struct.Struct("<IIII")  # seconds, microseconds, bytes in the file, bytes on the wire
_MAGIC: Final = 0xA1B2C3D4
#: The first bytes of our files: a pcap's magic, a section header block, the first secret that a server derives
#: (SSLKEYLOGFILE).
_CAPTURES: Final = (_MAGIC.to_bytes(4, "little"), b"\x0a\x0d\x0d\x0a")
_KEY_LOG: Final = (b"SERVER_HANDSHAKE_TRAFFIC_SECRET ",)
_NOTES: Final = {
    VALID: "A client that holds the keys: the whole handshake and CONNECT-IP, both ends in memory.",
    Stranger.INVALID_SHORT_ID: "A client with a short id that the server does not know.",
    Stranger.WRONG_SNI: "A client that asks for another name than the server's.",
    Stranger.MALFORMED_INITIAL: "Initials of a client that do not decrypt.",
    Stranger.RANDOM_UDP: "Datagrams that are not QUIC.",
}
_NO_DEST: Final = (
    "The server treats it as a stranger and sends nothing itself. In memory there is no Dest: a daemon relays"
    " these datagrams to it, and the visitor gets the site's answer."
)


@dataclass(frozen=True)
class Captured:
    """A datagram at ``time`` (seconds), as the client's end sees it."""

    time: float
    by_client: bool
    data: bytes


def session_capture(arguments: list[str], options: Options) -> int:
    """SCENARIO SERVER-CONFIG CLIENT-CONFIG PCAP [Key=Value]…"""
    del options
    scenario, server_file, client_file, path, *rest = arguments
    scenario = _scenario(scenario)
    fields = parse_fields(rest, (), (*UNDERLAYS, "KeyLog", RECORDED), command="session-capture")
    check_both_or_none("session-capture", fields)
    wants_keys = _key_log(fields.get("KeyLog", "false"), scenario)
    site = _site(fields, scenario)
    server, client = load_profile_file(server_file), load_profile_file(client_file)
    ends = session_ends(server, client, fields, PATH)
    target = _target(Path(path), _CAPTURES)
    keys_target = _target(Path(f"{path}.keys"), _KEY_LOG) if wants_keys else None

    secrets = io.StringIO()
    captured = _capture(scenario, server, client, *ends, site, secrets)
    with_comment = target.suffix.lower() == _WITH_COMMENT
    note, begin = _note(scenario), time.time()
    _write(target, pcapng_of(note, captured, *ends, begin) if with_comment else pcap_of(captured, *ends, begin))
    if keys_target is not None:
        try:
            _write(keys_target, secrets.getvalue().encode())
        except MachineError:
            target.unlink(missing_ok=True)
            raise
    by_client = sum(each.by_client for each in captured)
    verdict = "the handshake was completed" if scenario == VALID else "refused, as it must be"
    print(f"{path}: {by_client} datagrams of the client, {len(captured) - by_client} of the server; {verdict}")
    if not with_comment:
        print("\n".join(note))
    return 0


def _note(scenario: str) -> tuple[str, ...]:
    """What the capture shows, and what is missing."""
    return (_NOTES[scenario], *((_NO_DEST,) if scenario != VALID else ()))


def pcap_of(captured: Sequence[Captured], server: SocketAddress, client: SocketAddress, begin: float) -> bytes:
    """The file; ``begin`` is the Unix time of its first moment."""
    file = [_FILE_HEADER.pack(_MAGIC, 2, 4, 0, 0, _LONGEST_PACKET, _LINKTYPE_RAW)]
    for microseconds, packet in _packets(captured, server, client, begin):
        seconds, rest = divmod(microseconds, 1_000_000)
        file.append(_PACKET_HEADER.pack(seconds, rest, len(packet), len(packet)) + packet)
    return b"".join(file)


def pcapng_of(
    note: tuple[str, ...], captured: Sequence[Captured], server: SocketAddress, client: SocketAddress, begin: float
) -> bytes:
    """The file with a comment; ``begin`` as above."""
    comment = [PcapngOptionLE(code=_COMMENT, data=" ".join(note).encode()), PcapngOptionLE()]
    file = io.BytesIO()
    section = SectionHeaderBlockLE(opts=comment)
    interface = InterfaceDescriptionBlockLE(linktype=_LINKTYPE_RAW, snaplen=_LONGEST_PACKET)
    writer = Writer(file, shb=section, idb=interface)
    for number, (microseconds, packet) in enumerate(_packets(captured, server, client, begin)):
        block = EnhancedPacketBlockLE(
            ts_high=microseconds >> 32,
            ts_low=microseconds & 0xFFFFFFFF,
            caplen=len(packet),
            pkt_len=len(packet),
            pkt_data=packet,
            opts=comment if not number else [],
        )
        writer.writepkt(block)
    return file.getvalue()


def _packets(
    captured: Sequence[Captured], server: SocketAddress, client: SocketAddress, begin: float
) -> Iterator[tuple[int, bytes]]:
    """Each with its Unix time in microseconds."""
    for each in captured:
        source, destination = (client, server) if each.by_client else (server, client)
        yield int((begin + each.time) * 1e6), bytes(_packet(each, source, destination))


def _packet(each: Captured, source: SocketAddress, destination: SocketAddress) -> dpkt.ip.IP:
    """As Linux sends it: DF set, so identification 0 (RFC 6864); received packets have passed some routers."""
    udp = dpkt.udp.UDP(sport=source.port, dport=destination.port, data=each.data)
    udp.ulen = len(udp)
    return dpkt.ip.IP(
        src=source.ip.packed,
        dst=destination.ip.packed,
        p=dpkt.ip.IP_PROTO_UDP,
        ttl=_TTL if each.by_client else _TTL - _HOPS,
        df=1,
        data=udp,
        len=20 + len(udp),
    )


def _capture(
    scenario: str,
    server: Profile,
    client: Profile,
    server_end: SocketAddress,
    client_end: SocketAddress,
    site: DestProfile | None,
    secrets: io.StringIO,
) -> list[Captured]:
    """Raises MachineError when a valid client is refused or a stranger is accepted."""
    if scenario == VALID:
        try:
            plan = run_plan(server, client, server_end, client_end, site, secrets)
        except (UserError, PeerError) as error:
            why = f"the valid client is refused ({error})"
            raise MachineError("session-capture", why, "compare both files") from error
        found = [
            Captured(sent.time + (0 if sent.by_client else FLIGHT_TIME), sent.by_client, sent.data)
            for sent in plan.datagrams
        ]
        return _spaced(sorted(found, key=lambda each: each.time))
    assert server.server is not None and client.client is not None
    now, source = int(time.time()), random.SystemRandom()
    address = (str(server_end.ip), server_end.port)
    sent = flight(
        Stranger(scenario), server.server, client.client, client.address, address, now, load_fingerprint(), source
    )
    if is_taken_for_ours(server.server, sent, now):
        why = f"the server accepts {scenario} as an authenticated client"
        raise MachineError("session-capture", why, "compare both files; if they match, report a defect")
    return _spaced([Captured(each.time, True, each.data) for each in sent])


def _spaced(captured: list[Captured]) -> list[Captured]:
    """The datagrams at strictly increasing times."""
    spaced: list[Captured] = []
    at = -_SPACING
    for each in captured:
        at = max(at + _SPACING, each.time)
        spaced.append(Captured(at, each.by_client, each.data))
    return spaced


def _scenario(text: str) -> str:
    name = _ALIASES.get(text.lower(), text.lower())
    if name not in SCENARIOS:
        remedy = did_you_mean(text, SCENARIOS, f"the scenarios are {', '.join(SCENARIOS)}")
        raise UserError(f"scenario {quoted(text)}", "there is no such scenario", remedy)
    return name


def _key_log(text: str, scenario: str) -> bool:
    try:
        wanted = parse_bool(text)
    except UserError as error:
        raise UserError("field KeyLog", error.why, error.remedy) from None
    if wanted and scenario != VALID:
        remedy = f"leave it out, or capture {VALID}"
        raise UserError("field KeyLog", "only a valid client's handshake has secrets", remedy)
    return wanted


def _site(fields: Mapping[str, str], scenario: str) -> DestProfile | None:
    if RECORDED in fields and scenario != VALID:
        remedy = f"leave it out, or capture {VALID}"
        raise UserError(f"field {RECORDED}", "the server answers a valid client alone", remedy)
    return recorded_site(fields)


def _target(path: Path, begins: tuple[bytes, ...]) -> Path:
    """A path for a new file, or of one of ours (it begins with one of these) to be replaced; UserError otherwise."""
    if not path.parent.is_dir():
        raise UserError(f"file {path}", "its directory does not exist", "create it")
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise UserError(f"file {path}", "it exists and is not a regular file", "choose another name")
        with path.open("rb") as file:
            found = file.read(max(map(len, begins)))
    except FileNotFoundError:
        return path
    except OSError as error:
        raise MachineError(f"file {path}", error.strerror or str(error), "choose another place") from error
    if found and not found.startswith(begins):
        raise UserError(f"file {path}", "it exists and is not a capture", "choose another name")
    return path


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except OSError as error:
        raise MachineError(f"file {path}", error.strerror or str(error), "choose another place") from error
