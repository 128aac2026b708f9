"""The text of ``show``, in the manner of ``wg show``: drawn from the JSON object of a device and nothing else.

Everything printed has passed ``clean``: names and texts come from the network too, and a terminal obeys escape codes.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qre.cli.show.columns import folded
from qre.cli.show.session_table import MOST_WHOLE, UNKNOWN, client_lines, session_table
from qre.wire.overhead import BASE_UDP_PAYLOAD, MIN_MTU_IPV6, path_mtu

Line = tuple[str, str]

#: A search for the path's MTU takes no longer, unless packets are lost.
_SEARCH_MS = 10_000
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SPANS = ((86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second"))


def render(devices: Sequence[Mapping[str, Any]], *, now: float | None = None, colour: bool | None = None) -> str:
    """The whole text; ``now`` is unix time, ``colour`` defaults to ``wants_colour``."""
    moment = time.time() if now is None else now
    paint = _Paint(wants_colour() if colour is None else colour)
    return "\n".join(_device(device, moment, paint) for device in devices)


def render_client(device: Mapping[str, Any], *, now: float | None = None, colour: bool | None = None) -> str:
    """The one client that is left in ``device``, with its sessions."""
    moment = time.time() if now is None else now
    paint = _Paint(wants_colour() if colour is None else colour)
    (client,) = device["clients"]
    parts = [paint.title("client", clean(client["name"] or client["short_id"]))]
    parts += [paint.line(label, clean(text)) for label, text in client_lines(client, moment)]
    return "\n".join([*parts, *_sessions(device, paint)]) + "\n"


def wants_colour() -> bool:
    """Whether standard output is a terminal whose user has nothing against colour (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class _Paint:
    """Bold and colour, on a terminal only."""

    def __init__(self, on: bool) -> None:
        self.on = on

    def title(self, kind: str, name: str) -> str:
        return f"\033[32m\033[1m{kind}\033[0m: \033[32m{name}\033[0m" if self.on else f"{kind}: {name}"

    def line(self, label: str, text: str) -> str:
        whole = folded(text, len(f"  {label}: "))
        return f"  \033[1m{label}\033[0m: {whole}" if self.on else f"  {label}: {whole}"


def clean(text: object) -> str:
    """Without control characters: an outsider's must not reach the terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in str(text))


def _device(device: Mapping[str, Any], now: float, paint: _Paint) -> str:
    parts = [paint.title("interface", clean(device["device"]))]
    parts += [paint.line(label, clean(text)) for label, text in _device_lines(device, now)]
    if device["role"] == "server" and len(device.get("sessions") or ()) > MOST_WHOLE:
        table = (clean(line) for line in session_table(device).splitlines())
        return "\n".join([*parts, "", *table]) + "\n"
    return "\n".join([*parts, *_sessions(device, paint)]) + "\n"


def _sessions(device: Mapping[str, Any], paint: _Paint) -> Iterator[str]:
    for session in device.get("sessions") or ():
        yield from ("", paint.title("session", clean(str(session["session_id"])[:16])))
        yield from (paint.line(label, clean(text)) for label, text in _session_lines(session))


def _device_lines(device: Mapping[str, Any], now: float) -> Iterator[Line]:
    yield (
        "profile",
        f"{device['profile'] or '(none)'} ({device['role'] or 'no role'}, {device['dataplane']} data plane)",
    )
    yield "status", device["status"] or ("up" if device["up"] else "down")
    yield from _absent_lines(device)
    yield "address", ", ".join(device["address"]) or "(none)"
    yield "mtu", f"{device['mtu']}" + ("" if device.get("link_up") is not False else ", link down")
    if device.get("restored"):
        yield "put back", ", ".join(f"{part} {count}" for part, count in sorted(device["restored"].items()))
    if device.get("listen"):
        yield "listening on", device["listen"]
    yield from _endpoint_lines(device)
    if device.get("server_name"):
        yield "server name", device["server_name"]
    if device.get("allowed_ips"):
        yield "allowed ips", ", ".join(device["allowed_ips"])
    if device.get("persistent_keepalive"):
        yield "persistent keepalive", f"every {plural(device['persistent_keepalive'], 'second')}"
    yield from _counter_lines(device.get("counters"), device.get("rates"))
    yield from _handshake_lines(device)
    yield from _dest_lines(device, now)
    yield from _steering_lines(device)
    if device.get("processes"):
        yield "processes", ", ".join(_process(process) for process in device["processes"])


def _endpoint_lines(device: Mapping[str, Any]) -> Iterator[Line]:
    """A client's server, or all of its servers and which of them it has, as the status says."""
    several = device.get("endpoints") or ()
    if len(several) > 1:
        connected = str(device["status"]).partition(";")[0].removeprefix("connected to ")
        told = (f"{each} (connected)" if device["up"] and each == connected else each for each in several)
        yield "endpoints", ", ".join(told)
    elif device.get("endpoint"):
        yield "endpoint", device["endpoint"]


def _absent_lines(device: Mapping[str, Any]) -> Iterator[Line]:
    """What a worker of the daemon knows that is being restarted."""
    if device.get("daemon_pid") is None:
        return
    keys = ("sessions", "clients") if device["role"] == "server" else ("sessions",)
    absent = [key for key in keys if device.get(key, ()) is None]
    if absent:
        yield " and ".join(absent), f"{UNKNOWN}: a worker is being restarted"


def _counter_lines(counters: Mapping[str, Any] | None, rates: Mapping[str, float] | None) -> Iterator[Line]:
    if not counters:
        return
    yield from _transfer_lines(counters, rates)
    drops = {reason: count for reason, count in counters.get("drops", {}).items() if count}
    if drops:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(drops.items()))
        yield "dropped", f"{sum(drops.values())} ({reasons})"


