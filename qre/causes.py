"""What can go wrong between this machine and its peer, each cause with its own words and the way out.

One table: what a system call, the resolver, TLS, HTTP or a certificate says becomes a ``Cause``, by its number and
never by its text, and a cause has one sentence for people. Programs act on the cause, which ``QreError.cause``
carries. Other errors, about a file or an argument, say beside their place what to do.
"""

from __future__ import annotations

import enum
import errno
import socket
from typing import Final, NamedTuple


class Cause(enum.StrEnum):
    """Why a tunnel does not come about."""

    # The network, as a socket reports it.
    NO_ROUTE = "no-route"
    HOST_UNREACHABLE = "host-unreachable"
    PORT_CLOSED = "port-closed"
    FILTERED_HERE = "filtered-here"
    PROHIBITED = "prohibited"
    BLACKHOLE = "blackhole"
    TOO_BIG = "too-big"
    LINK_DOWN = "link-down"
    ADDRESS_IN_USE = "address-in-use"
    ADDRESS_MISSING = "address-missing"
    VERSION_MISSING = "version-missing"
    NO_MEMORY = "no-memory"
    TOO_MANY_FILES = "too-many-files"
    NETWORK = "network"
    # The resolver.
    NAME_UNKNOWN = "name-unknown"
    NAME_WITHOUT_ADDRESS = "name-without-address"
    RESOLVER_SILENT = "resolver-silent"
    RESOLVER_FAILED = "resolver-failed"
    # The other end, before it has proven anything.
    NO_ANSWER = "no-answer"
    CLOCK_BEHIND = "clock-behind"
    CLOCK_AHEAD = "clock-ahead"
    NOT_TRUSTED = "not-trusted"
    WRONG_NAME = "wrong-name"
    NAME_NOT_SERVED = "name-not-served"
    NO_HTTP3 = "no-http3"
    NO_COMMON_TLS = "no-common-tls"
    CERTIFICATE_REFUSED = "certificate-refused"
    TLS_BROKEN = "tls-broken"
    REFUSED_BY_SITE = "refused-by-site"
    # Our server.
    NOT_RECOGNISED = "not-recognised"
    CLOCK_OFF = "clock-off"
    ADDRESS_OUTSIDE = "address-outside"
    ADDRESS_NOT_ITS = "address-not-its"
    ADDRESS_TAKEN = "address-taken"
    ADDRESS_SHARE = "address-share"
    ADDRESS_REFUSED = "address-refused"
    TWIN = "twin"
    TUNNEL_UNKNOWN = "tunnel-unknown"
    UNFINISHED = "unfinished"
    # This machine, while the device is set up.
    NOT_PERMITTED = "not-permitted"
    IPV6_OFF = "ipv6-off"
    IPV6_MISSING = "ipv6-missing"
    IDS_MISSING = "ids-missing"


class Words(NamedTuple):
    """``why`` is the cause in a sentence, ``remedy`` the way out."""

    why: str
    remedy: str


