"""``session-plan``: a handshake of two configurations in memory, and the install-session commands of both ends.

Touches no kernel, no network, no state. The printed keys belong to a session that exists nowhere: they are made for
this run, and differ each time.
"""

from __future__ import annotations

from qre.cli.commands import Options
from qre.cli.fields import parse_fields
from qre.cli.profile.configuration import warn_of_readers
from qre.cli.session.recorded_site import RECORDED, recorded_site
from qre.cli.session.session_ends import LOOPBACK, UNDERLAYS, check_both_or_none, session_ends
from qre.config.values import show_duration

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

    from qre.config.model import Profile, SocketAddress
    from qre.dataplane.protocol import SessionInstall
    from qre.dest_profile import DestProfile
    from qre.ends import Role
    from qre.quic.handed_over import HandedOver
    from qre.quic.in_memory.plan import Plan

    Address = tuple[str, int]

#: A handshake agrees on 30 s, which would pass before a person has installed the second end.
IDLE_MS = 600_000

#: Fields that a session keeps from its installation and that qre.ko does not report.
FIXED_AT_INSTALL = ("IdleTimeout", "PersistentKeepalive", "SocketFd")


def session_plan(arguments: list[str], options: Options) -> int:
    """SERVER-CONFIG CLIENT-CONFIG [ServerUnderlay=IP:PORT ClientUnderlay=IP:PORT] [DestProfile=FILE]"""
    del options
    lines = plan_lines(*read_arguments("session-plan", arguments))
    warn_of_readers("keys")
    for line in lines:
        print(line)
    return 0


def read_arguments(command: str, arguments: list[str]) -> tuple[Profile, Profile, Mapping[str, str]]:
    """Both profiles, and the fields: both underlays, which are given together or not at all, and a recorded site."""
    from qre.config.profile import load_profile_file

    server_file, client_file, *rest = arguments
    fields = parse_fields(rest, (), (*UNDERLAYS, RECORDED), command=command)
    check_both_or_none(command, fields)
    return load_profile_file(server_file), load_profile_file(client_file), fields


def plan_lines(server: Profile, client: Profile, fields: Mapping[str, str]) -> list[str]:
    """Two commands, ready to paste, each below a comment that says whose it is; then, as comments because the session
    must carry packets first, the two that change to the next keys."""
    ends = planned_ends(server, client, fields)
    lines = []
    for end in ends:
        lines += [f"# {end.role} {end.profile.device}", _command("install-session", end, 0)]
    lines.append("# later, the next keys: on one end, then on the other")
    lines += [f"# {_command('update-session', end, 1)}" for end in ends]
    return lines


def _command(name: str, end: PlannedEnd, key_epoch: int) -> str:
    fields = install_arguments(end.install(key_epoch))
    if name == "update-session":
        fields = [field for field in fields if field.partition("=")[0] not in FIXED_AT_INSTALL]
    return f"qre-tool {name} {end.profile.device} {' '.join(fields)}"


class PlannedEnd:
    """One end of a handshake in memory: whose it is, and what it would install."""

    def __init__(self, profile: Profile, role: Role, handed_over: HandedOver, local: Address, peer: Address) -> None:
        self.profile = profile
        self.role = role
        self._handed_over = handed_over
        self._local = local
        self._peer = peer

    def install(self, key_epoch: int = 0) -> SessionInstall:
        """The session with the keys of this epoch and of the next one."""
        from msgspec.structs import replace

        from qre.quic.handed_over import advance

        handed_over = advance(self._handed_over, key_epoch)
        made = session_of(self.profile, self.role, handed_over, self._local, self._peer)
        return replace(made, idle_timeout_ms=IDLE_MS)


def planned_ends(server: Profile, client: Profile, fields: Mapping[str, str]) -> list[PlannedEnd]:
    """Both ends of a handshake in memory, the server's first."""
    from qre.ends import Role

    ends = session_ends(server, client, fields, LOOPBACK, ipv6=True)
    plan = run_plan(server, client, *ends, recorded_site(fields))
    here, there = ((str(end.ip), end.port) for end in ends)
    return [
        PlannedEnd(server, Role.SERVER, plan.server, here, there),
        PlannedEnd(client, Role.CLIENT, plan.client, there, here),
    ]


