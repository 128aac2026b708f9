"""What speaks against a site as Dest: each drawback as a type, with its weight, its words, and what an observer would
see of a server that stood before this site.

One table, so that ``find-dest``, ``check``, ``refresh`` and the warnings of Dest's profile say the same. Programs act
on the drawback and its weight, never on the words. What the profile of a visit shows is judged here; what only this
machine or TCP shows is added by ``qre.visit.assessment``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from aioquic import tls

from qre.dest_profile import LONGEST, MAX_SPOKEN, DestProfile
from qre.quic.client.hello import X25519, X25519MLKEM768
from qre.wire.packet import SHORTEST_DEST_CID

GROUPS: Final = {X25519: "X25519", X25519MLKEM768: "X25519MLKEM768"}
#: Our own Handshake messages, from EncryptedExtensions to Finished (bytes), with a client's usual parameters.
_SHORTEST_FLIGHT: Final = 450
#: What a server may send for a browser's first flight (bytes, RFC 9000 §8.1), unless its Retry was answered.
_LONGEST_FLIGHT: Final = 3 * 2 * 1250
#: From this distance on the difference between visitors and tunnels is a tell (milliseconds).
_FAR_MS: Final = 20
#: A certificate that ends sooner should have been renewed by now (seconds).
_ENDS_SOON: Final = 3 * 86_400
_REFUSED: Final = 400  # the first HTTP status that is an error


class Weight(enum.StrEnum):
    """How much a drawback matters, from the worst."""

    UNUSABLE = "unusable"  # no client gets in before this site
    TELLING = "telling"  # clients get in, and an observer can tell them from visitors
    SLIGHT = "slight"  # better sites have it better


class Drawback(enum.StrEnum):
    """What can speak against a site. The values are printed, and stand in JSON."""

    ITSELF = "itself"
    NAME = "name"
    UNREACHABLE = "unreachable"
    NO_HTTP3 = "no-http3"
    HANDSHAKE = "handshake"
    CIPHER = "cipher"
    GROUP = "group"
    SHORT_CIDS = "short-cids"
    CERTIFICATE = "certificate"
    SHORT_FLIGHT = "short-flight"
    LONG_FLIGHT = "long-flight"
    FAR = "far"
    RETRY = "retry"
    NO_PAGE = "no-page"
    LONG_PAGE = "long-page"
    NO_TCP = "no-tcp"
    NO_ALT_SVC = "no-alt-svc"
    NOT_POST_QUANTUM = "not-post-quantum"
    ENDS_SOON = "ends-soon"
    OTHER_NETWORK = "other-network"
    NOT_VISITED = "not-visited"


class Words(NamedTuple):
    """``why``: the drawback, with the place of its detail; ``observed``: what an observer would see."""

    weight: Weight
    why: str
    observed: str


_BAD, _TELL, _SLIGHT = Weight.UNUSABLE, Weight.TELLING, Weight.SLIGHT
_NOBODY: Final = "a site that answers visitors, and no tunnel: clients get the site itself"
WORDS: Final[dict[Drawback, Words]] = {
    Drawback.ITSELF: Words(
        _BAD,
        "it is this server itself ({})",
        "a port that answers nobody: what arrives goes round between the server and itself",
    ),
    Drawback.NAME: Words(_BAD, "its address is not known: {}", "a server that is silent to everybody"),
    Drawback.UNREACHABLE: Words(
        _BAD, "nothing answers there: {}", "a port that is silent to everybody, so that clients get no answer either"
    ),
    Drawback.NO_HTTP3: Words(
        _BAD,
        "it has no HTTP/3: {}",
        "QUIC to a site that has none: no browser does that, and nobody would be answered",
    ),
    Drawback.HANDSHAKE: Words(
        _BAD, "a browser's handshake with it fails: {}", "handshakes that all break off, and none that lasts"
    ),
    Drawback.CIPHER: Words(
        _BAD, "it chooses {}, which QRE cannot: no client of yours is recognised before it", _NOBODY
    ),
    Drawback.GROUP: Words(
        _BAD, "it chooses the group {}, which QRE cannot: no client of yours is recognised", _NOBODY
    ),
    Drawback.SHORT_CIDS: Words(
        _BAD,
        f"its connection IDs have {{}}, fewer than {SHORTEST_DEST_CID}: no client of yours is recognised before it",
        _NOBODY,
    ),
    Drawback.CERTIFICATE: Words(
        _TELL,
        "{}",
        "connections that last to a site at whose certificate every browser breaks off",
    ),
    Drawback.SHORT_FLIGHT: Words(
        _TELL,
        "its handshake messages are so short ({}) that ours do not fit",
        "handshakes of tunnels take longer than the site's own",
    ),
    Drawback.LONG_FLIGHT: Words(
        _TELL,
        "its handshake takes {}, and a server sends no more than three times what a browser has sent at first",
        "handshakes of tunnels end sooner than the site's own; a shorter certificate chain is better",
    ),
    Drawback.FAR: Words(
        _TELL,
        "it is {} away",
        "a tunnel answers sooner by so much than visitors are answered; choose a site that is nearer",
    ),
    Drawback.RETRY: Words(
        _TELL,
        "it asks visitors to try again first (Retry)",
        "every handshake takes one round trip more, which hardly any site asks for",
    ),
    Drawback.NO_PAGE: Words(
        _TELL, "it did not answer GET / over HTTP/3{}", "visitors who leave at once, and connections that stay"
    ),
    Drawback.LONG_PAGE: Words(
        _TELL,
        f"its page is longer than is played: {MAX_SPOKEN} datagrams, or what comes in {LONGEST:.0f} s",
        "visits that go on where a tunnel without traffic falls silent; a smaller page is better",
    ),
    Drawback.NO_TCP: Words(
        _TELL,
        "its address does not answer HTTPS by TCP: {}",
        "HTTP/3 with an address that refuses a browser's first connection, which is TCP",
    ),
    Drawback.NO_ALT_SVC: Words(
        _TELL,
        "it does not announce HTTP/3 (Alt-Svc) where browsers come first, by TCP",
        "HTTP/3 with a site that no browser would use it with, unless its DNS says so (HTTPS record)",
    ),
    Drawback.NOT_POST_QUANTUM: Words(
        _SLIGHT,
        "it chooses X25519 without ML-KEM",
        "nothing now; who records a tunnel and one day has a quantum computer can read it",
    ),
    Drawback.ENDS_SOON: Words(
        _SLIGHT,
        "its certificate ends {}",
        "a site about to become one at which browsers break off, unless it is renewed",
    ),
    Drawback.OTHER_NETWORK: Words(
        _SLIGHT, "its address {} is not in our network", "the site's name at an address where the site has none"
    ),
    Drawback.NOT_VISITED: Words(_BAD, "it was not visited: {}", "not known"),
}


@dataclass(frozen=True)
class Against:
    """One drawback of one site; ``detail`` is what fills its words."""

    drawback: Drawback
    detail: str = ""

    @property
    def weight(self) -> Weight:
        """As its row says."""
        return WORDS[self.drawback].weight

    @property
    def why(self) -> str:
        """The drawback in words."""
        return WORDS[self.drawback].why.replace("{}", self.detail)

    @property
    def observed(self) -> str:
        """What an observer would see."""
        return WORDS[self.drawback].observed

    def __str__(self) -> str:
        return f"{self.why}: {self.observed}"


def drawbacks_of(profile: DestProfile) -> tuple[Against, ...]:
    """What a visit has shown, the worst first. Nothing of a site that was not reached."""
    if not profile.scid_length and not profile.cipher:
        return ()
    return sorted_by_weight(_of_profile(profile))


def sorted_by_weight(found: Iterator[Against]) -> tuple[Against, ...]:
    """The worst first, and within a weight as the table has them."""
    order = list(Drawback)
    return tuple(sorted(found, key=lambda each: (list(Weight).index(each.weight), order.index(each.drawback))))


def _of_profile(profile: DestProfile) -> Iterator[Against]:
    if profile.cipher != tls.CipherSuite.AES_128_GCM_SHA256.name:
        yield Against(Drawback.CIPHER, profile.cipher or "no known cipher suite")
    if profile.group not in GROUPS.values():
        yield Against(Drawback.GROUP, profile.group)
    elif profile.group == GROUPS[X25519]:
        yield Against(Drawback.NOT_POST_QUANTUM)
    if profile.scid_length < SHORTEST_DEST_CID:
        yield Against(Drawback.SHORT_CIDS, f"{profile.scid_length} byte{'' if profile.scid_length == 1 else 's'}")
    if 0 < profile.handshake_flight_length < _SHORTEST_FLIGHT:
        yield Against(Drawback.SHORT_FLIGHT, f"{profile.handshake_flight_length} bytes")
    if not profile.retry and (flight := sum(profile.flight_datagram_lengths)) > _LONGEST_FLIGHT:
        yield Against(Drawback.LONG_FLIGHT, f"{flight} bytes")
    if profile.rtt_ms >= _FAR_MS:
        yield Against(Drawback.FAR, f"{profile.rtt_ms} ms")
    if profile.retry:
        yield Against(Drawback.RETRY)
    if profile.certificate_problem:
        yield Against(Drawback.CERTIFICATE, profile.certificate_problem)
    elif 0 < (left := profile.certificate_expires_at - profile.checked_at) < _ENDS_SOON:
        yield Against(Drawback.ENDS_SOON, f"in {left // 3600} hours")
    if not profile.http_status:
        yield Against(Drawback.NO_PAGE)
    elif profile.http_status >= _REFUSED:
        yield Against(Drawback.NO_PAGE, f", but with status {profile.http_status}")
    if any(visit.longer for visit in profile.visits[-1:]):
        yield Against(Drawback.LONG_PAGE)
