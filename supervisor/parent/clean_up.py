"""The end of a daemon: what its processes left is removed, and ``up`` is undone.

Everything is tried, whatever fails, and nothing here waits for the network. Signals are ignored meanwhile: it is
short. What QRE did not make is left alone (``qre.device.lifecycle_down``).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

from qre.config.model import GlobalConfig, Profile
from qre.device.control_client import remove_left, runtime_paths
from qre.device.kernel_device import release_port
from qre.device.lifecycle_down import down_profile
from qre.ends import Dataplane, Role
from qre.kernel.bpf_pins import unpin
from qre.supervisor.parent import fdstore
from qre.supervisor.parent.descendants import adopt_orphans, reap_all
from qre.supervisor.parent.early_end import ENDING
from qre.supervisor.parent.notify import Notifier

#: The signals that a daemon handles.
HANDLED: Final = (*ENDING, signal.SIGHUP)
#: Reports what fails inside, under the name of the part that it is given, and goes on.
Reported = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Remains:
    """What a daemon has at its end. ``listen``: its port that qre.ko may still have, if nobody else uses it.
    ``closed``: the rules of a default route stay, so that nothing leaves in the clear."""

    profile: Profile
    dataplane: Dataplane
    listen: tuple[str, int] | None
    tun_fd: int | None
    closed: bool


def clean_up(left: Remains, config: GlobalConfig, notifier: Notifier, reported: Reported) -> None:
    """Remove it all; every child process has ended before, or ends here."""
    profile = left.profile
    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    reap_all()
    adopt_orphans(False)
    with reported("pins"):
        if profile.role is Role.SERVER:
            unpin(config.bpf_pin_dir, profile.device)
    for path in runtime_paths(config, profile.name, profile.device):
        with reported(str(path)):
            remove_left(path)
    if left.dataplane is Dataplane.KERNEL:
        fdstore.forget(notifier)
        with reported("qre.ko"):
            if left.listen is not None:
                release_port(profile.device, left.listen)
    with reported("down"):
        down_profile(profile, config, by_daemon=True, closed=left.closed)
    if left.tun_fd is not None:
        os.close(left.tun_fd)
