"""What ``check`` examines in the configuration: the global file, every profile, and what one profile needs elsewhere.

A server's Dest is visited and its port bound for a moment; a client's Endpoint is looked up.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from qre.addresses import default_versions, host_port
from qre.cli.check.findings import AS_ROOT, Finding, Findings, YesNo, refused
from qre.config.model import ClientSettings, GlobalConfig, Profile, ServerSettings
from qre.config.profile import SUFFIX, load_profile, profile_path
from qre.config.settings import DEFAULT_PATH, load_global
from qre.config.values import is_profile_name
from qre.errors import QreError
from qre.quic.server.identities import identities_of

#: At most this many profiles are examined.
_MOST_PROFILES = 200
_VERSION_6 = 6
_IPV6 = "/proc/net/if_inet6"  # exists where the kernel has IPv6
#: What the packets of a session say when it is of no use (``qre.dataplane.health.Health``).
_ILL = ("silent", "lossy")


def global_file() -> tuple[GlobalConfig, Finding]:
    """The global configuration, or its defaults where it is wrong."""
    path = os.environ.get("QRE_GLOBAL_CONFIG") or DEFAULT_PATH
    try:
        config = load_global(os.environ)
    except QreError as error:
        directory = os.environ.get("QRE_CONFIG_DIR")
        config = GlobalConfig(config_dir=Path(directory).absolute()) if directory else GlobalConfig()
        return config, refused("global file", error)
    seen = path if os.path.exists(path) else f"{path} does not exist: every key has its default"
    return config, Finding("global file", YesNo.YES, seen)


def profiles(config: GlobalConfig) -> Findings:
    """Every profile of the configuration directory."""
    directory = config.config_dir
    try:
        names = sorted(name.removesuffix(SUFFIX) for name in os.listdir(directory) if name.endswith(SUFFIX))
    except FileNotFoundError:
        names = []
    except OSError as error:
        unseen = isinstance(error, PermissionError) and os.geteuid() != 0
        answer, remedy = (YesNo.UNKNOWN, AS_ROOT) if unseen else (YesNo.NO, "see QRE_CONFIG_DIR")
        yield Finding("profiles", answer, f"{directory}: {error.strerror}", remedy)
        return
    names = [name for name in names if is_profile_name(name)]
    if not names:
        remedy = "create a pair with `qre-tool init Endpoint=HOST:PORT Dest=HOST:PORT`"
        yield Finding(
            "profiles", YesNo.NO, f"there is none in {directory}", remedy, "the machine can run QRE without one"
        )
    for name in names[:_MOST_PROFILES]:
        yield profile(name, config)[1]


def profile(name: str, config: GlobalConfig) -> tuple[Profile | None, Finding]:
    """The profile, if it is valid, and the finding."""
    path = profile_path(name, config)
    label = f"profile {name}"
    try:
        loaded = load_profile(name, config, os.environ)
    except QreError as error:
        if os.geteuid() != 0 and not _readable(path):
            return None, Finding(label, YesNo.UNKNOWN, f"{path}: {os.strerror(13)}", AS_ROOT)
        return None, refused(label, error)
    end = f"listens on {loaded.server.listen}" if loaded.server else ""
    end = f"connects to {' or '.join(map(str, loaded.client.endpoints))}" if loaded.client else end
    nobodys = ", ".join(str(network) for network in identities_of(loaded).unowned)
    if nobodys:
        end += f"; AllowedIPs {nobodys}: no client has it, name the one that does in a section [Client NAME]"
    return loaded, Finding(label, YesNo.YES, f"{path}: {loaded.role} {loaded.device}, {end}")


def _readable(path: str) -> bool:
    """Whether the file can be read, or certainly does not exist."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return os.access(path, os.R_OK)


def ipv6(loaded: Profile) -> Findings:
    """Whether the machine takes the profile's IPv6 addresses and routes; nothing for a profile without any."""
    from qre.causes import WORDS, Cause

    inside = [str(each) for each in (*loaded.address, *loaded.allowed_ips) if each.version == _VERSION_6]
    if not inside:
        return
    cause = None if os.path.exists(_IPV6) else Cause.IPV6_MISSING
    if cause is None and any(_switched_off(which) for which in ("all", "default")):
        cause = Cause.IPV6_OFF
    if cause is None:
        yield Finding("ipv6", YesNo.YES, f"it is switched on, for {', '.join(inside)}")
    else:
        yield Finding("ipv6", YesNo.NO, f"{WORDS[cause].why}, for {', '.join(inside)}", WORDS[cause].remedy)


