"""What several tests of the ring unit share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.kmod.codec import KernelCodec


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelCodec]:
    """The state machines of kmod in a program of their own, one for each file of tests."""
    with KernelCodec(tmp_path_factory.mktemp("codec")) as running:
        yield running
