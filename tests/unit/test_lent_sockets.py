"""Sockets that a client's handshake worker has lent to its data plane, for a session that tries another port."""

from __future__ import annotations

from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest

from qre.workers.handshake.sessions.new_ports import NewPorts
from qre.workers.handshake.sessions.session_state import PortsKnown

ID = b"\x07" * 32


@pytest.mark.parametrize(("tries", "lent"), [(0, {}), (8, {ID: 8})])
def test_a_new_data_plane_tells_which_socket_it_still_tries(tries: int, lent: dict[bytes, int]) -> None:
    """None: the one that the former had is not in use any more, and may be released."""
    released: list[Coroutine[Any, Any, None]] = []
    sockets = SimpleNamespace(lent={ID: 7})
    sessions = SimpleNamespace(find=lambda session_id: None)
    tasks = SimpleNamespace(spawn=released.append)

    async def release() -> None:
        """Nothing is left to release here."""

    ports = NewPorts(cast(Any, sessions), cast(Any, sockets), cast(Any, tasks), lambda: None, release)
    ports.heard(PortsKnown(ID, None, tries))
    assert sockets.lent == lent
    assert len(released) == 1
    released[0].close()
