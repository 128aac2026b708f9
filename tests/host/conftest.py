"""What several files of the ring host share. What is made for a whole file is changed by no test for the others."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qre.kernel.tun import open_tun
from tests.support.alone import Alone
from tests.support.machine import CLIENT, Machine
from tests.support.network import own_network
from tests.support.tunnel import Tunnel


@pytest.fixture
def network() -> Iterator[None]:
    """A network namespace of the test's own, in which it runs."""
    with own_network():
        yield


@pytest.fixture
def owner() -> str | None:
    """The profile that ``tun`` belongs to; a file may name one."""
    return None


@pytest.fixture
def tun(owner: str | None) -> Iterator[int]:
    """A TUN device qre0, which goes with the test."""
    descriptor = open_tun("qre0", persistent=False, profile=owner)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def profile_text() -> str:
    """What the machine's profile says; a file may say otherwise."""
    return CLIENT


@pytest.fixture
def machine(network: None, profile_text: str) -> Iterator[Machine]:
    """Directories with one profile, ``tunnel``, of device qre0."""
    with tempfile.TemporaryDirectory(prefix="qre-t-") as directory:
        Path(directory).chmod(0o755)  # other users must get as far as our own refusals
        made = Machine(Path(directory))
        made.write(profile_text)
        yield made


@pytest.fixture(scope="module")
def idle() -> Iterator[Alone]:
    """A server's and a client's profile in one namespace; no daemon runs."""
    with Alone.open() as made:
        yield made


@pytest.fixture(scope="module")
def alone(idle: Alone) -> Alone:
    """The same, and the server's daemon runs."""
    idle.server.start().wait_ready()
    return idle


@pytest.fixture(scope="module")
def tunnel() -> Iterator[Tunnel]:
    """Both daemons run, with a session between them."""
    with Tunnel() as made:
        yield made.up()
