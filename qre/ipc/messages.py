"""The messages that the supervisor and its workers exchange over ZeroMQ: typed, versioned, bounded.

No message carries a key. Who may send which to whom, and when, is the supervisor's table
(``supervisor/members/routes``); the types here say only what a message looks like. A request has an id and exactly
one answer.
"""

from __future__ import annotations

import enum
from ipaddress import ip_address
from typing import Annotated, Literal

import msgspec

from qre.addresses import Address
from qre.causes import Cause
from qre.dataplane.protocol import ConnectionId, Prefixes, RoutedCidLen
from qre.dataplane.status import DeviceCounters, SessionStatus, SharedPort
from qre.dest_profile import DestProfile
from qre.ends import LIKE_DEST, MAX_ADDRESSES, MAX_CLIENTS, EndpointOrder, Forward, Role, WhenDestIsDown
from qre.kernel.netfilter.table_status import ForwardStatus, SiteTcpPort
from qre.kernel.udp.port_errors import PortError
from qre.profile_secrets import Interfaces, ListedClient
from qre.structs import U16, U32, U64, IpVersions, ListenAddresses, Message, Port, Routes, SitePorts, Struct, Text

VERSION = 1
#: The largest message on any channel, in bytes.
MAX_MESSAGE = 1 << 21


class Party(enum.StrEnum):
    """The processes of one daemon."""

    SUPERVISOR = "supervisor"
    HANDSHAKE = "handshake"
    BPF_LOADER = "bpf_loader"
    NETLINK = "netlink"
    DATAPLANE = "dataplane"
    VISIT = "visit"
    RESOLVER = "resolver"


class ServerAddress(Struct, frozen=True, kw_only=True):
    """Where one of a client's servers is."""

    host: Text
    port: Port


class WorkerConfig(Struct, frozen=True, kw_only=True):
    """What every worker may know: the profile without its secrets and hooks, and the global settings."""

    profile: Text
    device: Annotated[str, msgspec.Meta(max_length=15)]
    role: Role
    address: Interfaces
    mtu: U16
    keepalive_s: U16
    allowed_ips: Prefixes
    routes: Routes = ()  # AllowedIPs, and the networks behind a server's clients
    table: U32 = 0  # of routes that must not take the tunnel's own packets
    outer: Prefixes = ()  # where those go
    closed: IpVersions = ()  # those that lead to neighbours alone
    server_name: Text
    listen_ip: Text = ""  # server; with --server-underlay applied
    listen_port: U16 = 0
    listen_only: ListenAddresses = ()  # Listen's, where they are several; listen_ip is every address then
    dest_host: Text = ""
    dest_port: U16 = 0
    max_time_diff_ms: U64 = 60_000
    endpoint_host: Text = ""  # client; with --server-underlay applied
    endpoint_port: U16 = 0
    others: Annotated[tuple[ServerAddress, ...], msgspec.Meta(max_length=16)] = ()  # further servers of a client
    endpoint_order: EndpointOrder = EndpointOrder.LISTED
    user_dataplane: bool = True
    outer_version: Literal[0, 4, 6] = 0  # client: of the addresses that are tried; 0: both
    splits: bool = True  # the data plane sends and joins packets in two datagrams, which an older qre.ko does not
    routed_cid_len: RoutedCidLen = LIKE_DEST
    dest_profile_ttl_ms: U64 = 3_600_000
    when_dest_is_down: WhenDestIsDown = WhenDestIsDown.SILENT
    site_tcp: SitePorts | None = None  # server; None: Listen's port and 80
    forward: Forward = Forward.OFF  # server
    replay_store: Text = ""  # server: address:port, or the path of a Unix socket
    ttl: Annotated[int, msgspec.Meta(ge=1, le=255)] = 64  # of this machine's packets
    rekey_interval_ms: U64 = 120_000
    idle_timeout_ms: U64 = 60_000
    reconnect_min_ms: U64 = 1_000
    reconnect_max_ms: U64 = 60_000
    session_lifetime_ms: U64 = 0  # client; 0: off
    relay_max_flows: U64 = 4096
    relay_max_flows_per_prefix: U64 = 64
    relay_idle_ms: U64 = 180_000
    log_level: Annotated[str, msgspec.Meta(max_length=16)] = "info"
    rekey_after_packets: U64 = 1 << 22
    dest_profile: DestProfile | None = None  # the cached one
    dest_address: Address | None = None  # server: as it was last resolved
    dest_for_ipv6: Address | None = None  # the same for visitors over IPv6
    joined: bool = False  # server: another daemon is the port's front and passes us our clients
    sends_errors: bool = True  # server: ICMP errors about Dest, to visitors
    followed: bool = False  # server: the port's front before us was another daemon
    register_cid_map: bool = True  # server on the kernel's data plane; otherwise the BPF loader mirrors

    @property
    def listen(self) -> tuple[Address, ...]:
        """A server's addresses, as its profile has them."""
        return self.listen_only or (ip_address(self.listen_ip),)