WORDS: Final[dict[Cause, Words]] = {
    Cause.NO_ROUTE: Words("this machine has no route to it", "see `ip route`; is the network up?"),
    Cause.HOST_UNREACHABLE: Words(
        "a router or this network says that the host cannot be reached", "is the host up, and its address right?"
    ),
    Cause.PORT_CLOSED: Words(
        "the host answers that nothing listens on this UDP port", "is the server running, and its port right?"
    ),
    Cause.FILTERED_HERE: Words(
        "a firewall of this machine rejects the packets", "see `nft list ruleset`; allow UDP to it"
    ),
    Cause.PROHIBITED: Words("a route of this machine prohibits it", "see `ip route get` with its address"),
    Cause.BLACKHOLE: Words("a route of this machine is a blackhole for it", "see `ip route get` with its address"),
    Cause.TOO_BIG: Words(
        "the first hop takes no packets of 1,278 bytes, which QUIC needs", "raise the MTU of the outgoing device"
    ),
    Cause.LINK_DOWN: Words("the outgoing network device is down or gone", "see `ip link`"),
    Cause.ADDRESS_IN_USE: Words("another program has this address and port", "see `ss -ulpn`"),
    Cause.ADDRESS_MISSING: Words("no device of this machine has this address", "see `ip address`"),
    Cause.VERSION_MISSING: Words(
        "this machine has no sockets of that version of IP",
        "name an address of the other one, or boot it without ipv6.disable=1; a unit's RestrictAddressFamilies may"
        " forbid them, too",
    ),
    Cause.NO_MEMORY: Words("the kernel has no memory for it", "it may pass; see `free` and net.core.wmem_max"),
    Cause.TOO_MANY_FILES: Words("too many files are open", "raise LimitNOFILE or fs.file-max"),
    Cause.NETWORK: Words("the network refuses it", "see `ip route get` with its address"),
    Cause.NAME_UNKNOWN: Words("there is no such name", "correct the name, or ask who runs its zone"),
    Cause.NAME_WITHOUT_ADDRESS: Words(
        "the name has no address of the IP version that is needed", "name a host that has one; qre.ko needs IPv4"
    ),
    Cause.RESOLVER_SILENT: Words(
        "the resolver gave no answer",
        "is the network up, and does /etc/resolv.conf name the right resolver? A numeric address needs none",
    ),
    Cause.RESOLVER_FAILED: Words("the resolver reports a failure", "try `getent ahosts` with the name"),
    Cause.NO_ANSWER: Words(
        "no answer in time",
        "is the server running, its address right, and UDP to this port allowed on the whole way?",
    ),
    Cause.CLOCK_BEHIND: Words(
        "this machine's clock is before the site's certificate becomes valid", "set the clock"
    ),
    Cause.CLOCK_AHEAD: Words(
        "by this machine's clock the site's certificate has expired",
        "is the clock right? If it is, the site must renew its certificate, or another host answers in its place",
    ),
    Cause.NOT_TRUSTED: Words(
        "another host answers in its place: no authority that this machine trusts has issued its certificate",
        "somebody is in between, or the authority is missing here: see SSL_CERT_FILE",
    ),
    Cause.WRONG_NAME: Words(
        "another host answers in its place: its certificate is for other names",
        "is ServerName the same as the server's, and the address right?",
    ),
    Cause.NAME_NOT_SERVED: Words(
        "the site does not serve this ServerName", "ServerName must be the same as the server's, and one of Dest's"
    ),
    Cause.NO_HTTP3: Words("the site that answers speaks no HTTP/3", "the server needs a Dest that speaks HTTP/3"),
    Cause.NO_COMMON_TLS: Words(
        "the site that answers has no TLS parameters in common with a browser", "the server needs another Dest"
    ),
    Cause.CERTIFICATE_REFUSED: Words("the other end does not accept our certificate", "it is not a QRE client"),
    Cause.TLS_BROKEN: Words(
        "the other end found our TLS messages damaged", "something on the way changes packets, or versions differ"
    ),
    Cause.REFUSED_BY_SITE: Words(
        "the site that answers refuses connections at present", "it may pass; see the server's Dest"
    ),
    Cause.NOT_RECOGNISED: Words(
        "server did not recognise us: the real site answered",
        "compare RealityPublicKey, RealityShortId and ServerName with the server's, and both clocks; a server that"
        " cannot write its replay file recognises nobody, and its log says so",
    ),
    Cause.CLOCK_OFF: Words(
        "server did not recognise us: this machine's clock differs from the site's",
        "set the clock of whichever is wrong; RealityMaxTimeDiff says how much the server allows",
    ),
    Cause.ADDRESS_OUTSIDE: Words(
        "the server does not grant this Address: it is no client's address in the server's networks",
        "choose one inside the networks of the server's Address",
    ),
    Cause.ADDRESS_NOT_ITS: Words(
        "the server does not grant this Address: this client's section in the server's profile has another one",
        "write the section's Address into this profile, or this one into the section",
    ),
    Cause.ADDRESS_TAKEN: Words(
        "the server does not grant this Address: another client has it",
        "choose another one; the server's log says who has it",
    ),
    Cause.ADDRESS_SHARE: Words(
        "the server does not grant this Address: it would be more than one client's share of the network",
        "ask for fewer, or have them written into a section of the server's profile",
    ),
    Cause.ADDRESS_REFUSED: Words(
        "the server did not grant the addresses of this profile", "its log says which, and why"
    ),
    Cause.TWIN: Words(
        "it is used on another machine, too, which is connected",
        "give each machine a short id of its own: `qre-tool genshortid`, for RealityShortId here and in the server's"
        " profile",
    ),
    Cause.TUNNEL_UNKNOWN: Words("the server does not know this kind of tunnel", "use the same version on both ends"),
    Cause.UNFINISHED: Words(
        "the server did not finish the handshake in time", "packets are lost on the way, or its log says more"
    ),
    Cause.NOT_PERMITTED: Words("Operation not permitted", "CAP_NET_ADMIN is missing: run as root"),
    Cause.IPV6_OFF: Words(
        "IPv6 is switched off on this machine",
        "take the IPv6 entries out of Address and AllowedIPs, or `sysctl net.ipv6.conf.all.disable_ipv6=0"
        " net.ipv6.conf.default.disable_ipv6=0`",
    ),
    Cause.IPV6_MISSING: Words(
        "this kernel has no IPv6", "take the IPv6 entries out of Address and AllowedIPs, or boot it without"
        " ipv6.disable=1"
    ),
    Cause.IDS_MISSING: Words(
        "this user namespace does not have the uids and gids that the workers run as",
        "map a range: `unshare --map-root-user --map-auto` (see subuid(5)), or give the container 65,536 ids",
    ),
}  # fmt: skip

