"""Configuration, state and runtime directories of one test, and qre-tool run in them as a user runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.support.daemons import PATIENCE, TOOL
from tests.support.profile_values import global_config

CLIENT = """\
Device = qre0
Address = 10.77.0.2/24, fd77::2/64
Endpoint = 192.0.2.1:443
ServerName = site.example
RealityPublicKey = AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=
RealityShortId = 0123456789abcdef
"""


class Machine:
    """Configuration, state and runtime directories of one test, and qre-tool in them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = global_config(directory)
        self.config.config_dir.mkdir(mode=0o700)
        self.env = {
            **os.environ,
            "QRE_CONFIG_DIR": str(directory / "dev"),
            "QRE_GLOBAL_CONFIG": str(directory / "qre.conf"),
            "QRE_STATE_DIR": str(directory / "state"),
            "RUNTIME_DIRECTORY": str(directory / "run"),
            "QRE_DATAPLANE": "user",
        }

    def write(self, text: str, name: str = "tunnel") -> None:
        path = self.config.config_dir / f"{name}.conf"
        path.write_text(text)
        path.chmod(0o600)

    def tool(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [TOOL, *arguments], env=self.env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )

    def does(self, *arguments: str) -> str:
        """A command that succeeds, in silence on standard error; its output."""
        done = self.tool(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def refuses(self, *arguments: str) -> str:
        """A command that fails as it should: exit status 2, one line on standard error, nothing else."""
        done = self.tool(*arguments)
        assert done.returncode == 2, done
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("qre-tool: ")
        return done.stderr

    def files(self) -> list[str]:
        """Everything below the directories, but the profiles."""
        return sorted(
            str(path.relative_to(self.directory)) for path in self.directory.rglob("*") if path.suffix != ".conf"
        )
