"""The worker `bpf_loader`: loads the demultiplexer, fills its slots, attaches it, keeps the map of routed CIDs, and
sends ICMP errors in the name of the port.

It reads no packet and holds no key. After a restart it receives the maps and the program of its predecessor and
continues with them: the kernel never stopped using them. The parent makes the pins.
"""

from __future__ import annotations

import os

from qre.errors import InternalError, MachineError, UserError
from qre.ipc.messages import CidAdopt, CidRelease, CidSync, Done, LoaderStatus, Party
from qre.ipc.worker import Worker, WorkerContext
from qre.kernel.bpf_program import MAX_ROUTES, PROGRAM, SLOT_KERNEL, SLOT_USER, Maps, cid_lengths, load
from qre.kernel.udp.icmp_sockets import ICMP_SOCKETS
from qre.kernel.udp.port_errors import PortError
from qre.structs import Message
from qre.workers.bpf_loader.error_sender import ErrorSender

_BPF_OBJECTS = ("cid_routes", "sockets", "program")


def create() -> Worker:
    """The worker; loads nothing yet."""
    return BpfLoader()


class BpfLoader:
    """See ``qre.ipc.worker.Worker``."""

    def __init__(self) -> None:
        self._context: WorkerContext | None = None
        self._maps: Maps | None = None
        self._user_socket = -1
        self._sender = ErrorSender({})
        self._adopted: set[bytes] = set()
        self._failures = 0

    @property
    def _running(self) -> tuple[WorkerContext, Maps]:
        if self._context is None or self._maps is None:
            raise InternalError("bpf_loader worker", "not started")
        return self._context, self._maps

    async def start(self, context: WorkerContext) -> None:
        """Load the program, or take over the predecessor's; put both sockets into their slots; attach. A new program
        for qre.ko is attached by netlink, once the module knows socket and map: up to then sessions that outlived a
        daemon have their packets by the program of that one."""
        held = context.descriptors
        known = all(name in held for name in _BPF_OBJECTS)
        if known:
            maps = Maps(*(held.pop(name) for name in _BPF_OBJECTS))
        else:
            maps = load(held["bpf_elf"], context.config.routed_cid_len, context.config.listen_only)
            for name, fd in zip(_BPF_OBJECTS, (maps.cid_routes, maps.sockets, maps.program), strict=True):
                context.send_descriptor(name, fd)
        maps.slot_in(SLOT_USER, held["udp_userspace"])
        maps.slot_in(SLOT_KERNEL, held["udp_kernel_slot"])
        if known or context.config.user_dataplane:
            maps.attach(held["udp_userspace"])
        self._sender = ErrorSender({name: held.pop(name) for name in ICMP_SOCKETS if name in held})
        self._context, self._maps = context, maps
        self._user_socket = held["udp_userspace"]
        self._adopted = set(maps.adopted())

    async def reload(self) -> None:
        """Nothing to do: no setting of this worker can change in a reload."""

    async def handle(self, source: Party, message: Message) -> Message:
        """Adopt, release or synchronise connection IDs in the BPF map, or send an ICMP error. Raises QreError for
        anything else."""
        context, _ = self._running
        if isinstance(message, PortError) and source is Party.HANDSHAKE:
            self._sender.send(message, context.config)
            return Done()
        if source is not (Party.HANDSHAKE if context.config.user_dataplane else Party.NETLINK):
            raise InternalError("bpf_loader worker", f"{type(message).__name__} from {source} is not for it")
        match message:
            case CidAdopt(connection_id=cid):
                self._check(cid)
                self._adopt(cid)
            case CidRelease(connection_id=cid):
                self._release(cid)
            case CidSync(connection_ids=cids):
                for cid in cids:
                    self._check(cid)
                for cid in self._adopted - set(cids):
                    self._release(cid)
                for cid in set(cids) - self._adopted:
                    self._adopt(cid)
            case _:
                raise InternalError("bpf_loader worker", f"{type(message).__name__} is not for it")
        return Done()

    def _check(self, cid: bytes) -> None:
        context, _ = self._running
        lengths = cid_lengths(context.config.routed_cid_len)
        if len(cid) not in lengths:
            wanted = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
            raise UserError("connection ID", f"it has {len(cid)} bytes", f"routed ones have {wanted}")

    def _adopt(self, cid: bytes) -> None:
        _, maps = self._running
        if len(self._adopted) >= MAX_ROUTES and cid not in self._adopted:
            self._failures += 1
            raise MachineError("QRE_CID_ROUTES", f"it is full ({MAX_ROUTES} connection IDs)")
        try:
            maps.adopt(cid)
        except MachineError:
            self._failures += 1
            raise
        self._adopted.add(cid)

    def _release(self, cid: bytes) -> None:
        _, maps = self._running
        maps.release(cid)
        self._adopted.discard(cid)

    async def descriptor(self, name: str, number: int, fd: int) -> None:
        """Raises InternalError: every descriptor of this role is handed over at its start."""
        os.close(fd)
        raise InternalError("bpf_loader worker", f"unexpected descriptor {name} while it runs")

    async def status(self) -> Message:
        """Reads the connection IDs from the map itself."""
        context, maps = self._running
        cids = tuple(maps.adopted())
        return LoaderStatus(
            attached=True,
            program=PROGRAM,
            routed_cid_len=context.config.routed_cid_len,
            map_entries=len(cids),
            connection_ids=cids,
            sync_failures=self._failures,
            map_id=maps.map_id,
        )

    async def stop(self) -> None:
        """Detach: from here on the kernel alone chooses the socket."""
        _, maps = self._running
        for cid in self._adopted:
            maps.release(cid)
        maps.detach(self._user_socket)
        maps.close()
        self._maps = None
        self._sender.close()