#: What sending, connecting and binding report.
_NETWORK: Final = {
    errno.ENETUNREACH: Cause.NO_ROUTE,
    errno.EHOSTUNREACH: Cause.HOST_UNREACHABLE,
    errno.EHOSTDOWN: Cause.HOST_UNREACHABLE,
    errno.ECONNREFUSED: Cause.PORT_CLOSED,
    errno.EPERM: Cause.FILTERED_HERE,
    errno.EACCES: Cause.PROHIBITED,
    errno.EINVAL: Cause.BLACKHOLE,
    errno.EMSGSIZE: Cause.TOO_BIG,
    errno.ENETDOWN: Cause.LINK_DOWN,
    errno.ENODEV: Cause.LINK_DOWN,
    errno.ENXIO: Cause.LINK_DOWN,
    errno.EADDRINUSE: Cause.ADDRESS_IN_USE,
    errno.EADDRNOTAVAIL: Cause.ADDRESS_MISSING,
    errno.EAFNOSUPPORT: Cause.VERSION_MISSING,
    errno.EPFNOSUPPORT: Cause.VERSION_MISSING,
    errno.EPROTONOSUPPORT: Cause.VERSION_MISSING,
    errno.ENOBUFS: Cause.NO_MEMORY,
    errno.ENOMEM: Cause.NO_MEMORY,
    errno.EMFILE: Cause.TOO_MANY_FILES,
    errno.ENFILE: Cause.TOO_MANY_FILES,
}
_RESOLVER: Final = {
    socket.EAI_NONAME: Cause.NAME_UNKNOWN,
    socket.EAI_NODATA: Cause.NAME_WITHOUT_ADDRESS,
    socket.EAI_ADDRFAMILY: Cause.NAME_WITHOUT_ADDRESS,
    socket.EAI_AGAIN: Cause.RESOLVER_SILENT,
    socket.EAI_FAIL: Cause.RESOLVER_FAILED,
    socket.EAI_MEMORY: Cause.NO_MEMORY,
    socket.EAI_SYSTEM: Cause.RESOLVER_FAILED,
}
#: TLS alerts that a server sends (RFC 8446 §6.2).
_ALERTS: Final = {
    40: Cause.NO_COMMON_TLS,  # handshake_failure
    42: Cause.CERTIFICATE_REFUSED,  # bad_certificate
    43: Cause.CERTIFICATE_REFUSED,  # unsupported_certificate
    44: Cause.CERTIFICATE_REFUSED,  # certificate_revoked
    45: Cause.CERTIFICATE_REFUSED,  # certificate_expired
    46: Cause.CERTIFICATE_REFUSED,  # certificate_unknown
    48: Cause.CERTIFICATE_REFUSED,  # unknown_ca
    116: Cause.CERTIFICATE_REFUSED,  # certificate_required
    70: Cause.NO_COMMON_TLS,  # protocol_version
    71: Cause.NO_COMMON_TLS,  # insufficient_security
    49: Cause.REFUSED_BY_SITE,  # access_denied
    80: Cause.REFUSED_BY_SITE,  # internal_error
    112: Cause.NAME_NOT_SERVED,  # unrecognized_name
    120: Cause.NO_HTTP3,  # no_application_protocol
}
#: The status with which our server refuses a tunnel; nobody else sees it. All four are of QPACK's static table, and
#: have one length (RFC 9204, appendix A).
_STATUSES: Final = {
    403: Cause.ADDRESS_OUTSIDE,
    421: Cause.ADDRESS_NOT_ITS,
    425: Cause.ADDRESS_TAKEN,
    500: Cause.ADDRESS_SHARE,
}
_STATUS_OF: Final = {cause: status for status, cause in _STATUSES.items()}
#: OpenSSL's verdicts on a chain (x509_vfy.h) that depend on the time, or on the name.
_VERDICTS: Final = {9: Cause.CLOCK_BEHIND, 10: Cause.CLOCK_AHEAD, 62: Cause.WRONG_NAME}
#: A refusal of netlink. rtnetlink answers EACCES for one thing: an IPv6 address or route where IPv6 is switched off.
_NETLINK: Final = {errno.EPERM: Cause.NOT_PERMITTED, errno.EACCES: Cause.IPV6_OFF}


def of_netlink(number: int, *, ipv6: bool) -> Cause | None:
    """Of the errno of a refusal by netlink, in a kernel with or without IPv6; None where the kernel's text says
    all."""
    if number in {errno.EOPNOTSUPP, errno.EAFNOSUPPORT} and not ipv6:
        return Cause.IPV6_MISSING
    return _NETLINK.get(number)


def of_network(number: int | None) -> Cause:
    """Of the errno of a socket call."""
    return _NETWORK.get(number or 0, Cause.NETWORK)


def of_resolver(number: int | None) -> Cause:
    """Of the EAI number of getaddrinfo."""
    return _RESOLVER.get(number or 0, Cause.RESOLVER_FAILED)


def of_alert(alert: int) -> Cause:
    """Of the TLS alert that the other end has sent."""
    return _ALERTS.get(alert, Cause.TLS_BROKEN)


def of_status(status: int) -> Cause:
    """Of the HTTP status with which our server refuses the tunnel."""
    return _STATUSES.get(status, Cause.TUNNEL_UNKNOWN)


def status_of(cause: Cause) -> int:
    """The HTTP status with which our server says that it does not grant an address."""
    return _STATUS_OF[cause]


def of_verdict(code: int) -> Cause:
    """Of OpenSSL's verdict on a certificate chain."""
    return _VERDICTS.get(code, Cause.NOT_TRUSTED)
