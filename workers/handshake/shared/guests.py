"""The front's side of a shared port: daemons that have joined it, and the handshakes of their clients.

A guest's client is recognised by its short id and recorded in our replay filter; then its datagrams go to the guest
unchanged. Sessions are not handled here: their packets reach the guest's own data plane.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from qre.errors import MachineError, UserError
from qre.ipc.channel import Channel
from qre.profile_secrets import ProfileSecrets
from qre.wire.initial import MAX_DATAGRAM
from qre.wire.packet import long_header_source_cid
from qre.workers.handshake.port.flow_parts import Address, Handshake, Hello
from qre.workers.handshake.shared.feed_messages import (
    Abandon,
    Began,
    DestSpoke,
    GivesUp,
    Left,
    More,
    Over,
    ToFront,
    ToGuest,
    begin,
    visitor_of,
)

#: Of one handshake: what a client may address it by.
_MOST_CIDS: Final = 8


@dataclass(frozen=True)
class GuestCalls:
    """What the front is told about guests' handshakes: one has ended, follows Dest no more, or cannot follow it.
    ``complain`` gets (key, line) for the log."""

    over: Callable[[Address, Handshake], None]
    left: Callable[[Address, Handshake, bytes], None]
    not_followed: Callable[[Address, Handshake], None]
    complain: Callable[[str, str], None]


class GuestHandshake:
    """A handshake with a guest's client. See ``flow_parts.Handshake``."""

    def __init__(self, guest: Guest, hello: Hello) -> None:
        self._guest = guest
        self._source = hello.source
        self._begin: ToGuest | None = begin(hello)
        found = hello.found
        self.hello_cid = found.retry_source_cid or found.original_destination_cid
        self.cids = {cid for cid in (found.original_destination_cid, found.retry_source_cid) if cid}

    def begin(self, now: float) -> None:
        """Pass the client to its daemon, once; the secrets are not kept."""
        if self._begin is not None:
            self._guest.tell(self._begin)
            self._begin = None  # it holds secrets

    def datagram_received(self, data: bytes, now: float) -> None:
        """Pass ``data`` on; a datagram longer than MAX_DATAGRAM is dropped."""
        if len(data) <= MAX_DATAGRAM:
            self._guest.tell(More(visitor=visitor_of(self._source), data=data))

    def dest_spoke(self, data: bytes, ecn: int, now: float) -> None:
        """Pass a datagram of Dest on; the daemon answers under Dest's connection ID."""
        cid = long_header_source_cid(data)
        if cid and len(self.cids) < _MOST_CIDS:
            self.cids.add(cid)
        if len(data) <= MAX_DATAGRAM:
            self._guest.tell(DestSpoke(visitor=visitor_of(self._source), data=data, ecn=ecn))

    def dest_retried(self, retry: bytes, now: float) -> None:
        """Pass Dest's Retry on; the daemon knows whether it is this client's."""
        self.hello_cid = b""
        self.dest_spoke(retry, 0, now)

    def answered_under(self, cid: bytes) -> None:
        """The daemon has answered under ``cid``: the client may use it from now on."""
        self.cids.add(cid)

    def abandon(self) -> None:
        """Tell the daemon that the front gave the handshake up."""
        self._guest.forget(self._source, self)
        self._guest.tell(Abandon(visitor=visitor_of(self._source)))


@dataclass
class Guest:
    """One joined daemon."""

    profile: str
    short_ids: frozenset[bytes]
    channel: Channel[ToFront]
    calls: GuestCalls
    handshakes: dict[Address, GuestHandshake] = field(default_factory=dict)

    def tell(self, message: ToGuest) -> None:
        """Send a message, or lose it, as datagrams may be lost; the supervisor reports when the guest is gone."""
        try:
            self.channel.send(message)
        except MachineError as error:
            self.calls.complain("guest", f"{self.profile} does not accept its clients: {error}")

    def forget(self, source: Address, handshake: GuestHandshake) -> None:
        """``handshake`` has ended. A client that began again has another one by now, which stays."""
        if self.handshakes.get(source) is handshake:
            del self.handshakes[source]

    def readable(self) -> None:
        """Read the feed; a closed or malformed one closes the guest."""
        # Its supervisor, or ours, provides another feed when the guest is back.
        self.channel.drain(self._take, closed=self.close, malformed=lambda error: self.close())

    def _take(self, message: ToFront, fds: list[int]) -> None:
        del fds  # no descriptor belongs to it
        source = message.visitor.address
        handshake = self.handshakes.get(source)
        if handshake is None:
            return
        match message:
            case Began(handshake_cid=cid):
                handshake.answered_under(cid)
            case Left(farewell=farewell):
                self.calls.left(source, handshake, farewell)
            case GivesUp():
                self.forget(source, handshake)
                self.calls.not_followed(source, handshake)
            case Over():
                self.forget(source, handshake)
                self.calls.over(source, handshake)

    def close(self) -> None:
        """End its handshakes and tell ``over`` of each."""
        if self.channel.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.channel.fileno())
            self.channel.close()
        for source, handshake in list(self.handshakes.items()):
            self.calls.over(source, handshake)
        self.handshakes.clear()


