"""The control socket and the workers' endpoints under attack: the daemon answers, refuses, and never stumbles."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from qre.ipc.messages import Envelope, Hello, Party, RoleState, SocketRequest
from qre.ipc.roles import ROLES
from qre.structs import encoder
from tests.support.alone import Alone
from tests.support.daemons import PATIENCE, wait_for

NOBODY = 65534
SHOW = b'{"op":"show"}\n'


@pytest.fixture(autouse=True)
def nothing_died(alone: Alone) -> Iterator[None]:
    before = alone.server.workers()
    yield
    assert alone.server.workers() == before
    assert ask(alone, SHOW)["ok"] is True
    assert "Traceback" not in alone.server.said()


def connect(alone: Alone) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(PATIENCE)
    made.connect(str(alone.directory / "run" / "server0.sock"))
    return made


def said(made: socket.socket) -> bytes:
    """Everything until the daemon closes."""
    found = b""
    try:
        while piece := made.recv(1 << 16):
            found += piece
    except ConnectionResetError:
        pass
    return found


def ask(alone: Alone, request: bytes) -> dict[str, object]:
    with connect(alone) as made:
        with suppress(BrokenPipeError):  # who is refused may find the connection closed, with the answer in it
            made.sendall(request)
        answer: dict[str, object] = json.loads(said(made))
    return answer


@pytest.mark.parametrize(
    "request_",
    [b"\n", b"garbage\n", b"\xff\xfe\n", b'{"op":1}\n', b'{"op":"stop"}\n', b'["show"]\n', b"[" * 60_000 + b"\n",
     b'{"op":"show","more":1}\n'],
)  # fmt: skip
def test_garbage_gets_one_refusal(alone: Alone, request_: bytes) -> None:
    answer = ask(alone, request_)
    assert answer["ok"] is False
    assert len(str(answer["error"])) < 200


def test_a_line_of_a_megabyte_is_not_read_to_its_end(alone: Alone) -> None:
    with connect(alone) as made, pytest.raises((BrokenPipeError, ConnectionResetError)):
        made.sendall(b"x" * 1_000_000 + b"\n")
        while made.recv(1 << 16):
            pass
        raise BrokenPipeError


def served(alone: Alone) -> bool:
    return ask(alone, SHOW)["ok"] is True


def test_fifty_idle_connections_keep_nobody_out_for_long(alone: Alone) -> None:
    idle = [connect(alone) for _ in range(50)]
    try:
        idle[0].sendall(b'{"op":"sh')
        answer = ask(alone, SHOW)
        assert answer == {"ok": False, "error": "control socket: too many ask at once; try again"}
        wait_for("room for another", lambda: served(alone))
        assert said(idle[0]) == b"", "half a request is none"
    finally:
        for made in idle:
            made.close()


def test_another_user_reaches_neither_the_control_socket_nor_an_endpoint(alone: Alone) -> None:
    paths = [alone.directory / "run" / "server0.sock"]
    paths += [alone.directory / "run" / "server0.workers" / party / "s" for party in ROLES]
    roles = {NOBODY: "", **{role.ids()[0]: party.value for party, role in ROLES.items()}}
    script = (
        "import socket, sys\n"
        "for path in sys.argv[1:]:\n"
        "    made = socket.socket(socket.AF_UNIX)\n"
        "    try: made.connect(path)\n"
        "    except PermissionError: pass\n"
        "    else: print(path)\n"
    )
    for uid, own in roles.items():
        command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "/usr/bin/python3", "-c", script]
        done = subprocess.run([*command, *map(str, paths)], capture_output=True, text=True, check=True, timeout=30)
        assert [Path(line).parent.name for line in done.stdout.splitlines()] == ([own] if own else [])


def test_another_user_for_whom_the_control_socket_was_opened_is_not_answered(alone: Alone) -> None:
    path = alone.directory / "run" / "server0.sock"
    mode = path.stat().st_mode
    path.chmod(0o666)
    script = (
        "import socket, sys\n"
        "made = socket.socket(socket.AF_UNIX); made.connect(sys.argv[1])\n"
        f"made.sendall({SHOW!r}); print(made.recv(65536))\n"
    )
    command = [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        "/usr/bin/python3",
        "-c",
        script,
    ]
    try:
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False, timeout=30)
    finally:
        path.chmod(mode)
    assert done.stdout == "b''\n" or "ConnectionResetError" in done.stderr or "BrokenPipeError" in done.stderr, done


def test_a_process_with_a_workers_uid_is_not_the_worker(alone: Alone) -> None:
    """It may connect, and say whatever it wants: every word is dropped and counted."""
    forged = [
        Envelope(peer=Party.SUPERVISOR, body=Hello(role=Party.HANDSHAKE, pid=os.getpid())),
        Envelope(peer=Party.SUPERVISOR, body=RoleState(up=True, text="forged")),
        Envelope(peer=Party.SUPERVISOR, id=1, body=SocketRequest(peer="192.0.2.1", port=443)),
        *(
            Envelope(peer=Party.SUPERVISOR, id=number, answer=True, body=SocketRequest(peer="192.0.2.1", port=443))
            for number in range(30)
        ),
    ]
    script = (
        "import os, sys, zmq\n"
        "uid = int(sys.argv[2])\n"
        "os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)\n"
        "context = zmq.Context(); made = context.socket(zmq.DEALER); made.connect(sys.argv[1])\n"
        "for line in sys.argv[3:]: made.send(bytes.fromhex(line))\n"
        "made.send(b''); made.send(b'x' * 500000)\n"
        "print(made.poll(700))\n"
        "made.send_multipart([b'', b'', b''])\n"  # for which it is cut off
        "made.close(1000); context.term()\n"
    )
    path = alone.directory / "run" / "server0.workers" / "handshake" / "s"
    before = dropped(alone)
    done = subprocess.run(
        [sys.executable, "-c", script, f"ipc://{path}", str(ROLES[Party.HANDSHAKE].ids()[0]),
         *(encoder().encode(envelope).hex() for envelope in forged)],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert done.stdout.strip() == "0", "no answer"
    assert dropped(alone) >= before + len(forged)
    assert "forged" not in alone.server.tool("show", "server0")
    assert alone.server.said().count("dropped a message from worker handshake") == 1


def dropped(alone: Alone) -> int:
    device = json.loads(alone.server.tool("--json", "show", "server0"))["devices"][0]
    return sum(int(row["dropped_messages"]) for row in device["processes"] if row["role"] == "handshake")


def test_no_shared_memory_and_no_resource_tracker(alone: Alone) -> None:
    for pid in (alone.server.pid, *alone.server.workers().values()):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        assert b"resource_tracker" not in command
        assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()
