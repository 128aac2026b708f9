"""What a daemon's processes are told of profile and global file."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from qre.config.model import GlobalConfig, Profile, SocketAddress, UnderlayOverride
from qre.supervisor.parent.process_settings import worker_config
from tests.support.profile_values import client_profile


def client(port: int | None) -> Profile:
    given = SocketAddress(IPv4Address("192.0.2.2"), port) if port is not None else None
    return client_profile().replace(underlay=UnderlayOverride(client=given))


@pytest.mark.parametrize(("port", "lifetime"), [(None, 60_000), (0, 60_000), (5555, 0)])
def test_a_client_whose_port_is_given_keeps_its_session(port: int | None, lifetime: int) -> None:
    """It has no second port at which a newer one could begin beside it."""
    config = GlobalConfig(session_lifetime_ms=60_000)
    assert worker_config(client(port), config, None).session_lifetime_ms == lifetime
