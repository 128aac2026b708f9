"""Where Dest is: of many addresses some of either family, and those of before while its name does not resolve."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from qre.addresses import Address
from qre.causes import Cause
from qre.dest_profile import DestProfile
from qre.ends import MAX_ADDRESSES, Role
from qre.ipc.messages import (
    DestAddressReport,
    NameResolved,
    Party,
    ResolveName,
    WorkerConfig,
)
from qre.structs import Message
from qre.visit.dest import MOST_ADDRESSES, Resolved, resolve
from qre.visit.dest_address import DestAddress
from qre.workers.handshake.dest_watch import DestWatch
from qre.workers.resolver import main as resolver
from tests.support.daemons import until

SIX = [f"2600:9000:2000:{number:x}00::1" for number in range(1, 9)]
FOUR = [f"18.64.0.{number}" for number in range(1, 5)]
BEFORE = ip_address("198.51.100.9")
BEFORE_OVER_IPV6 = ip_address("2001:db8::9")


def resolved(addresses: list[str], port: int = 443) -> list[Resolved]:
    return [(socket.AF_INET6 if ":" in each else socket.AF_INET, (each, port)) for each in addresses]


async def by_the_resolver(host: str, port: int, family: int) -> list[Resolved]:
    """As a worker asks: through the process that looks the name up."""
    answer = await resolver.ResolverWorker().handle(Party.SUPERVISOR, ResolveName(host=host))
    assert isinstance(answer, NameResolved)
    return resolved([str(each) for each in answer.addresses], port)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with many addresses, in the order that RFC 6724 gives them on a host with IPv6."""

    async def look_up(host: str, port: int, family: int) -> list[Resolved]:
        return resolved([*SIX, *FOUR], port)

    monkeypatch.setattr(resolver, "look_up", look_up)


def test_a_dest_with_many_ipv6_addresses_keeps_those_of_ipv4(named: None) -> None:
    dest = DestAddress("www.example", 443, print, by_the_resolver)
    asyncio.run(dest.first())
    assert dest.candidates() == resolved([*FOUR, *SIX[:4]])
    assert dest.of_family(socket.AF_INET) == resolved(FOUR)[0]
    assert dest.of_family(socket.AF_INET6) == resolved(SIX)[0]


def test_an_endpoints_addresses_are_tried_by_turns(named: None) -> None:
    found = asyncio.run(resolve("vpn.example", 443, lookup=by_the_resolver, ipv4_first=False))
    assert [at[0] for _, at in found] == [each for pair in zip(SIX, FOUR, strict=False) for each in pair]


def test_a_resolver_tells_no_more_than_its_answer_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def look_up(host: str, port: int, family: int) -> list[Resolved]:
        return resolved([f"10.0.0.{number}" for number in range(200)])

    monkeypatch.setattr(resolver, "look_up", look_up)
    assert len(asyncio.run(by_the_resolver("www.example", 443, 0))) == MAX_ADDRESSES
    found = asyncio.run(resolve("www.example", 443, lookup=by_the_resolver))
    assert [at[0] for _, at in found] == [f"10.0.0.{number}" for number in range(MOST_ADDRESSES)]


# --- a worker that begins while the name does not resolve ---


class Context:
    """A server's handshake worker's, whose name servers are silent."""

    log = logging.getLogger("test")

    def __init__(self, **known: Any) -> None:
        self.said: list[Message] = []
        self.config = WorkerConfig(
            profile="p", device="d", role=Role.SERVER, address=(), mtu=1400, keepalive_s=0, allowed_ips=(),
            server_name="www.example", listen_ip="::", listen_port=443, dest_host="www.example", dest_port=443,
            **known,
        )  # fmt: skip

    def limited(self, key: str, text: str, level: int = 0) -> None:
        self.log.info("%s", text)

    def internal_error(self, error: BaseException) -> None:
        pytest.fail(str(error))

    async def request(self, to: Party, message: Message, timeout: float = 5) -> Message:
        if not isinstance(message, ResolveName):
            await asyncio.Event().wait()  # a visit takes its time
        return NameResolved(cause=Cause.RESOLVER_SILENT)

    async def send(self, to: Party, message: Message) -> None:
        self.said.append(message)


def begun(context: Context, then: Callable[[DestWatch], Awaitable[None]] | None = None) -> DestWatch:
    async def run() -> DestWatch:
        async def found(profile: DestProfile) -> None:
            return None

        watch = DestWatch(context, found)  # type: ignore[arg-type]  # as much of it as is used
        await watch.start()
        await until(lambda: bool(context.said))
        if then is not None:
            await then(watch)
        watch.close()
        return watch

    return asyncio.run(run())


def reported(context: Context) -> tuple[Address | None, Address | None]:
    (told,) = context.said
    assert isinstance(told, DestAddressReport)
    return told.address, told.for_ipv6


def test_a_worker_that_is_restarted_knows_what_the_one_before_has_told() -> None:
    context = Context(dest_address=BEFORE, dest_for_ipv6=BEFORE_OVER_IPV6)
    watch = begun(context)
    assert watch.current == resolved([str(BEFORE)])[0]
    assert watch.for_visitor("2001:db8::1") == resolved([str(BEFORE_OVER_IPV6)])[0]
    assert reported(context) == (BEFORE, BEFORE_OVER_IPV6), "nobody else is made to forget it"
    assert "not resolved" not in watch.trouble


@pytest.mark.parametrize("address", ["198.51.100.9:443", "[2001:db8::9]:443"])
def test_a_daemon_that_is_restarted_knows_where_the_one_before_has_visited(address: str) -> None:
    seen = DestProfile(reachable=True, checked_at=1, dest="www.example:443", address=address)
    context = Context(dest_profile=seen)
    watch = begun(context)
    assert watch.current is not None
    assert f"{watch.current[1][0]}" == address.removesuffix(":443").strip("[]")
    assert reported(context)[0] == ip_address(watch.current[1][0])


@pytest.mark.parametrize("dest", ["", "other.example:443", "www.example:8443"])
def test_what_may_be_another_dests_address_is_none(dest: str) -> None:
    seen = DestProfile(reachable=True, checked_at=1, dest=dest, address="198.51.100.9:443")
    context = Context(dest_profile=seen)
    assert begun(context).current is None
    assert reported(context) == (None, None), "there never was one"


def test_a_reload_to_another_dest_takes_no_address_along() -> None:
    context = Context(dest_address=BEFORE)

    async def reload(watch: DestWatch) -> None:
        context.said.clear()
        context.config = msgspec.structs.replace(context.config, dest_host="other.example", dest_address=None)
        watch.reload()
        await until(lambda: bool(context.said))

    assert begun(context, reload).current is None
    assert reported(context) == (None, None)
