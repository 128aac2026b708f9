"""`--json show`: whoever describes a device, with and without a daemon, has the keys of the published schema and none
that it does not have."""

from __future__ import annotations

import asyncio
from ipaddress import ip_interface
from types import SimpleNamespace
from typing import Any, Self, cast

import msgspec
import pytest

import qre.kernel.rtnl
from qre.cli.show import show_kernel
from qre.cli.show.show import JSON_VERSION, _from_kernel
from qre.config.model import GlobalConfig, Profile
from qre.dataplane.status import DeviceCounters, SessionStatus
from qre.dest_profile import DestProfile
from qre.device.state import state_of
from qre.ends import Role
from qre.ipc.messages import RoleState
from qre.kernel.answers import CidMapStatus, KernelDevice, KernelSession, LoaderDescription, SharedSocketStatus
from qre.kernel.rtnl import AssignedAddress, Link
from qre.kernel.tun import ALIAS_PREFIX
from qre.supervisor.crew import Crew
from qre.supervisor.daemon_status import describe
from qre.supervisor.parent.process_settings import worker_config
from tests.support.json_schemas import check_against_schema
from tests.support.profile_values import client_profile, server_profile

CID = bytes(range(20))
PROFILES = {Role.SERVER: server_profile("tunnel"), Role.CLIENT: client_profile()}
SESSION = SessionStatus(
    session_id=bytes(32), connection_id=CID, client_connection_id=b"", short_id=bytes(8), state="established",
    key_epoch=1, tx_packet_number=65_536, rx_packet_number=65_536, endpoint="192.0.2.7:5555", allowed_ips=(),
    age_ms=1, last_receive_ms=1, rx_packets=0, rx_bytes=0, tx_packets=0, tx_bytes=0, cids=(CID,),
)  # fmt: skip


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TUN device qre0 of the profile `tunnel`, wherever rtnetlink is asked."""

    class Devices:
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def link(self, name: str) -> Link:
            return Link(3, name, "tun", f"{ALIAS_PREFIX}tunnel", True, 1380, True)

        def addresses(self, link: Link) -> list[AssignedAddress]:
            return [AssignedAddress(ip_interface("10.77.0.1/24"), True)]

    monkeypatch.setattr(qre.kernel.rtnl, "Rtnl", Devices)


def check_described(described: dict[str, Any]) -> None:
    check_against_schema("show", {"version": JSON_VERSION, "devices": [described]})


def device(role: Role | None, *, whole: bool, shared: bool) -> KernelDevice:
    found = DestProfile(reachable=True, checked_at=1)
    return KernelDevice(
        index=3, name="qre0", role=role, mtu=1380, dest="site.example:443", server_name="site.example",
        listen=("192.0.2.1", 443) if role is Role.SERVER else None, endpoint="", keepalive_s=25, max_sessions=16,
        fwmark=0, counters=DeviceCounters(drops={"replayed": 1}), sessions=1, whole=whole, adopted=1, cids=(CID,),
        cid_map=CidMapStatus(map_id=1, entries=1, missing=0, sync_failures=0) if shared else None,
        shared_socket=SharedSocketStatus(ip="192.0.2.1", port=443, rx=1, passed=1) if shared else None,
        loader=LoaderDescription(program="p", pin_dir="/sys/fs/bpf", cid_length=20, pid=1) if shared else None,
        dest_profile=msgspec.json.encode(found) if shared else b"", ecn=0,
    )  # fmt: skip


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("role", [*Role, None])
def test_of_a_device_of_the_module_without_a_daemon(role: Role | None, shared: bool) -> None:
    sessions = [KernelSession(status=SESSION, confirmed=True, underlay=None, aead_driver="")]
    state = state_of(PROFILES[role], 0) if role is not None else None
    check_described(show_kernel.describe(device(role, whole=True, shared=shared), sessions, state))
    check_described(show_kernel.describe(device(role, whole=True, shared=shared), [], None))
    check_described(show_kernel.describe(device(role, whole=False, shared=shared), None, state))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_of_a_device_that_up_made(profile: Profile) -> None:
    described = _from_kernel(state_of(profile, 0))
    assert described is not None
    check_described(described)


@pytest.mark.parametrize("user", [True, False])
@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_of_a_daemon_whose_workers_are_being_restarted(profile: Profile, user: bool) -> None:
    async def status(party: object) -> None:
        return None

    config = worker_config(profile, GlobalConfig(), None)
    crew = SimpleNamespace(
        config=msgspec.structs.replace(config, user_dataplane=user),
        setup=SimpleNamespace(pin_dir="/sys/fs/bpf", front_device=""),
        status=status,
        state=RoleState(up=False, text="starting"),
        text="starting",
        dest=SimpleNamespace(profile=None),
        accounts=SimpleNamespace(describe=lambda clients: []),
        members={},
    )
    check_described(asyncio.run(describe(cast(Crew, crew))))
