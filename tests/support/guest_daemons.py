"""Daemons in a guest, each under a manager of its own (``tests/vm/guest/daemons.sh``), and their end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.vm import Vm

_LIBRARY = ". /tmp/library; . $GUEST/daemons.sh\n"


@contextmanager
def guest_daemons(vm: Vm, script: str, timeout: float) -> Iterator[None]:
    """Two namespaces, profiles, a BPF file system, and what ``script`` begins in them; nothing is left of it."""
    vm.check(_LIBRARY + "net_up\ndaemons_init\n" + script, timeout)
    yield
    vm.run(
        _LIBRARY
        + """
        pkill -f service_manager
        net_down
        until_true "! pgrep -f 'service_manager|guest_daemon' >/dev/null"
        umount /tmp/bpf
        rm -rf /tmp/e /tmp/s? /run/q?
        """
    )
    vm.check('[ -z "$(ls -d /tmp/bpf/* /run/netns/? 2>/dev/null)" ]; [ -z "$(pgrep -f guest_daemon)" ]')
    assert vm.splats() == []
