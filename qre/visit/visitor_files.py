"""Files that a client's handshake needs, read before the sandbox: a browser's fingerprint, trusted authorities.

The fingerprint is shipped; the authorities come from SSL_CERT_FILE, else the system's bundle, else certifi.
"""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final

import certifi
import msgspec

from qre.errors import InternalError, MachineError
from qre.quic.client.fingerprint import Fingerprint
from qre.quic.client.trust import TrustStore

DEFAULT_FINGERPRINT: Final = "chromium-156"
#: Where distributions keep their bundle.
_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


@functools.cache
def load_fingerprint(name: str = DEFAULT_FINGERPRINT) -> Fingerprint:
    """The fingerprint that is shipped as ``qre/quic/data/<name>.json``."""
    try:
        text = (resources.files("qre.quic") / "data" / f"{name}.json").read_bytes()
        return msgspec.json.decode(text, type=Fingerprint)
    except (OSError, msgspec.DecodeError) as error:
        raise InternalError("fingerprint", f"{name} is missing or damaged", "install qre again") from error


def load_trust(environ: Mapping[str, str] = os.environ) -> TrustStore:
    """The trusted authorities of this machine, read now."""
    path = authorities_file(environ)
    try:
        pem = Path(path).read_bytes()
    except OSError as error:
        raise MachineError("certificate authorities", f"{path}: {error.strerror}", "see SSL_CERT_FILE") from error
    return TrustStore.from_pem(pem, str(path))


def authorities_file(environ: Mapping[str, str] = os.environ) -> str:
    """Where the trusted authorities of this machine are."""
    named = environ.get("SSL_CERT_FILE")
    candidates = [named] if named else [ssl.get_default_verify_paths().cafile, *_BUNDLES, certifi.where()]
    return next((path for path in candidates if path and (named or Path(path).is_file())), certifi.where())
