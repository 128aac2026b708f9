"""Which daemons may share a port: what both say in public is compared, and the first difference named."""

from __future__ import annotations

import msgspec
import pytest

from qre.supervisor.front import Join, refusal

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
        ({"routed_cid_len": 17}, "RoutedCidLen is 17, and 20 at"),
        ({"user_dataplane": True}, "a port is shared on the kernel's data plane only"),
    ],
)
def test_what_differs_is_named(change: dict[str, object], named: str) -> None:
    assert refusal(FRONT, msgspec.structs.replace(FRONT, **change)).startswith(named)
