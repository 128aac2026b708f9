"""When a client's session in qre.ko that hears nothing repeats for the last time, and when it ends.

The module tells that a path is a bad one, with what it knows of the round trip, and takes the times and last words
from here (``qre.dataplane.giving_up``): for this silence alone, an acknowledgement takes them back. A daemon that is
dead orders nothing, and the session goes on until it is idle. A module of an earlier version does not tell.
"""

from __future__ import annotations

import errno

from qre.dataplane.giving_up import FAREWELL, LAST_REPEAT, gives_up_after
from qre.kernel.answers import PathDegraded
from qre.kernel.qre_family import Qre
from qre.kernel.socket import NetlinkRefusedError

#: It is answered again, or gone, or its device is.
_TOO_LATE = (errno.EALREADY, errno.ENOENT, errno.ENODEV)


def order_end(qre: Qre, device: str, path: PathDegraded) -> None:
    """Tell the module when the session ends. Raises NetlinkRefusedError when it does not take that."""
    ends = gives_up_after(path.round_trip, several=path.several)
    last_repeat = max(ends - LAST_REPEAT, 0.0)
    try:
        qre.session_give_up(device, path.session_id, (round(last_repeat * 1000), round(ends * 1000)), FAREWELL)
    except NetlinkRefusedError as error:
        if error.code not in _TOO_LATE:
            raise
