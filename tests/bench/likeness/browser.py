"""A real Chromium that visits a site over HTTP/3: one process and one new profile a visit, inside a namespace.

``visit`` is that of somebody who looks at the page: a tab that was open goes there, and stays. It is told what to do
over Chromium's own pipe (descriptors 3 and 4, a zero byte behind each message).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def _with_a_window(agent: str) -> dict[str, Any]:
    """What names a browser with a window, whose request is five bytes shorter than a headless one's."""
    agent = agent.replace("HeadlessChrome", "Chrome")
    version = agent.partition("Chrome/")[2].partition(".")[0]
    names = [{"brand": "Not:A-Brand", "version": "8"}, {"brand": "Chromium", "version": version}]
    hints = {"platform": "Linux", "platformVersion": "", "architecture": "", "model": "", "mobile": False}
    return {"userAgent": agent, "userAgentMetadata": {"brands": names, **hints}}


class _Tab:
    """The tab of a Chromium that was started with ``--remote-debugging-pipe``."""

    def __init__(self, to: int, come: int) -> None:
        self._to, self._from = to, come
        self._read, self._last = b"", 0
        self._session: str | None = None
        self._until = time.monotonic() + _PATIENCE
        (tab,) = (one for one in self.do("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self.do("Target.attachToTarget", targetId=tab["targetId"], flatten=True)["sessionId"]

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Its result. Raises TimeoutError."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            *whole, self._read = self._read.split(b"\0")
            for each in map(json.loads, whole):
                if each.get("id") == self._last:
                    return dict(each["result"])
            left = self._until - time.monotonic()
            if left <= 0 or not select.select([self._from], [], [], left)[0]:
                raise TimeoutError(method)
            self._read += os.read(self._from, 1 << 16)

    def says(self, expression: str) -> Any:
        """What JavaScript makes of it."""
        return self.do("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")


class Chromium:
    """``name`` and ``port``: the site's. ``certificate``: its file, in PEM; no authority vouches for it there."""

    def __init__(self, namespace: Namespace, certificate: Path, name: str, port: int) -> None:
        self._namespace = namespace
        self._site = f"{name}:{port}"
        key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
        digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
        self._key = base64.b64encode(digest).decode()
        self._name = name

    def visit(self, address: str, page: str, stays: float) -> bool:
        """Whether ``page`` came from the site at ``address``; the browser ends ``stays`` seconds later."""
        with self._tab(address) as tab:
            tab.do("Emulation.setUserAgentOverride", **_with_a_window(str(tab.says("navigator.userAgent"))))
            tab.do("Page.navigate", url=f"https://{self._site}/")
            until = time.monotonic() + _PATIENCE
            while not (came := page in str(tab.says("document.body && document.body.innerText"))):
                if time.monotonic() > until:
                    break
                time.sleep(0.02)
            time.sleep(stays)
            return came

    @contextlib.contextmanager
    def _tab(self, address: str) -> Iterator[_Tab]:
        profile = tempfile.mkdtemp(prefix="qre-chromium-")
        (read, to), (come, write) = os.pipe(), os.pipe()
        # A shell makes them the two descriptors that Chromium wants.
        shell = ["sh", "-c", f'exec "$@" 3<&{read} 4>&{write}', "sh"]
        browser = subprocess.Popen(
            [*shell, *self._command(address, profile), "--remote-debugging-pipe", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(read, write),
            env={"HOME": profile, "PATH": "/usr/bin:/bin"},
        )
        os.close(read)
        os.close(write)
        try:
            yield _Tab(to, come)
        finally:
            os.close(to)  # it ends with its pipe
            os.close(come)
            try:
                browser.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                browser.kill()
                browser.wait()
            shutil.rmtree(profile, ignore_errors=True)

    def _command(self, address: str, profile: str) -> list[str]:
        return [
            *self._namespace.prefix,
            "chromium",
            *_QUIET,
            f"--user-data-dir={profile}",
            f"--origin-to-force-quic-on={self._site}",
            f"--ignore-certificate-errors-spki-list={self._key}",
            f"--host-resolver-rules=MAP {self._name} {address}, MAP * ~NOTFOUND",
        ]

    def page(self, address: str, path: str = "") -> str:
        """What the page of the site at ``address`` is when it has loaded; empty: it did not come."""
        profile = tempfile.mkdtemp(prefix="qre-chromium-")
        command = [*self._command(address, profile), "--dump-dom", f"https://{self._site}/{path}"]
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
