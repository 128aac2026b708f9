"""Visitors' connections to Dest: one connected UDP socket each, both directions byte for byte with ECN.

Whatever Dest sends (Version Negotiation, Retry, a stateless reset, nothing) goes back unchanged and is not
interpreted here. ICMP errors about what went to Dest are noted (``Errors``). All sockets share one epoll descriptor,
which the event loop watches: thousands of idle visitors cost one descriptor and a few small objects each.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol

from qre.addresses import host_port
from qre.causes import of_network
from qre.errors import MachineError
from qre.kernel.udp.control_messages import (
    ECN_SPACE,
    SEGMENT_SPACE,
    TIME_SPACE,
    age_of,
    ecn_of,
    in_fragments,
    never_fragment,
    receive_in_batches,
    report_ecn,
    report_time,
    segment_of,
    with_ecn,
)
from qre.kernel.udp.error_queue import QueuedError, next_error, path_mtu, report_errors
from qre.kernel.udp.port_errors import Failing
from qre.kernel.udp.quotable_header import Sent
from qre.workers.handshake.port.flow_parts import Flow

#: The longest UDP datagram (bytes).
LONGEST: Final = 65_535
#: Bounds of one turn: sockets, and datagrams of each, so that no visitor starves the others.
_EVENTS, _TURN = 64, 16
_ERRORS: Final = 8
#: What a socket holds unread (bytes). That of a visitor who fetches something large, so much of it in one turn, may
#: hold more: while another process runs, a site that is near sends a lot, and takes its loss for a crowded path.
_RECEIVE_BUFFER: Final = 64 << 10
_LARGE_BUFFER, _LARGE = 1 << 20, 8 << 10
#: So many visitors at a time.
_MOST_LARGE: Final = 64
#: Dest is silent when more flows than this were opened, over this time (seconds), and none was answered.
_UNANSWERED, _SILENCE = 2, 1.0
#: For so long (seconds); then it is tried again.
_REMEMBERED: Final = 60.0
#: Visitors whose last datagrams are kept: those who spoke last. An error comes in a round trip, or never.
_MOST_KEPT: Final = 256
#: Addresses of Dest of which that is remembered: it has no more at a time.
_ADDRESSES: Final = 16

#: (flow, datagrams in one piece, the length of each but the last, ECN mark, seconds since they came)
Reply = Callable[[Flow, bytes, int, int, float], None]
_ANCILLARY: Final = ECN_SPACE + SEGMENT_SPACE + TIME_SPACE


class Errors(Protocol):
    """Who hears of ICMP errors: ``dest_errors.passing_on.DestErrors``."""

    on: bool

    def keep(self, kept: tuple[Sent, ...], data: bytes) -> tuple[Sent, ...]:
        """What errors may be about, now that ``data`` has left after ``kept``."""
        ...

    def tells(self, flow: Flow, data: bytes) -> bool:
        """Whether a visitor is told that ``data``, which has just come, is too large: as any router would, it says so
        of what came whole, and does not cut it."""
        ...

    def told(self, flow: Flow, kept: Sequence[Sent], error: QueuedError) -> None:
        """An error about one of ``kept``."""
        ...


class DestSocket:
    """The socket of one visitor. See ``flow_parts.Relay``. Its first datagram leaves before anything watches for an
    answer: what has come meanwhile is noticed all the same."""

    __slots__ = ("_relays", "_socket", "dest", "family", "fd", "kept", "large", "watched")

    def __init__(self, relays: Relays, made: socket.socket, family: int, dest: tuple[str, int]) -> None:
        self._relays = relays
        self.dest = dest
        self._socket = made
        self.family = family
        self.fd = made.fileno()
        self.large = False  # whether it has the larger buffer
        self.watched = False
        self.kept: tuple[Sent, ...] = ()  # what went to Dest last

    def enlarge(self) -> None:
        """Hold more of what Dest sends; as much as the kernel grants (net.core.rmem_max)."""
        self.large = True
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LARGE_BUFFER)

    def send(self, data: bytes, ecn: int) -> None:
        """Send one datagram to Dest with this ECN codepoint; what the kernel refuses twice is counted as lost."""
        try:
            self._send(data, ecn)
        except OSError as error:
            self._relays.lost += not self._sent_again(error, data, ecn)
        if self._relays.errors.on:
            self._relays.keep(self, data)
        if not self.watched:
            self._relays.watch(self)

    def _send(self, data: bytes, ecn: int) -> None:
        if ecn:
            self._socket.sendmsg([data], with_ecn(self.family, ecn))
        else:
            self._socket.send(data)

    def _sent_again(self, error: OSError, data: bytes, ecn: int) -> bool:
        """An ICMP error for an earlier datagram is reported once. What is too large for the first hop is refused each
        time."""
        if isinstance(error, BlockingIOError):
            return False
        try:
            self._send(data, ecn)
        except OSError as again:
            return again.errno == errno.EMSGSIZE and self._sent_in_fragments(data, ecn)
        return True

    def _sent_in_fragments(self, data: bytes, ecn: int) -> bool:
        """What came in fragments goes in some, but for what its sender is told of."""
        try:
            version = 6 if self.family == socket.AF_INET6 else 4
            error = QueuedError(version, Failing.TOO_BIG, path_mtu(self._socket), b"")
            if self._relays.told_too_big(self, data, error):
                return False
            with in_fragments(self._socket):
                self._send(data, ecn)
        except OSError:
            return False
        return True

    def next_error(self) -> QueuedError | None:
        """The next thing that ICMP has said of what was sent; None when that was all."""
        return next_error(self._socket)

    def receive(self, buffer: bytearray) -> tuple[bytes, int, int, float] | None:
        """The next datagrams in one piece, the length of each but the last, their ECN codepoint and age (seconds);
        None when none is waiting."""
        for _ in range(2):  # an ICMP error is reported once, then the data follows
            try:
                length, ancillary, _, _ = self._socket.recvmsg_into([buffer], _ANCILLARY)
            except BlockingIOError:
                return None
            except OSError:
                self._relays.lost += 1
                continue
            data = bytes(memoryview(buffer)[:length])
            return data, segment_of(ancillary) or length, ecn_of(ancillary), age_of(ancillary)
        return None

    def close(self) -> None:
        """Close the socket and forget its flow, if it has one."""
        self._relays.forget(self)
        self._socket.close()
        self.kept = ()


class Relays:
    """``reply`` is called with every datagram from Dest, inside ``together`` with those that one socket had at once;
    ``silent`` when several new flows had none, ``complain`` with (key, line) for the log. ``lost`` counts those that
    the kernel refused to send."""

    def __init__(
        self,
        reply: Reply,
        together: Callable[[], AbstractContextManager[None]],
        silent: Callable[[], None],
        complain: Callable[[str, str], None],
        errors: Errors,
    ) -> None:
        self.errors = errors
        self._reply = reply
        self._together = together
        self._silent = silent
        self._complain = complain
        #: Flows opened since an address of Dest was heard last, and the time of the first.
        self._unanswered: dict[tuple[str, int], tuple[int, float]] = {}
        self._epoll = select.epoll()
        self._flows: dict[int, tuple[DestSocket, Flow]] = {}
        self._spares: dict[int, DestSocket] = {}  # by family
        self._next: tuple[int, tuple[str, int]] | None = None  # family and address of the next one
        self._keeping: deque[DestSocket] = deque()
        self._buffer = bytearray(LONGEST)
        self._large = 0
        self.lost = 0

    def fileno(self) -> int:
        """The epoll descriptor, readable when any of the sockets is."""
        return self._epoll.fileno()

    def __len__(self) -> int:
        return len(self._flows)

    def open(self, flow: Flow, family: int, dest: tuple[str, int]) -> DestSocket | None:
        """A socket connected to ``dest``; None when there is no descriptor left, or no route."""
        opened = self._spares.pop(family, None)
        if opened is None or opened.dest != dest:
            if opened is not None:
                opened.close()
            opened = self._connected(family, dest)
        if opened is not None:
            self._flows[opened.fd] = opened, flow
            self._next = family, dest
        return opened

    def watch(self, opened: DestSocket) -> None:
        """Its first datagram is on its way: an answer may come from now on."""
        self._epoll.register(opened.fd, select.EPOLLIN)
        opened.watched = True
        self._count_silence(opened.dest, time.monotonic())

    def prepare_next(self, resolved: tuple[int, tuple[str, int]] | None = None) -> None:
        """Have a socket ready for one more flow to ``resolved`` (family and address), or like the last one: before
        its first datagram leaves there is no time."""
        wanted, self._next = resolved or self._next, None
        if wanted is not None and wanted[0] not in self._spares and (made := self._connected(*wanted)) is not None:
            self._spares[wanted[0]] = made

    def _connected(self, family: int, dest: tuple[str, int]) -> DestSocket | None:
        try:
            made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._refused(dest, error)
            return None
        try:
            never_fragment(made)
            report_ecn(made)
            report_time(made)
            receive_in_batches(made)
            if self.errors.on:
                report_errors(made)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            made.connect(dest)
        except OSError as error:
            made.close()
            self._refused(dest, error)
            self._silent()
            return None
        return DestSocket(self, made, family, dest)

    def _refused(self, dest: tuple[str, int], error: OSError) -> None:
        cause = of_network(error.errno)
        why = MachineError.of(f"visitors get no answer, Dest {host_port(*dest)} cannot be reached", cause)
        self._complain(f"relay {cause}", str(why))

    def _count_silence(self, dest: tuple[str, int], now: float) -> None:
        count, since = self._unanswered.get(dest, (0, now))
        if now - since >= _REMEMBERED:
            count, since = 0, now
        if len(self._unanswered) >= _ADDRESSES:
            self._unanswered.clear()
        self._unanswered[dest] = count + 1, since
        if self.is_silent(dest, now):
            self._silent()

    def is_silent(self, dest: tuple[str, int], now: float) -> bool:
        """Whether several visitors had no answer from there."""
        count, since = self._unanswered.get(dest, (0, now))
        return count > _UNANSWERED and _SILENCE <= now - since < _REMEMBERED

    def forget(self, gone: DestSocket) -> None:
        """Stop watching ``gone``; call it before its socket is closed."""
        if self._flows.pop(gone.fd, None) is not None:
            self._large -= gone.large
            if gone.watched:
                self._epoll.unregister(gone.fd)

    def readable(self) -> None:
        """Call ``reply`` with the datagrams that are waiting, within the bounds of one turn."""
        for fd, events in self._epoll.poll(0, _EVENTS):
            entry = self._flows.get(fd)
            if entry is None:
                continue
            if events & select.EPOLLERR:
                self._hear(*entry)
            with self._together():
                self._read(fd, *entry)

    def _hear(self, made: DestSocket, flow: Flow) -> None:
        for _ in range(_ERRORS):
            error = made.next_error()
            if error is None:
                return
            self.errors.told(flow, made.kept, error)

    def keep(self, made: DestSocket, data: bytes) -> None:
        """``data`` has left by ``made``: an error may be about it."""
        held, made.kept = made.kept, self.errors.keep(made.kept, data)
        if made.kept and not held:
            self._keeping.append(made)
            if len(self._keeping) > _MOST_KEPT:
                self._keeping.popleft().kept = ()

    def told_too_big(self, made: DestSocket, data: bytes, error: QueuedError) -> bool:
        """Tell the visitor, if visitors are told of it, that ``data`` exceeds what the way to Dest takes."""
        entry = self._flows.get(made.fd)
        if entry is None or not self.errors.tells(entry[1], data):
            return False
        self.errors.told(entry[1], self.errors.keep((), data), error)
        return True

    def _read(self, fd: int, made: DestSocket, flow: Flow) -> None:
        came = 0
        for _ in range(_TURN):
            received = made.receive(self._buffer)
            if received is None:
                break
            came += len(received[0])
            made.kept = made.kept[-1:]
            self._unanswered.pop(made.dest, None)
            self._reply(flow, *received)
            if self._flows.get(fd, (None,))[0] is not made:
                return  # closed meanwhile
        if came >= _LARGE and not made.large and self._large < _MOST_LARGE:
            self._large += 1
            made.enlarge()

    def close(self) -> None:
        """Close every socket and the epoll descriptor."""
        self._next = None
        for spare in self._spares.values():
            spare.close()
        self._spares.clear()
        for made, _ in list(self._flows.values()):
            made.close()
        self._epoll.close()
