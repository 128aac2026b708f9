"""What a field is when it is not given: one table, which the commands, help, the manual page and docs/ share.

Data only; it loads nothing. ``tests/unit/test_defaults.py`` compares docs/defaults.md with it, row by row.
"""

from __future__ import annotations

PIN_DIR = "/sys/fs/bpf"
#: Both ends on one machine, for sessions that are installed: a server that listens on every address, and a client.
LOOPBACK_SERVER_IP, LOOPBACK_CLIENT = "127.0.0.1", "127.0.0.1:50443"
#: A path through the Internet (RFC 5737), for what is only looked at.
PATH_SERVER_IP, PATH_CLIENT = "192.0.2.1", "198.51.100.7:50443"
#: Of a session that is installed by hand; the value is qre.ko's.
IDLE_TIMEOUT = "30s"
WATCH_INTERVAL = "1"
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
_OUTER = ("UnderlayLocalIPv4", "UnderlayLocalPort", "UnderlayPeerIPv4", "UnderlayPeerPort")


class Default:
    """One row: fields, the commands that they are of, and what they are when they are not given."""

    __slots__ = ("commands", "fields", "text")

    def __init__(self, fields: tuple[str, ...], commands: tuple[str, ...], text: str) -> None:
        self.fields = fields
        self.commands = commands
        self.text = text


DEFAULTS = (
    Default(("ServerName",), ("init",), "Dest's host"),
    Default(("Listen",), ("init",), "Endpoint when it is numeric, else 0.0.0.0 with its port"),
    *(Default((field,), ("init",), text) for field, text in INIT.items()),
    Default(("AllowedIPs",), ("init",), "all may pass, and nothing is routed"),
    Default(("MTU",), ("init",), "1380"),
    Default(("PersistentKeepalive",), ("init", "set"), "off"),
    Default(("RealityMaxTimeDiff",), ("init",), "60s"),
    Default(("Interval",), ("watch",), WATCH_INTERVAL),
    Default(("Count",), ("watch",), "until Ctrl-C"),
    Default(
        ("NextRxKey", "NextRxHpKey", "NextRxIv", "NextTxKey", "NextTxIv"),
        (_INSTALL, _UPDATE),
        "none: the peer must not change keys before an update brings them",
    ),
    Default(_OUTER, (_INSTALL,), "none: a server's session uses the shared socket, a client's needs them"),
    Default(_OUTER, (_UPDATE,), "as they are"),
    Default(("ClientConnectionId",), (_INSTALL,), "ConnectionId"),
    Default(("AllowedIPs",), (_INSTALL,), "all"),
    Default(("ClientConnectionId", "AllowedIPs"), (_UPDATE,), "as they are, and nothing else is taken"),
    Default(("IdleTimeout",), (_INSTALL,), IDLE_TIMEOUT),
    Default(("PersistentKeepalive",), (_INSTALL,), "the device's"),
    Default(("SocketFd",), (_INSTALL,), "the shared socket, or one that qre.ko opens"),
    Default(("IdleTimeout", "PersistentKeepalive", "SocketFd"), (_UPDATE,), "as they are, and nothing is taken"),
    Default(("SessionId",), ("adopt-cid", "release-cid"), "the device alone"),
    Default(
        ("ServerUnderlay",),
        ("session-plan", "session-demo"),
        f"the server's Listen, or {LOOPBACK_SERVER_IP} with its port when that is every address",
    ),
    Default(
        ("ServerUnderlay",),
        ("session-capture",),
        f"the server's Listen, or {PATH_SERVER_IP} with its port when that is every address",
    ),
    Default(("ServerUnderlay",), (_DEMO,), "the server's Listen"),
    Default(("ServerUnderlay",), (_CLIENT,), "the profile's Endpoint"),
    Default(("ClientUnderlay",), ("session-plan", "session-demo", _DEMO), LOOPBACK_CLIENT),
    Default(("ClientUnderlay",), ("session-capture",), PATH_CLIENT),
    Default(
        ("ClientUnderlay",), (_CLIENT,), f"{LOOPBACK_CLIENT} to a server on loopback, else what the kernel chooses"
    ),
    Default(("KeyLog",), ("session-capture",), "false"),
    Default(("PinDir",), _LOADERS, PIN_DIR),
    Default(("RegisterCidMap",), _LOADERS, "true"),
    Default(("RoutedCidLen",), _LOADERS, "the global configuration's, which is 20 by default"),
    Default(("Device",), (_LOADER, _CHECK), "none: no counters are told"),
    Default(("ReadyFile",), (_LOADER, _DEMO, _DAEMON), "none"),
    Default(("RunForMs",), (_LOADER, _DEMO, _DAEMON), "until SIGTERM or SIGINT"),
    Default(("InstallSession",), (_CLIENT,), "false"),
)


def defaults_of(command: str) -> list[Default]:
    """The rows of one command."""
    return [row for row in DEFAULTS if command in row.commands]
