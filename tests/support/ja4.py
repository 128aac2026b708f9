"""JA4 of a ClientHello as tshark dissected it (FoxIO's definition, for QUIC and TLS 1.3).

tshark decrypts Initials and puts the hello together by itself; only the hashing of what it printed is done here.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

_SERVER_NAME = 0
_ALPN = 16
_FIELDS = (
    "tls.handshake.ciphersuite",
    "tls.handshake.extension.type",
    "tls.handshake.sig_hash_alg",
    "tls.handshake.extensions_alpn_str",
)


def tshark(capture: Path, query: str, *fields: str) -> list[list[str]]:
    """The fields of every packet that ``query`` selects; a field that is there more than once is comma-separated."""
    arguments = [argument for name in fields for argument in ("-e", name)]
    done = subprocess.run(
        ["tshark", "-r", str(capture), "-Y", query, "-T", "fields", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [line.split("\t") for line in done.stdout.splitlines()]


def hellos(capture: Path) -> list[tuple[str, list[int]]]:
    """(JA4, extension types in their order) of every ClientHello over QUIC in the capture."""
    found = []
    for ciphers, extensions, algorithms, alpn in tshark(capture, "quic and tls.handshake.type == 1", *_FIELDS):
        kinds = _numbers(extensions)
        found.append((ja4(_numbers(ciphers), kinds, _numbers(algorithms), alpn.split(",")[0]), kinds))
    return found


def _numbers(field: str) -> list[int]:
    return [int(number, 0) for number in field.split(",") if number]


def ja4(ciphers: Sequence[int], extensions: Sequence[int], algorithms: Sequence[int], alpn: str) -> str:
    head = f"q13d{len(ciphers):02}{len(extensions):02}{alpn[0]}{alpn[-1]}"
    kinds = sorted(f"{kind:04x}" for kind in extensions if kind not in (_SERVER_NAME, _ALPN))
    tail = ",".join(kinds) + "_" + ",".join(f"{algorithm:04x}" for algorithm in algorithms)
    return "_".join((head, _short(",".join(sorted(f"{cipher:04x}" for cipher in ciphers))), _short(tail)))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
