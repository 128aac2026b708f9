"""``find-dest``: which of some sites is a good Dest? Visits them, a few at a time, and prints them, the best first.

Exit status 0 when one of them can be used. No list of sites is shipped: servers that all stand before the same few
would be known by them.
"""

from __future__ import annotations

import asyncio
import json
import textwrap
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any, Final

import msgspec

from qre.addresses import Address
from qre.cli.commands import Options
from qre.cli.defaults import FIND_DEST
from qre.cli.dest.own_servers import own_listens
from qre.cli.dest.unwaited_threads import UnwaitedThreads
from qre.cli.fields import parse_fields
from qre.cli.show.show_text import clean, plural, span
from qre.config.model import HostPort
from qre.config.syntax import quoted, read_config
from qre.config.values import is_address, parse_dns_name, parse_duration, parse_host_port, parse_number
from qre.dest_profile import DestProfile
from qre.errors import MachineError, UserError, UserErrors
from qre.visit.assessment import Assessment, Assessor, Grade, Site, not_visited, rank
from qre.visit.our_network import OurNetwork

MOST_SITES: Final = 256
_WIDTH: Final = 100
_MOST_AT_ONCE: Final = 32
_LONGEST_MS: Final = 3_600_000
_FIELDS: Final = ("Endpoint", "Parallel", "TimeLimit")
_WHICH: Final = (
    "name sites with HTTP/3 that people near your server would visit and that are not yours, best in the network of"
    " your server's hoster"
)


def find_dest(arguments: list[str], options: Options) -> int:
    """``find-dest [NAME]… [--file PATH] [Endpoint=IP] [Parallel=NUMBER] [TimeLimit=DURATION]``."""
    words, path = _split(arguments)
    given = [word for word in words if "=" in word]
    fields = FIND_DEST | parse_fields(given, (), _FIELDS, command="find-dest")
    parallel = _checked("Parallel", lambda: parse_number(fields["Parallel"], 1, _MOST_AT_ONCE))
    limit_ms = _checked("TimeLimit", lambda: parse_duration(fields["TimeLimit"], 1_000, _LONGEST_MS))
    public = _checked("Endpoint", lambda: _address(fields["Endpoint"])) if "Endpoint" in fields else None
    sites = _sites([word for word in words if "=" not in word], path)
    assessor = Assessor(OurNetwork(own_listens(), public))
    ranked = rank(asyncio.run(_visit_all(sites, assessor, parallel, limit_ms / 1000)))
    usable = sum(each.grade is not Grade.UNUSABLE for each in ranked)
    if options.json:
        print(json.dumps({"version": 1, "sites": [as_json(each) for each in ranked]}, indent=2, sort_keys=True))
    else:
        for number, each in enumerate(ranked, start=1):
            print("\n".join(_text(number, each)))
    if not usable:
        why = "it cannot be used" if len(ranked) == 1 else f"none of these {len(ranked)} can be used"
        raise MachineError("find-dest", why, "see what speaks against each, and try others")
    return 0


# --- what is asked ---


def _split(arguments: list[str]) -> tuple[list[str], str]:
    """Words, and the value of --file."""
    words: list[str] = []
    path = ""
    left = iter(arguments)
    for word in left:
        if word == "--":
            words += left
        elif word.partition("=")[0] == "--file":
            _, equals, value = word.partition("=")
            if path:
                raise UserError("option --file", "it is given twice", "put the sites into one file")
            path = value if equals else next(left, "")
            if not path:
                raise UserError("option --file", "its value is missing", "see `qre-tool help find-dest`")
        else:
            words.append(word)
    return words, path


def _checked(name: str, parse: Any) -> Any:
    try:
        return parse()
    except UserError as error:
        raise UserError(f"field {name}", error.why, error.remedy or "see `qre-tool help find-dest`") from None


def _address(text: str) -> Address:
    try:
        return ip_address(text)
    except ValueError:
        why = f"{quoted(text)} is not an IP address"
        raise UserError("", why, "write it as in Endpoint=192.0.2.1") from None


def _sites(words: list[str], path: str) -> list[Site]:
    """Each once, in order. Raises UserErrors with all that are wrong."""
    named = [(f"site {quoted(word)}", word) for word in words]
    if path:
        data, _ = read_config(path)
        lines = data.decode("utf-8", "replace").splitlines()
        texts = ((number, line.partition("#")[0].strip()) for number, line in enumerate(lines, start=1))
        named += [(f"{path}:{number}", text) for number, text in texts if text]
    if not named:
        where = f"{path} names none" if path else "no site is given"
        raise UserError("find-dest", where, _WHICH)
    found: dict[tuple[str, str], Site] = {}
    errors = []
    for place, text in named:
        try:
            site = parse_site(text)
            found.setdefault((str(site.dest), site.server_name), site)
        except UserError as error:
            errors.append(UserError(place, error.why, error.remedy))
    if errors:
        raise UserErrors(tuple(errors[:20]))
    if len(found) > MOST_SITES:
        raise UserError("find-dest", f"{len(found)} sites are given, and {MOST_SITES} is the most", "visit fewer")
    return list(found.values())


