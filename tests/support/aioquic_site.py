"""A site on stock aioquic, as a process: ``python -m tests.support.aioquic_site ADDRESS PORT CERTIFICATE KEY [CID]``.

It answers every request with a page, by HTTP/3 alone. With a CID (hexadecimal digits) every connection has
that one, and the cipher suite that a QRE server can follow; with "-" only the latter, with "-18" and connection IDs
of 18 bytes.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent
from aioquic.tls import CipherSuite

PAGE = "Roses are pruned in spring.\n"


class Site(QuicConnectionProtocol):
    """One visitor."""

    def __init__(self, *arguments: Any, cid: bytes = b"", **named: Any) -> None:
        super().__init__(*arguments, **named)
        if cid:
            quic = self._quic
            quic.host_cid = quic._host_cids[0].cid = quic._local_initial_source_connection_id = cid
        self._http: H3Connection | None = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self._http = H3Connection(self._quic)
        if self._http is None:
            return
        for answer in self._http.handle_event(event):
            if isinstance(answer, HeadersReceived):
                self._http.send_headers(answer.stream_id, [(b":status", b"200")])
                self._http.send_data(answer.stream_id, PAGE.encode(), end_stream=True)
                self.transmit()


async def main() -> None:
    address, port, certificate, key, *cid = sys.argv[1:]
    followed, said = bool(cid), "".join(cid)
    always = b"" if said.startswith("-") else bytes.fromhex(said)
    length = len(always) or int(said[1:] or 8)
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"], connection_id_length=length)
    if followed:
        configuration.cipher_suites = [CipherSuite.AES_128_GCM_SHA256]
    configuration.load_cert_chain(certificate, key)
    await serve(address, int(port), configuration=configuration, create_protocol=partial(Site, cid=always))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
