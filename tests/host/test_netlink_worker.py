"""The worker `netlink` in its real sandbox: another uid, CAP_NET_ADMIN alone, seccomp; a real device."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import PATIENCE
from tests.support.network import everything, ip

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("network")]

#: Answers one JSON request a line; what the worker sends by itself is a line of its own.
PROGRAM = """
import asyncio, json, os, sys, threading
import msgspec
from qre.ipc import messages, sandbox
from qre.ipc.messages import Party, WorkerConfig
from qre.ipc.roles import ROLES
from qre.errors import QreError
from qre.dataplane.protocol import Role
from qre.structs import address_of_text
from qre.workers.netlink.main import create

worker = create()
if sys.argv[1] == "confined":
    sandbox.enter(ROLES[Party.NETLINK], os.getppid())

def say(**what):
    os.write(1, json.dumps(what).encode() + b"\\n")

class Context:
    config = WorkerConfig(profile="tunnel", device="qre0", role=Role.CLIENT, address=(), mtu=1380, keepalive_s=0,
                          allowed_ips=(), server_name="x")
    async def send(self, to, message):
        if not isinstance(message, messages.NetworkChanged):
            say(sent=type(message).__name__, to=to.value, **msgspec.structs.asdict(message))
    def fail(self, reason):
        say(failed=reason)
    def internal_error(self, error):
        self.fail(repr(error))

def sync_of(request):
    return msgspec.convert(request, messages.SyncDevice, dec_hook=address_of_text)

async def answer(line):
    request = json.loads(line)
    try:
        match request.pop("do"):
            case "start":
                await worker.start(Context())
                return {"done": True, "uid": os.getuid(), "threads": threading.active_count()}
            case "status":
                return msgspec.to_builtins(await worker.status())
            case "sync":
                reply = await worker.handle(Party.SUPERVISOR, sync_of(request))
            case "alien":
                reply = await worker.handle(Party.HANDSHAKE, sync_of(request))
            case "descriptor":
                fd = os.dup(0)
                try:
                    await worker.descriptor("tun", 0, fd)
                finally:
                    os.write(fd, b"")
            case "reload":
                return {"done": await worker.reload() is None}
            case "stop":
                await worker.stop()
                return {"done": True}
        return {"done": type(reply).__name__}
    except QreError as error:
        return {"refused": str(error)}
    except msgspec.ValidationError as error:
        return {"malformed": str(error)}
    except OSError as error:
        return {"closed": error.errno}

async def main():
    loop = asyncio.get_running_loop()
    lines = asyncio.Queue()
    loop.add_reader(0, lambda: lines.put_nowait(os.read(0, 65536)))
    while data := await lines.get():
        for line in data.splitlines():
            say(**await answer(line))

asyncio.run(main())
"""


class WorkerProcess:
    """The program above, and talk with it."""

    def __init__(self, mode: str) -> None:
        root = Path(__file__).resolve().parents[2]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=root
        )

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], PATIENCE)[0], "it says nothing"
        line = self.process.stdout.readline()
        assert line, f"the worker ended with {self.process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **fields: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **fields}).encode() + b"\n")
        self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(10) == 0


@pytest.fixture
def owner() -> str:
    return "tunnel"


@pytest.fixture
def device(tun: int) -> int:
    """As the parent leaves it to the worker: up, with the profile's MTU."""
    ip("link", "set", "qre0", "up", "mtu", "1380", "addrgenmode", "none")
    return tun


@pytest.fixture(params=["confined", "unconfined"])
def worker(request: pytest.FixtureRequest) -> Iterator[WorkerProcess]:
    started = WorkerProcess(request.param)
    yield started
    if started.process.poll() is None:
        started.process.kill()
    started.process.wait()


SYNC: dict[str, object] = {
    "device": "qre0",
    "address": ["10.77.0.2/24", "fd77::2/64"],
    "mtu": 1300,
    "allowed_ips": ["0.0.0.0/0", "192.168.0.0/16"],
    "table": 77,
}
STATUS: dict[str, object] = {
    "type": "NetlinkStatus",
    "device_present": False,
    "link_up": False,
    "restored": {},
    "site_tcp": None,
    "forward": None,
    "dataplane": None,
    "shared_port": None,
    "connection_ids": [],
}


def test_the_worker_syncs_its_device_and_says_what_state_it_is_in(worker: WorkerProcess, device: int) -> None:
    assert worker.ask("start")["threads"] == 1
    assert worker.ask("status") == {**STATUS, "device_present": True, "link_up": True}
    assert worker.ask("sync", **SYNC) == {"done": "Done"}
    shown = everything()
    rule = "fwmark 0x515245 lookup 77"
    for wanted in ("inet 10.77.0.2/24", "inet6 fd77::2/64", "mtu 1300", "192.168.0.0/16 dev qre0", rule):
        assert wanted in shown
    assert worker.ask("status")["link_up"]
    assert worker.ask("sync", **{**SYNC, "address": ["10.77.0.3/24"], "allowed_ips": []}) == {"done": "Done"}
    shown = everything()
    assert "10.77.0.3/24" in shown
    for gone in ("10.77.0.2/24", "fd77::2", "192.168.0.0/16", "fwmark"):
        assert gone not in shown
    assert worker.ask("reload") == {"done": True}
    assert worker.ask("stop") == {"done": True}
    worker.end()


def test_the_worker_is_another_user_when_it_is_confined(tun: int) -> None:
    worker = WorkerProcess("confined")
    assert worker.ask("start")["uid"] != 0
    worker.end()


def test_the_worker_tells_when_somebody_removes_its_device_or_renames_it(worker: WorkerProcess, device: int) -> None:
    worker.ask("start")
    ip("link", "set", "qre0", "name", "other0")
    assert worker.read() == {"sent": "LinkGone", "to": "supervisor", "device": "qre0"}
    ip("link", "set", "other0", "name", "qre0")
    time.sleep(0.5)  # its looks are spaced
    ip("link", "del", "qre0")
    assert worker.read() == {"sent": "LinkGone", "to": "supervisor", "device": "qre0"}
    assert worker.ask("status") == STATUS
    assert "it is gone or belongs to another program" in worker.ask("sync", **SYNC)["refused"]
    worker.end()


def test_the_worker_refuses_every_other_device_and_changes_nothing(worker: WorkerProcess, device: int) -> None:
    ip("link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
    before = everything()
    worker.ask("start")
    assert (
        worker.ask("sync", **{**SYNC, "device": "lan0"})["refused"]
        == "device lan0: it does not belong to this daemon"
    )
    assert "is not for it" in worker.ask("alien", **SYNC)["refused"]
    assert "does not appear to be" in worker.ask("sync", **{**SYNC, "address": ["10.77.0.2/99"]})["malformed"]
    assert "unexpected descriptor" in str(worker.ask("descriptor")) or worker.ask("status")
    assert everything() == before
    worker.end()


def test_a_device_of_somebody_else_under_our_name_is_not_touched(worker: WorkerProcess) -> None:
    ip("tuntap", "add", "qre0", "mode", "tun")
    before = everything()
    assert worker.ask("start")["refused"] == "device qre0: it does not exist; restart the daemon"
    assert everything() == before
    worker.end()


def test_a_request_before_the_start_is_refused(worker: WorkerProcess) -> None:
    assert "it was not started" in worker.ask("status")["refused"]
    worker.end()
