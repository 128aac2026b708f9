"""The messages between the daemon's parent and its supervisor, over one channel.

Descriptors go first, each with ``Supply``; then one ``Setup``. The parent never unpickles and never trusts: every
message is a typed struct, and the union at the end lists all messages that may come.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from qre.dest_profile import DestProfile
from qre.ipc.messages import WorkerConfig
from qre.structs import U64, Message, Text

#: The largest message: a configuration with as many routes as a server may have.
MAX_SIZE = 1 << 17

# --- parent -> supervisor ---


class Supply(Message, frozen=True, kw_only=True):
    """Goes with one descriptor: tun, profile_secrets, session_secrets, number_marks, replay, bpf_elf; for a reload
    new_profile_secrets; for a daemon that has joined a port those that ``front`` names, and the
    sockets and BPF objects when it takes the front's place."""

    name: Annotated[str, msgspec.Meta(max_length=32)]


class Setup(Message, frozen=True, kw_only=True):
    """All other settings of the supervisor. Sent after all descriptors."""

    config: WorkerConfig
    runtime_dir: Text
    pin_dir: Text
    client_bind_ip: Text = ""
    client_bind_port: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)] = 0
    kernel_holds_port: bool = False  # qre.ko still has the shared socket of a daemon that was killed
    #: the device of the daemon whose port we have joined
    front_device: Annotated[str, msgspec.Meta(max_length=15)] = ""


class ApplyReload(Message, frozen=True, kw_only=True):
    """A new configuration; ``new_profile_secrets`` were supplied before it. Answered with ``Reloaded``."""

    config: WorkerConfig


class EndAll(Message, frozen=True, kw_only=True):
    """End the workers in order, then yourself."""


class Pinned(Message, frozen=True, kw_only=True):
    """The answer to ``PinThese``; ``error`` is empty on success."""

    error: Text = ""


class ReloadFinished(Message, frozen=True, kw_only=True):
    """The answer to ``ReloadWanted``."""

    error: Text = ""


# --- supervisor -> parent ---


class AllReady(Message, frozen=True, kw_only=True):
    """All workers are ready."""


class DaemonFailed(Message, frozen=True, kw_only=True):
    """The daemon cannot go on. ``passing``: for something that may pass by itself. ``final``: for something that
    another start would meet again."""

    reason: Text
    passing: bool = False
    final: bool = False


class GuestCount(Message, frozen=True, kw_only=True):
    """How many daemons have joined our port: while there are any, the port is left in place at the end."""

    count: U64


class DaemonState(Message, frozen=True, kw_only=True):
    """The text of STATUS=, and whether a session is up (the ready file)."""

    up: bool
    text: Text


class Alive(Message, frozen=True, kw_only=True):
    """Every worker answered its heartbeat: systemd's watchdog may be fed."""


class PinThese(Message, frozen=True, kw_only=True):
    """With three descriptors: the CID map, the socket map, the program."""


class Reloaded(Message, frozen=True, kw_only=True):
    error: Text = ""


class ReloadWanted(Message, frozen=True, kw_only=True):
    """A reload was requested over the control socket."""


class DestProbed(Message, frozen=True, kw_only=True):
    """A fresh Dest profile to cache."""

    profile: DestProfile


ToSupervisor = Supply | Setup | ApplyReload | EndAll | Pinned | ReloadFinished
ToParent = (
    AllReady | DaemonFailed | GuestCount | DaemonState | Alive | PinThese | Reloaded | ReloadWanted | DestProbed
)