def _transfer_lines(counters: Mapping[str, Any], rates: Mapping[str, float] | None) -> Iterator[Line]:
    """Traffic counters; with ``rates`` (of `watch`) also the amounts per second."""
    yield "transfer", f"{size(counters['rx_bytes'])} received, {size(counters['tx_bytes'])} sent"
    yield "packets", f"{counters['rx_packets']} received, {counters['tx_packets']} sent"
    if rates:
        octets = [f"{size(round(rates[f'{way}_bytes']))}/s" for way in ("rx", "tx")]
        packets = [f"{rates[f'{way}_packets']:.0f} packets/s" for way in ("rx", "tx")]
        yield "rate", f"{octets[0]} ({packets[0]}) received, {octets[1]} ({packets[1]}) sent"


def _handshake_lines(device: Mapping[str, Any]) -> Iterator[Line]:
    counted = device.get("handshake")
    if not counted:
        return
    if device["role"] == "server":
        relayed = f"{counted['relay_flows']} relayed now, {counted['pending_flows']} undecided"
        yield "handshakes", f"{counted['handshakes']} accepted, {counted['strangers']} strangers ({relayed})"
        if counted.get("excesses"):
            told = (f"{count} of {what}" for what, count in sorted(counted["excesses"].items()))
            yield "ended for too many", ", ".join(told)
    else:
        yield "handshakes", f"{counted['handshakes']} completed"
    yield "rekeys", f"{counted['rekeys']}"


def _dest_lines(device: Mapping[str, Any], now: float) -> Iterator[Line]:
    if device.get("dest"):
        yield "dest", f"{device['dest']}"
    yield from _site_tcp_lines(device.get("site_tcp"))
    yield from _forward_lines(device.get("forward"))
    profile = device.get("dest_profile")
    if not profile:
        return
    checked = f"checked {ago(max(0.0, now - profile['checked_at']))}"
    if not profile["reachable"]:
        yield "dest profile", f"not reachable, {checked}"
    else:
        parts = [profile.get("address"), f"{profile['rtt_ms']} ms"]
        parts += [profile.get(key) for key in ("cipher", "group", "alpn")]
        parts.append(f"connection IDs of {plural(profile['scid_length'], 'byte')}")
        yield "dest profile", f"reachable, {checked}: " + ", ".join(str(part) for part in parts if part)
    for warning in profile.get("warnings", ()):
        yield "dest warning", warning


def _site_tcp_lines(ports: Sequence[Mapping[str, Any]] | None) -> Iterator[Line]:
    if ports is None:
        return
    if not ports:
        yield "tcp to dest", "off"
    passed = [port for port in ports if not port["why"]]
    if passed:
        told = (f"{_tcp_port(port)} ({plural(port['connections'], 'connection')})" for port in passed)
        yield "tcp to dest", ", ".join(told)
    for why in dict.fromkeys(port["why"] for port in ports if port["why"]):
        yield "tcp not passed", f"{', '.join(_tcp_port(port) for port in ports if port['why'] == why)}: {why}"


def _tcp_port(port: Mapping[str, Any]) -> str:
    return f"{port['port']}{' over IPv6' if port['ip'] == 6 else ''}"


def _forward_lines(forward: Mapping[str, Any] | None) -> Iterator[Line]:
    if forward is None or forward["mode"] == "off":
        return
    if forward["why"]:
        yield "not forwarded", forward["why"]
        return
    versions = "IPv4 and IPv6" if forward["ipv6"] else "IPv4"
    yield "forwards", f"{versions} by {', '.join(forward['uplinks'])} ({forward['mode']})"
    for chain in forward["closed"]:
        yield "may be dropped", f"by the chain {chain}, unless a rule lets it pass; see `qre-tool check`"


def _steering_lines(device: Mapping[str, Any]) -> Iterator[Line]:
    """The server's side of the shared port."""
    known = device["dataplane"] == "kernel" and device.get("sessions") is not None
    if device["role"] != "server" or not (known or device.get("daemon_pid") is not None):
        return
    if device.get("adopted_cids") is not None:
        yield "connection ids", f"{len(device['adopted_cids'])} adopted"
    yield "bpf map", _map_text(device.get("cid_map"))
    shared = device.get("shared_socket")
    if shared:
        yield "shared socket", _socket_text(shared)
    loader = device.get("shared_loader")
    if loader:
        attached = "attached" if loader["attached"] else "not attached"
        whose = f"; it belongs to {loader['front']}, the front of this port" if loader.get("front") else ""
        length = loader["routed_cid_len"]
        cids = f"of {length} bytes" if length else "that Dest chooses"
        yield "shared loader", f"{loader['program']} {attached}, connection IDs {cids}{whose}"