# --- life cycle: supervisor -> worker, unless said otherwise ---


class Hello(Message, frozen=True, kw_only=True):
    """worker -> supervisor, once: privileges are dropped and the filter is loaded."""

    role: Party
    pid: U64


class Start(Message, frozen=True, kw_only=True):
    """Request. Answered with Done when the worker's work can really be done (that is what READY=1 waits for)."""

    config: WorkerConfig


class Reload(Message, frozen=True, kw_only=True):
    """Request. The new configuration; the handshake worker gets new ``profile_secrets`` before it."""

    config: WorkerConfig


class Heartbeat(Message, frozen=True, kw_only=True):
    """Request. Answered with Done."""


class Stop(Message, frozen=True, kw_only=True):
    """Request. End in order: close sessions, detach, then exit 0 after the answer."""


class Done(Message, frozen=True, kw_only=True):
    """An answer: it is done."""


class Refused(Message, frozen=True, kw_only=True):
    """An answer: it is not done, and nothing changed. ``cause`` is set where the reason is one of the table."""

    reason: Text
    cause: Cause | None = None


# --- handshake worker ---


class SocketRequest(Message, frozen=True, kw_only=True):
    """handshake -> supervisor, request (client): a new underlay UDP socket, for packets to ``port`` of ``peer``. The
    answer is SocketGranted, and the descriptor ``client_udp`` with the same number comes over the descriptor channel
    before it."""

    peer: Address
    port: Port


class StoreRequest(Message, frozen=True, kw_only=True):
    """handshake -> supervisor, request (server): a new connection to the replay store of the configuration. It comes
    as the descriptor ``store_ipv4`` or ``store_unix`` before the answer, which is Done."""


class SocketGranted(Message, frozen=True, kw_only=True):
    """``local``: where packets of this socket to the peer come from, by its own mark; None when none can be sent."""

    number: U64
    local: Address | None = None


class SocketRelease(Message, frozen=True, kw_only=True):
    """handshake -> supervisor: this socket is no longer needed (the supervisor keeps a duplicate for restarts)."""

    number: U64


class GuestJoin(Message, frozen=True, kw_only=True):
    """supervisor -> handshake, request (server): another daemon joins this port, or one that has joined was reloaded.
    Its ``guest_secrets`` with the same number come before it, and ``guest_feed`` when it joins."""

    number: U64
    profile: Text


class GuestLeave(Message, frozen=True, kw_only=True):
    """supervisor -> handshake, request: the joined daemon is gone."""

    number: U64


class RoleState(Message, frozen=True, kw_only=True):
    """handshake -> supervisor: the text for STATUS= and the state of the ready file. ``up``: at least one session is
    up. ``remedy``: what the reader of ``text`` can do, which it ends with or contains; empty when it says nothing."""

    up: bool
    text: Text
    remedy: Text = ""


