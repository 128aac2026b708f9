"""A look at a site by TCP, where a browser's first visit goes: does it answer HTTPS there, and does it announce
HTTP/3 (Alt-Svc, RFC 7838)?

Not a browser's fingerprint: a server's programs fetch things by HTTPS all the time. What the site answers is hostile:
bounded in size and time, and read for one header field alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import re
import ssl
from typing import Final

from qre.causes import WORDS, Cause, of_network, of_verdict
from qre.errors import MachineError
from qre.structs import Struct, Text
from qre.visit.dest import Resolved

_TIMEOUT: Final = 6.0
_LONGEST_HEAD: Final = 65_536
#: Of all Alt-Svc fields together.
_LONGEST_ALT_SVC: Final = 4096
_ENTRY: Final = re.compile(r'\s*h3="(?P<host>[^":]*|\[[^"\]]*\]):(?P<port>\d{1,5})"\s*(?:;|,|$)')


class HttpsLook(Struct, frozen=True, kw_only=True):
    """``cause`` and ``why``: why it does not answer HTTPS; without ``why`` it does. ``http3``: it announces HTTP/3
    on the port that was looked at."""

    http3: bool = False
    why: Text = ""
    cause: Cause | None = None

    @property
    def answered(self) -> bool:
        """Whether there was an HTTP answer behind a valid certificate."""
        return not self.why


def context_of(authorities: str) -> ssl.SSLContext:
    """For any number of looks; ``authorities`` is a file of certificates. Raises MachineError."""
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise MachineError("certificate authorities", f"{authorities}: {error}", "see SSL_CERT_FILE") from error
    context.set_alpn_protocols(["http/1.1"])
    return context


async def look_by_tcp(where: Resolved, server_name: str, context: ssl.SSLContext) -> HttpsLook:
    """One request for the head of "/", by a connection to the same address and port."""
    (_, (address, port)) = where
    try:
        async with asyncio.timeout(_TIMEOUT):
            head = await _head(address, port, server_name, context)
    except TimeoutError:
        return HttpsLook(why="no answer in time", cause=Cause.NO_ANSWER)
    except ssl.SSLCertVerificationError as error:
        cause = of_verdict(error.verify_code)
        return HttpsLook(why=WORDS[cause].why, cause=cause)
    except ssl.SSLError as error:
        return HttpsLook(why=f"TLS fails ({error.reason or 'no reason given'})"[:512], cause=Cause.TLS_BROKEN)
    except ConnectionRefusedError:
        return HttpsLook(why="the port is closed", cause=Cause.PORT_CLOSED)
    except OSError as error:
        cause = of_network(error.errno)
        return HttpsLook(why=WORDS[cause].why, cause=cause)
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        return HttpsLook(why="it answers, but not in HTTP", cause=Cause.NO_HTTP3)
    return HttpsLook(http3=announces_http3_untrusted(head, server_name, port))


async def _head(address: str, port: int, server_name: str, context: ssl.SSLContext) -> bytes:
    """Status line and fields, with the empty line."""
    reader, writer = await asyncio.open_connection(
        address, port, ssl=context, server_hostname=server_name, limit=_LONGEST_HEAD
    )
    try:
        host = server_name if port == 443 else f"{server_name}:{port}"
        writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nConnection: close\r\n\r\n".encode("ascii"))
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if not head.startswith(b"HTTP/1."):
        raise ValueError("not HTTP")
    return head


def announces_http3_untrusted(head: bytes, server_name: str, port: int) -> bool:
    """Whether a field Alt-Svc of this head offers ``h3`` on the same host and this port."""
    try:
        fields = http.client.parse_headers(io.BytesIO(head.partition(b"\r\n")[2]))
    except (http.client.HTTPException, ValueError):
        return False
    text = ",".join(fields.get_all("Alt-Svc", []))[:_LONGEST_ALT_SVC]
    return any(
        int(found["port"]) == port and found["host"].lower() in ("", server_name)
        for found in map(_ENTRY.match, text.split(","))
        if found is not None
    )
