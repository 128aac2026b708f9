"""A client that makes handshakes and uses none of their sessions, each for other addresses; runs inside a namespace.

``python -m tests.support.grabber PROFILE.conf ADDRESS[,ADDRESS…]…`` makes one handshake after the other, each for the
addresses of one argument, and prints one line each: what it was given.
"""

from __future__ import annotations

import asyncio
import os
import sys
from ipaddress import ip_interface
from pathlib import Path

from qre.cli.port.port_client import client_handshake
from qre.config.profile import load_profile_file
from qre.errors import QreError
from qre.kernel.udp.underlay_sockets import client_socket
from qre.visit.visitor_files import load_trust


def main(arguments: list[str]) -> int:
    profile = load_profile_file(Path(arguments[0]))
    assert profile.client is not None
    peer = (profile.client.endpoint.host, profile.client.endpoint.port)
    trust, sockets = load_trust(), []
    for wanted in arguments[1:]:
        asking = profile.replace(address=tuple(map(ip_interface, wanted.split(","))))
        sockets.append(client_socket("", 0))  # stays open: the server finds nobody gone
        try:
            done = asyncio.run(client_handshake(asking, sockets[-1], peer, trust))
        except QreError as error:
            print(f"nothing: {error}")
        else:
            print(",".join(str(address.ip) for address in done.handed_over.addresses))
        sys.stdout.flush()
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main(sys.argv[1:]))
