"""What a daemon tells of itself while a worker is away, and by what it calls a client: a name, or else a short id."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace

from qre.cli.clients import client_list
from qre.cli.clients.client_list import listed, table
from qre.cli.main import main
from qre.cli.show.show import of_client
from qre.cli.show.show_text import render, render_client
from qre.cli.show.watch import Look
from qre.config.profile import profile_of_text
from qre.dataplane.status import DeviceCounters
from qre.ends import Role
from qre.errors import MachineError
from qre.ipc.messages import DataplaneStatus, HandshakeStatus, Message, NetlinkStatus, Party, RoleState, WorkerConfig
from qre.profile_secrets import ListedClient
from qre.supervisor.client_accounts import ClientAccounts
from qre.supervisor.crew import Crew
from qre.supervisor.daemon_status import describe
from tests.support.json_schemas import check_against_schema
from tests.support.profiles import SERVER, write_profile
from tests.unit.test_client_accounts import ALICE, BOB, session
from tests.unit.test_metrics import exposed

CONFIG = WorkerConfig(
    profile="server0", device="server0", role=Role.SERVER, address=(), mtu=1380, keepalive_s=0, allowed_ips=(),
    server_name="www.example.org", listen_ip="192.0.2.1", listen_port=443, dest_host="www.example.org", dest_port=443,
)  # fmt: skip
CLIENTS = (ListedClient(name="alice", short_id=ALICE), ListedClient(name=None, short_id=BOB))


def daemon(*absent: Party, config: WorkerConfig = CONFIG) -> dict[str, Any]:
    """The answer of a daemon with two sessions, without these workers."""
    counters = DeviceCounters(rx_packets=1, rx_bytes=2, tx_packets=3, tx_bytes=4)
    known: dict[Party, Message] = {
        Party.NETLINK: NetlinkStatus(device_present=True, link_up=True),
        Party.DATAPLANE: DataplaneStatus(counters=counters, sessions=(session(1), session(2, BOB))),
        Party.HANDSHAKE: HandshakeStatus(up=True, text="", clients=CLIENTS if config.role is Role.SERVER else ()),
    }

    async def status(party: Party) -> Message | None:
        return None if party in absent else known.get(party)

    crew = SimpleNamespace(
        config=config, setup=SimpleNamespace(pin_dir="/sys/fs/bpf", front_device=""), status=status, members={},
        accounts=ClientAccounts(), state=RoleState(up=True, text="serving"), text="serving",
        dest=SimpleNamespace(profile=None), traffic=SimpleNamespace(judgements={}),
    )  # fmt: skip
    described = asyncio.run(describe(cast(Crew, crew)))
    check_against_schema("show", {"version": 1, "devices": [json.loads(json.dumps(described))]})
    return described


def test_a_client_is_called_by_its_name_or_else_by_its_short_id() -> None:
    told = daemon()
    assert {(one["client"], one["short_id"]) for one in told["sessions"]} == {("alice", None), (None, BOB.hex())}
    assert [(one["name"], one["short_id"]) for one in told["clients"]] == [("alice", None), (None, BOB.hex())]
    assert ALICE.hex() not in json.dumps(told) + render([told], colour=False)
    for name in ("alice", BOB.hex()):
        assert render_client(of_client(told, name), colour=False).count("session: ") == 1


def test_of_a_client_the_short_id_is_all_there_is() -> None:
    config = replace(CONFIG, role=Role.CLIENT, endpoint_host="192.0.2.1", endpoint_port=443)
    told = daemon(config=config)
    assert {one["short_id"] for one in told["sessions"]} == {ALICE.hex(), BOB.hex()}


@pytest.mark.parametrize("absent", [Party.HANDSHAKE, Party.DATAPLANE])
def test_what_a_worker_knows_that_is_away_is_not_told_as_nothing(absent: Party) -> None:
    told = daemon(absent)
    assert told["clients"] is None
    assert (told["sessions"] is None) is (absent is Party.DATAPLANE)
    assert (told["adopted_cids"] is None) is (absent is Party.DATAPLANE)
    names = {name for name, _ in exposed([told], names=True)}
    assert not {"qre_clients", "qre_connected_clients", "qre_client_connected"} & names
    assert ("qre_sessions" in names) is (absent is Party.HANDSHAKE)
    text = render([told], colour=False)
    what = "sessions and clients" if absent is Party.DATAPLANE else "clients"
    assert f"\n  {what}: not known just now: a worker is being restarted\n" in text
    assert ALICE.hex() not in text and ALICE.hex() not in json.dumps(told), "its name may be known again at once"
    with pytest.raises(MachineError, match="its clients are not known just now"):
        of_client(told, "alice")


def test_a_list_of_clients_without_the_worker_that_knows_counts_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"{SERVER}\n[Client alice]\nShortId = {ALICE.hex()}\nAddress = 10.77.0.9\n"
    clients = listed(profile_of_text(text.encode(), "server0", "test"), daemon(Party.HANDSHAKE))
    assert [(one["connected"], one["rx_bytes"]) for one in clients if one["name"] == "alice"] == [(None, None)]
    assert table(clients, time.time()).splitlines()[-1] == "2 clients"
    monkeypatch.setenv("QRE_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("QRE_GLOBAL_CONFIG", str(tmp_path / "none"))
    write_profile(tmp_path, "server0", text)
    monkeypatch.setattr(client_list, "daemon_of", lambda *_: daemon(Party.HANDSHAKE))
    assert main(["list-clients", "server0"]) == 0
    assert capsys.readouterr().out.endswith(
        "2 clients\nwho is connected is not known just now: a worker of the daemon is being restarted\n"
    )


def test_rates_wait_for_the_sessions() -> None:
    looks = []
    for absent in ((), (Party.DATAPLANE,), ()):
        look = Look.__new__(Look)
        look.devices, look.error, look.time = [daemon(*absent)], None, float(len(looks))
        looks.append(look)
    looks[1].rate(looks[0])
    looks[2].rate(looks[1])
    assert [one["rates"] for one in looks[2].devices[0]["sessions"]] == [None, None]
