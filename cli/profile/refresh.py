"""``refresh``: measures a server's Dest as a browser would, saves the result and prints it.

The result is stored with the device in qre.ko (whose data plane takes its ECN field from it) and in the profile's
cache, which a daemon reads when it starts. A Dest that cannot be reached is an error, printed after the last known
result.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator

import msgspec

from qre.cli.commands import Options
from qre.cli.show.show import device as describe
from qre.cli.show.show_text import ago, clean, plural
from qre.config.model import GlobalConfig, HostPort
from qre.config.profile import load_profile
from qre.config.settings import load_global
from qre.config.values import parse_host_port
from qre.dest_profile import DestProfile, dest_profile_file, read_dest_profile
from qre.device.control_client import DEST_FOUND, SHOW_TIMEOUT, NoDaemonError, ask_daemon
from qre.device.state import write_atomically
from qre.errors import MachineError, UntrustedInputError, UserError
from qre.kernel.capabilities import require_capabilities
from qre.quic.client.drawbacks import Weight, drawbacks_of

_WIDTH = 18


def refresh(arguments: list[str], options: Options) -> int:
    """``refresh DEVICE`` (a profile's name will do)."""
    config = load_global(os.environ)
    described = describe(config, arguments[0])
    name, profile = described["device"], described["profile"]
    if described["role"] != "server":
        raise UserError(
            f"device {name}", "it is a client device, and only a server has a Dest", "refresh the server's device"
        )
    require_capabilities("refresh", ("CAP_NET_ADMIN",))
    dest, server_name = _dest(described, config)
    last = _last(described, config)
    error: MachineError | None = None
    try:
        found = look_at(dest, server_name)
    except MachineError as failed:
        error = failed
        before = (last or DestProfile(reachable=False, checked_at=0)).without_visits()
        warnings = (str(failed)[:512],)
        found = msgspec.structs.replace(before, reachable=False, checked_at=int(time.time()), warnings=warnings)
    _keep(config, name, profile, described["dataplane"], found)
    _tell_daemon(config, described, found)
    for label, text in _lines(dest, server_name, found, last if error is not None else found, config):
        print(f"{label + ':':<{_WIDTH}} {clean(text)}")
    if error is not None:
        raise MachineError(f"Dest {dest}", f"it cannot be reached: {error}", "check that it answers HTTP/3 from here")
    bad = [each.why for each in drawbacks_of(found) if each.weight is Weight.UNUSABLE]
    if bad:
        raise MachineError(f"Dest {dest}", "; ".join(bad), "choose another Dest: see `qre-tool help find-dest`")
    return 0


def _tell_daemon(config: GlobalConfig, described: dict[str, object], found: DestProfile) -> None:
    """A running daemon takes what was found, or looks again itself when nothing was."""
    if described["daemon_pid"] is None:
        return
    told = {"dest": described["dest"], "server_name": described["server_name"], "profile": msgspec.to_builtins(found)}
    with contextlib.suppress(NoDaemonError):  # it has ended in the meantime
        ask_daemon(config, str(described["device"]), DEST_FOUND, SHOW_TIMEOUT, told)


def _dest(described: dict[str, object], config: GlobalConfig) -> tuple[HostPort, str]:
    """Dest and ServerName from the device's daemon, the kernel, or else the profile."""
    dest, server_name = described["dest"], described["server_name"]
    if isinstance(dest, str) and isinstance(server_name, str) and dest and server_name:
        return parse_host_port(dest), server_name
    profile = described["profile"]
    server = load_profile(str(profile), config, os.environ).server if profile else None
    if server is None:
        raise UserError(
            f"device {described['device']}",
            "it has no Dest",
            "apply a server configuration to it with `qre-tool syncconf`",
        )
    return server.dest, server.server_name


def _last(described: dict[str, object], config: GlobalConfig) -> DestProfile | None:
    """The last result."""
    if described["dest_profile"] is not None:
        try:
            return msgspec.convert(described["dest_profile"], DestProfile)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None
    return _stored(config, str(described["profile"])) if described["profile"] else None


def _stored(config: GlobalConfig, profile: str) -> DestProfile | None:
    """The last stored result, with its visits."""
    try:
        return read_dest_profile(dest_profile_file(config.state_dir, profile))
    except (OSError, UntrustedInputError):
        return None


def look_at(dest: HostPort, server_name: str) -> DestProfile:
    """One visit. Raises MachineError when Dest cannot be measured."""
    from qre.visit.dest import resolve
    from qre.visit.probe import probe, probe_any
    from qre.visit.visitor_files import load_fingerprint, load_trust

    async def visit() -> DestProfile:
        fingerprint, trust = load_fingerprint(), load_trust()
        found = await resolve(dest.host, dest.port)
        _, seen = await probe_any(
            found, lambda at, patience: probe(at, server_name, fingerprint, trust, patience, comes_back=True)
        )
        return msgspec.structs.replace(seen, dest=str(dest))

    return asyncio.run(visit())


def _keep(config: GlobalConfig, device: str, profile: str | None, dataplane: str, found: DestProfile) -> None:
    if dataplane == "kernel":
        from qre.kernel.port_registration import store_dest_profile
        from qre.kernel.qre_family import Qre

        with Qre() as qre:
            store_dest_profile(qre, device, found)
    if profile:
        path = dest_profile_file(config.state_dir, profile)
        data = msgspec.json.encode(found.after(_stored(config, profile)))
        try:
            config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, data)
        except OSError as error:
            raise MachineError(f"Dest profile {path}", error.strerror or str(error), "see StateDir") from error


def _lines(
    dest: HostPort, server_name: str, found: DestProfile, known: DestProfile | None, config: GlobalConfig
) -> Iterator[tuple[str, str]]:
    """``found``: the result of this visit; ``known``: the newest successful one, which is printed."""
    yield "dest", f"{dest}, server name {server_name}"
    yield "reachable", "yes" if found.reachable else "no"
    yield "profile", _freshness(known, config)
    if known is not None and known.scid_length:
        yield from _facts(known)
    for warning in found.warnings:
        yield "warning", warning


def _freshness(known: DestProfile | None, config: GlobalConfig) -> str:
    if known is None or not known.checked_at:
        return "none yet"
    age = max(0.0, time.time() - known.checked_at)
    fresh = known.reachable and age * 1000 < config.dest_profile_ttl_ms
    return f"{'fresh' if fresh else 'stale'}, checked {ago(age)}"


def _facts(known: DestProfile) -> Iterator[tuple[str, str]]:
    if known.address:
        yield "address", known.address
    yield "round trip", f"{known.rtt_ms} ms, first byte after {known.first_byte_ms} ms"
    yield "versions", "QUIC v1, TLS 1.3"
    yield "cipher", known.cipher or "not known"
    yield "group", known.group or "not known"
    yield "alpn", known.alpn or "not known"
    flights = ", ".join(map(str, known.flight_datagram_lengths)) or "not known"
    yield "flight", f"{plural(known.handshake_flight_length, 'byte')} of handshake; datagrams of {flights} bytes"
    if known.session_ticket_lengths is not None:
        yield "session tickets", ", ".join(map(str, known.session_ticket_lengths)) or "none"
    yield "certificate chain", _chain(known)
    yield "connection ids", f"of {plural(known.scid_length, 'byte')}"
    yield "ecn", str(known.ecn)
    yield "http status", str(known.http_status) if known.http_status else "no answer"


def _chain(known: DestProfile) -> str:
    length = plural(known.certificate_chain_length, "byte")
    if not known.certificate_expires_at:
        return length
    return f"{length}, expires {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(known.certificate_expires_at))}"
