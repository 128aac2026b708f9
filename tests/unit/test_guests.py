"""What the front of a shared port knows of the handshakes that it has handed to others."""

from __future__ import annotations

import asyncio

import pytest

from qre.ipc.channel import Channel
from qre.profile_secrets import ProfileSecrets
from qre.workers.handshake.port.flow_parts import Address, Handshake, Hello
from qre.workers.handshake.shared.feed_messages import Abandon, Began, Begin, Over, ToGuest, Visitor, begin
from qre.workers.handshake.shared.guests import GuestCalls, Guests
from tests.fuzz.fuzz_handshake import SHORT_ID, authenticated_flight
from tests.support.fake_client import CLIENT

VISITOR = Visitor(ip=CLIENT[0], port=CLIENT[1])


def test_a_client_that_begins_again_is_its_guests_with_its_new_handshake() -> None:
    """The old one is given up after the new one was taken: what it forgets is itself alone."""
    over: list[tuple[Address, Handshake]] = []

    async def scenario() -> None:
        ended = lambda source, handshake: over.append((source, handshake))  # noqa: E731 - one of four
        nothing = lambda *_: None  # noqa: E731
        guests = Guests(GuestCalls(ended, nothing, nothing, nothing))
        feed, theirs = Channel.pair()
        guest: Channel[ToGuest] = Channel(theirs, ToGuest)
        guests.join(
            1,
            "other",
            ProfileSecrets(private_key=bytes(32), short_ids=(bytes(8),)),
            ProfileSecrets(private_key=bytes(32), short_ids=(SHORT_ID,)),
            feed.detach(),
        )
        first, again = (begun(guests) for _ in range(2))
        first.abandon()
        again.begin(0.0)
        told = [received[0] for _ in range(2) if (received := guest.receive()) is not None]
        assert [type(message) for message in told] == [Abandon, Begin]
        guest.send(Began(visitor=VISITOR, handshake_cid=b"new cid"))
        await asyncio.sleep(0)
        guest.send(Over(visitor=VISITOR))
        while not over:
            await asyncio.sleep(0)
        assert over == [(CLIENT, again)]
        assert b"new cid" in again.cids
        assert b"new cid" not in first.cids
        guests.close()
        guest.close()

    def begun(guests: Guests) -> Handshake:
        _, found, flight = authenticated_flight()
        handshake = guests.accept(Hello(found, flight, CLIENT, 0.0, None))
        assert handshake is not None
        return handshake

    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize("source", [CLIENT, (*CLIENT, "192.0.2.2")])
def test_a_client_that_is_passed_on_keeps_its_whole_address(source: Address) -> None:
    """At a port of all our addresses that has the one that it speaks to, and is answered from."""
    _, found, flight = authenticated_flight()
    passed = begin(Hello(found, flight, source, 0.0, None))
    assert passed.visitor.address == passed.hello(1.0).source == source
