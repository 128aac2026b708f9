"""Plays: a hostile peer that has completed TLS, against one end of the product, in memory.

A play object is made once, with its handshake complete, and is then played once: in a fork, so that the same
handshake serves many plays. It follows the course of an honest session loosely enough to often arrive at its
installation, and puts hostile payloads in between. Each payload is one input, whose CPU time is taken; whatever a
function of the product raises is a find.
"""

from __future__ import annotations

import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from aioquic import tls
from aioquic.quic.crypto import CryptoPair

from qre.wire.varint import encode_varint
from tests.fuzz.hostile_flows import Flows
from tests.fuzz.hostile_grammar import Fields, Grammar

#: After its end a handshake gets this many inputs more.
AFTER_THE_END = 2
_ONE_RTT = tls.Epoch.ONE_RTT


@dataclass
class Outcome:
    """Of one play. ``worst``: CPU seconds of the input number ``worst_at``; ``error``: what was raised, as text."""

    inputs: int = 0
    installed: bool = False
    inputs_installed: int = 0  # of ``inputs``, those that came after the installation
    worst: float = 0.0
    worst_at: int = 0
    worst_payload: str = ""
    error: str = ""


class _EndedError(Exception):
    """The subject has ended; a play may end, too."""


class _RaisedError(Exception):
    """The product raised something, which ``Outcome.error`` has."""


class Play(ABC):
    """``play`` once; ``most`` inputs bound it."""

    kind = ""
    client = True  # the hostile peer speaks for a client
    fields: Fields
    most = 80

    def __init__(self) -> None:
        self.now = 100.0
        self.outcome = Outcome()
        self.over = False
        self.events: list[object] = []  # of the subject
        self._left = AFTER_THE_END

    def begin(self, rng: Random) -> None:
        """Take the seed; ``play`` does it first."""
        self.rng = rng
        self.grammar = Grammar(rng, client=self.client, cids=self.cids())
        self.flows = Flows(rng, self.grammar, self.fields)
        self.prepare()

    def play(self, rng: Random) -> Outcome:
        """Everything that this seed makes the peer do."""
        self.begin(rng)
        #: How many hostile acts come between two honest ones, and how often an honest one is spoilt.
        self.hostility = rng.choice((0.0, 0.2, 0.6, 1.5, 4.0))
        self.spoilt = rng.choice((0.0, 0.0, 0.05, 0.3))
        try:
            for step in self.course():
                self._hostile_acts()
                self._honest(step)
            for _ in range(rng.randrange(6)):
                self._hostile_acts()
                self._honest(self.acknowledge)
            self.call(self.finish)
        except (_RaisedError, _EndedError):
            pass
        return self.outcome

    def _hostile_acts(self) -> None:
        if self.outcome.inputs >= self.most:
            raise _EndedError
        count = int(self.hostility) + (self.rng.random() < self.hostility % 1)
        for _ in range(count):
            self._wait()
            for payload in self.flows.anything(self.unacknowledged()):
                self.input(payload)

    def _wait(self) -> None:
        """Seldom so long that timers have expired."""
        self.now += self.rng.choices((0.0, 0.03, 0.3, 3.0, 12.0), (100, 20, 2, 0.5, 0.2))[0]

    def _honest(self, step: Callable[[], list[bytes]]) -> None:
        self._wait()
        for payload in step():
            self.input(self.grammar.maybe_broken(payload, self.spoilt))

    def input(self, payload: bytes) -> None:
        """Give the subject one packet with these frames, after some time, and see what it does."""
        if self.over and not self._left:
            raise _EndedError
        self._left -= self.over
        self.now += 0.0005
        datagram = self.seal(payload[:1400].ljust(4, b"\x00"))
        self.outcome.inputs += 1
        self.outcome.inputs_installed += self.outcome.installed
        took = self.call(lambda: self.deliver(datagram))
        if self.rng.random() < 0.01:
            self.call(lambda: self.deliver(datagram))
        if took > self.outcome.worst:
            self.outcome.worst, self.outcome.worst_at = took, self.outcome.inputs
            self.outcome.worst_payload = payload.hex()

    def call(self, step: Callable[[], Any]) -> float:
        """CPU seconds of a step of the product; what it raises ends the play and is kept."""
        began = time.thread_time()
        try:
            step()
        except Exception as error:
            self.outcome.error = "".join(traceback.format_exception(error))
            raise _RaisedError from error
        return time.thread_time() - began

    def happened(self) -> None:
        """The session is installed."""
        self.outcome.installed = True

    # --- what the honest peer sends ---

    def on_stream(self, stream_id: int, data: Callable[[], bytes]) -> Callable[[], list[bytes]]:
        """A step that sends this on a stream."""
        return lambda: self.flows.packed(self.flows.stream(stream_id, data()))

    def acknowledge(self) -> list[bytes]:
        """ACK of everything that was sent."""
        numbers = self.unacknowledged()
        if not numbers:
            return [b"\x01"] if self.rng.random() < 0.3 else []
        return [b"\x02" + encode_varint(numbers[-1]) + b"\x00\x00" + encode_varint(numbers[-1] - numbers[0])]

    def encode(self) -> list[bytes]:
        """What the encoder still has to say, where it has a stream: one that waits for it goes on then."""
        encoder = 6 + self.flows.uni
        said = self.grammar.from_encoder()
        return self.flows.packed(self.flows.stream(encoder, said)) if said and encoder in self.flows.offsets else []

    def open(self) -> list[bytes]:
        """From now on the stream of the tunnel takes DATA."""
        self.flows.tunnel = True
        return []

    # --- of each kind ---

    @abstractmethod
    def course(self) -> list[Callable[[], list[bytes]]]:
        """The honest steps, in order."""

    @abstractmethod
    def cids(self) -> list[bytes]:
        """Connection IDs that the two ends use."""

    @abstractmethod
    def seal(self, payload: bytes) -> bytes:
        """A packet with this payload."""

    @abstractmethod
    def deliver(self, datagram: bytes) -> None:
        """Call the product as its worker does: time, the datagram, what is to be sent, events."""

    @abstractmethod
    def unacknowledged(self) -> list[int]:
        """The numbers of packets that the subject has sent, ascending."""

    def prepare(self) -> None:  # noqa: B027 - not all need it
        """What depends on the random numbers, before the first step."""

    def finish(self) -> None:  # noqa: B027 - not all need it
        """What the worker does with it at the end."""


class Sealer:
    """1-RTT packets of the peer of an aioquic connection, built by hand with its keys."""

    def __init__(self, pair: CryptoPair, destination_cid: bytes, number: int) -> None:
        self._pair = pair
        self._cid = destination_cid
        self._number = number

    def seal(self, payload: bytes, rng: Random) -> bytes:
        """Rarely the number jumps, or the keys are updated (RFC 9001 §6)."""
        self._number += rng.choices((1, 2, 40), (100, 3, 0.5))[0]
        if rng.random() < 0.001:
            self._pair.update_key()
            self._pair._update_key("local_update")
        first = 0x41 | self._pair.send.key_phase << 2
        header = bytes([first]) + self._cid + (self._number & 0xFFFF).to_bytes(2, "big")
        return self._pair.send.encrypt_packet(header, payload, self._number)


def sent_numbers(connection: Any) -> list[int]:
    """Of the 1-RTT packets that an aioquic connection waits for an ACK of."""
    return sorted(connection._spaces[_ONE_RTT].sent_packets)
