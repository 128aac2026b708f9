"""What a censor can measure of one connection: features of its datagrams, in the clear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from qre.errors import UntrustedInputError
from qre.wire.packet import Header, PacketType, packets_untrusted
from tests.support.tcpdump import Datagram

#: Datagrams of the server that are looked at one by one, in its flight and behind it.
_FLIGHT, _AFTER = 5, 8
#: Datagrams of the client.
_SENT = 12
_LETTERS = {PacketType.INITIAL: "I", PacketType.HANDSHAKE: "H", PacketType.ONE_RTT: "1", PacketType.RETRY: "R"}
Features = dict[str, float]
#: After the client's Finished (seconds): a visitor may be gone later.
WINDOW = 0.2


def headers(datagram: Datagram) -> list[Header]:
    try:
        return list(packets_untrusted(datagram.payload, short_cid_length=0))
    except UntrustedInputError:
        return []


def layout(datagram: Datagram) -> str:
    """Such as ``I`` or ``IH1``: the packets."""
    return "".join(_LETTERS.get(each.type, "?") for each in headers(datagram))


class Visit:
    """The datagrams of one connection, in the order of the capture."""

    def __init__(self, datagrams: Sequence[Datagram], server: tuple[str, int]) -> None:
        self.server = server
        self.sent = [each for each in datagrams if each.destination == server]
        self.received = [each for each in datagrams if each.source == server]
        finished = [
            each.time for each in self.sent if any(packet.type is PacketType.HANDSHAKE for packet in headers(each))
        ]
        self.finished_at = finished[0] if finished else float("inf")
        hello = [each.time for each in self.sent if each.time < (self.received[0].time if self.received else 0)]
        self.began = hello[-1] if hello else 0.0
        self.flight = [each for each in self.received if each.time < self.finished_at]
        self.after = [each for each in self.received if 0 <= each.time - self.finished_at < WINDOW]

    def answered_late(self) -> Visit:
        """The same connection with an injected tell: whatever follows the hello is a millisecond later."""
        late = [
            replace(each, time=each.time + 1e-3 * (each.time > self.began)) for each in (*self.sent, *self.received)
        ]
        return Visit(sorted(late, key=lambda each: each.time), self.server)

    def words(self) -> dict[str, str]:
        """Features that are compared as a whole: which values there are, and how often."""
        first = headers(self.received[0]) if self.received else []
        ones = [each for each in self.received if each.payload and not each.payload[0] & 0x80]
        return {
            "layout of the flight": " | ".join(map(layout, self.flight)),
            "ECN of the flight": "".join(str(each.tos & 3) for each in self.flight),
            "ECN of 1-RTT": str(dict(Counter(each.tos & 3 for each in ones))) if not ones else str(ones[-1].tos & 3),
            "length of connection IDs": str(len(first[0].source_cid)) if first else "",
            "TTL": str({each.ttl for each in self.received}),
            "identification": "0" if all(each.identification == 0 for each in self.received) else "not 0",
            "DF": str({each.dont_fragment for each in self.received}),
            "destination connection IDs": str(self._destinations(len(first[0].source_cid) if first else 0)),
            "the client's layout": " | ".join(map(layout, self.sent[:4])),
            "the client's identification": self._identification(),
            "the client's largest": str(max((len(each.payload) for each in self.sent), default=0)),
        }

    def _identification(self) -> str:
        """How a client's IP headers count: a connected socket of Linux from a random number on, by one."""
        seen = [each.identification for each in self.sent]
        if not any(seen):
            return "0"
        return "counts" if all((two - one) % 65_536 == 1 for one, two in pairwise(seen)) else "jumps"

    def _destinations(self, length: int) -> int:
        """How many connection IDs the client's short headers have had."""
        return len({each.payload[1 : 1 + length] for each in self.sent if not each.payload[0] & 0x80})

    def flight_features(self) -> Features:
        """Times in ms, lengths in bytes; -1 where there is none."""
        found: Features = {"datagrams in the flight": len(self.flight)}
        found |= _one_by_one(self.flight, _FLIGHT, self.began)
        packets = [packet for each in self.flight for packet in headers(each)]
        for kind in (PacketType.INITIAL, PacketType.HANDSHAKE):
            lengths = [each.end - each.start for each in packets if each.type is kind]
            found[f"bytes in {kind.name}"] = sum(lengths)
            found[f"shortest {kind.name}"] = min(lengths, default=-1)
        hello = next((each for each in self.flight if len(each.payload) >= 1200), None)
        found["hello to ServerHello"] = (hello.time - self.began) * 1e3 if hello else -1
        return found

    def later_features(self) -> Features:
        """The same of what follows the client's Finished."""
        found: Features = {"datagrams after it": len(self.after)}
        found |= _one_by_one(self.after, _AFTER, self.finished_at, "later ")
        return found

    def client_features(self) -> Features:
        """The same of the client, until the same moment."""
        sent = [each for each in self.sent if each.time - self.finished_at < WINDOW]
        found: Features = {
            "datagrams of the client": len(sent),
            "bytes of the client": sum(len(each.payload) for each in sent),
        }
        found |= _one_by_one(sent, _SENT, sent[0].time if sent else 0.0, "client's ")
        return found


def _one_by_one(datagrams: Sequence[Datagram], most: int, since: float, prefix: str = "") -> Features:
    found: Features = {}
    for number in range(most):
        one = datagrams[number] if number < len(datagrams) else None
        found[f"{prefix}length {number}"] = len(one.payload) if one else -1
        before = datagrams[number - 1].time if number and one else since
        found[f"{prefix}time {number}"] = (one.time - before) * 1e3 if one else -1
    return found
