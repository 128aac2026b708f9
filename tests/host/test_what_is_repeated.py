"""A client that falls silent behind its request: what the server repeats is what the site itself would."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from tests.support.daemons import wait_for
from tests.support.handshake_server import Here, InProcessServer, free_port
from tests.support.namespaces import Namespace
from tests.support.network import own_network
from tests.support.silent_visitor import Said, fall_silent, repeated
from tests.support.site import PAGE, Caddy, make_authority

HERE = cast(Namespace, Here())
#: Long enough for six probe timeouts.
SECONDS = 6.0


def caddy(directory: Path, port: int) -> Callable[[], object]:
    return Caddy(HERE, directory, "127.0.0.1", port).stop


def gtlsserver(directory: Path, port: int) -> Callable[[], object]:
    where = ["-q", "-d", str(directory), "127.0.0.1", str(port)]
    return _process(["gtlsserver", *where, str(directory / "site.key"), str(directory / "site.pem")], port)


def aioquic(directory: Path, port: int) -> Callable[[], object]:
    files = str(directory / "site.pem"), str(directory / "site.key")
    command = [sys.executable, "-m", "tests.support.aioquic_site", "127.0.0.1", str(port), *files, "-"]
    return _process(command, port)


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
def site_of(make: Callable[[Path, int], Callable[[], object]]) -> Iterator[tuple[int, Path]]:
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


def both(make: Callable[[Path, int], Callable[[], object]]) -> tuple[list[Said], list[Said]]:
    """What came to a visitor of the site, and to a client of ours."""

    async def fall(port: int, authority: Path) -> tuple[list[Said], list[Said]]:
        site = await fall_silent(port, authority, b"", SECONDS)
        async with InProcessServer(("127.0.0.1", port), authority) as server:
            key = server.key.public_key().public_bytes_raw()
            return site, await fall_silent(server.port, authority, key, SECONDS)

    with site_of(make) as (port, authority):
        return asyncio.run(fall(port, authority))


@pytest.mark.parametrize(
    ("make", "shorter", "together"),
    [(caddy, {5, 6}, 2), (gtlsserver, {0, 5, 6}, 2), (aioquic, {-1, 0, 4, 5}, 1)],
    ids=["caddy", "gtlsserver", "aioquic"],
)
def test_what_is_repeated_is_without_its_acknowledgement_and_as_many_at_a_timeout_as_the_sites(
    make: Callable[[Path, int], Callable[[], object]], shorter: set[int], together: int
) -> None:
    """Lengths differ from visit to visit; what they become does not. aioquic's has a PING more, and may come before
    the longest is said."""
    for said in both(make):
        by, at_a_timeout = repeated(said)
        assert by in shorter and at_a_timeout == together, said