def default_route(loaded: Profile) -> Findings:
    """Whether a server's own way out leads to a client; nothing for a profile that leaves it alone."""
    versions = default_versions(loaded.routes)
    if loaded.server is None or not versions:
        return
    ways = " and ".join(f"IPv{version}" for version in versions)
    sections = [f"[Client {one.name}]" for one in loaded.server.clients if default_versions(one.allowed_ips)]
    seen = f"this server's own default route of {ways} leads into the tunnel, by AllowedIPs"
    seen += f" of {', '.join(sections)}" if sections else ""
    remedy = "write the networks behind the client there; what clients send through the tunnel is ClientAllowedIPs"
    yield Finding("default route", YesNo.NO, seen, remedy, "it is right where this machine goes out by that client")


def _switched_off(which: str) -> bool:
    try:
        with open(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6", "rb") as file:
            return file.read(1) == b"1"
    except OSError:
        return False


def tunnel(name: str, config: GlobalConfig) -> Findings:
    """What the packets of a running daemon say; nothing where none runs."""
    from qre.cli.show.show import daemon_of

    described = daemon_of(config, name)
    if described is None:
        return
    ill = [each for each in described["sessions"] or () if each.get("health") in _ILL]
    passes = described["role"] == "server" or (described["up"] and not ill)
    remedy = "see its log; is UDP to the other end allowed on the whole way, and does the other end run?"
    seen = described["status"]
    if own := described.get("remedy"):  # a daemon of an earlier version does not say it
        seen, remedy = seen.replace(f"; {own}", "", 1), own
    yield Finding("tunnel", YesNo.YES if passes else YesNo.NO, seen, remedy)


def listen(loaded: Profile, settings: ServerSettings, config: GlobalConfig) -> Findings:
    """Bound and released, unless the profile is up and holds it itself."""
    from qre.kernel.udp.underlay_sockets import require_free

    try:
        require_free(str(settings.listen.ip), settings.listen.port, settings.listen.several)
    except QreError as error:
        yield _own_port(loaded, settings, config) or refused("listen", error)
    else:
        yield Finding("listen", YesNo.YES, f"UDP {settings.listen} is free")


def _own_port(loaded: Profile, settings: ServerSettings, config: GlobalConfig) -> Finding | None:
    """The port is held by this profile, or only root can tell; None when another program holds it."""
    from qre.cli.show.show import devices

    try:
        shown = devices(config)
    except QreError as error:
        return Finding("listen", YesNo.UNKNOWN, f"UDP {settings.listen} is taken, and {error}", AS_ROOT)
    for device in shown:
        if device["device"] == loaded.device and device["listen"] == str(settings.listen):
            return Finding("listen", YesNo.YES, f"UDP {settings.listen} is held by {loaded.device}, which is up")
    return None


def dns(settings: ClientSettings) -> Findings:
    """Whom the daemon tells of the profile's name servers."""
    from qre.device.name_servers import name_service

    if settings.dns is None:
        return
    servers = ", ".join(map(str, settings.dns.servers))
    yield Finding("dns", YesNo.YES, f"{name_service()} will be told of {servers}")


def endpoint(settings: ClientSettings) -> Findings:
    """Resolves the name of each endpoint, as attempts to connect do."""
    from qre.visit.dest import resolve

    for number, endpoint in enumerate(settings.endpoints, 1):
        name = "endpoint" if number == 1 else f"endpoint {number}"
        try:
            found = asyncio.run(resolve(endpoint.host, endpoint.port, ipv4_first=False))
        except QreError as error:
            yield refused(name, error, "check Endpoint and /etc/resolv.conf")
            continue
        addresses = ", ".join(host_port(*at) for _, at in found)
        yield Finding(name, YesNo.YES, f"{endpoint} is {addresses}")
