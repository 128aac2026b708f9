"""Whether this machine drops the server's datagrams once the default route goes into the tunnel.

They arrive on the uplink unmarked, and strict reverse-path filtering (rp_filter 1, RFC 3704) asks where an unmarked
answer would go: into the tunnel, so it drops them. Loose filtering (2) lets them in.
"""

from __future__ import annotations

from pathlib import Path

CONFIGURATION = Path("/proc/sys/net/ipv4/conf")
_STRICT = 1
_NOT_UPLINKS = ("all", "default", "lo")


def strict_devices(device: str, configuration: Path = CONFIGURATION) -> list[str]:
    """The devices but ``device`` whose effective rp_filter, the larger of theirs and that of `all`, is strict."""
    try:
        names = sorted(entry.name for entry in configuration.iterdir())
    except OSError:
        return []  # /proc/sys is hidden from us; then no advice is given
    everywhere = _read(configuration / "all/rp_filter")
    return [
        name
        for name in names
        if name not in (*_NOT_UPLINKS, device)
        and max(everywhere, _read(configuration / name / "rp_filter")) == _STRICT
    ]


def _read(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
