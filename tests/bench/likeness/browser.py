"""A real Chromium that visits a site over HTTP/3: one process and one new profile a visit, inside a namespace."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.namespaces import Namespace

#: Of one visit, the browser's start included (seconds).
_PATIENCE = 60
#: What a browser would do besides the visit.
_QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
)


class Chromium:
    """``name`` and ``port``: the site's. ``certificate``: its file, in PEM; no authority vouches for it there."""

    def __init__(self, namespace: Namespace, certificate: Path, name: str, port: int) -> None:
        self._namespace = namespace
        self._site = f"{name}:{port}"
        key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
        digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
        self._key = base64.b64encode(digest).decode()
        self._name = name

    def visit(self, address: str, page: str) -> bool:
        """Whether ``page`` came from the site at ``address``."""
        return page in self.page(address)

    def page(self, address: str, path: str = "") -> str:
        """What the page of the site at ``address`` is when it has loaded; empty: it did not come."""
        profile = tempfile.mkdtemp(prefix="qre-chromium-")
        command = [
            *self._namespace.prefix,
            "chromium",
            *_QUIET,
            f"--user-data-dir={profile}",
            f"--origin-to-force-quic-on={self._site}",
            f"--ignore-certificate-errors-spki-list={self._key}",
            f"--host-resolver-rules=MAP {self._name} {address}, MAP * ~NOTFOUND",
            "--dump-dom",
            f"https://{self._site}/{path}",
        ]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=_PATIENCE,
                check=False,
                env={"HOME": profile, "PATH": "/usr/bin:/bin"},
            )
        except subprocess.TimeoutExpired:
            return ""
        finally:
            shutil.rmtree(profile, ignore_errors=True)
        return done.stdout.decode(errors="replace")