def parse_site(text: str) -> Site:
    """``NAME``, ``NAME:PORT``, or ``NAME@HOST:PORT`` for one address of a site. Raises UserError."""
    name, at, where = text.rpartition("@")
    if at:
        dest = parse_host_port(_with_port(where))
        server_name = parse_dns_name(name)
    else:
        dest = parse_host_port(_with_port(text))
        server_name = dest.host
    if is_address(server_name) or "." not in server_name:
        remedy = "write it as www.example.org, www.example.org:443 or www.example.org@192.0.2.7:443"
        raise UserError("", f"{quoted(server_name)} is not the name of a web site", remedy)
    return Site(HostPort(dest.host, dest.port), server_name)


def _with_port(text: str) -> str:
    return text if ":" in text and not text.endswith("]") else f"{text}:443"


async def _visit_all(sites: Sequence[Site], assessor: Assessor, parallel: int, limit: float) -> list[Assessment]:
    """All of them, ``parallel`` at a time, within ``limit`` seconds: those whose turn does not come are told."""
    places = asyncio.Semaphore(parallel)
    asyncio.get_running_loop().set_default_executor(UnwaitedThreads())  # names are looked up in threads
    until = time.monotonic() + limit

    async def visit(site: Site) -> Assessment:
        try:
            async with asyncio.timeout(until - time.monotonic()), places:
                return await assessor.assess(site)
        except TimeoutError:
            return not_visited(site, "the time was up (TimeLimit)")

    return list(await asyncio.gather(*(visit(site) for site in sites)))


# --- what is told ---


def _text(number: int, found: Assessment) -> Iterator[str]:
    at = f", {found.address}" if found.address else ""
    name = f" as {found.site.server_name}" if found.site.dest.host != found.site.server_name else ""
    yield clean(f"{number:>2}. {found.grade:<9} {found.site.dest}{name}{at}")
    if found.profile is not None:
        yield from _wrapped(6, f"seen: {'; '.join(facts(found, found.profile))}")
    for each in found.against:
        yield from _wrapped(6, f"{each.weight}: {each.why}")
        yield from _wrapped(8, f"an observer sees: {each.observed}")


def _wrapped(indent: int, text: str) -> list[str]:
    first = " " * indent
    return textwrap.wrap(
        clean(text), _WIDTH, initial_indent=first, subsequent_indent=first + " " * 4, break_on_hyphens=False
    )


def facts(found: Assessment, profile: DestProfile) -> Iterator[str]:
    """What is good to know of a site that was visited."""
    yield f"{profile.rtt_ms} ms away, first byte after {profile.first_byte_ms} ms"
    yield f"{profile.cipher}, {profile.group}, connection IDs of {plural(profile.scid_length, 'byte')}"
    if profile.certificate_expires_at:
        age, left = (
            max(0, seconds)
            for seconds in (
                profile.checked_at - profile.certificate_since,
                profile.certificate_expires_at - profile.checked_at,
            )
        )
        yield f"certificate {_days(age)} old, {_days(left)} left"
    if found.https is not None:
        announced = f"HTTPS by TCP {'with' if found.https.http3 else 'without'} Alt-Svc"
        yield announced if found.https.answered else "no HTTPS by TCP"
    words = {True: "in our network", False: "in another network", None: "whether in our network is not known"}
    yield words[found.near]


def _days(seconds: int) -> str:
    return plural(seconds // 86_400, "day") if seconds >= 86_400 else span(seconds)


def as_json(found: Assessment) -> dict[str, Any]:
    """The object of one site; ``against`` has the type of each drawback beside its words."""
    return {
        "dest": str(found.site.dest),
        "server_name": found.site.server_name,
        "address": found.address or None,
        "grade": found.grade.value,
        "near": found.near,
        "profile": msgspec.to_builtins(found.profile),
        "https": msgspec.to_builtins(found.https),
        "against": [
            {
                "drawback": each.drawback.value,
                "weight": each.weight.value,
                "why": clean(each.why),
                "observed": each.observed,
            }
            for each in found.against
        ],
    }
