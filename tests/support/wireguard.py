"""wireguard-go between two namespaces: the peer that QRE's user data plane is measured beside."""

from __future__ import annotations

import json
import secrets
import subprocess
from pathlib import Path
from types import TracebackType

from tests.support.daemons import PATIENCE, wait_for
from tests.support.namespaces import Namespace, run

CLIENT, SERVER = "10.91.0.2", "10.91.0.1"


class WireguardGo:
    """A tunnel of wireguard-go over the addresses given, up while the context lasts."""

    def __init__(self, client: Namespace, server: Namespace, server_address: str, directory: Path) -> None:
        self.ends: list[tuple[Namespace, str]] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        keys = {name: run("wg", "genkey").strip() for name in ("client", "server")}
        public = {
            name: subprocess.run(
                ["wg", "pubkey"], input=key, text=True, capture_output=True, check=True
            ).stdout.strip()
            for name, key in keys.items()
        }
        try:
            self._end(server, "server", keys["server"], public["client"], SERVER, CLIENT, directory, "")
            self._end(client, "client", keys["client"], public["server"], CLIENT, SERVER, directory, server_address)
        except BaseException:
            self.close()
            raise

    def _end(
        self,
        namespace: Namespace,
        name: str,
        key: str,
        peer: str,
        own: str,
        other: str,
        directory: Path,
        endpoint: str,
    ) -> None:
        device = f"wg{secrets.token_hex(4)}"
        key_file = directory / f"wg-{name}.key"
        key_file.touch(mode=0o600)
        key_file.write_text(key)
        process = namespace.popen(
            ["wireguard-go", "-f", device], env={"WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1"}
        )
        self.processes.append(process)
        self.ends.append((namespace, device))
        socket = Path(f"/var/run/wireguard/{device}.sock")
        wait_for(f"wireguard-go's {socket.name}", socket.exists)
        command = ["wg", "set", device, "private-key", str(key_file), "listen-port", "51820"]
        command += ["peer", peer, "allowed-ips", f"{other}/32"]
        if endpoint:
            command += ["endpoint", f"{endpoint}:51820", "persistent-keepalive", "5"]
        namespace.run(*command)
        namespace.ip("addr", "add", f"{own}/24", "dev", device)
        namespace.ip("link", "set", device, "mtu", "1380", "up")

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
            process.wait(PATIENCE)
        for _, device in self.ends:
            Path(f"/var/run/wireguard/{device}.sock").unlink(missing_ok=True)

    def __enter__(self) -> WireguardGo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def tcp_rate(client: Namespace, server: Namespace, address: str, seconds: float = 3) -> float:
    """Bits a second that one iperf3 TCP stream from ``client`` delivered to ``address`` in ``server``."""
    listener = server.popen(["iperf3", "--server", "--one-off", "--bind", address])
    try:
        wait_for("iperf3", lambda: ":5201" in server.run("ss", "-Hltn"))
        answer = client.run(
            "iperf3",
            "--client",
            address,
            "--time",
            f"{seconds:g}",
            "--json",
            "--connect-timeout",
            "60000",
            timeout=seconds + PATIENCE,
        )
        return float(json.loads(answer)["end"]["sum_received"]["bits_per_second"])
    finally:
        listener.terminate()
        listener.wait(PATIENCE)
