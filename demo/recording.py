"""Records a first tunnel as asciicast version 2, which termtosvg makes a picture of: ``python -m demo.recording``.

Everything is real but the typing: site, server and client run in namespaces of this machine, and what their commands
print is kept with its times. Needs root. The last moment of the recording is `show`, as it looks.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.support.daemons import Daemon
from tests.support.site import NAME
from tests.support.tunnel import SERVER_INNER, Tunnel

WIDTH, HEIGHT = 100, 36
#: Seconds: of a key, behind a prompt, behind an output at most.
_KEY: Final = 0.035
_THINK: Final = 0.6
_READ: Final = 1.5
_LONGEST: Final = 4.0


@dataclass
class Screen:
    """Collects what a terminal would show, with its times."""

    now: float = 0.0
    events: list[tuple[float, str]] = field(default_factory=list)

    def show(self, text: str, after: float = 0.0) -> None:
        """Print ``text`` so many seconds after the last."""
        self.now += after
        self.events.append((self.now, text.replace("\n", "\r\n")))

    def type(self, prompt: str, command: str) -> None:
        """A prompt, and somebody who types."""
        self.show(f"\x1b[1;34m{prompt}\x1b[0m# ")
        self.now += _THINK
        for letter in command:
            self.show(letter, _KEY)
        self.show("\n", _THINK / 2)

    def lines(self) -> Iterator[str]:
        """The asciicast."""
        yield json.dumps({"version": 2, "width": WIDTH, "height": HEIGHT})
        for moment, text in self.events:
            yield json.dumps([round(moment, 3), "o", text])


def record(screen: Screen) -> None:
    """A server, a client, a ping, and what the server says of itself and of the client."""
    with Tunnel() as tunnel:
        server, client = tunnel.server, tunnel.client

        def answer(text: str, took: float) -> None:
            screen.show(text.rstrip("\n") + "\n", min(took, _LONGEST))
            screen.now += _READ

        def run(prompt: str, daemon: Daemon, command: str) -> None:
            screen.type(prompt, f"qre-tool {command}")
            began = time.monotonic()
            told = daemon.tool(*command.split())
            answer(told.replace(str(tunnel.directory), "/etc/qre"), time.monotonic() - began)

        run("server", server, f"find-dest {NAME}@{tunnel.lab.SITE}:443")
        tunnel.profile("server0").unlink()
        tunnel.profile("client0").unlink()
        dest = f"Dest={tunnel.lab.SITE}:443 ServerName={NAME}"
        run("server", server, f"init Endpoint={tunnel.lab.SERVER}:443 {dest}")
        for prompt, daemon in (("server", server), ("client", client)):
            screen.type(prompt, f"qre-tool daemon {daemon.profile} &")
            began = time.monotonic()
            daemon.start().wait_ready()
            screen.show("", time.monotonic() - began)
        client.wait_session()
        screen.type("client", f"ping -c 3 {SERVER_INNER}")
        pinged = client.namespace.run("ping", "-c", "3", SERVER_INNER)
        for line in pinged.rstrip().splitlines():
            screen.show(line + "\n", 0.9 if "bytes from" in line else 0.05)
        screen.now += _READ
        screen.type("server", "qre-tool show server0")
        shown = server.tool("show", "server0", folded=True).replace(f"{tunnel.directory}/bpf", "/sys/fs/bpf/qre")
        answer(f"\x1b[H\x1b[2J\n{shown}", 0.3)
        screen.show("", 3 * _READ)


def main() -> int:
    """Print the recording."""
    screen = Screen()
    record(screen)
    print("\n".join(screen.lines()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
