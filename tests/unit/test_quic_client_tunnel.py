"""The client's tunnel: what a proven server may answer to it, and what becomes of it."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network
from typing import Any

import pytest

from qre.causes import Cause
from qre.quic.handshake_events import Closed, Granted, HandshakeFailed, Proven
from qre.quic.server import connect_ip
from qre.quic.server.connect_ip import AddressesRequested
from qre.wire.capsule import CapsuleType, RequestedAddress, encode_addresses, encode_capsule, encode_routes
from tests.support.pair import Pair


class OddPair(Pair):
    """A pair whose server answers the request for addresses with ``answer(http, stream_id, event)``."""

    answer: Any

    def _server_events(self, server: Any) -> None:
        while (event := server.next_event()) is not None:
            self.server_events.append(event)
            if isinstance(event, AddressesRequested):
                connect = server._connect_ip
                self.answer(connect._h3, connect._tunnel, event)


def run(answer: Any) -> list[Any]:
    pair = OddPair()
    pair.answer = answer
    pair.run(limit=25)
    pair._client_events()
    return pair.client_events


OK = [(b":status", b"200")]
ASSIGN = encode_addresses(CapsuleType.ADDRESS_ASSIGN, [RequestedAddress(1, ip_interface("10.0.0.2/32"))])
ROUTES = encode_routes([ip_network("0.0.0.0/0")])


def failure(events: list[Any]) -> str:
    assert isinstance(events[0], Proven)
    assert isinstance(events[-2], HandshakeFailed)
    assert isinstance(events[-1], Closed)
    return str(events[-2].reason)


def test_a_refusal_is_told() -> None:
    pair = Pair()
    pair._server_events = lambda server: [server.refuse(Cause.ADDRESS_TAKEN) for _ in iter(server.next_event, None)]  # type: ignore[method-assign]  # this test's server
    pair.run(limit=25)
    assert "HTTP status 425" in failure(pair.client_events)
    assert "another client has it" in failure(pair.client_events)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda h, s, e: h.send_headers(s, [(b":status", b"502")], end_stream=True), "HTTP status 502"),
        (lambda h, s, e: h.send_headers(s, OK, end_stream=True), "HTTP status 200"),
        (lambda h, s, e: h._quic.reset_stream(s, 0x10E), "closed the tunnel"),
        (lambda h, s, e: (h.send_headers(s, OK), h.send_data(s, ASSIGN, end_stream=True)), "closed the tunnel"),
        (
            lambda h, s, e: (
                h.send_headers(s, OK),
                h.send_data(s, encode_capsule(1, b"") + ROUTES, end_stream=False),
            ),
            "did not grant the addresses of this profile",
        ),
        (
            lambda h, s, e: (
                h.send_headers(s, OK),
                h.send_data(
                    s,
                    encode_addresses(CapsuleType.ADDRESS_ASSIGN, [RequestedAddress(1, ip_interface("10.0.0.77/32"))])
                    + ROUTES,
                    end_stream=False,
                ),
            ),
            "did not grant the addresses of this profile",
        ),
        (
            lambda h, s, e: (h.send_headers(s, OK), h.send_data(s, encode_capsule(1, b"\x01\x09"), end_stream=False)),
            "neither IPv4 nor IPv6",
        ),
        (
            lambda h, s, e: (h.send_headers(s, OK), h.send_data(s, b"\x01\x80\x01\x00\x00", end_stream=False)),
            "too long",
        ),
        (lambda h, s, e: h.send_headers(s, OK), "in time"),
        (lambda h, s, e: None, "in time"),
    ],
)
def test_any_other_answer_is_an_error(answer: Any, reason: str) -> None:
    assert reason in failure(run(answer))


def test_interim_answers_unknown_capsules_and_pieces_are_understood() -> None:
    def answer(http: Any, stream: int, event: AddressesRequested) -> None:
        http._quic.send_stream_data(stream, b"")
        http.send_headers(stream, [(b":status", b"103")])
        http.send_headers(stream, OK)
        capsules = encode_capsule(0x2345, b"whatever") + ROUTES + ASSIGN
        for start in range(0, len(capsules), 5):
            http.send_data(stream, capsules[start : start + 5], end_stream=False)

    events = run(answer)
    assert events[:2] == [Proven(), Granted((ip_interface("10.0.0.2/32"),), (ip_network("0.0.0.0/0"),))]


@pytest.mark.parametrize("missing", list(connect_ip.SETTINGS)[1:])
def test_a_server_whose_settings_allow_no_tunnel_is_left(monkeypatch: pytest.MonkeyPatch, missing: int) -> None:
    monkeypatch.setattr(
        connect_ip, "SETTINGS", {key: value for key, value in connect_ip.SETTINGS.items() if key != missing}
    )
    assert "allow no tunnel" in failure(run(lambda h, s, e: None))