def run_plan(
    server: Profile,
    client: Profile,
    server_underlay: SocketAddress,
    client_underlay: SocketAddress,
    site: DestProfile | None = None,
    key_log: TextIO | None = None,
) -> Plan:
    """The handshake itself; the server's addresses are granted as its daemon would. ``site``: whose recorded flight
    the server plays. ``key_log`` gets the secrets."""
    import os
    import time
    from random import SystemRandom

    from qre.config.settings import load_global
    from qre.config.values import ROUTED_CID_LENGTHS
    from qre.quic.in_memory.plan import InMemoryHandshake
    from qre.quic.server.address_grants import Grants
    from qre.quic.server.identities import identities_of
    from qre.visit.visitor_files import load_fingerprint

    assert server.server is not None and client.client is not None
    grants = Grants(server.address, identities_of(server))
    return InMemoryHandshake(
        server=server.server,
        site=site,
        client=client.client,
        addresses=client.address,
        grant=lambda short_id, wanted: grants.ask(short_id, short_id, wanted),
        routes=grants.routes(),
        routed_cid_len=load_global(os.environ).routed_cid_len or ROUTED_CID_LENGTHS[1],
        server_address=(str(server_underlay.ip), server_underlay.port),
        client_address=(str(client_underlay.ip), client_underlay.port),
        unix_time=int(time.time()),
        fingerprint=load_fingerprint(),
        random=SystemRandom(),
        key_log=key_log,
    ).run()


def session_of(
    profile: Profile, role: Role, handed_over: HandedOver, local: tuple[str, int], peer: tuple[str, int]
) -> SessionInstall:
    """What an end of a handshake installs: a server's AllowedIPs are the assigned addresses and the networks behind
    the client, a client's are its profile's."""
    from qre.dataplane.install import handed_over_install
    from qre.dataplane.protocol import underlay_of
    from qre.ends import Role
    from qre.quic.server.identities import identities_of

    underlay = underlay_of(local, peer)
    if role is Role.SERVER:
        granted = (address.network for address in handed_over.addresses)
        allowed = (*granted, *identities_of(profile).behind(handed_over.short_id))
    else:
        allowed = profile.allowed_ips
    return handed_over_install(handed_over, role, underlay, allowed_ips=allowed)


def install_arguments(install: SessionInstall) -> list[str]:
    """The fields of ``install-session``, in the reference's order, then those beyond it."""
    keys, following, underlay = install.keys, install.next_keys, install.underlay
    values = {
        "SessionId": install.session_id.hex(),
        "ConnectionId": install.connection_id.hex(),
        "TxKey": keys.tx_key.hex(),
        "RxKey": keys.rx_key.hex(),
        "TxHpKey": install.tx_hp_key.hex(),
        "RxHpKey": install.rx_hp_key.hex(),
        "TxIv": keys.tx_iv.hex(),
        "RxIv": keys.rx_iv.hex(),
        "KeyEpoch": install.key_epoch,
        "PacketNumber": install.packet_number,
    }
    if following is not None:
        values |= {
            "NextRxKey": following.rx_key.hex(),
            "NextRxHpKey": install.rx_hp_key.hex(),  # header keys never change (RFC 9001 §6.1)
            "NextRxIv": following.rx_iv.hex(),
            "NextTxKey": following.tx_key.hex(),
            "NextTxIv": following.tx_iv.hex(),
        }
    values |= {
        f"UnderlayLocalIPv{underlay.local_ip.version}": underlay.local_ip,
        "UnderlayLocalPort": underlay.local_port,
        f"UnderlayPeerIPv{underlay.peer_ip.version}": underlay.peer_ip,
        "UnderlayPeerPort": underlay.peer_port,
        "ClientConnectionId": install.client_connection_id.hex(),
        "IdleTimeout": show_duration(install.idle_timeout_ms),
    }
    if install.allowed_ips:
        values["AllowedIPs"] = ",".join(map(str, install.allowed_ips))
    return [f"{name}={value}" for name, value in values.items()]
