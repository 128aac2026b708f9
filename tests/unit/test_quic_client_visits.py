"""The client's behaviour when its server does not answer: the site does, a man in the middle, a broken server."""

from __future__ import annotations

import brotli
import pytest
from aioquic import tls
from aioquic.buffer import Buffer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID
from msgspec.structs import replace

from qre.causes import Cause
from qre.dest_profile import DestProfile, RecordedVisit
from qre.quic.client.client_tls import HELLO_RETRY_REQUEST, _decompress
from qre.quic.client.drawbacks import drawbacks_of
from qre.quic.client.http3 import _date_untrusted
from qre.quic.handshake_events import (
    ClockOff,
    Closed,
    HandshakeFailed,
    ManInTheMiddle,
    NotRecognised,
    SiteAnswered,
)
from tests.support.stock_site import NAME, UNIX_TIME, StockSite, client, issue, meet


def test_a_site_that_does_not_know_us_is_visited_and_left() -> None:
    site = StockSite()
    assert meet(client(), site) == [NotRecognised(), Closed()]
    request, *more = site.requests
    headers = dict(request)
    assert (headers[b":method"], headers[b":path"], headers[b":authority"]) == (b"GET", b"/", NAME.encode())
    assert [dict(icon)[b":path"] for icon in more] in ([], [b"/favicon.ico"]), "unless the tab was closed before"
    assert b"Chrome/" in headers[b"user-agent"]
    assert site.connection is not None
    assert site.connection._close_event is not None
    assert site.connection._close_event.error_code == 0x100  # H3_NO_ERROR
    assert site.connection._close_event.reason_phrase == ""


def test_a_site_that_never_answers_is_left_all_the_same() -> None:
    site = StockSite(answer=False)
    assert meet(client(), site) == [NotRecognised(), Closed()]
    assert len(site.requests) == 1


def test_a_probe_tells_the_sites_profile() -> None:
    events = meet(client(public_key=b""), StockSite())
    assert [type(event) for event in events] == [SiteAnswered, Closed]
    assert isinstance(events[0], SiteAnswered)
    profile = events[0].profile
    assert profile.reachable
    assert (profile.scid_length, profile.group, profile.alpn, profile.http_status) == (8, "X25519", "h3", 200)
    assert profile.cipher in ("AES_128_GCM_SHA256", "AES_256_GCM_SHA384")
    assert profile.handshake_flight_length > 500
    assert profile.flight_datagram_lengths[0] == 1200
    assert profile.certificate_expires_at == UNIX_TIME + 10 * 86_400
    assert profile.transport_parameters and profile.idle_timeout_ms == 60_000
    assert any("AES_256" in warning for warning in profile.warnings) == (profile.cipher != "AES_128_GCM_SHA256")


FOLLOWED = DestProfile(
    reachable=True,
    checked_at=1,
    scid_length=8,
    rtt_ms=6,
    cipher="AES_128_GCM_SHA256",
    group="X25519MLKEM768",
    handshake_flight_length=1094,
    http_status=200,
)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, []),
        ({"cipher": "CHACHA20_POLY1305_SHA256"}, ["CHACHA20"]),
        ({"group": "0x0017"}, ["group 0x0017"]),
        ({"scid_length": 0}, ["have 0 bytes, fewer than 4"]),
        ({"scid_length": 3}, ["have 3 bytes"]),
        ({"scid_length": 4}, []),
        ({"handshake_flight_length": 300}, ["300 bytes"]),
        ({"flight_datagram_lengths": (1200,) * 6}, []),
        ({"flight_datagram_lengths": (1200,) * 7}, ["8400 bytes"]),
        ({"flight_datagram_lengths": (1200,) * 7, "retry": True}, ["(Retry)"]),
        ({"rtt_ms": 40}, ["40 ms away"]),
        ({"http_status": 0}, ["did not answer"]),
        (
            {"visits": (RecordedVisit(round_trip_us=1, spoken=(), longer=True),)},
            ["longer than is played: 64 datagrams"],
        ),
        ({"visits": (RecordedVisit(round_trip_us=1, spoken=()),)}, []),
    ],
)
def test_every_tell_that_a_site_leaves_is_named(changed: dict[str, object], words: list[str]) -> None:
    warnings = [str(each) for each in drawbacks_of(replace(FOLLOWED, **changed))]
    assert len(warnings) == len(words)
    assert all(word in warning for word, warning in zip(words, warnings, strict=True))


def test_a_probe_of_a_site_with_a_bad_certificate_warns() -> None:
    events = meet(client(public_key=b""), StockSite(issue("other.example")))
    assert isinstance(events[0], SiteAnswered)
    assert any("not for site.example" in warning for warning in events[0].profile.warnings)


