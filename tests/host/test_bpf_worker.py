"""The BPF loader as a worker: what it is asked, what it answers, and what the kernel then does with packets."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from qre.ends import LIKE_DEST, Role
from qre.errors import InternalError, MachineError, UserError
from qre.ipc.messages import (
    CidAdopt,
    CidRelease,
    CidSync,
    Done,
    LoaderStatus,
    Party,
    StatusRequest,
    WorkerConfig,
)
from qre.ipc.worker import WorkerContext
from qre.kernel.bpf_program import MAX_ROUTES, SLOT_KERNEL, SLOT_USER
from qre.structs import Message
from qre.workers.bpf_loader.main import BpfLoader, create
from tests.support.reuseport import Group, Port, open_elf, short_packet

ROOT = Path(__file__).resolve().parents[2]
CID, OTHER, THIRD = (bytes([number]) * 20 for number in (1, 2, 3))
BOTH = {SLOT_USER, SLOT_KERNEL}
CONFIG = WorkerConfig(
    profile="server0",
    device="qre0",
    role=Role.SERVER,
    address=(ip_interface("10.77.0.1/24"),),
    mtu=1380,
    keepalive_s=0,
    allowed_ips=(),
    server_name="site.test",
    routed_cid_len=20,
)


@dataclass
class Context:
    """What the worker has of its supervisor: descriptors, and somebody who keeps what it sends up."""

    port: Port
    config: WorkerConfig = CONFIG
    descriptors: dict[str, int] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.descriptors["bpf_elf"] = open_elf()
        for name, one in zip(("udp_userspace", "udp_kernel_slot"), self.port.pair, strict=True):
            self.descriptors[name] = os.dup(one.fileno())

    def send_descriptor(self, name: str, fd: int, number: int = 0) -> None:
        self.sent[name] = os.dup(fd)

    def close(self) -> None:
        for fd in (*self.descriptors.values(), *self.sent.values()):
            os.close(fd)

    def worker(self) -> BpfLoader:
        return cast(BpfLoader, create())

    async def start(self, worker: BpfLoader) -> None:
        await worker.start(cast(WorkerContext, self))


def on_a_port(test: Callable[[Port, Context], Awaitable[None]]) -> Callable[[], None]:
    """Run it with a port of its own; no descriptor may be left afterwards."""

    def run() -> None:
        before = len(os.listdir("/proc/self/fd"))
        with Port() as port:
            context = Context(port)
            try:
                asyncio.run(cast(Any, test(port, context)))
            finally:
                context.close()
        assert len(os.listdir("/proc/self/fd")) == before

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def ask(worker: BpfLoader, message: Message, source: Party = Party.HANDSHAKE) -> Message:
    return await worker.handle(source, message)


async def cids(worker: BpfLoader) -> set[bytes]:
    status = await worker.status()
    assert isinstance(status, LoaderStatus)
    assert status.map_entries == len(status.connection_ids)
    return set(status.connection_ids)


@on_a_port
async def test_it_steers_from_its_start_to_its_stop(port: Port, context: Context) -> None:
    assert port.slots_of(short_packet(CID)) == BOTH
    worker = context.worker()
    await context.start(worker)
    assert set(context.sent) == {"cid_routes", "sockets", "program"}
    assert port.slots_of(short_packet(CID)) == {SLOT_USER}
    assert await ask(worker, CidAdopt(connection_id=CID)) == Done()
    assert port.slots_of(short_packet(CID)) == {SLOT_KERNEL}
    assert port.slots_of(short_packet(OTHER)) == {SLOT_USER}
    status = await worker.status()
    assert isinstance(status, LoaderStatus)
    assert status.map_id
    assert msgspec.structs.replace(status, map_id=0) == LoaderStatus(
        attached=True, program="qre_reuseport_demux", routed_cid_len=20, map_entries=1, connection_ids=(CID,)
    )
    assert await ask(worker, CidRelease(connection_id=CID)) == Done()
    assert port.slots_of(short_packet(CID)) == {SLOT_USER}
    await worker.stop()
    assert port.slots_of(short_packet(CID)) == BOTH


@on_a_port
async def test_asking_twice_is_asking_once(port: Port, context: Context) -> None:
    worker = context.worker()
    await context.start(worker)
    for _ in range(2):
        await ask(worker, CidAdopt(connection_id=CID))
    assert await cids(worker) == {CID}
    for _ in range(2):
        await ask(worker, CidRelease(connection_id=CID))
    assert await cids(worker) == set()
    await worker.reload()
    await worker.stop()


@on_a_port
async def test_a_synchronisation_leaves_exactly_what_it_names(port: Port, context: Context) -> None:
    worker = context.worker()
    await context.start(worker)
    for cid in (CID, OTHER):
        await ask(worker, CidAdopt(connection_id=cid))
    await ask(worker, CidSync(connection_ids=(OTHER, THIRD)))
    assert await cids(worker) == {OTHER, THIRD}
    for cid, slot in ((CID, SLOT_USER), (OTHER, SLOT_KERNEL), (THIRD, SLOT_KERNEL)):
        assert port.slot_of(short_packet(cid)) == slot
    with pytest.raises(UserError, match="19 bytes; routed ones have 20"):
        await ask(worker, CidSync(connection_ids=(CID, CID[:19])))
    assert await cids(worker) == {OTHER, THIRD}  # nothing of a broken one is done
    await ask(worker, CidSync(connection_ids=()))
    assert await cids(worker) == set()
    await worker.stop()


@on_a_port
async def test_connection_ids_like_dests_have_any_of_its_lengths(port: Port, context: Context) -> None:
    """Those of several back ends at a time; one that begins with another is another."""
    context.config = msgspec.structs.replace(CONFIG, routed_cid_len=LIKE_DEST)
    worker = context.worker()
    await context.start(worker)
    adopted = [CID[:length] for length in (5, 8, 18)] + [OTHER[:4], THIRD]
    for cid in adopted:
        await ask(worker, CidAdopt(connection_id=cid))
    assert await cids(worker) == set(adopted)
    for cid in adopted:
        assert port.slots_of(short_packet(cid)) == {SLOT_KERNEL}
    for cid in (CID[:4] + b"\xff", OTHER[:3] + b"\xff", THIRD[:19] + b"\xff"):
        assert port.slots_of(short_packet(cid)) == {SLOT_USER}
    await ask(worker, CidRelease(connection_id=CID[:5]))
    assert port.slots_of(short_packet(CID[:5] + b"\xff" + CID[6:])) == {SLOT_USER}
    assert port.slots_of(short_packet(CID[:8])) == {SLOT_KERNEL}
    for length in (3, 21):
        with pytest.raises((UserError, msgspec.ValidationError), match="bytes"):
            await ask(worker, CidAdopt(connection_id=bytes(length)))
    await worker.stop()


@on_a_port
async def test_the_map_is_full_at_its_bound_and_says_so(port: Port, context: Context) -> None:
    worker = context.worker()
    await context.start(worker)
    all_of_them = tuple(number.to_bytes(20, "big") for number in range(MAX_ROUTES))
    await ask(worker, CidSync(connection_ids=all_of_them))
    with pytest.raises(MachineError, match=r"QRE_CID_ROUTES: it is full \(4096 connection IDs\)"):
        await ask(worker, CidAdopt(connection_id=CID))
    await ask(worker, CidAdopt(connection_id=all_of_them[7]))  # it is there already
    status = await worker.status()
    assert isinstance(status, LoaderStatus)
    assert (status.map_entries, status.sync_failures) == (MAX_ROUTES, 1)
    assert len(msgspec.msgpack.encode(status)) < 1 << 18
    await ask(worker, CidSync(connection_ids=(*all_of_them[1:], CID)))  # room is made first
    assert port.slot_of(short_packet(CID)) == SLOT_KERNEL
    await worker.stop()


@on_a_port
async def test_a_replacement_goes_on_with_the_objects_of_a_killed_one(port: Port, context: Context) -> None:
    killed = context.worker()
    await context.start(killed)
    await ask(killed, CidAdopt(connection_id=CID))
    await ask(killed, CidAdopt(connection_id=OTHER))
    assert killed._maps is not None
    killed._maps.close()  # all that is left of it is what it sent up
    assert port.slots_of(short_packet(CID)) == {SLOT_KERNEL}

    after = Context(port)
    after.descriptors |= {name: os.dup(fd) for name, fd in context.sent.items()}
    try:
        worker = after.worker()
        await after.start(worker)
        assert after.sent == {}
        assert await cids(worker) == {CID, OTHER}
        await ask(worker, CidSync(connection_ids=(OTHER,)))
        assert port.slots_of(short_packet(CID)) == {SLOT_USER}
        assert port.slots_of(short_packet(OTHER)) == {SLOT_KERNEL}
        await worker.stop()
        assert port.slots_of(short_packet(OTHER)) == BOTH
    finally:
        after.close()


@on_a_port
async def test_a_data_plane_socket_that_was_replaced_is_slotted_in_again(port: Port, context: Context) -> None:
    killed = context.worker()
    await context.start(killed)
    await ask(killed, CidAdopt(connection_id=CID))
    assert killed._maps is not None
    killed._maps.close()
    os.close(context.descriptors.pop("udp_kernel_slot"))
    port.pair[1].close()
    assert port.slots_of(short_packet(CID)) == {SLOT_USER}
    port.pair[1] = port.another()
    after = Context(port)
    after.descriptors |= {name: os.dup(fd) for name, fd in context.sent.items()}
    try:
        worker = after.worker()
        await after.start(worker)
        assert port.slots_of(short_packet(CID)) == {SLOT_KERNEL}
        await worker.stop()
    finally:
        after.close()


@on_a_port
async def test_objects_of_somebody_else_are_not_gone_on_with(port: Port, context: Context) -> None:
    with Group() as other:
        foreign = (other.maps.cid_routes, other.maps.sockets, other.maps.program)
        names = ("cid_routes", "sockets", "program")
        for order, why in (((1, 0, 2), "sizes differ"), ((0, 1, 0), "another program"), ((2, 1, 2), "sizes differ")):
            context.descriptors |= {name: os.dup(foreign[at]) for name, at in zip(names, order, strict=True)}
            with pytest.raises(MachineError, match=why):
                await context.start(context.worker())
            assert not set(names) & set(context.descriptors)  # they are closed
    assert port.slots_of(short_packet(CID)) == BOTH


@on_a_port
async def test_only_the_handshake_worker_may_ask_and_only_for_what_it_may(port: Port, context: Context) -> None:
    worker = context.worker()
    with pytest.raises(InternalError, match="not started"):
        await ask(worker, CidAdopt(connection_id=CID))
    await context.start(worker)
    for source in (Party.SUPERVISOR, Party.DATAPLANE, Party.NETLINK, Party.BPF_LOADER):
        with pytest.raises(InternalError):
            await ask(worker, CidAdopt(connection_id=CID), source)
    with pytest.raises(InternalError):
        await ask(worker, StatusRequest())
    for cid in (CID[:17], CID[:19], b""):
        with pytest.raises(UserError, match="routed ones have 20"):
            await ask(worker, CidAdopt(connection_id=cid))
    with pytest.raises(InternalError, match="unexpected descriptor"):
        await worker.descriptor("cid_routes", 0, os.dup(context.sent["cid_routes"]))
    assert await cids(worker) == set()
    await worker.stop()


def confined(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.confined_loader", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["Uid"] != "0"
    assert (found["NoNewPrivs"], found["Seccomp"], int(found["CapBnd"], 16)) == ("1", "2", 0)
    return found


def test_cap_bpf_alone_is_enough_for_another_user_than_root() -> None:
    found = confined()
    assert {found["CapEff"], found["CapPrm"]} == {f"{1 << 39:016x}"}
    assert found["seen"] == [[SLOT_USER], [SLOT_KERNEL], [SLOT_USER, SLOT_KERNEL]]
    assert found["adopted"] == [bytes(range(20)).hex()]


def test_without_cap_bpf_it_says_what_is_missing() -> None:
    found = confined("none")
    assert int(found["CapPrm"], 16) == 0
    assert "Operation not permitted; is CAP_BPF granted?" in found["refused"]
