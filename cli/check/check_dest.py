"""What ``check`` examines of a server's Dest: one visit, as `find-dest` makes, and a line for each drawback.

Drawbacks that keep clients out are a no of ``dest``; the others have items of their own, which are not needed: a
tunnel works, and can be told.
"""

from __future__ import annotations

import asyncio

from qre.cli.check.findings import Finding, Findings, YesNo
from qre.cli.dest.own_servers import own_listens
from qre.config.model import Profile
from qre.quic.client.drawbacks import Weight
from qre.visit.assessment import Assessor, Site
from qre.visit.our_network import OurNetwork


def dest(loaded: Profile) -> Findings:
    """For a server's profile."""
    assert loaded.server is not None and loaded.listen is not None
    settings = loaded.server
    ours = OurNetwork(own_listens() | set(loaded.listen.ends))
    found = asyncio.run(Assessor(ours).assess(Site(settings.dest, settings.server_name)))
    bad = [each for each in found.against if each.weight is Weight.UNUSABLE]
    if bad:
        seen = f"{settings.dest}: {'; '.join(each.why for each in bad)}; an observer sees: {bad[0].observed}"
        yield Finding("dest", YesNo.NO, seen, "choose another Dest: see `qre-tool help find-dest`")
    elif found.profile is not None:
        seen = f"{settings.dest} answers HTTP/3 in {found.profile.rtt_ms} ms as {settings.server_name}"
        yield Finding("dest", YesNo.YES, seen)
    for each in found.against:
        if each.weight is not Weight.UNUSABLE:
            instead = f"the tunnel works, and an observer sees: {each.observed}"
            yield Finding(f"dest {each.drawback}", YesNo.NO, each.why, "see `qre-tool help find-dest`", instead)
