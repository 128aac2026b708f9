"""How long light commands take to start, as a multiple of ``python3 -c pass``: ``python -m tests.bench.startup``."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.profiles import SERVER, write_profile

ROUNDS = 40
REFERENCE = ["/usr/bin/python3", "-c", "pass"]


def run_once(command: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def main() -> int:
    """Print one line a command: the median, and its ratio to the reference, measured in turns."""
    tool = str(Path(sys.executable).parent / "qre-tool")
    with tempfile.TemporaryDirectory() as directory:
        write_profile(Path(directory), "qre0", SERVER)
        environment = os.environ | {"QRE_CONFIG_DIR": directory, "QRE_GLOBAL_CONFIG": f"{directory}/none"}
        commands = {
            "python3 -c pass": REFERENCE,
            "qre-tool help": [tool, "help"],
            "qre-tool strip": [tool, "strip", "qre0"],
            "qre-tool showconf": [tool, "showconf", f"{directory}/qre0.conf"],
            "qre-tool genkey": [tool, "genkey"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, command in commands.items():
                times[name].append(run_once(command, environment))
    reference = statistics.median(times["python3 -c pass"])
    for name, taken in times.items():
        print(f"{name:<20}{statistics.median(taken) * 1e3:7.1f} ms   {statistics.median(taken) / reference:5.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
