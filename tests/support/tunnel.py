"""The whole: site, server daemon and client daemon in a lab of namespaces, brought up for a test and taken down."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from qre.addresses import host_port
from qre.cli.profile.configuration import fresh_short_id
from tests.support.daemons import Daemon, left_behind
from tests.support.lab import Lab, NeighbourLab
from tests.support.namespaces import Namespace, join, run
from tests.support.profiles import list_short_ids
from tests.support.site import NAME, Caddy
from tests.support.tcpdump import Tcpdump

SERVER_INNER, CLIENT_INNER = "10.77.0.1", "10.77.0.2"
PORT = 443


class Tunnel:
    """``server`` and ``client`` are daemons that are not started yet; ``close`` proves that nothing is left."""

    def __init__(self, settings: str = "", lab: type[NeighbourLab] = Lab) -> None:
        self.stack = ExitStack()
        try:
            self.directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="qre-test-")))
            self.directory.chmod(0o711)
            self.pin_dir = self.directory / "bpf"
            self.pin_dir.mkdir()
            run("mount", "-t", "bpf", "bpf", str(self.pin_dir))
            self.stack.callback(run, "umount", str(self.pin_dir))
            self.lab = self.stack.enter_context(lab())
            # Captures show the datagrams of a first flight one by one, as they would be on a cable.
            for namespace, device in (
                (self.lab.client, self.lab.client_device),
                (self.lab.server, self.lab.server_device),
                (self.lab.server, self.lab.uplink_device),
            ):
                namespace.run("ethtool", "-K", device, "tx-udp-segmentation", "off")
            self.site = Caddy(self.lab.site, self.directory / "site", self.lab.SITE, PORT)
            self.stack.callback(self.site.stop)
            (self.directory / "dev").mkdir(mode=0o700)
            (self.directory / "qre.conf").write_text(settings)
            self.daemons: list[Daemon] = []
            self.server = self.daemon("server0", server=True)
            self.client = self.daemon("client0")
            self.server.tool(
                "init", "ServerProfile=server0", "ClientProfile=client0", f"Endpoint={host_port(lab.SERVER, PORT)}",
                f"Dest={host_port(lab.SITE, PORT)}", f"ServerName={NAME}",
                f"ServerAddress={SERVER_INNER}/24", f"ClientAddress={CLIENT_INNER}/24",
            )  # fmt: skip
            list_short_ids(self.profile("server0"))
        except BaseException:
            self.stack.close()
            raise

    def daemon(self, profile: str, *, server: bool = False, options: tuple[str, ...] = ()) -> Daemon:
        """A daemon of this lab; its profile may still have to be written."""
        namespace = self.lab.server if server else self.lab.client
        made = Daemon(
            namespace,
            profile,
            self.directory,
            self.pin_dir,
            {"SSL_CERT_FILE": str(self.site.authority)},
            options,
        )
        self.daemons.append(made)
        return made

    def profile(self, name: str) -> Path:
        return self.directory / "dev" / f"{name}.conf"

    def edit(self, name: str, key: str, value: str, *, like: str | None = None) -> None:
        """Write the profile ``name`` as ``like`` (itself when not given; its device is ``name``) with ``key`` set."""
        changed = {key.lower(): f"{key} = {value}"}
        if like is not None:
            changed["device"] = f"Device = {name}"
        lines = self.profile(like or name).read_text().splitlines()
        kept = [line for line in lines if line.split("=")[0].strip().lower() not in changed]
        path = self.profile(name)
        path.touch(mode=0o600)
        path.write_text("\n".join([*changed.values(), *kept, ""]))  # above the sections

    def value(self, name: str, key: str) -> str:
        for line in self.profile(name).read_text().splitlines():
            if line.split("=")[0].strip().lower() == key.lower():
                return line.split("=", 1)[1].strip()
        raise KeyError(key)

    def second_client(self, name: str = "client1", address: str = "10.77.0.3/24") -> Daemon:
        """A client with a short id of its own, known to the server's profile (before the server starts)."""
        short_id = fresh_short_id().hex()
        self.edit("server0", "RealityShortIds", f"{self.value('server0', 'RealityShortIds')},{short_id}")
        self.edit(name, "RealityShortId", short_id, like="client0")
        self.edit(name, "Address", address)
        return self.daemon(name)

    def further_server(self, number: int) -> tuple[Daemon, str]:
        """A machine of its own between client and site, with the keys and the clients of ``server0`` for the present,
        and its address. It listens at the port of HTTPS."""
        name, address = f"server{number}", f"10.91.{number}.1"
        namespace = Namespace(name)
        self.stack.callback(namespace.delete)
        join(self.lab.client, f"10.91.{number}.2/24", namespace, f"{address}/24")
        join(namespace, f"10.92.{number}.1/24", self.lab.site, f"10.92.{number}.2/24")
        namespace.ip("route", "add", f"{self.lab.SITE}/32", "via", f"10.92.{number}.2")
        self.edit(name, "Listen", f"{address}:{PORT}", like="server0")
        daemon = self.daemon(name, server=True)
        daemon.namespace = namespace
        return daemon, address

    def captures(self, stack: ExitStack) -> list[Tcpdump]:
        """Of everything at the port, begun at the client and at the server; they end with ``stack``."""
        lab = self.lab
        return [
            stack.enter_context(Tcpdump(namespace, device, self.directory / f"{device}.pcap", PORT))
            for namespace, device in ((lab.client, lab.client_device), (lab.server, lab.server_device))
        ]

    def up(self) -> Tunnel:
        """Start both daemons and wait for the session."""
        self.server.start().wait_ready()
        self.client.start().wait_ready().wait_session()
        return self

    def said(self) -> str:
        return "".join(f"--- {daemon.profile}\n{daemon.said()}" for daemon in self.daemons)

    def close(self) -> None:
        """End everything; an AssertionError names what a daemon left behind."""
        try:
            statuses, late = {}, []
            for daemon in reversed(self.daemons):
                try:
                    statuses[daemon.profile] = daemon.stop()
                except RuntimeError as error:
                    late.append(str(error))
            assert not late, late
            left = left_behind(self.directory, self.pin_dir)
            for daemon in self.daemons:
                if f" {daemon.profile}:" in daemon.namespace.ip("-o", "link"):
                    left.append(f"device {daemon.profile}")
            assert not left, f"left behind: {left}\n{self.said()}"
            assert set(statuses.values()) <= {0}, f"exit statuses {statuses}\n{self.said()}"
        finally:
            self.stack.close()

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        error.add_note(self.said()[-6000:])
        try:
            self.close()
        except (AssertionError, RuntimeError) as second:
            error.add_note(f"while closing: {second}")
