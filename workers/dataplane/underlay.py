"""The UDP sockets of sessions: many datagrams per system call (udp(7): UDP_SEGMENT, UDP_GRO).

A run of datagrams of one size, the last one perhaps shorter, leaves in one sendmsg; datagrams that the kernel joined
on receipt are split again. Not so on a connected socket, a client's: there the kernel counts packets in the
identification of their headers, but a run as one, so that numbers would come again (ip_select_ident). Don't Fragment
is always on (RFC 9000 §14). It must never block, and never wait for a slow peer.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from qre.addresses import Address as IpAddress
from qre.errors import MachineError
from qre.kernel.udp.control_messages import (
    ECN_SPACE,
    SEGMENT_SPACE,
    Ancillary,
    as_sockaddr,
    ecn_of,
    family_of,
    in_segments,
    is_every,
    never_fragment,
    receive_in_batches,
    report_ecn,
    report_local,
    report_time,
    segment_of,
    sent_from,
    source_of,
    with_ecn,
)
from qre.workers.dataplane.many_datagrams import MOST, ManyDatagrams
from qre.workers.dataplane.session.path import Address

#: As much as an unprivileged process may have; a burst of super-packets must fit.
_BUFFER = 8 << 20
_MAX_SEGMENTS = 64
#: With headers of every layer it must stay below a device's gso_max_size (65,536), or the kernel cuts it up early.
_MAX_BYTES = 65_400
_ANCILLARY = ECN_SPACE + SEGMENT_SPACE
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
#: Errors that one call tolerates before it gives up: each call clears the error that it returns.
_MAX_ERRORS = 8
#: Errors of a kernel or device without UDP_SEGMENT: afterwards every datagram gets its own system call.
_NO_GSO = {errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT}

#: Datagrams that arrived together: their bytes, source and outer ECN codepoint.
Received = tuple[list[bytes], Address, int]


class UnderlaySocket:
    """One UDP socket, owned."""

    def __init__(self, fd: int, drops: Counter[str]) -> None:
        """Raises MachineError when ``fd`` is not a UDP socket."""
        self._socket = socket.socket(fileno=fd)
        self._family = self._socket.family
        self._drops = drops
        self._gso = True
        self._many: ManyDatagrams | None = None  # it is connected
        self._wildcard = False
        #: Lengths of datagrams that the first hop refused (EMSGSIZE); the caller of ``send`` reads and empties it.
        self.refused: list[int] = []
        self._set_up()

    def _set_up(self) -> None:
        sock = self._socket
        if sock.family not in _FAMILIES or (sock.type, sock.proto) != (socket.SOCK_DGRAM, socket.IPPROTO_UDP):
            self.close()
            raise MachineError("underlay socket", "the descriptor is not a UDP socket")
        sock.setblocking(False)
        self._wildcard = is_every(sock.getsockname()[0])
        with contextlib.suppress(OSError):
            sock.getpeername()
            self._gso, self._many = False, ManyDatagrams()
        never_fragment(sock)
        report_ecn(sock)
        report_local(sock, on=False)  # the session knows it
        report_time(sock, on=False)  # there is room for marks and sizes alone
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            if sock.getsockopt(socket.SOL_SOCKET, option) < _BUFFER:
                sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
        receive_in_batches(sock)

    def fileno(self) -> int:
        """For an event loop's reader; -1 once closed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Datagrams that wait in the kernel are lost."""
        self._socket.close()

    def receive(self) -> Received | None:
        """The result of one system call; None: nothing is waiting."""
        for _ in range(_MAX_ERRORS):
            try:
                data, ancillary, _, address = self._socket.recvmsg(65_535, _ANCILLARY)
            except BlockingIOError:
                return None
            except OSError:  # an ICMP error for an earlier datagram, true or forged; the next call returns data
                self._drops["unreachable"] += 1
                continue
            if address[1]:
                break
            self._drops["source-port-0"] += 1  # nobody can be answered there
        else:
            return None
        source, ecn, size = source_of(address), ecn_of(ancillary), segment_of(ancillary)
        if not 0 < size < len(data):
            return [data], source, ecn
        return [data[at : at + size] for at in range(0, len(data), size)], source, ecn

    def gather(self, most: int) -> tuple[dict[tuple[Address, int], list[bytes]], bool]:
        """Some ``most`` datagrams by source and ECN codepoint, and whether there may be more."""
        batches: dict[tuple[Address, int], list[bytes]] = {}
        gathered = 0
        while gathered < most:
            received = self.receive()
            if received is None:
                return batches, False
            datagrams, source, ecn = received
            gathered += len(datagrams)
            key = (source, ecn)
            if key in batches:
                batches[key] += datagrams
            else:
                batches[key] = datagrams
        return batches, True

    def send(
        self, packets: Sequence[bytes], to: Address, ecn: int = 0, source: IpAddress | None = None
    ) -> list[bytes]:
        """Send them all with this ECN codepoint; returns those that the kernel has no room for now. ``source``: which
        of our addresses they leave with, if the socket is bound to all; None: the one that the route has.

        See ``refused``, too."""
        at, count = 0, len(packets)
        marks = with_ecn(family_of(to[0]), ecn) if ecn else []
        if source is not None and self._wildcard:
            marks.append(sent_from(str(source)))
        to = as_sockaddr(self._family, to)
        while at < count:
            run = self._run(packets, at) if self._gso else 1
            try:
                if self._many is not None and not marks:
                    at += self._many.send(self._socket.fileno(), packets[at : at + MOST])
                    continue
                if run == 1:
                    self._send_one(packets[at], to, marks)
                else:
                    ancillary = [in_segments(len(packets[at])), *marks]
                    self._socket.sendmsg(islice(packets, at, at + run), ancillary, 0, to)
            except BlockingIOError:
                return list(packets[at:])
            except OSError as error:
                if run > 1 and error.errno in _NO_GSO:
                    self._gso = False
                    continue
                # One of them is too long, or it was an ICMP error for an earlier datagram, true or forged.
                sent = self._send_singly(packets[at : at + run], to, marks)
                at += sent
                if sent < run:
                    return list(packets[at:])
                continue
            at += run
        return []

    def _send_one(self, packet: bytes, to: Address, marks: list[Ancillary]) -> None:
        if marks:
            self._socket.sendmsg([packet], marks, 0, to)
        else:
            self._socket.sendto(packet, to)

    def _send_singly(self, packets: Sequence[bytes], to: Address, marks: list[Ancillary]) -> int:
        """Send them one by one; returns how many need not be sent again."""
        for at, packet in enumerate(packets):
            try:
                self._send_one(packet, to, marks)
            except BlockingIOError:
                return at
            except OSError as error:
                if error.errno != errno.EMSGSIZE:  # the others would fail, too
                    self._drops["send-failed"] += len(packets) - at
                    break
                self.refused.append(len(packet))
        return len(packets)

    @staticmethod
    def _run(packets: Sequence[bytes], at: int) -> int:
        """How many packets from ``at`` on can leave in one call."""
        size = len(packets[at])
        limit = min(len(packets), at + _MAX_SEGMENTS, at + _MAX_BYTES // size)
        end = at + 1
        while end < limit and len(packets[end]) == size:
            end += 1
        if end < limit and len(packets[end]) < size:
            end += 1
        return end - at
