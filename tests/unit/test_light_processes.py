"""What the daemon's processes do not load: each of them pays for it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: Of these, what is needed can be had without the rest.
WHOLE = {"pyroute2", "pyroute2.ndb.main", "pyroute2.iproute.linux", "sqlite3", "unittest", "bcc"}
NETWORKLESS = {"aioquic", "cryptography"}


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("qre.supervisor.parent.parent", WHOLE | NETWORKLESS),
        ("qre.supervisor.supervisor", WHOLE | NETWORKLESS),
        ("qre.workers.bpf_loader.main", WHOLE | NETWORKLESS),
        ("qre.workers.netlink.main", WHOLE | NETWORKLESS),
        ("qre.workers.dataplane.main", WHOLE | {"aioquic"}),
        ("qre.workers.handshake.main", WHOLE),
    ],
)
def test_a_process_loads_what_it_needs(module: str, never: set[str]) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # coverage loads more
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert not set(done.stdout.split()) & never


def test_who_wants_all_of_pyroute2_gets_it() -> None:
    program = "import qre.kernel.rtnl as ours, pyroute2; from pyroute2.netlink.rtnl.rtmsg import rtmsg;"
    program += "print(pyroute2.IPRoute.__name__, rtmsg is ours.rtmsg)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "IPRoute True\n"
