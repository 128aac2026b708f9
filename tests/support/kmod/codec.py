"""Those sources of the kernel module that are built for user space, too, in a process of their own, under sanitizers.

``codec.c`` is the other end of the pipe. A finding of a sanitizer ends that process; what it said is in the error.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from qre.workers.dataplane.session.payload import Sender
from tests.support.daemons import PATIENCE

ROOT: Final = Path(__file__).resolve().parents[3]
KMOD: Final = ROOT / "kmod"
COMPILE: Final = (
    "clang", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fno-sanitize-recover=all", f"-I{KMOD}"
)  # fmt: skip
SOURCES: Final = tuple(
    str(KMOD / f"{name}.c") for name in ("ackpolicy", "frames", "ackwin", "ecn", "pathmtu", "peercids", "tcpopt")
)
Range = tuple[int, int]


class CodecFrame(NamedTuple):
    """``values``: of an ACK its delay, whether it has ECN counts, those, then first and last of each range; of a
    CONNECTION_CLOSE its error code; of NEW_CONNECTION_ID both sequence numbers."""

    kind: str
    raw: bytes
    data: bytes = b""  # of DATAGRAM and PATH_*
    values: Sequence[int] = ()

    @property
    def ranges(self) -> list[Range]:
        return pairs(self.values[5:])

    @property
    def ecn(self) -> tuple[int, ...]:
        return tuple(self.values[2:5]) if self.values[1] else ()


class CodecContent(NamedTuple):
    """struct qre_content."""

    error: int
    challenge: bytes = b""
    passed: bytes = b""
    unknown: int = 0
    datagrams: bool = False
    eliciting: bool = False
    only_probing: bool = True


class HeldCid(NamedTuple):
    """One connection ID of the peer's. ``token`` is empty when it is not known."""

    place: int
    state: str  # used, spare
    sequence: int
    cid: bytes
    token: bytes


class HeldCids(NamedTuple):
    """``result`` is that of the call; ``paid`` the frames of ``cids-pay``."""

    result: int
    held: list[HeldCid]
    owed: list[int]
    paid: bytes = b""


class Window(NamedTuple):
    arrivals: str  # a digit for each number: enum qre_arrival
    floor: int
    ranges: list[Range]


class PathMtu(NamedTuple):
    """What the search for the path's MTU is at: ``action`` is what to do now, 1 a probe, 2 something small."""

    action: int
    state: int
    size: int  # in use
    probed: int
    hope: int  # the most that may yet be found
    quiet: bool
    watches: bool
    listens: bool
    due: int  # milliseconds


def pairs(values: Sequence[int]) -> list[Range]:
    return list(zip(values[::2], values[1::2], strict=True))