class Guests:
    """All joined daemons, by the number that the supervisor gave each."""

    def __init__(self, calls: GuestCalls) -> None:
        self._calls = calls
        self._guests: dict[int, Guest] = {}

    def any(self) -> bool:
        """Whether any daemon has joined."""
        return bool(self._guests)

    def short_ids(self) -> frozenset[bytes]:
        """The short ids of all guests, 8 bytes each."""
        return frozenset().union(*(guest.short_ids for guest in self._guests.values()))

    def join(self, number: int, profile: str, own: ProfileSecrets, its: ProfileSecrets, feed: int) -> None:
        """Admit a daemon; takes ownership of ``feed``. Raises UserError when its configuration does not fit."""
        channel: Channel[ToFront] = Channel(socket.socket(fileno=feed), ToFront)
        try:
            self._refuse_another_key(profile, own, its)
            self._refuse_overlap(number, profile, own, its)
        except UserError:
            channel.close()
            raise
        self.leave(number)
        guest = Guest(profile, frozenset(its.short_ids), channel, self._calls)
        self._guests[number] = guest
        asyncio.get_running_loop().add_reader(channel.fileno(), guest.readable)

    def reload(self, number: int, own: ProfileSecrets, its: ProfileSecrets) -> None:
        """A guest has other clients from now on. Raises UserError when its configuration does not fit any more, and
        MachineError for an unknown number."""
        guest = self._guests.get(number)
        if guest is None:
            raise MachineError("the port's front", "it does not know this daemon")
        self._refuse_another_key(guest.profile, own, its)
        self._refuse_overlap(number, guest.profile, own, its)
        guest.short_ids = frozenset(its.short_ids)

    def refuse_clients(self, own: ProfileSecrets) -> None:
        """Raise UserError when one of our own short ids would be a guest's, too."""
        _refuse_shared("RealityShortIds", self.short_ids() & set(own.short_ids))

    @staticmethod
    def _refuse_another_key(profile: str, own: ProfileSecrets, its: ProfileSecrets) -> None:
        keys = (own.private_key, own.previous_key)
        if not any(hmac.compare_digest(key, its.private_key) for key in keys):
            raise UserError(
                f"profile {profile}", "RealityPrivateKey differs from that of the port's front", "use one key"
            )

    def _refuse_overlap(self, number: int, profile: str, own: ProfileSecrets, its: ProfileSecrets) -> None:
        taken = set(own.short_ids)
        for other, guest in self._guests.items():
            if other != number:
                taken |= guest.short_ids
        _refuse_shared(f"profile {profile}, RealityShortIds", taken & set(its.short_ids))

    def leave(self, number: int) -> None:
        """Close guest ``number``; an unknown number is ignored."""
        guest = self._guests.pop(number, None)
        if guest is not None:
            guest.close()

    def accept(self, hello: Hello) -> GuestHandshake | None:
        """The handshake of a guest's client; None for any other client."""
        guest = next((guest for guest in self._guests.values() if hello.found.short_id in guest.short_ids), None)
        if guest is None:
            return None
        handshake = guest.handshakes[hello.source] = GuestHandshake(guest, hello)
        return handshake

    def close(self) -> None:
        """Close every guest."""
        for number in list(self._guests):
            self.leave(number)


def _refuse_shared(where: str, short_ids: Collection[bytes]) -> None:
    if short_ids:
        why = f"{min(short_ids).hex()} belongs to another device at this port already"
        raise UserError(where, why, "give each client a short id of its own")
