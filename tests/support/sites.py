"""Sites of several makes, on loopback in a network of their own: whatever a server may have as its Dest."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from tests.support.daemons import wait_for
from tests.support.handshake_server import Here, free_port
from tests.support.namespaces import Namespace
from tests.support.network import own_network
from tests.support.site import PAGE, Caddy, make_authority

HERE = cast(Namespace, Here())
#: Starts a site whose files are in a directory, at a port; what it returns stops it.
Make = Callable[[Path, int], Callable[[], object]]


def caddy(directory: Path, port: int) -> Callable[[], object]:
    return Caddy(HERE, directory, "127.0.0.1", port).stop


def gtlsserver(directory: Path, port: int, *options: str) -> Callable[[], object]:
    where = ["-q", "-d", str(directory), *options, "127.0.0.1", str(port)]
    return _process(["gtlsserver", *where, str(directory / "site.key"), str(directory / "site.pem")], port)


def retrying(directory: Path, port: int) -> Callable[[], object]:
    """gtlsserver with a Retry for everybody."""
    return gtlsserver(directory, port, "-V")


def aioquic(directory: Path, port: int) -> Callable[[], object]:
    """With the cipher suite that a QRE server can follow."""
    return _aioquic(directory, port, "-")


def unfollowed(directory: Path, port: int) -> Callable[[], object]:
    """aioquic with the cipher suite that it prefers."""
    return _aioquic(directory, port)


def _aioquic(directory: Path, port: int, *options: str) -> Callable[[], object]:
    files = str(directory / "site.pem"), str(directory / "site.key")
    where = ["127.0.0.1", str(port), *files, *options]
    return _process([sys.executable, "-m", "tests.support.aioquic_site", *where], port)


def _process(command: list[str], port: int) -> Callable[[], object]:
    made: subprocess.Popen[bytes] = HERE.popen(command)

    def stop() -> None:
        made.kill()
        made.wait()

    try:
        wait_for("the site", lambda: f"127.0.0.1:{port} " in HERE.run("ss", "-Hlun"))
    except BaseException:
        stop()
        raise
    return stop


@contextmanager
def site_of(make: Make) -> Iterator[tuple[int, Path]]:
    """Its port and its authority's certificate, in a network of our own."""
    with own_network(), tempfile.TemporaryDirectory(prefix="qre-t-") as name:
        directory, port = Path(name), free_port()
        authority = make_authority(directory)
        (directory / "index.html").write_text(PAGE)
        stop = make(directory, port)
        try:
            yield port, authority
        finally:
            stop()
