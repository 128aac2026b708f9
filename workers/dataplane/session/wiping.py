"""Overwrites keys that are not needed any more where they stand: Python would leave them in freed memory.

It relies on CPython's layout of ``bytes`` and is for key material alone, which nothing else refers to: it was read
from a message for one session.
"""

from __future__ import annotations

import ctypes

from qre.dataplane.protocol import SessionInstall, SessionKeys

_HEADER = bytes.__basicsize__ - 1  # of a bytes object, which ends with a zero byte


def wipe(*secrets: bytes) -> None:
    """Zero them. Nothing may use them afterwards."""
    for secret in secrets:
        if len(secret) > 1:  # shorter ones are shared by the whole interpreter
            ctypes.memset(id(secret) + _HEADER, 0, len(secret))


def wipe_keys(*generations: SessionKeys | None) -> None:
    """Those of whole key epochs."""
    for keys in generations:
        if keys is not None:
            wipe(keys.tx_key, keys.rx_key, keys.tx_iv, keys.rx_iv)


def wipe_install(install: SessionInstall) -> None:
    """Every key of a request."""
    wipe_keys(install.keys, install.next_keys)
    wipe(install.tx_hp_key, install.rx_hp_key)
