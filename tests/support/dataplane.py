"""Two ends of a session for tests of the data plane: installations that fit each other, and a pair in memory."""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Any

from qre.session import Answer, Role, SessionInstall, SessionKeys, SessionUpdate, Underlay
from qre.workers.dataplane.marks import SIZE, NumberMarks

CLIENT_ADDRESS, SERVER_ADDRESS = ("192.0.2.2", 40_000), ("192.0.2.1", 443)
ROUTED_CID = bytes(range(0x20, 0x34))
Mirror = tuple[SessionInstall, SessionInstall]


def material(seed: str, label: str, size: int) -> bytes:
    """Key material that both ends compute."""
    return hmac.digest(hashlib.sha256(seed.encode()).digest(), label.encode(), "sha256")[:size]


def keys_of(role: Role, epoch: int, seed: str = "seed") -> SessionKeys:
    """The keys of ``epoch`` as this end holds them."""
    ends = ("client", "server") if role is Role.CLIENT else ("server", "client")
    (tx_key, rx_key), (tx_iv, rx_iv) = (
        tuple(material(seed, f"{end} {kind} {epoch}", size) for end in ends)
        for kind, size in (("key", 16), ("iv", 12))
    )
    return SessionKeys(tx_key=tx_key, rx_key=rx_key, tx_iv=tx_iv, rx_iv=rx_iv)


def install_of(role: Role, seed: str = "seed", **changes: Any) -> SessionInstall:
    """An installation; both roles of one seed fit together."""
    ends = ("client", "server") if role is Role.CLIENT else ("server", "client")
    epoch = changes.get("key_epoch", 0)
    own, peer = (CLIENT_ADDRESS, SERVER_ADDRESS) if role is Role.CLIENT else (SERVER_ADDRESS, CLIENT_ADDRESS)
    values: dict[str, Any] = {
        "id": 1,
        "session_id": material(seed, "id", 32),
        "role": role,
        "connection_id": ROUTED_CID,
        "keys": keys_of(role, epoch, seed),
        "next_keys": keys_of(role, epoch + 1, seed),
        "tx_hp_key": material(seed, f"{ends[0]} hp", 16),
        "rx_hp_key": material(seed, f"{ends[1]} hp", 16),
        "underlay": Underlay(local_ip=own[0], local_port=own[1], peer_ip=peer[0], peer_port=peer[1]),
        "held": role is Role.SERVER,
    }
    return SessionInstall(**(values | changes))


def update_of(install: SessionInstall, epoch: int, seed: str = "seed", **changes: Any) -> SessionUpdate:
    """The SessionUpdate that brings ``epoch``."""
    values: dict[str, Any] = {
        "id": 2,
        "session_id": install.session_id,
        "keys": keys_of(install.role, epoch, seed),
        "next_keys": keys_of(install.role, epoch + 1, seed),
        "key_epoch": epoch,
    }
    return SessionUpdate(**(values | changes))


def marks_memfd() -> int:
    fd = os.memfd_create("marks", os.MFD_CLOEXEC)
    os.ftruncate(fd, SIZE)
    return fd


def fresh_marks() -> NumberMarks:
    fd = marks_memfd()
    try:
        return NumberMarks(fd)
    finally:
        os.close(fd)


def refused(answer: Answer) -> str:
    return answer.error
