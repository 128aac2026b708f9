"""What a visitor of a server's TCP ports sees, and what the server says of them."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import dpkt

from qre.addresses import host_port
from tests.support.daemons import wait_for
from tests.support.namespaces import Namespace
from tests.support.site import NAME
from tests.support.tunnel import Tunnel

SYN, SYN_ACK = dpkt.tcp.TH_SYN, dpkt.tcp.TH_SYN | dpkt.tcp.TH_ACK
WELCOME = "the site's page for plain HTTP"
_CONNECT = """
import socket, sys
made = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
made.settimeout(float(sys.argv[3]))
if len(sys.argv) > 4:
    ipv6 = made.family == socket.AF_INET6
    hops = (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS) if ipv6 else (socket.IPPROTO_IP, socket.IP_TTL)
    made.setsockopt(*hops, int(sys.argv[4]))
try:
    made.connect((sys.argv[1], int(sys.argv[2])))
except OSError as error:
    print(type(error).__name__)
else:
    print("connected", made.getsockname()[1])
"""


@contextlib.contextmanager
def serving(namespace: Namespace, address: str, port: int, directory: Path, text: str = WELCOME) -> Iterator[None]:
    """Plain HTTP."""
    directory.mkdir(exist_ok=True)
    (directory / "index.html").write_text(text)
    command = [sys.executable, "-m", "http.server", "--bind", address, "--directory", str(directory), str(port)]
    process = namespace.popen(command)
    try:
        wait_for("the web server", lambda: f"{host_port(address, port)} " in namespace.run("ss", "-Hltn"))
        yield
    finally:
        process.kill()
        process.wait()


def connect(namespace: Namespace, address: str, port: int, timeout: float = 5, ttl: int | None = None) -> list[str]:
    """``connected`` and our port, or the name of the error."""
    words = [address, str(port), str(timeout), *([] if ttl is None else [str(ttl)])]
    return namespace.run(sys.executable, "-c", _CONNECT, *words).split()


def fetch(tunnel: Tunnel, address: str, port: int = 443, by: Namespace | None = None) -> str:
    """Headers and page, when the certificate is the site's, as the client's machine gets them, or another one."""
    where = ["--cacert", str(tunnel.site.authority), "--resolve", f"{NAME}:{port}:{address}"]
    return (by or tunnel.lab.client).run("curl", "-sS", "-i", "-m", "20", *where, f"https://{NAME}:{port}/")


def told(tunnel: Tunnel, version: int = 4) -> dict[int, dict[str, Any]]:
    """What the server says of each port over this version of IP."""
    shown = json.loads(tunnel.server.tool("--json", "show", "server0"))
    (device,) = shown["devices"]
    return {each["port"]: each for each in device["site_tcp"] if each["ip"] == version}


def wait_passed(tunnel: Tunnel, version: int = 4) -> None:
    wait_for("the ports to be passed", lambda: not any(each["why"] for each in told(tunnel, version).values()))


class Seen(NamedTuple):
    """Of one SYN or SYN-ACK."""

    ttl: int
    fragment: bool
    window: int
    options: bytes


def handshake(packets: list[dpkt.ip.IP | dpkt.ip6.IP6], flags: int) -> Seen:
    """Of the one packet with these flags."""
    (packet,) = [each for each in packets if isinstance(each.data, dpkt.tcp.TCP) and each.data.flags == flags]
    hops, fragment = (packet.hlim, True) if isinstance(packet, dpkt.ip6.IP6) else (packet.ttl, bool(packet.df))
    return Seen(hops, fragment, packet.data.win, bytes(packet.data.opts))
