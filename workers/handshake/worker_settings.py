"""What the configuration says about flows and sessions, of either end, and about a client's servers."""

from __future__ import annotations

import hmac
import resource
from typing import Final

from qre.config.model import SHORTEST_RELAY_IDLE_MS, ClientSection
from qre.dest_profile import DestProfile
from qre.ipc.messages import WorkerConfig
from qre.profile_secrets import ProfileSecrets
from qre.quic.server.identities import Identities
from qre.quic.shadow.habits import habits_of
from qre.visit.servers import KnownServer
from qre.workers.handshake.port.flow_parts import Limits
from qre.workers.handshake.sessions.session_state import Settings

#: Descriptors that are not used for relays.
_OTHER_DESCRIPTORS: Final = 128
#: max_idle_timeout of both ends (milliseconds).
ADVERTISED_IDLE_MS: Final = 30_000


def flow_limits(config: WorkerConfig, dest: DestProfile | None) -> Limits:
    """The configured limits, bounded by the descriptors that this process may have, and not below Dest's own idle
    timeout where that is longer than most; and what Dest does."""
    of_dest = dest.idle_timeout_ms if dest is not None and dest.idle_timeout_ms > SHORTEST_RELAY_IDLE_MS else 0
    habits = habits_of(dest.transport_parameters if dest is not None else ())
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_DESCRIPTORS
    return Limits(
        flows=max(1, min(config.relay_max_flows, descriptors)),
        flows_per_prefix=max(1, config.relay_max_flows_per_prefix),
        idle=max(config.relay_idle_ms, of_dest) / 1000,
        retries=dest is not None and dest.retry,
        remembers_hello=habits.remembers_hello,
        overshoots=habits.overshoots,
    )


def identities(config: WorkerConfig, secrets: ProfileSecrets) -> Identities:
    """Who the clients are."""
    sections = (
        ClientSection(client.name, client.short_id, client.address, client.allowed_ips) for client in secrets.clients
    )
    return Identities(secrets.short_ids, sections, config.address, config.allowed_ips)


def follows(before: ProfileSecrets, after: ProfileSecrets) -> bool:
    """Whether a reload may change the one into the other: the private key is the same, or it was or becomes the
    previous one."""
    pairs = (
        (before.private_key, after.private_key),
        (before.private_key, after.previous_key),
        (before.previous_key, after.private_key),  # a change that is undone
    )
    return any(hmac.compare_digest(one, other) for one, other in pairs)


def session_settings(config: WorkerConfig, clients: Identities) -> Settings:
    """Beside its granted addresses a client may use the networks behind it."""
    return Settings(
        rekey_interval_ms=config.rekey_interval_ms,
        idle_timeout_ms=min(config.idle_timeout_ms, ADVERTISED_IDLE_MS),
        keepalive_ms=config.keepalive_s * 1000,
        rekey_after_packets=config.rekey_after_packets,
        behind=clients.behind,
        in_kernel=not config.user_dataplane,
        splits=config.splits,
    )


def client_settings(config: WorkerConfig, longest_idle_ms: int) -> Settings:
    """Of a client's sessions."""
    return Settings(
        rekey_interval_ms=0,  # a browser follows the server
        idle_timeout_ms=min(config.idle_timeout_ms, longest_idle_ms),
        keepalive_ms=config.keepalive_s * 1000,
        rekey_after_packets=config.rekey_after_packets,
        allowed_ips=config.allowed_ips,
        in_kernel=not config.user_dataplane,
        splits=config.splits,
    )


def known_servers(config: WorkerConfig, secrets: ProfileSecrets) -> list[KnownServer]:
    """In the order of the profile."""
    first = KnownServer(config.endpoint_host, config.endpoint_port, secrets.public_key, secrets.short_id)
    others = zip(config.others, secrets.others, strict=False)
    return [first, *(KnownServer(at.host, at.port, key.public_key, key.short_id) for at, key in others)]
