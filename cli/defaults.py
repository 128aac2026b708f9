"""Defaults of fields: one table for the commands, help, the manual page and docs/.

Data only; it loads nothing. ``tests/unit/test_defaults.py`` compares docs/defaults.md with it, row by row.
"""

from __future__ import annotations

PIN_DIR = "/sys/fs/bpf"
#: Both ends on one machine, for sessions that are installed: a server that listens on every address, and a client.
LOOPBACK_SERVER_IP, LOOPBACK_CLIENT = "127.0.0.1", "127.0.0.1:50443"
#: Addresses for documentation (RFC 5737), for sessions that are only printed or captured.
PATH_SERVER_IP, PATH_CLIENT = "192.0.2.1", "198.51.100.7:50443"
#: Of a session that `install-session` installs; the value is qre.ko's default.
IDLE_TIMEOUT = "30s"
WATCH_INTERVAL = "1"
FIND_DEST = {"Parallel": "8", "TimeLimit": "120s"}
#: How long `rotate-key` has a server accept the key that it had before.
ROTATE_FOR = "7d"
INIT = {
    "ServerProfile": "server0",
    "ClientProfile": "client0",
    "ServerAddress": "10.77.0.1/24",
    "ClientAddress": "10.77.0.2/24",
}

_INSTALL, _UPDATE = "install-session", "update-session"
_LOADER, _CHECK = "shared-port-loader", "shared-port-loader-check"
_DEMO, _DAEMON = "shared-port-session-demo", "shared-port-handshake-daemon"
_CLIENT = "shared-port-handshake-client"
_LOADERS = (_LOADER, _CHECK, _DEMO, _DAEMON)
_OUTER = (
    "UnderlayLocalIPv4", "UnderlayLocalPort", "UnderlayPeerIPv4", "UnderlayPeerPort", "UnderlayLocalIPv6",
    "UnderlayPeerIPv6",
)  # fmt: skip


class Default:
    """One row: fields, the commands that take them, and the default."""

    __slots__ = ("commands", "fields", "text")

    def __init__(self, fields: tuple[str, ...], commands: tuple[str, ...], text: str) -> None:
        self.fields = fields
        self.commands = commands
        self.text = text


DEFAULTS = (
    Default(("Endpoint",), ("find-dest",), "the address of this machine that packets to the site bear"),
    *(Default((field,), ("find-dest",), text) for field, text in FIND_DEST.items()),
    Default(("ServerName",), ("init",), "Dest's host"),
    Default(("Listen",), ("init",), "Endpoint when it is numeric, else 0.0.0.0 with its port"),
    *(Default((field,), ("init",), text) for field, text in INIT.items()),
    Default(("AllowedIPs",), ("init",), "every address may pass; no route is set"),
    Default(("MTU",), ("init",), "1380"),
    Default(("PersistentKeepalive",), ("init", "set"), "off"),
    Default(("RealityMaxTimeDiff",), ("init",), "60s"),
    Default(("Address",), ("add-client",), "the lowest free address of each network"),
    Default(("AllowedIPs",), ("add-client",), "no network behind the client"),
    Default(("Endpoint",), ("add-client",), "ClientEndpoint, else Listen, unless that is every address"),
    Default(
        ("Endpoint",),
        ("export", "rotate-key"),
        "the client's own, else ClientEndpoint, else Listen, unless that is every address",
    ),
    Default(("File",), ("add-client", "export"), "standard output"),
    Default(("As",), ("export",), "all on a terminal, else file"),
    Default(("For",), ("rotate-key",), ROTATE_FOR),
    Default(("Profile",), ("import",), "the client's name"),
    Default(("Interval",), ("watch",), WATCH_INTERVAL),
    Default(("Count",), ("watch",), "until Ctrl-C"),
    Default(
        ("NextRxKey", "NextRxHpKey", "NextRxIv", "NextTxKey", "NextTxIv"),
        (_INSTALL, _UPDATE),
        "none: the peer must not change keys before an update brings them",
    ),
    Default(_OUTER, (_INSTALL,), "none: a server's session uses the shared socket, a client's needs them"),
    Default(_OUTER, (_UPDATE,), "unchanged"),
    Default(("ClientConnectionId",), (_INSTALL,), "ConnectionId"),
    Default(("AllowedIPs",), (_INSTALL,), "all"),
    Default(("ClientConnectionId", "AllowedIPs"), (_UPDATE,), "unchanged; no other value is accepted"),
    Default(("IdleTimeout",), (_INSTALL,), IDLE_TIMEOUT),
    Default(("PersistentKeepalive",), (_INSTALL,), "the device's"),
    Default(("SocketFd",), (_INSTALL,), "the shared socket, or one that qre.ko opens"),
    Default(("IdleTimeout", "PersistentKeepalive", "SocketFd"), (_UPDATE,), "unchanged; no value is accepted"),
    Default(("SessionId",), ("adopt-cid", "release-cid"), "none: the device as a whole"),
    Default(
        ("ServerUnderlay",),
        ("session-plan", "session-demo"),
        f"the server's Listen, the first of IPv4, or {LOOPBACK_SERVER_IP} with its port when Listen is 0.0.0.0",
    ),
    Default(
        ("ServerUnderlay",),
        ("session-capture",),
        f"the server's Listen, the first of IPv4, or {PATH_SERVER_IP} with its port when Listen is 0.0.0.0",
    ),
    Default(("ServerUnderlay",), (_DEMO,), "the server's Listen"),
    Default(("ServerUnderlay",), (_CLIENT,), "the profile's Endpoint"),
    Default(("ClientUnderlay",), ("session-plan", "session-demo", _DEMO), LOOPBACK_CLIENT),
    Default(("ClientUnderlay",), ("session-capture",), PATH_CLIENT),
    Default(
        ("ClientUnderlay",), (_CLIENT,), f"{LOOPBACK_CLIENT} to a server on loopback, else what the kernel chooses"
    ),
    Default(("KeyLog",), ("session-capture",), "false"),
    Default(
        ("DestProfile",), ("session-plan", "session-demo", "session-capture"), "Caddy's flight, as it was measured"
    ),
    Default(("PinDir",), _LOADERS, PIN_DIR),
    Default(("RegisterCidMap",), _LOADERS, "true"),
    Default(("RoutedCidLen",), _LOADERS, "that of the global configuration; where that is dest, 20"),
    Default(("Device",), (_LOADER, _CHECK), "none: no counters are printed"),
    Default(("ReadyFile",), (_LOADER, _DEMO, _DAEMON), "none"),
    Default(("RunForMs",), (_LOADER, _DEMO, _DAEMON), "until SIGTERM or SIGINT"),
    Default(("InstallSession",), (_CLIENT,), "false"),
)


def defaults_of(command: str) -> list[Default]:
    """The rows of one command."""
    return [row for row in DEFAULTS if command in row.commands]
