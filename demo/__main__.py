"""Client, server and site in three network namespaces; real daemons; what a user and a stranger see of them.

Everything runs in a mount and a process namespace of its own, so that nothing is left on the machine even when the
demo is killed; before it ends it looks for what its daemons left behind and says so.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.daemons import Daemon, left_behind, threads
from tests.support.lab import Lab
from tests.support.namespaces import run
from tests.support.site import NAME, PAGE, Caddy, visit
from tests.support.wireguard import SERVER as WIREGUARD_SERVER
from tests.support.wireguard import WireguardGo, tcp_rate

SERVER_INNER, CLIENT_INNER = "10.77.0.1", "10.77.0.2"
PORT = 443
STREAM_SECONDS = 4.0
CAPABILITY_NAMES = {
    2: "dac_read_search",
    5: "kill",
    6: "setgid",
    7: "setuid",
    8: "setpcap",
    12: "net_admin",
    21: "sys_admin",
    39: "bpf",
}
#: What each worker may hold, in all five capability sets together.
GRANTED = {"handshake": "none", "dataplane": "none", "bpf_loader": "bpf", "netlink": "net_admin"}
MARKER = "QRE_DEMO_INSIDE"


class Screen:
    """Progress lines; colour only on a terminal."""

    def __init__(self) -> None:
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.started = time.monotonic()

    def step(self, text: str) -> None:
        """Print a heading with the seconds since the start."""
        stamp = f"[{time.monotonic() - self.started:5.1f} s]"
        print(f"\033[1;36m{stamp} {text}\033[0m" if self.colour else f"{stamp} {text}", flush=True)

    def show(self, text: str) -> None:
        """Print the output of a program, indented."""
        for line in text.rstrip().splitlines():
            print(f"    {line}", flush=True)


def enter_namespaces() -> None:
    """Run this program again where its mounts and processes end with it."""
    command = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    os.environ[MARKER] = "1"
    os.execvp(command[0], [*command, sys.executable, "-m", "demo"])


@contextmanager
def bpf_file_system(directory: Path) -> Iterator[Path]:
    """Mount a BPF file system of its own at ``directory``, and unmount it afterwards. Needs root."""
    directory.mkdir()
    run("mount", "-t", "bpf", "bpf", str(directory))
    try:
        yield directory
    finally:
        run("umount", str(directory))


def ping(screen: Screen, daemon: Daemon, address: str) -> None:
    """Ten pings through the tunnel; every one must be answered."""
    said = daemon.namespace.run("ping", "-n", "-c", "10", "-i", "0.1", "-W", "2", address, check=False)
    screen.show("\n".join(said.strip().splitlines()[-3:]))
    if not re.search(r"10 received, 0% packet loss", said):
        raise RuntimeError(f"pings to {address} were lost: {said}")


def capability_names(mask: int) -> str:
    """A mask from ``/proc/PID/status`` as names joined by commas, or ``none``."""
    names = [CAPABILITY_NAMES.get(bit, str(bit)) for bit in range(64) if mask >> bit & 1]
    return ",".join(names) or "none"


def process_table(daemon: Daemon) -> list[str]:
    """What /proc says of every thread of the workers, one row a process (its worst thread)."""
    rows = [f"{'process':<16}{'pid':>6}{'uid':>7}{'threads':>9}{'NoNewPrivs':>12}{'Seccomp':>9}  capabilities"]
    for name, pid in sorted(daemon.workers().items()):
        found = threads(pid)
        worker = name != "supervisor"
        sets = 0
        for thread in found:
            for mask in thread.capabilities:
                sets |= mask
        confined = all(thread.no_new_privs == 1 and thread.seccomp == 2 and thread.uid != 0 for thread in found)
        if worker and not confined:
            raise RuntimeError(f"worker {name} has a thread that is not confined: {found}")
        if worker and capability_names(sets) != GRANTED[name]:
            raise RuntimeError(f"worker {name} holds capabilities: {capability_names(sets)}")
        rows.append(
            f"{name:<16}{pid:>6}{found[0].uid:>7}{len(found):>9}{min(t.no_new_privs for t in found):>12}"
            f"{min(t.seccomp for t in found):>9}  {capability_names(sets)}"
        )
    return rows


def visitor(screen: Screen, lab: Lab, site: Caddy) -> None:
    """A browser-like client at the server's port sees the site behind it."""
    page = visit(lab.client, lab.SERVER, site.authority, PORT)
    screen.show(f"https://{NAME}:{PORT}/ at {lab.SERVER} (curl_cffi, HTTP/3, Chrome's fingerprint) answered:\n{page}")
    if page != PAGE:
        raise RuntimeError("that is not the site's page")