@pytest.mark.parametrize(
    ("certificate", "detail", "cause"),
    [
        (issue("other.example"), "not for site.example", Cause.WRONG_NAME),
        (issue(days=(-10, -1)), "expired", Cause.CLOCK_AHEAD),
        (issue(days=(1, 10)), "not yet valid", Cause.CLOCK_BEHIND),
        (issue(purpose=ExtendedKeyUsageOID.CLIENT_AUTH), "not for servers", Cause.NOT_TRUSTED),
        (issue(signed_by_itself=True), "not trusted", Cause.NOT_TRUSTED),
    ],
    ids=["another name", "expired", "of the future", "for clients", "of nobody"],
)
def test_a_certificate_that_is_not_good_is_a_man_in_the_middle(
    certificate: tuple[object, object], detail: str, cause: Cause
) -> None:
    site = StockSite(certificate)  # type: ignore[arg-type]  # object is the parameter's, to keep the line short
    events = meet(client(), site)
    assert [type(event) for event in events] == [ManInTheMiddle, Closed]
    assert isinstance(events[0], ManInTheMiddle)
    assert detail in events[0].detail and events[0].cause is cause
    assert site.connection is not None
    assert site.connection._close_event is not None
    assert site.connection._close_event.error_code == 0x100 + tls.AlertDescription.bad_certificate
    assert site.connection._close_event.reason_phrase == ""
    assert site.requests == []


def test_an_ed25519_certificate_without_the_proof_is_none_that_the_hello_offered() -> None:
    """Whoever only knows how the certificate looks gets no further than anybody else."""
    site = StockSite(issue(key=Ed25519PrivateKey.generate()))
    events = meet(client(), site)
    assert isinstance(events[0], HandshakeFailed)
    assert events[-1] == Closed()


def test_a_clock_that_is_off_by_a_month_shows_as_a_bad_certificate() -> None:
    events = meet(client(unix_time=UNIX_TIME - 30 * 86_400), StockSite())
    assert isinstance(events[0], ManInTheMiddle)
    assert events[0].cause is Cause.CLOCK_BEHIND
    assert "not yet valid" in events[0].detail


@pytest.mark.parametrize(("ahead", "told"), [(7200, [ClockOff(7200)]), (-7200, [ClockOff(-7200)]), (20, [])])
def test_a_site_that_does_not_know_us_tells_by_its_date_that_our_clock_is_off(
    ahead: int, told: list[ClockOff]
) -> None:
    site = StockSite(date=UNIX_TIME - ahead)
    assert meet(client(), site) == [NotRecognised(), *told, Closed()]


@pytest.mark.parametrize("date", [b"", b"x", b"Sat, 99 Foo 2026 00:00:00 GMT", b"\xff" * 20, b"1" * 500])
def test_a_date_that_is_none_says_nothing(date: bytes) -> None:
    assert _date_untrusted(date) is None


def compressed(message: bytes, claimed: int | None = None, algorithm: int = 2) -> bytes:
    """CompressedCertificate (RFC 8879) of a Certificate message."""
    body = message[4:]
    data = brotli.compress(body)
    length = len(body) if claimed is None else claimed
    value = algorithm.to_bytes(2, "big") + length.to_bytes(3, "big") + len(data).to_bytes(3, "big") + data
    return b"\x19" + len(value).to_bytes(3, "big") + value


def test_a_compressed_certificate_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    push_certificate = tls.push_certificate

    def push_compressed(buf: Buffer, certificate: tls.Certificate) -> None:
        plain = Buffer(capacity=8192)
        push_certificate(plain, certificate)
        buf.push_bytes(compressed(plain.data))

    monkeypatch.setattr(tls, "push_certificate", push_compressed)
    assert meet(client(), StockSite()) == [NotRecognised(), Closed()]


@pytest.mark.parametrize(
    "message",
    [
        compressed(b"\x0b\x00\x00\x05hello", claimed=4),
        compressed(b"\x0b\x00\x00\x05hello", claimed=6),
        compressed(b"\x0b\x00\x00\x05hello", claimed=1 << 18),
        compressed(b"\x0b\x00\x00\x05hello", algorithm=1),
        compressed(b"\x0b\x00\x00\x05" + bytes(50_000_000), claimed=1000),
        b"\x19\x00\x00\x0d\x00\x02\x00\x00\x05\x00\x00\x05wrong",
    ],
    ids=["shorter", "longer", "too long", "zlib", "a bomb", "not brotli"],
)
def test_a_compressed_certificate_that_lies_is_refused(message: bytes) -> None:
    with pytest.raises(tls.Alert):
        _decompress(message)


def test_a_hello_retry_request_ends_the_handshake() -> None:
    def retry(epoch: tls.Epoch, data: bytes) -> bytes:
        return data[:6] + HELLO_RETRY_REQUEST + data[38:] if epoch is tls.Epoch.INITIAL else data

    events = meet(client(), StockSite(alter=retry))
    assert isinstance(events[0], HandshakeFailed)
    assert "HelloRetryRequest" in events[0].reason


def test_a_site_without_http3_refuses() -> None:
    events = meet(client(), StockSite(alpn="hq"))
    assert isinstance(events[0], HandshakeFailed)
    assert "closed the connection" in events[0].reason
    assert "TLS alert 120" in events[0].reason
