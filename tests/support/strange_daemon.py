"""``qre-tool`` whose daemon may have workers that misbehave: see ``tests.support.strange_workers``."""

from __future__ import annotations

import sys

from qre.cli.main import main
from qre.supervisor.parent import parent as daemon
from tests.support.strange_workers import run_strange_supervisor

if __name__ == "__main__":
    daemon.run_supervisor = run_strange_supervisor
    sys.exit(main())
