"""The object of ``show`` as OpenMetrics: what each number is called, and which labels it has.

Labels are names of this machine's configuration: device, profile, worker, reason. No address, no key and no short id
is a label, and names of clients are only where MetricsClientNames is on. What a worker that is being restarted would
know is left out, as Prometheus expects it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Description = Mapping[str, Any]
Labels = dict[str, str]

_TRAFFIC = {
    "rx_bytes": ("qre_received_bytes", "Bytes of inner packets received."),
    "tx_bytes": ("qre_sent_bytes", "Bytes of inner packets sent."),
    "rx_packets": ("qre_received_packets", "Inner packets received."),
    "tx_packets": ("qre_sent_packets", "Inner packets sent."),
}
_HANDSHAKES = {
    "handshakes": ("qre_handshakes", "Handshakes of clients."),
    "strangers": ("qre_strangers", "Visitors of a server who are not its clients."),
    "rekeys": ("qre_rekeys", "Changes of session keys."),
}
_FLOWS = {
    "relay_flows": ("qre_relay_flows", "Visitors that are relayed to Dest now."),
    "pending_flows": ("qre_pending_flows", "Visitors about whom nothing is decided yet."),
}


class DeviceMetrics:
    """A collector of prometheus_client. ``devices`` are objects of ``show``; ``names``: each client by name, too."""

    def __init__(self, devices: Sequence[Description], *, names: bool) -> None:
        self._devices = devices
        self._names = names

    def collect(self) -> Iterator[Metric]:
        """Every family that has a sample."""
        families = _Families()
        for device in self._devices:
            labels = {"device": device["device"]}
            _state(families, device, labels)
            _traffic(families, device, labels)
            _handshakes(families, device, labels)
            _dest(families, device, labels)
            _workers(families, device, labels)
            if device.get("clients") is not None:
                _clients(families, device["clients"], labels, names=self._names)
        return iter(families)


class _Families:
    """Families by name, in the order of their first sample."""

    def __init__(self) -> None:
        self._found: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}

    def __iter__(self) -> Iterator[Metric]:
        return iter(self._found.values())

    def gauge(self, name: str, meaning: str, labels: Labels, value: float) -> None:
        """A number that goes up and down."""
        family = self._found.setdefault(name, GaugeMetricFamily(name, meaning, labels=list(labels)))
        family.add_metric(list(labels.values()), float(value))

    def counter(self, name: str, meaning: str, labels: Labels, value: float) -> None:
        """A number that only grows until its process ends; its sample's name ends in ``_total``."""
        family = self._found.setdefault(name, CounterMetricFamily(name, meaning, labels=list(labels)))
        family.add_metric(list(labels.values()), float(value))


def _state(families: _Families, device: Description, labels: Labels) -> None:
    told = {
        **labels,
        "profile": device["profile"] or "",
        "role": device["role"] or "",
        "dataplane": device["dataplane"],
    }
    families.gauge("qre_device_info", "The devices there are; always 1.", told, 1)
    if device["up"] is not None:
        families.gauge("qre_up", "1: a server serves, a client has a session.", labels, bool(device["up"]))
    sessions = device["sessions"]
    if sessions is not None:
        silent = sum(one.get("health") == "silent" for one in sessions)
        families.gauge("qre_sessions", "Sessions now.", labels, len(sessions))
        families.gauge("qre_silent_sessions", "Sessions in which nothing is answered.", labels, silent)
    for part, count in sorted((device.get("restored") or {}).items()):
        meaning = "Parts of the device that another program took away and that were put back."
        families.counter("qre_put_back", meaning, {**labels, "part": part}, count)
    for port in device.get("site_tcp") or ():
        if not port["why"]:
            numbered = {**labels, "port": str(port["port"]), "ip": str(port["ip"])}
            families.counter("qre_site_tcp_connections", "TCP connections to Dest.", numbered, port["connections"])


def _traffic(families: _Families, device: Description, labels: Labels) -> None:
    counters = device["counters"]
    if counters is None:
        return
    for key, (name, meaning) in _TRAFFIC.items():
        families.counter(name, meaning, labels, counters[key])
    for reason, count in sorted(counters.get("drops", {}).items()):
        families.counter("qre_dropped_packets", "Packets dropped.", {**labels, "reason": reason}, count)


def _handshakes(families: _Families, device: Description, labels: Labels) -> None:
    counted = device["handshake"]
    if counted is None:
        return
    server = device["role"] == "server"
    for key, (name, meaning) in _HANDSHAKES.items():
        if server or key != "strangers":
            families.counter(name, meaning, labels, counted[key])
    if not server:
        return
    for key, (name, meaning) in _FLOWS.items():
        families.gauge(name, meaning, labels, counted[key])
    for bound, count in sorted((counted.get("excesses") or {}).items()):
        meaning = "Handshakes and visitors that were ended for too much of something."
        families.counter("qre_excesses", meaning, {**labels, "bound": bound}, count)


def _dest(families: _Families, device: Description, labels: Labels) -> None:
    profile = device["dest_profile"]
    if not profile:
        return
    families.gauge("qre_dest_reachable", "1: Dest answered the last visit.", labels, bool(profile["reachable"]))
    checked = "Unix time of the last visit to Dest."
    families.gauge("qre_dest_checked_timestamp_seconds", checked, labels, profile["checked_at"])
    warnings = "What is wrong with Dest, as show says."
    families.gauge("qre_dest_warnings", warnings, labels, len(profile.get("warnings", ())))
    if profile["reachable"]:
        families.gauge("qre_dest_round_trip_seconds", "To Dest and back.", labels, profile["rtt_ms"] / 1000)


def _workers(families: _Families, device: Description, labels: Labels) -> None:
    for worker in device["processes"]:
        named = {**labels, "worker": worker["role"]}
        families.gauge("qre_worker_ready", "1: the worker does its work.", named, worker["stage"] == "ready")
        families.counter("qre_worker_restarts", "Starts after the first.", named, worker["restarts"])
        dropped = "Messages that the worker may not send, or sent at a wrong time."
        families.counter("qre_worker_dropped_messages", dropped, named, worker["dropped_messages"])
        resident = _resident(worker["pid"])
        if resident is not None:
            families.gauge("qre_worker_resident_memory_bytes", "Memory of the worker.", named, resident)


def _resident(pid: int | None) -> int | None:
    """Bytes of memory (VmRSS of proc(5)); None when the process is gone or hidden."""
    if pid is None:
        return None
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _clients(families: _Families, clients: Iterable[Description], labels: Labels, *, names: bool) -> None:
    known = list(clients)
    families.gauge("qre_clients", "Clients of the profile.", labels, len(known))
    connected = sum(bool(one["connected"]) for one in known)
    families.gauge("qre_connected_clients", "Clients with a session.", labels, connected)
    if not names:
        return
    for client in known:
        if client["name"] is None:  # its short id is a secret
            continue
        named = {**labels, "client": client["name"]}
        families.gauge("qre_client_connected", "1: the client has a session.", named, bool(client["connected"]))
        if client["last_seen"] is not None:
            seen = "Unix time at which the client was last heard."
            families.gauge("qre_client_last_seen_timestamp_seconds", seen, named, client["last_seen"])
        for key, (name, meaning) in _TRAFFIC.items():
            of_client = f"qre_client_{name.removeprefix('qre_')}"
            families.counter(of_client, f"{meaning[:-1]} in all sessions of the client.", named, client[key])
