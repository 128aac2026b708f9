"""The front's side of a shared port: daemons that have joined it, and the handshakes of their clients.

A guest's client is recognised by its short id and recorded in our replay filter; then its datagrams go to the guest
unchanged. Sessions are not handled here: their packets reach the guest's own data plane.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from qre.errors import MachineError, UserError
from qre.ipc.channel import Channel
from qre.ipc.messages import ProfileSecrets
from qre.wire.initial import MAX_DATAGRAM
from qre.workers.handshake.port.flow_parts import Address, Handshake, Hello
from qre.workers.handshake.shared.feed_messages import Abandon, Began, More, ToFront, ToGuest, begin, visitor_of

_BATCH: Final = 64


class GuestHandshake:
    """A handshake with a guest's client. See ``flow_parts.Handshake``."""

    def __init__(self, guest: Guest, hello: Hello) -> None:
        self._guest = guest
        self._source = hello.source
        self._begin: ToGuest | None = begin(hello)
        self._cids = {hello.found.original_destination_cid, hello.found.retry_source_cid}

    def begin(self, now: float) -> None:
        """Pass the client to its daemon, once; the secrets are not kept."""
        if self._begin is not None:
            self._guest.tell(self._begin)
            self._begin = None  # it holds secrets

    def datagram_received(self, data: bytes, now: float) -> None:
        """Pass ``data`` on; a datagram longer than MAX_DATAGRAM is dropped."""
        if len(data) <= MAX_DATAGRAM:
            self._guest.tell(More(visitor=visitor_of(self._source), data=data))

    def owns(self, destination_cid: bytes) -> bool:
        """Whether the daemon has answered under this connection ID."""
        return destination_cid in self._cids

    def answered_under(self, cid: bytes) -> None:
        """The daemon has answered under ``cid``: the client may use it from now on."""
        self._cids.add(cid)

    def abandon(self) -> None:
        """Tell the daemon that the front gave the handshake up."""
        self._guest.forget(self._source, self)
        self._guest.tell(Abandon(visitor=visitor_of(self._source)))


@dataclass
class Guest:
    """One joined daemon. ``over`` is called when a handshake has ended."""

    profile: str
    short_ids: frozenset[bytes]
    channel: Channel[ToFront]
    over: Callable[[Address, Handshake], None]
    complain: Callable[[str, str], None]
    handshakes: dict[Address, GuestHandshake] = field(default_factory=dict)

    def tell(self, message: ToGuest) -> None:
        """Send a message, or lose it, as datagrams may be lost; the supervisor reports when the guest is gone."""
        try:
            self.channel.send(message)
        except MachineError as error:
            self.complain("guest", f"{self.profile} does not accept its clients: {error}")

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
        if isinstance(message, Began):
            handshake.answered_under(message.handshake_cid)
        else:
            self.forget(source, handshake)
            self.over(source, handshake)

    def close(self) -> None:
        """End its handshakes and tell ``over`` of each."""
        if self.channel.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.channel.fileno())
            self.channel.close()
        for source, handshake in list(self.handshakes.items()):
            self.over(source, handshake)
        self.handshakes.clear()


class Guests:
    """All joined daemons, by the number that the supervisor gave each."""

    def __init__(self, over: Callable[[Address, Handshake], None], complain: Callable[[str, str], None]) -> None:
        self._over = over
        self._complain = complain
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
            if not hmac.compare_digest(own.private_key, its.private_key):
                raise UserError(
                    f"profile {profile}", "RealityPrivateKey differs from that of the port's front", "use one key"
                )
            self._refuse_overlap(number, profile, own, its)
        except UserError:
            channel.close()
            raise
        self.leave(number)
        guest = Guest(profile, frozenset(its.short_ids), channel, self._over, self._complain)
        self._guests[number] = guest
        asyncio.get_running_loop().add_reader(channel.fileno(), guest.readable)

    def _refuse_overlap(self, number: int, profile: str, own: ProfileSecrets, its: ProfileSecrets) -> None:
        taken = set(own.short_ids)
        for other, guest in self._guests.items():
            if other != number:
                taken |= guest.short_ids
        shared = taken & set(its.short_ids)
        if shared:
            raise UserError(
                f"profile {profile}",
                f"RealityShortIds: {min(shared).hex()} belongs to another device at this port already",
                "give each client a short id of its own",
            )

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
