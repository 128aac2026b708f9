"""The keys of both configuration files, the forms in which a name may be written, and suggestions for misspelt
names."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: Key -> an example value, for remedies.
PROFILE_KEYS = {
    "Device": "qre0",
    "Role": "client",
    "Address": "10.77.0.2/24",
    "MTU": "1380",
    "Listen": "192.0.2.1:443",
    "Dest": "www.example.org:443",
    "ServerName": "www.example.org",
    "RealityPrivateKey": "the output of `qre-tool genkey`",
    "RealityPreviousKey": "what RealityPrivateKey was",
    "RealityPreviousKeyUntil": "2026-12-31T00:00:00Z",
    "RealityShortIds": "the output of `qre-tool genshortid`",
    "RealityMaxTimeDiff": "60s",
    "ReplayStore": "valkey://10.0.0.5:6379",
    "ClientEndpoint": "vpn.example.org:443",
    "ClientAllowedIPs": "0.0.0.0/0",
    "ClientDNS": "10.77.0.1, example.internal",
    "Forward": "nat",
    "Endpoint": "vpn.example.org:443",
    "EndpointOrder": "listed",
    "RealityPublicKey": "the output of `qre-tool pubkey`",
    "RealityShortId": "one of the server's RealityShortIds",
    "PersistentKeepalive": "25",
    "AllowedIPs": "10.77.0.0/24",
    "DNS": "10.77.0.1, example.internal",
    "LeakProtection": "on",
    "PreUp": "a shell command",
    "PostUp": "a shell command",
    "PreDown": "a shell command",
    "PostDown": "a shell command",
}
#: Of a [Client NAME] section, behind the interface's keys of a server's profile.
SECTION_KEYS = {
    "ShortId": "the output of `qre-tool genshortid`",
    "Address": "10.77.0.2",
    "AllowedIPs": "192.168.7.0/24",
    "Endpoint": "vpn.example.org:443",
}
HOOK_KEYS = ("PreUp", "PostUp", "PreDown", "PostDown")
#: Lists that may be given on several lines, which are joined, as wg and wg-quick do.
LIST_KEYS = ("Address", "AllowedIPs", "RealityShortIds", "ClientAllowedIPs", "ClientDNS", "DNS")
SERVER_KEYS = (
    "Listen",
    "Dest",
    "RealityPrivateKey",
    "RealityPreviousKey",
    "RealityPreviousKeyUntil",
    "RealityShortIds",
    "RealityMaxTimeDiff",
    "ReplayStore",
    "ClientEndpoint",
    "ClientAllowedIPs",
    "ClientDNS",
    "Forward",
)
CLIENT_KEYS = ("Endpoint", "EndpointOrder", "RealityPublicKey", "RealityShortId", "DNS", "LeakProtection")
#: Keys whose values are credentials: no error contains their text.
SECRET_KEYS = (
    "RealityPrivateKey",
    "RealityPreviousKey",
    "RealityShortIds",
    "RealityShortId",
    "ShortId",
    "ReplayStore",
)

GLOBAL_KEYS = {
    "StateDir": "/var/lib/qre",
    "RuntimeDir": "/run/qre",
    "ModuleLoad": "true",
    "Dataplane": "auto",
    "BpfElf": "/usr/lib/qre/qre_reuseport.bpf.o",
    "BpfPinDir": "/sys/fs/bpf",
    "RoutedCidLen": "dest",
    "DestProfileTtl": "1h",
    "WhenDestIsDown": "silent",
    "SiteTcp": "auto",
    "RekeyInterval": "120s",
    "IdleTimeout": "60s",
    "ReconnectMin": "1s",
    "ReconnectMax": "60s",
    "SessionLifetime": "30m",
    "RelayMaxFlows": "4096",
    "RelayMaxFlowsPerPrefix": "64",
    "RelayIdle": "180s",
    "MetricsClientNames": "off",
    "User": "qre",
    "LogLevel": "info",
}


def snake_case(name: str) -> str:
    """``ServerName`` -> ``server_name``, ``AllowedIPs`` -> ``allowed_ips``, ``MTU`` -> ``mtu``."""
    parts = []
    for index, letter in enumerate(name):
        if index and letter.isupper() and not name[index - 1].isupper():
            parts.append("_")
        parts.append(letter.lower())
    return "".join(parts)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most similar to ``word``; None when none is similar."""
    from difflib import get_close_matches  # loaded for an error only

    by_form = {choice.lower(): choice for choice in choices}
    for form in (word[:64].lower(), word[:64].lower().replace("-", "").replace("_", "")):
        found = get_close_matches(form, by_form, 1)
        if found:
            return by_form[found[0]]
    return None


def did_you_mean(word: str, choices: Iterable[str], otherwise: str) -> str:
    """The remedy for an unknown name."""
    found = nearest(word, choices)
    return f"did you mean {found}?" if found else otherwise
