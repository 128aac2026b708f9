"""libnftables, through Debian's python3-nftables: commands as JSON in, objects or a MachineError out.

It may be missing: QRE works without. ``preload`` comes before a sandbox closes, for no library can be loaded after
that; the library opens its netlink socket (NETLINK_NETFILTER) when an object is made.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from qre.errors import MachineError
from qre.kernel.netfilter.expressions import Command

_LIBRARY: Final = "libnftables.so.1"
#: Of the library's words for a failure, which may quote a whole command.
_LONGEST: Final = 160
#: What a kernel without nftables, or without a part of it, answers.
_ABSENT: Final = (errno.EOPNOTSUPP, errno.ENOENT, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


@functools.cache
def preload() -> Any:
    """The Python binding with its library in memory; None where either is missing."""
    try:
        import nftables

        nftables.loaded = ctypes.CDLL(_LIBRARY)
    except (ImportError, OSError, AttributeError):
        return None
    return nftables


class DeniedError(MachineError):
    """This process may not look at the rules, and will not be allowed to."""


class Firewall:
    """One connection to nftables of this network namespace, for a feature that this key switches off."""

    def __init__(self, key: str) -> None:
        self._key = key
        binding = preload()
        try:
            library = binding.Nftables() if binding is not None else None
        except (OSError, AttributeError):
            library = None
        if library is None:
            raise MachineError("nftables", "it is missing", f"apt install python3-nftables, or set {key} = off")
        self._library: Any = library
        self._library.set_json_output(True)
        self._denied: MachineError | None = None

    def run(self, commands: Sequence[Command]) -> list[Mapping[str, Any]]:
        """Run them as one transaction; the objects that they list. Raises MachineError, and nothing has changed."""
        if self._denied is not None:
            raise self._denied  # the library tells standard error, too: once is enough
        code, answer, words = self._library.json_cmd({"nftables": list(commands)})
        if code:
            error = refusal(self._key, str(words))
            self._denied = error if isinstance(error, DeniedError) else None
            raise error
        return list(answer["nftables"]) if isinstance(answer, dict) else []


def refusal(key: str, words: str) -> MachineError:
    """The error for what libnftables says, without a number: ``internal:0:0-0: Error: Could not process rule: …``."""
    lines = [line.partition("Error: ")[2] for line in words.splitlines() if "Error: " in line]
    said = (lines[0] if lines else words.strip() or "it failed").removeprefix("Could not process rule: ")[:_LONGEST]
    if os.strerror(errno.EPERM) in said:
        return DeniedError(key, f"nftables: {said}", f"grant CAP_NET_ADMIN, or set {key} = off")
    if any(os.strerror(code) in said for code in _ABSENT):
        why = f"this kernel has no NAT by nftables ({said})"
        return MachineError(key, why, f"run `modprobe -a nft_nat nft_chain_nat`, or set {key} = off")
    return MachineError(key, f"nftables: {said}", f"see `nft list ruleset`, or set {key} = off")
