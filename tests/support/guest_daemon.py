"""``qre-tool`` for an emulated machine: its workers have long to start, and ask for new keys soon.

The latter after QRE_TEST_REKEY_AFTER packets instead of four million.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import msgspec

from qre.cli.main import main
from qre.ipc.messages import WorkerConfig
from qre.supervisor.parent import parent as daemon
from qre.supervisor.parent import process_settings as settings


def worker_config(*arguments: Any, **named: Any) -> WorkerConfig:
    """The configuration of the workers with the lower limit."""
    made = settings.worker_config(*arguments, **named)
    return msgspec.structs.replace(made, rekey_after_packets=int(os.environ["QRE_TEST_REKEY_AFTER"]))


def run_patient_supervisor(sock: socket.socket, parent: int, log_level: str) -> None:
    """The real one, more patient; a process of its own."""
    from qre.supervisor import crew
    from qre.supervisor.supervisor import run_supervisor

    vars(crew).update(_GREET_TIMEOUT=300.0, _START_TIMEOUT=120.0)
    run_supervisor(sock, parent, log_level)


def run() -> None:
    """Called by the module's own name, by which the supervisor's process knows it: not as a script."""
    vars(daemon).update(worker_config=worker_config, run_supervisor=run_patient_supervisor)
    sys.exit(main())
