"""Is a site good as Dest? Visits one as the prober does, looks at it by TCP, and says what speaks against it.

The result is a value: the site, what was seen, and the drawbacks by type (``qre.quic.client.drawbacks``). ``rank``
orders several. Every step is bounded in time.
"""

from __future__ import annotations

import asyncio
import enum
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from qre.addresses import host_port
from qre.causes import Cause
from qre.config.model import HostPort
from qre.dest_profile import DestProfile
from qre.errors import MachineError
from qre.quic.client.drawbacks import Against, Drawback, Weight, drawbacks_of, sorted_by_weight
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.trust import TrustStore
from qre.visit.candidates import ELSEWHERE
from qre.visit.dest import Resolved, resolve
from qre.visit.https_look import HttpsLook, context_of, look_by_tcp
from qre.visit.our_network import OurNetwork
from qre.visit.probe import probe, probe_any
from qre.visit.visitor_files import authorities_file, load_fingerprint, load_trust

#: For one site, its name, every address of it and TCP included (seconds).
LONGEST: Final = 45.0
#: The visit failed before anything was heard: the network, or silence.
_SILENT: Final = ELSEWHERE | {Cause.TOO_BIG, Cause.LINK_DOWN}


@dataclass(frozen=True)
class Site:
    """A site to look at: where it is, and the name that it is visited by."""

    dest: HostPort
    server_name: str


class Grade(enum.StrEnum):
    """What the drawbacks of a site come to, from the best."""

    GOOD = "good"
    TELLING = "telling"  # it works, and tunnels can be told from visits
    UNUSABLE = "unusable"


@dataclass(frozen=True)
class Assessment:
    """What was found of one site. ``near``: it is in our network; None: not known."""

    site: Site
    address: str = ""
    profile: DestProfile | None = None
    https: HttpsLook | None = None
    near: bool | None = None
    against: tuple[Against, ...] = ()

    @property
    def grade(self) -> Grade:
        """By the worst drawback."""
        worst = self.against[0].weight if self.against else Weight.SLIGHT
        return {Weight.UNUSABLE: Grade.UNUSABLE, Weight.TELLING: Grade.TELLING, Weight.SLIGHT: Grade.GOOD}[worst]


class Assessor:
    """Loads what visits need, once. Raises MachineError when the authorities cannot be read."""

    def __init__(self, ours: OurNetwork) -> None:
        self._ours = ours
        self._fingerprint: Fingerprint = load_fingerprint()
        self._trust: TrustStore = load_trust()
        self._tls: ssl.SSLContext = context_of(authorities_file())

    async def assess(self, site: Site) -> Assessment:
        """One site, within LONGEST seconds. Never raises because of the site."""
        try:
            async with asyncio.timeout(LONGEST):
                return await self._assess(site)
        except TimeoutError:
            return _unusable(site, Drawback.UNREACHABLE, f"no end in {LONGEST:g} s")

    async def _assess(self, site: Site) -> Assessment:
        try:
            found = await resolve(site.dest.host, site.dest.port)
        except MachineError as error:
            return _unusable(site, Drawback.NAME, error.why or str(error))
        for _, (ip, port) in found:
            if self._ours.is_itself(ip_address(ip), port):
                return _unusable(site, Drawback.ITSELF, host_port(ip, port), ip)
        try:
            where, profile = await probe_any(found, lambda at, patience: self._visit(at, site, patience))
        except MachineError as error:
            return await self._failed(site, found[0], error)
        https = await look_by_tcp(where, site.server_name, self._tls)
        near = self._ours.is_near(ip_address(where[1][0]))
        against = (*drawbacks_of(profile), *_of_tcp(https), *_of_place(where[1][0], near))
        return Assessment(site, where[1][0], profile, https, near, sorted_by_weight(iter(against)))

    async def _visit(self, at: Resolved, site: Site, patience: float) -> DestProfile:
        return await probe(at, site.server_name, self._fingerprint, self._trust, patience)

    async def _failed(self, site: Site, where: Resolved, error: MachineError) -> Assessment:
        """A site that answers by TCP alone has no HTTP/3; one that answers nothing is not there."""
        if error.cause is Cause.NO_HTTP3:
            return _unusable(site, Drawback.NO_HTTP3, "it speaks QUIC, and something else in it", where[1][0])
        if error.cause not in _SILENT:
            return _unusable(site, Drawback.HANDSHAKE, error.why or str(error), where[1][0])
        https = await look_by_tcp(where, site.server_name, self._tls)
        kind = Drawback.NO_HTTP3 if https.answered else Drawback.UNREACHABLE
        words = "it answers HTTPS by TCP alone" if https.answered else error.why or str(error)
        return Assessment(site, where[1][0], None, https, None, (Against(kind, words),))


def rank(found: Sequence[Assessment]) -> list[Assessment]:
    """The best first: those that answered, by weight and number of drawbacks, then by nearness in milliseconds, then
    as given; those that did not answer last."""

    def key(each: Assessment) -> tuple[int, ...]:
        counts = [sum(one.weight is weight for one in each.against) for weight in Weight]
        return (each.profile is None, *counts, each.profile.rtt_ms if each.profile is not None else 0)

    return sorted(found, key=key)


def not_visited(site: Site, why: str) -> Assessment:
    """For a site whose turn did not come."""
    return _unusable(site, Drawback.NOT_VISITED, why)


def _unusable(site: Site, drawback: Drawback, detail: str, address: str = "") -> Assessment:
    return Assessment(site, address, against=(Against(drawback, detail),))


def _of_tcp(https: HttpsLook) -> Iterator[Against]:
    if not https.answered:
        yield Against(Drawback.NO_TCP, https.why)
    elif not https.http3:
        yield Against(Drawback.NO_ALT_SVC)


def _of_place(address: str, near: bool | None) -> Iterator[Against]:
    if near is False:
        yield Against(Drawback.OTHER_NETWORK, address)