def rates(screen: Screen, lab: Lab, directory: Path) -> None:
    """One TCP stream through the tunnel, and through wireguard-go between the same namespaces."""
    ours = tcp_rate(lab.client, lab.server, SERVER_INNER, STREAM_SECONDS)
    with WireguardGo(lab.client, lab.server, lab.SERVER, directory):
        peer = tcp_rate(lab.client, lab.server, WIREGUARD_SERVER, STREAM_SECONDS)
    screen.show(
        f"TCP, one stream, {STREAM_SECONDS:g} s: QRE (user data plane) {ours / 1e6:.0f} Mbit/s, "
        f"wireguard-go {peer / 1e6:.0f} Mbit/s: ratio {ours / peer:.2f}"
    )


def scene(screen: Screen, stack: ExitStack) -> None:
    """The demonstration from set-up to traffic; ``stack`` undoes it in reverse order."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qre-demo-")))
    directory.chmod(0o711)
    pin_dir = stack.enter_context(bpf_file_system(directory / "bpf"))
    screen.step("making namespaces: client, router, server, site, joined by veth")
    lab = stack.enter_context(Lab())
    screen.step(f"starting Caddy as the site {NAME} (HTTP/3)")
    site = Caddy(lab.site, directory / "site", lab.SITE, PORT)
    stack.callback(site.stop)
    screen.step("qre-tool init: one profile for each end")
    (directory / "dev").mkdir(mode=0o700)
    trust = {"SSL_CERT_FILE": str(site.authority)}
    server = Daemon(lab.server, "server0", directory, pin_dir, trust)
    client = Daemon(lab.client, "client0", directory, pin_dir, trust)
    screen.show(
        server.tool(
            "init", "ServerProfile=server0", "ClientProfile=client0", f"Endpoint={lab.SERVER}:{PORT}",
            f"Dest={lab.SITE}:{PORT}", f"ServerName={NAME}",
            f"ServerAddress={SERVER_INNER}/24", f"ClientAddress={CLIENT_INNER}/24",
        )
    )  # fmt: skip
    for daemon in (server, client):
        stack.callback(daemon.stop)
        screen.step(f"qre-tool daemon {daemon.profile}")
        daemon.start().wait_ready()
        screen.show("READY=1")
    client.wait_session()
    screen.step("the client's session is up; ping from client to server")
    ping(screen, client, SERVER_INNER)
    screen.step("ping from server to client")
    ping(screen, server, CLIENT_INNER)
    screen.step("a TCP stream through the tunnel, then through wireguard-go")
    rates(screen, lab, directory)
    screen.step("a stranger visits the server's port with a browser's HTTP/3")
    visitor(screen, lab, site)
    for daemon in (server, client):
        screen.step(f"qre-tool show, {daemon.profile}")
        screen.show(daemon.tool("show", daemon.profile, folded=True))
    for daemon in (server, client):
        screen.step(f"processes of {daemon.profile}, from /proc (worst thread of each)")
        screen.show("\n".join(process_table(daemon)))
    screen.step("ending both daemons")
    for daemon in (client, server):
        status = daemon.stop()
        if status:
            raise RuntimeError(f"{daemon.profile} ended with {status}: {daemon.said()}")
    leftovers = left_behind(directory, pin_dir)
    for daemon in (client, server):
        if f" {daemon.profile}:" in daemon.namespace.ip("-o", "link"):
            leftovers.append(f"device {daemon.profile}")
    screen.step(f"left behind: {', '.join(leftovers) or 'nothing'}")
    if leftovers:
        raise RuntimeError("the daemons left something behind")


def main() -> int:
    """0 when every step showed what it should."""
    if os.geteuid() != 0:
        print("demo: needs root: namespaces, a TUN device and BPF; run: sudo ./run demo", file=sys.stderr)
        return 2
    if MARKER not in os.environ:
        enter_namespaces()
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: end with `unshare`, whatever happens to it
    run("mount", "-t", "tmpfs", "tmpfs", "/run/netns") if Path("/run/netns").is_dir() else None
    screen = Screen()
    try:
        with ExitStack() as stack:
            scene(screen, stack)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    screen.step("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