class DestProfileReport(Message, frozen=True, kw_only=True):
    """handshake -> supervisor: a fresh probe of Dest; the parent caches it. On the kernel's data plane it is passed
    on, supervisor -> netlink, as a request. supervisor -> handshake, as a request: what `refresh` has seen."""

    profile: DestProfile


class DestAddressReport(Message, frozen=True, kw_only=True):
    """handshake -> supervisor (server): where Dest is now, its IPv4 address if it has one; None: its name is not
    resolved. ``for_ipv6``: where visitors over IPv6 are passed to. Passed on, supervisor -> netlink, as a request."""

    address: Address | None = None
    for_ipv6: Address | None = None


class VisitDest(Message, frozen=True, kw_only=True):
    """handshake -> supervisor, request (server), and on to a process that is started for it: visit Dest like a
    browser. Answered with DestVisited."""

    address: Address
    port: Port
    server_name: Text
    patience_ms: Annotated[int, msgspec.Meta(ge=0, le=10_000)]  # how long it may say nothing at all
    comes_back: bool = False  # and visit it again with its ticket


class DestVisited(Message, frozen=True, kw_only=True):
    """An answer: what was seen of Dest. Without a profile ``why`` says why not, and ``cause`` where there is one."""

    profile: DestProfile | None
    why: Text = ""
    cause: Cause | None = None


class ResolveName(Message, frozen=True, kw_only=True):
    """handshake -> supervisor, request, and on to a process that is started for it: the addresses of a name, of one
    version of IP or (0) of both. Answered with NameResolved."""

    host: Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
    version: Literal[0, 4, 6] = 0


class NameResolved(Message, frozen=True, kw_only=True):
    """An answer: the addresses in the resolver's order; or why there are none, and who was asked."""

    addresses: Annotated[tuple[Address, ...], msgspec.Meta(max_length=MAX_ADDRESSES)] = ()
    cause: Cause | None = None
    detail: Text = ""


class CidAdopt(Message, frozen=True, kw_only=True):
    """handshake -> bpf_loader, request: steer this routed CID to slot 1. On the kernel's data plane the map is
    qre.ko's to write; where it cannot, netlink -> bpf_loader."""

    connection_id: ConnectionId


class CidRelease(Message, frozen=True, kw_only=True):
    connection_id: ConnectionId


class CidSync(Message, frozen=True, kw_only=True):
    """As CidAdopt: exactly these CIDs are live (after a restart)."""

    connection_ids: Annotated[tuple[ConnectionId, ...], msgspec.Meta(max_length=4096)]


# --- netlink worker ---


class SyncDevice(Message, frozen=True, kw_only=True):
    """supervisor -> netlink, request: link up, exactly these addresses, MTU and routes for AllowedIPs (of those that
    QRE made)."""

    device: Annotated[str, msgspec.Meta(max_length=15)]
    address: Interfaces
    mtu: U16
    allowed_ips: Routes
    table: U32 = 0
    outer: Prefixes = ()
    closed: IpVersions = ()


class UseLoader(Message, frozen=True, kw_only=True):
    """supervisor -> netlink, request (server on the kernel's data plane): the loader runs and uses this map. The
    map and the shared socket are registered with qre.ko, which then reports the loader."""

    program: Annotated[str, msgspec.Meta(max_length=31)]
    pin_dir: Annotated[str, msgspec.Meta(max_length=255)]
    routed_cid_len: RoutedCidLen
    pid: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
    map_id: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]


class DeviceTampered(Message, frozen=True, kw_only=True):
    """netlink -> supervisor: another program took away ``what`` QRE had made of its device, and it was put back, or
    could not be (``error``). ``port``: the netlink port of who did it; 0: nobody asked the kernel to. ``final``: it
    happened too often, and is not put back any more."""

    what: Text
    port: U32
    error: Text = ""
    final: bool = False


