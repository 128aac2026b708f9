"""A visitor of the site that says nothing for most of a minute goes on where it was: the site sees nobody move."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

from aioquic.asyncio import QuicConnectionProtocol, connect
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicReceiveContext

from tests.support.handshake_server import InProcessServer
from tests.support.sites import aioquic, site_of

#: Seconds: longer than 30, and not as long as the site's own idle timeout of 60.
IDLE = 50.0


class Watching(QuicConnection):
    """Counts the site's path challenges (RFC 9000 §8.2)."""

    challenges = 0

    def _handle_path_challenge_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        self.challenges += 1
        super()._handle_path_challenge_frame(context, frame_type, buf)


class Protocol(QuicConnectionProtocol):
    def __init__(self, quic: QuicConnection, stream_handler: object = None) -> None:
        del stream_handler
        quic.__class__ = Watching
        super().__init__(quic)


def test_a_stranger_that_is_idle_for_most_of_a_minute_is_challenged_by_nobody() -> None:
    async def run(port: int, authority: Path) -> None:
        async with InProcessServer(("127.0.0.1", port), authority) as server:
            settings = QuicConfiguration(alpn_protocols=["h3"], idle_timeout=200, verify_mode=ssl.CERT_NONE)
            settings.server_name = "site.example"
            async with connect("127.0.0.1", server.port, configuration=settings, create_protocol=Protocol) as visitor:
                await visitor.ping()
                await asyncio.sleep(IDLE)
                await asyncio.wait_for(visitor.ping(), 5)
                assert isinstance(visitor._quic, Watching) and not visitor._quic.challenges
            assert server.server.status().strangers == 1

    with site_of(aioquic) as (port, authority):
        asyncio.run(run(port, authority))
