"""The end of a session in qre.ko, with the reason for its peer.

qre.ko's own CONNECTION_CLOSE has no reason, so one with a reason goes out before it as frames of ours. A server's is
followed by qre.ko's, of the same length, as a CLOSE that is repeated (RFC 9000 §10.2.1), which also answers packets
that are under way. A client's is longer, and the only one.
"""

from __future__ import annotations

import contextlib

from qre.ends import Role
from qre.kernel.qre_family import Qre
from qre.kernel.socket import NetlinkRefusedError
from qre.wire.close_reason import CloseReason, close_frames


def end_session(
    qre: Qre, device: str, session_id: bytes, role: Role | None, reason: CloseReason | None, number: int = 0
) -> None:
    """Remove a session and tell its peer why. ``role``: the device's; ``number`` of the frames, for their fate."""
    told = False
    if reason is not None and role is not None:
        with contextlib.suppress(NetlinkRefusedError):  # held, or closing: then without the reason
            qre.frame_send(device, session_id, number, close_frames(reason, role))
            told = True
    qre.session_delete(device, session_id, close=role is not Role.CLIENT or not told)
