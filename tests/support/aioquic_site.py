"""A site on stock aioquic, as a process: ``python -m tests.support.aioquic_site ADDRESS PORT CERTIFICATE KEY``.

It answers every request with a page, by HTTP/3 alone.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent


class Site(QuicConnectionProtocol):
    """One visitor."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self._http = H3Connection(self._quic)
        if self._http is None:
            return
        for answer in self._http.handle_event(event):
            if isinstance(answer, HeadersReceived):
                self._http.send_headers(answer.stream_id, [(b":status", b"200")])
                self._http.send_data(answer.stream_id, b"Roses are pruned in spring.\n", end_stream=True)
                self.transmit()


async def main() -> None:
    address, port, certificate, key = sys.argv[1:]
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
    configuration.load_cert_chain(certificate, key)
    await serve(address, int(port), configuration=configuration, create_protocol=Site)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
