"""Each cause has its own words and its way out, and is found by a number, never by a text."""

from __future__ import annotations

import errno
import socket

import pylsqpack
import pytest
from aioquic.tls import AlertDescription
from hypothesis import given
from hypothesis import strategies as st

from qre.causes import WORDS, Cause, of_alert, of_netlink, of_network, of_resolver, of_status, of_verdict, status_of
from qre.errors import MachineError
from qre.kernel.socket import NetlinkRefusedError
from qre.quic.server.address_grants import CAUSES, Denial
from qre.supervisor.parent import preconditions
from qre.supervisor.parent.preconditions import unmapped_ids


def test_each_cause_has_words_of_its_own_and_a_way_out() -> None:
    assert set(WORDS) == set(Cause)
    assert len({words.why for words in WORDS.values()}) == len(Cause)
    for cause, words in WORDS.items():
        for text in words:
            assert text and text.isprintable() and not text.endswith("."), cause
        assert "Errno" not in words.why and len(words.why) + len(words.remedy) < 400, cause


def test_an_error_carries_its_cause() -> None:
    error = MachineError.of("cannot reach 192.0.2.1:443", Cause.NO_ROUTE, "it was tried once")
    assert error.cause is Cause.NO_ROUTE and error.detail == "it was tried once"
    assert str(error).startswith(
        "cannot reach 192.0.2.1:443: this machine has no route to it (it was tried once); see"
    )
    assert MachineError("anything").cause is None


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENETUNREACH, Cause.NO_ROUTE),
        (errno.EHOSTUNREACH, Cause.HOST_UNREACHABLE),
        (errno.ECONNREFUSED, Cause.PORT_CLOSED),
        (errno.EPERM, Cause.FILTERED_HERE),
        (errno.EACCES, Cause.PROHIBITED),
        (errno.EINVAL, Cause.BLACKHOLE),
        (errno.EMSGSIZE, Cause.TOO_BIG),
        (errno.ENETDOWN, Cause.LINK_DOWN),
        (errno.EADDRINUSE, Cause.ADDRESS_IN_USE),
        (errno.EADDRNOTAVAIL, Cause.ADDRESS_MISSING),
        (errno.EAFNOSUPPORT, Cause.VERSION_MISSING),
        (errno.ENOBUFS, Cause.NO_MEMORY),
        (errno.EMFILE, Cause.TOO_MANY_FILES),
        (errno.EXDEV, Cause.NETWORK),
        (None, Cause.NETWORK),
    ],
)
def test_what_a_socket_reports(number: int | None, cause: Cause) -> None:
    assert of_network(number) is cause


@pytest.mark.parametrize("name", [name for name in dir(socket) if name.startswith("EAI_")])
def test_every_number_of_the_resolver_is_a_cause(name: str) -> None:
    expected = {
        "EAI_NONAME": Cause.NAME_UNKNOWN,
        "EAI_NODATA": Cause.NAME_WITHOUT_ADDRESS,
        "EAI_ADDRFAMILY": Cause.NAME_WITHOUT_ADDRESS,
        "EAI_AGAIN": Cause.RESOLVER_SILENT,
        "EAI_MEMORY": Cause.NO_MEMORY,
    }
    assert of_resolver(getattr(socket, name)) is expected.get(name, Cause.RESOLVER_FAILED)


@pytest.mark.parametrize("alert", AlertDescription)
def test_every_alert_of_tls_is_a_cause(alert: AlertDescription) -> None:
    expected = {
        "unrecognized_name": Cause.NAME_NOT_SERVED,
        "no_application_protocol": Cause.NO_HTTP3,
        "handshake_failure": Cause.NO_COMMON_TLS,
        "protocol_version": Cause.NO_COMMON_TLS,
        "insufficient_security": Cause.NO_COMMON_TLS,
        "access_denied": Cause.REFUSED_BY_SITE,
        "internal_error": Cause.REFUSED_BY_SITE,
        "unknown_ca": Cause.CERTIFICATE_REFUSED,
        "certificate_required": Cause.CERTIFICATE_REFUSED,
    }
    found = of_alert(alert)
    if alert.name in expected:
        assert found is expected[alert.name]
    elif "certificate" in alert.name and not alert.name.startswith("no_") and "obtain" not in alert.name:
        assert found in {Cause.CERTIFICATE_REFUSED, Cause.TLS_BROKEN}
    else:
        assert found is Cause.TLS_BROKEN


@given(st.integers(-(1 << 40), 1 << 40))
def test_any_number_is_some_cause(number: int) -> None:
    for finds in (of_network, of_resolver, of_alert, of_status, of_verdict):
        assert finds(number) in WORDS


def test_a_status_of_our_server_and_a_verdict_of_openssl() -> None:
    assert of_status(404) is Cause.TUNNEL_UNKNOWN
    assert {of_status(status_of(cause)) for cause in CAUSES.values()} == set(CAUSES.values())
    assert set(CAUSES) == set(Denial), "each denial is told"
    encoder = pylsqpack.Encoder()
    blocks = {len(encoder.encode(0, [(b":status", b"%d" % status_of(cause))])[1]) for cause in CAUSES.values()}
    assert len(blocks) == 1, "the length says nothing"
    assert (of_verdict(9), of_verdict(10), of_verdict(20)) == (
        Cause.CLOCK_BEHIND, Cause.CLOCK_AHEAD, Cause.NOT_TRUSTED
    )  # fmt: skip


def test_netlink_tells_a_missing_capability_from_ipv6_that_is_off() -> None:
    assert of_netlink(errno.EPERM, ipv6=True) is Cause.NOT_PERMITTED
    assert of_netlink(errno.EACCES, ipv6=True) is Cause.IPV6_OFF
    assert of_netlink(errno.EOPNOTSUPP, ipv6=False) is Cause.IPV6_MISSING
    assert of_netlink(errno.EOPNOTSUPP, ipv6=True) is None
    assert "CAP_NET_ADMIN is missing" in str(NetlinkRefusedError("routing", errno.EPERM))
    refused = str(NetlinkRefusedError("routing ::/0", errno.EACCES))
    assert "IPv6 is switched off" in refused and "CAP_NET_ADMIN" not in refused and "as root" not in refused


@pytest.mark.parametrize(
    ("mapped", "told"),
    [
        ("0 0 4294967295", ""),
        ("0 100000 65536", ""),
        ("0 1000 1", "it has one id only"),
        ("0 1000 1\n1 100000 1000", "it has no uid 598"),
    ],
)
def test_a_user_namespace_without_the_ids_of_the_workers_is_seen(
    mapped: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Proc:
        def __init__(self, *_: str) -> None:
            pass

        def read_text(self) -> str:
            return mapped + "\n"

    monkeypatch.setattr(preconditions, "Path", Proc)
    assert unmapped_ids().startswith(told) and bool(unmapped_ids()) is bool(told)