class NetworkChanged(Message, frozen=True, kw_only=True):
    """netlink -> handshake -> supervisor (client): addresses, routes, rules or links have changed: an attempt may
    succeed now, and packets may come from another address."""


class LinkGone(Message, frozen=True, kw_only=True):
    """netlink -> supervisor: the device was removed."""

    device: Annotated[str, msgspec.Meta(max_length=15)]


# --- status ---


class StatusRequest(Message, frozen=True, kw_only=True):
    """supervisor -> any worker, request. Answered with the status of that role."""


class DataplaneStatus(Message, frozen=True, kw_only=True):
    counters: DeviceCounters
    sessions: Annotated[tuple[SessionStatus, ...], msgspec.Meta(max_length=MAX_CLIENTS)]


class HandshakeStatus(Message, frozen=True, kw_only=True):
    up: bool
    text: Text
    pending_flows: U64 = 0
    relay_flows: U64 = 0
    handshakes: U64 = 0  # accepted (server) or completed (client)
    strangers: U64 = 0
    rekeys: U64 = 0
    #: What clients sent too much of, and how often.
    excesses: Annotated[dict[Text, U64], msgspec.Meta(max_length=32)] = msgspec.field(default_factory=dict)
    clients: Annotated[tuple[ListedClient, ...], msgspec.Meta(max_length=MAX_CLIENTS)] = ()  # of a server
    dest_profile: DestProfile | None = None


class LoaderStatus(Message, frozen=True, kw_only=True):
    attached: bool
    program: Text
    routed_cid_len: RoutedCidLen
    map_entries: U64
    connection_ids: Annotated[tuple[ConnectionId, ...], msgspec.Meta(max_length=4096)]
    sync_failures: U64 = 0
    map_id: Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)] = 0


class NetlinkStatus(Message, frozen=True, kw_only=True):
    """The last three are set on the kernel's data plane. ``site_tcp``, ``forward``: a server's."""

    device_present: bool
    link_up: bool
    #: how often rules, routes, addresses or the link's state had to be put back
    restored: Annotated[dict[Text, U64], msgspec.Meta(max_length=16)] = msgspec.field(default_factory=dict)
    site_tcp: Annotated[tuple[SiteTcpPort, ...], msgspec.Meta(max_length=16)] | None = None
    forward: ForwardStatus | None = None
    dataplane: DataplaneStatus | None = None
    shared_port: SharedPort | None = None
    #: adopted CIDs of no session
    connection_ids: Annotated[tuple[ConnectionId, ...], msgspec.Meta(max_length=4096)] = ()


Body = (
    Hello
    | Start
    | Reload
    | Heartbeat
    | Stop
    | Done
    | Refused
    | SocketRequest
    | StoreRequest
    | SocketGranted
    | SocketRelease
    | GuestJoin
    | GuestLeave
    | RoleState
    | DestProfileReport
    | DestAddressReport
    | VisitDest
    | DestVisited
    | ResolveName
    | NameResolved
    | CidAdopt
    | CidRelease
    | CidSync
    | PortError
    | SyncDevice
    | UseLoader
    | LinkGone
    | DeviceTampered
    | NetworkChanged
    | StatusRequest
    | DataplaneStatus
    | HandshakeStatus
    | LoaderStatus
    | NetlinkStatus
)


class Envelope(Struct, frozen=True, kw_only=True):
    """One message on a ZeroMQ socket. ``peer`` is the receiver (worker -> supervisor) or the sender
    (supervisor -> worker; set by the supervisor, never taken from a worker). ``id`` 0: one-way; otherwise a
    request, or with ``answer`` the answer to the request of that id."""

    version: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)] = VERSION
    id: U64 = 0
    answer: bool = False
    peer: Party
    body: Body


class Descriptor(Struct, frozen=True, kw_only=True):
    """Accompanies one SCM_RIGHTS descriptor over a worker's descriptor channel, in either direction."""

    name: Annotated[str, msgspec.Meta(max_length=32)]
    number: U64 = 0