class KernelCodec:
    """One process; a context manager."""

    def __init__(self, directory: Path) -> None:
        program = directory / "codec"
        shim = str(Path(__file__).with_name("codec.c"))
        subprocess.run([*COMPILE, "-fsanitize=address,undefined", shim, *SOURCES, "-o", program], check=True)
        self._errors = directory / "codec.stderr"
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def __enter__(self) -> KernelCodec:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaks are told at its end."""
        self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0, self._errors.read_text()

    def _ask(self, *words: object) -> str | None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the codec died of {words}: {self._errors.read_text()}"
        return None if "!" in answer else answer.strip()

    def _bytes(self, *words: object) -> bytes:
        return _unhex(self._ask(*words) or "-")

    def frames(self, data: bytes) -> list[CodecFrame] | None:
        """None: malformed."""
        answer = self._ask("frames", _hex(data))
        if answer is None:
            return None
        found: list[CodecFrame] = []
        at = 0
        for text in answer.split(";")[:-1]:
            kind, size, *rest = text.split()
            raw, at = data[at : at + int(size)], at + int(size)
            if kind in ("ACK", "CONNECTION_CLOSE", "NEW_CONNECTION_ID"):
                found.append(CodecFrame(kind, raw, values=[*map(int, rest)]))
            else:
                found.append(CodecFrame(kind, raw, b"".join(map(_unhex, rest))))
        return found

    def content(self, sender: Sender, data: bytes, *, splits: bool = True) -> CodecContent:
        """What the frames of a payload add up to. ``splits``: the sender may send packets in two datagrams."""
        flags = map(int, (sender.client, sender.gives_cids, sender.takes_cids, splits))
        error, *rest = (self._ask("content", *flags, sender.issued, _hex(data)) or "").split()
        if int(error):
            return CodecContent(int(error))
        challenge, passed, unknown, *others = rest
        return CodecContent(0, _unhex(challenge), _unhex(passed), int(unknown), *(word == "1" for word in others))

    def ecn(self, call: str, *words: object) -> list[int]:
        """The state of the test of a path's marks, after this call; of ``mark`` what the packets bear, too."""
        plain = [_hex(word) if isinstance(word, bytes) else word for word in words]
        return [int(word) for word in (self._ask(f"ecn-{call}", *plain) or "").split()]

    def peer_cids(self, call: str, *words: object) -> HeldCids:
        """The connection IDs of the peer, after this call; bytes among ``words`` are told as such."""
        plain = [_hex(word) if isinstance(word, bytes) else word for word in words]
        told, owed, *paid = (self._ask(f"cids-{call}", *plain) or "").split(";")
        result, *rest = told.split()
        rows = zip(*(rest[at::5] for at in range(5)), strict=True)
        held = [HeldCid(int(at), state, int(n), _unhex(cid), _unhex(token)) for at, state, n, cid, token in rows]
        return HeldCids(int(result), held, [*map(int, owed.split())], _unhex(paid[0].strip()) if paid else b"")

    def varint(self, data: bytes) -> tuple[int, int] | None:
        """The value, and its size; None: cut short."""
        answer = self._ask("varint", _hex(data))
        if answer is None:
            return None
        value, size = map(int, answer.split())
        return value, size

    def put_varint(self, value: int) -> bytes:
        return self._bytes("put", value)

    def put_ack(self, room: int, ranges: Sequence[Range], delay: int, ecn: Sequence[int] = ()) -> bytes:
        flat = [number for one in ranges for number in one]
        return self._bytes("ack", room, delay, int(bool(ecn)), *(ecn or (0, 0, 0)), len(ranges), *flat)

    def put_close(self, error: int, *, application: bool) -> bytes:
        return self._bytes("close", error, int(application))

    def put_path(self, data: bytes, *, response: bool) -> bytes:
        return self._bytes("path", int(response), _hex(data))

    def decode_number(self, truncated: int, length: int, expected: int) -> int:
        return int(self._ask("decode", expected, truncated, length) or "")

    def number_size(self, number: int, acknowledged: int) -> int:
        return int(self._ask("number-size", number, acknowledged) or "")

    def acks(self, received: int, rtt: int, what: str) -> tuple[str, int]:
        """``codec.c`` says what is asked; the answers of the packets, and the delay in microseconds."""
        *due, delay = (self._ask("acks", received, rtt, what) or "").split()
        return "".join(due), int(delay)

    def window(self, base: int, numbers: Sequence[int], max_ranges: int = 32) -> Window:
        answer = self._ask("window", base, max_ranges, len(numbers), *numbers) or ""
        arrivals, floor, *ranges = answer.split() if numbers else ["", *answer.split()]
        return Window(arrivals, int(floor), pairs([*map(int, ranges)]))

    def clamp_mss(self, header: bytes, most: int, *, partial: bool = False) -> bytes | None:
        """The header with a smaller segment size; None: it is as it was."""
        changed, after = (self._ask("mss", most, int(partial), _hex(header)) or "").split()
        assert changed == "1" or _unhex(after) == header
        return _unhex(after) if changed == "1" else None

    def divisible(self, segment: bytes) -> bool:
        return self._ask("divisible", _hex(segment)) == "1"

    def path_mtu(self, *words: object) -> PathMtu:
        """One call of the one search that the process has: ``codec.c`` says what there is."""
        action, state, size, probed, hope, *flags, due = map(int, (self._ask(*words) or "").split())
        return PathMtu(action, state, size, probed, hope, *map(bool, flags), due)


def _hex(data: bytes) -> str:
    return data.hex() or "-"


def _unhex(text: str) -> bytes:
    return b"" if text == "-" else bytes.fromhex(text)
