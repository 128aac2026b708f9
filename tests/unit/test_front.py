"""Which daemons may share a port: what both say in public is compared, and the first difference named. What a daemon
that has joined one tells of it."""

from __future__ import annotations

import os
from ipaddress import ip_address

import msgspec
import pytest

from qre.dataplane.status import SharedLoader, SharedPort
from qre.supervisor.daemon_status import front_loader, front_map
from qre.supervisor.front import Join, refusal

LISTEN = (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
FRONT = Join(
    profile="server0",
    device="qre0",
    server_name="site.example",
    dest="site.example:443",
    max_time_diff_ms=60_000,
    routed_cid_len=20,
    user_dataplane=False,
)


def test_another_device_and_another_case_of_the_name_may_join() -> None:
    assert (
        refusal(FRONT, msgspec.structs.replace(FRONT, profile="b", device="qre1", server_name="SITE.example")) == ""
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"server_name": "other.example"}, "ServerName is other.example, and site.example at the port's front"),
        ({"dest": "site.example:444"}, "Dest is site.example:444, and site.example:443 at"),
        ({"max_time_diff_ms": 5}, "RealityMaxTimeDiff is 5 ms, and 60000 ms at"),
        ({"listen_only": LISTEN}, "Listen is 192.0.2.1, 2001:db8::1, and every address at"),
        ({"routed_cid_len": 17}, "RoutedCidLen is 17, and 20 at"),
        ({"user_dataplane": True}, "a port is shared on the kernel's data plane only"),
    ],
)
def test_what_differs_is_named(change: dict[str, object], named: str) -> None:
    assert refusal(FRONT, msgspec.structs.replace(FRONT, **change)).startswith(named)


PORT = SharedPort(
    socket="192.0.2.1:443",
    map_id=7,
    map_entries=5,
    loader=SharedLoader(program="qre_reuseport_demux", pin_dir="/sys/fs/bpf", routed_cid_len=20, pid=os.getpid()),
)


def test_who_has_joined_tells_of_the_fronts_map_and_loader() -> None:
    told = front_map(PORT, [b"\x22" * 20], "qre0")
    assert told is not None
    assert (told["path"], told["id"], told["entries"]) == ("/sys/fs/bpf/QRE_CID_ROUTES-qre0", 7, 5)
    assert (told["registered"], told["in_sync"], told["connection_ids"]) == (True, True, ["22" * 20])
    loader = front_loader(PORT, "qre0")
    assert loader == {
        "attached": True, "program": "qre_reuseport_demux", "pin_dir": "/sys/fs/bpf", "routed_cid_len": 20,
        "front": "qre0",
    }  # fmt: skip


def test_a_front_that_is_gone_is_told_as_such() -> None:
    assert front_map(None, [], "qre0") is None and front_loader(None, "qre0") is None
    gone = msgspec.structs.replace(PORT, map_id=None, loader=None)
    told = front_map(gone, [b"\x22" * 20], "qre0")
    assert told is not None and not told["registered"] and not told["in_sync"] and told["connection_ids"] == []
    assert front_loader(gone, "qre0") is None
    missing = front_map(msgspec.structs.replace(PORT, map_missing=1), [], "qre0")
    assert missing is not None and not missing["in_sync"]
