"""The icon of a page: which one a browser requests behind it, and how a client and a server agree that it does.

A browser that has never been at a site looks for the page's icon a moment after the page. The server's visitor does
so, and the server has a client do what it recorded: the client offers it in its CONNECT, the answer names the path.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urljoin, urlsplit

import brotli

from qre.dest_profile import LONGEST_PATH

#: The field of a CONNECT by which a client offers to request an icon. In an answer it has the icon's path.
ICON_FIELD: Final = b"qre-icon"
ICON_OFFER: Final = (ICON_FIELD, b"?1")
#: What is read of a page (bytes): its links stand at its beginning.
MAX_READ: Final = 65_536
#: Of which the path of a request may consist (RFC 3986 §3.3, §3.4).
_PATH: Final = re.compile(r"/[\w/?:@!$&'()*+,;=.~%-]*", re.ASCII)
_LINK: Final = re.compile(rb"<link\b([^>]{0,512})>", re.IGNORECASE)
_ATTRIBUTE: Final = re.compile(rb"""\b(rel|href)\s{0,8}=\s{0,8}("[^"]{0,256}"|'[^']{0,256}'|[^\s"'>]{1,256})""", re.I)
_GZIP: Final = 16 + zlib.MAX_WBITS
_REDIRECTIONS: Final = range(300, 400)


def icon_path_untrusted(fields: Iterable[tuple[bytes, bytes]]) -> str:
    """The path that an answer names; empty for none, and for one that no browser would send."""
    path = dict(fields).get(ICON_FIELD, b"").decode("ascii", "replace")
    return path if len(path) <= LONGEST_PATH and _PATH.fullmatch(path) else ""


def page_icon_untrusted(
    status: int, fields: Mapping[bytes, bytes], beginning: bytes, authority: str, usual: str
) -> str:
    """The path of the icon of a page at "/" that began with these bytes; ``usual`` where it names none, or cannot be
    read. Empty: there is none at this site."""
    if status in _REDIRECTIONS:
        return ""
    for link in _LINK.findall(_readable_untrusted(fields.get(b"content-encoding", b""), beginning)):
        found = {name.lower(): value.strip(b"\"'") for name, value in _ATTRIBUTE.findall(link)}
        if b"icon" in found.get(b"rel", b"").lower().split():
            return _at_this_site_untrusted(found.get(b"href", b""), authority)
    return usual


def _at_this_site_untrusted(href: bytes, authority: str) -> str:
    """The path of a link that leads to ``authority`` over HTTPS; empty for any other."""
    try:
        there = urlsplit(urljoin(f"https://{authority}/", href.decode("ascii").strip()))
    except ValueError:
        return ""
    path = f"{there.path or '/'}?{there.query}" if there.query else there.path or "/"
    here = there.scheme == "https" and there.netloc.lower() in (authority.lower(), f"{authority.lower()}:443")
    return path if here and len(path) <= LONGEST_PATH and _PATH.fullmatch(path) else ""


def _readable_untrusted(encoding: bytes, data: bytes) -> bytes:
    """At most MAX_READ bytes of the page; none when it cannot be decoded."""
    try:
        match encoding.lower():
            case b"" | b"identity":
                return data[:MAX_READ]
            case b"gzip":
                return zlib.decompressobj(_GZIP).decompress(data, MAX_READ)
            case b"br":
                return bytes(brotli.Decompressor().process(data, output_buffer_limit=MAX_READ))[:MAX_READ]
    except (zlib.error, brotli.error):
        pass
    return b""