def _map_text(mapped: Mapping[str, Any] | None) -> str:
    if mapped is None:
        return "unknown: the loader is being restarted"
    if not mapped["registered"]:
        return "none"
    state = {True: "in sync", False: "not in sync", None: f"in sync or not is {UNKNOWN}"}[mapped["in_sync"]]
    failures = f", {plural(mapped['sync_failures'], 'failure')}" if mapped["sync_failures"] else ""
    where = mapped["path"] or f"map {mapped['id']}"
    return f"{where}: {plural(mapped['entries'], 'entry', 'entries')}, {state}{failures}"


def _socket_text(shared: Mapping[str, Any]) -> str:
    if not shared["registered"]:
        return "none"
    if "rx_packets" not in shared:
        return str(shared["local"])
    return f"{shared['local']}: {shared['rx_packets']} packets received, {shared['passed_packets']} passed on"


def _process(process: Mapping[str, Any]) -> str:
    pid = f" {process['pid']}" if process.get("pid") else ""
    stage = "" if process["stage"] == "ready" else f" {process['stage']}"
    restarts = process.get("restarts") or 0
    again = f" (restarted {plural(restarts, 'time')})" if restarts else ""
    return f"{process['role']}{pid}{stage}{again}"


def _session_lines(session: Mapping[str, Any]) -> Iterator[Line]:
    yield "state", f"{session['state']} for {span(session['age_ms'] / 1000)}"
    yield "endpoint", session["endpoint"]
    yield "connection id", session["connection_id"]
    others = [cid for cid in session.get("cids", ()) if cid != session["connection_id"]]
    if others:
        yield "spare connection ids", ", ".join(others)
    yield "client's connection id", session["client_connection_id"] or "(empty)"
    if session.get("client") or not session["short_id"]:
        yield "client", session.get("client") or UNKNOWN
    else:
        yield "short id", session["short_id"]
    yield "allowed ips", ", ".join(session["allowed_ips"]) or "(all)"
    last = session["last_receive_ms"]
    yield "last receive", "never" if last is None else ago(last / 1000)
    if session.get("health") == "silent":
        yield "answers", f"none for {span(session['unanswered_ms'] / 1000)}, though packets were sent"
    if session.get("tx_lost"):
        whole = session["tx_lost"] + session["tx_acknowledged"]
        yield "lost", f"{session['tx_lost']} of {plural(whole, 'packet')} sent"
    yield from _path_lines(session)
    yield from _transfer_lines(session, session.get("rates"))
    numbers = f"next sent {session['tx_packet_number']}, highest received {session['rx_packet_number']}"
    yield "key epoch", f"{session['key_epoch']}; packet numbers: {numbers}"


def _path_lines(session: Mapping[str, Any]) -> Iterator[Line]:
    """The path MTU, and the largest inner packets."""
    outer, inner = session.get("path_mtu"), session.get("inner_mtu")
    if outer is None or inner is None:
        return
    smallest = path_mtu(BASE_UDP_PAYLOAD, session["endpoint"])
    limit = " (larger ones do not pass)" if outer == smallest and session["age_ms"] > _SEARCH_MS else ""
    ipv6, in_two = session.get("inner_mtu_ipv6"), session.get("inner_mtu_in_two")
    if in_two:
        limit += f", up to {in_two} in two datagrams"
    elif (inner if ipv6 is None else ipv6) < MIN_MTU_IPV6:
        limit += f"; IPv6 inside is refused, it needs {MIN_MTU_IPV6}"
    elif ipv6 is not None and ipv6 > inner:
        limit += f", of IPv6 up to {ipv6}: such datagrams are larger than a browser's"
    yield "path mtu", f"{plural(outer, 'byte')}, inner packets up to {inner}{limit}"


def size(count: int) -> str:
    """Bytes as a person reads them: ``1.25 MiB``."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.2f} {_UNITS[unit]}" if unit else f"{count} B"


def plural(count: int, word: str, words: str = "") -> str:
    """``1 session``, ``2 sessions``; ``words`` is the plural where an s does not make it."""
    return f"{count} {word if count == 1 else words or word + 's'}"


def span(seconds: float) -> str:
    """A length of time in its two largest units: ``2 hours, 5 minutes``."""
    left, parts = int(seconds), []
    for length, word in _SPANS:
        if count := left // length:
            parts.append(plural(count, word))
        left %= length
    return ", ".join(parts[:2]) or "0 seconds"


def ago(seconds: float) -> str:
    """``seconds`` as ``3 minutes ago``; ``now`` below one second."""
    return f"{span(seconds)} ago" if seconds >= 1 else "now"
