"""Profiles that are right, as text, for tests that make one thing in them wrong."""

from __future__ import annotations

from pathlib import Path

PRIVATE_KEY = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk="
PUBLIC_KEY = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw="

SERVER = f"""\
[Interface]
Address = 10.77.0.1/24
Listen = 10.9.0.1:443
Dest = www.example.org:443
RealityPrivateKey = {PRIVATE_KEY}
RealityShortIds = 0123456789abcdef
"""

CLIENT = f"""\
[Interface]
Address = 10.77.0.2/24
Endpoint = vpn.example.org:443
ServerName = www.example.org
RealityPublicKey = {PUBLIC_KEY}
RealityShortId = 0123456789abcdef
"""


def write_profile(directory: Path, name: str, text: str, mode: int = 0o600) -> Path:
    """``<directory>/<name>.conf`` with that text and mode."""
    path = directory / f"{name}.conf"
    path.write_text(text)
    path.chmod(mode)
    return path


def list_short_ids(path: Path) -> None:
    """The server's profile that `init` wrote, with RealityShortIds in place of a section: its client has no name, and
    may have any address."""
    interface, _, section = path.read_text().partition("[Client ")
    if not section:  # an earlier version's: see QRE_TOOL
        return
    (short_id,) = (line.partition("= ")[2] for line in section.splitlines() if line.startswith("ShortId"))
    path.write_text(f"{interface.rstrip()}\nRealityShortIds = {short_id}\n")
