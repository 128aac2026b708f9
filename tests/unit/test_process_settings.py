"""What a daemon's processes are told of profile and global file."""

from __future__ import annotations

import logging
import os
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from qre.config.model import GlobalConfig, Profile, SocketAddress, UnderlayOverride
from qre.dest_profile import DestProfile
from qre.supervisor.parent.process_settings import worker_config
from qre.supervisor.parent.profile_files import ProfileFiles
from qre.workers.handshake.worker_settings import flow_limits
from tests.support.profile_values import client_profile


def client(port: int | None) -> Profile:
    given = SocketAddress(IPv4Address("192.0.2.2"), port) if port is not None else None
    return client_profile().replace(underlay=UnderlayOverride(client=given))


@pytest.mark.parametrize(("asked", "used"), [(1_000, 180_000), (180_000, 180_000), (3_600_000, 3_600_000)])
def test_no_visitor_is_cut_off_before_three_minutes(asked: int, used: int) -> None:
    assert worker_config(client(None), GlobalConfig(relay_idle_ms=asked), None).relay_idle_ms == used


@pytest.mark.parametrize(("of_dest", "idle"), [(0, 180.0), (30_000, 180.0), (600_000, 600.0)])
def test_nor_before_dest_would(of_dest: int, idle: float) -> None:
    config = worker_config(client(None), GlobalConfig(), None)
    known = DestProfile(reachable=True, checked_at=1, idle_timeout_ms=of_dest)
    assert (flow_limits(config, known).idle, flow_limits(config, None).idle) == (idle, 180.0)


@pytest.mark.parametrize(("port", "lifetime"), [(None, 60_000), (0, 60_000), (5555, 0)])
def test_a_client_whose_port_is_given_keeps_its_session(port: int | None, lifetime: int) -> None:
    """It has no second port at which a newer one could begin beside it."""
    config = GlobalConfig(session_lifetime_ms=60_000)
    assert worker_config(client(port), config, None).session_lifetime_ms == lifetime


def test_a_relay_idle_that_is_raised_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = GlobalConfig(relay_idle_ms=30_000, state_dir=tmp_path, runtime_dir=tmp_path)
    files = ProfileFiles("server0", config)
    for descriptor in files.open_servers(worker_config(client(None), config, None)).values():
        os.close(descriptor)
    with caplog.at_level(logging.WARNING, "qre"):
        files.tell_warnings()
    assert caplog.messages == ["RelayIdle = 30s is below 180s, and 180s is used"]
