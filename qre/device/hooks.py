"""PreUp, PostUp, PreDown and PostDown: the user's shell commands, run as wg-quick(8) runs them.

``sh -c COMMAND`` with ``%i`` replaced by the device, in order, with our standard streams. A command that
fails, or does not end within ``TIMEOUT``, is an error that names it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess

from qre.errors import UserError

#: Seconds; a hook sets things up and ends (what has to stay it can start in the background).
TIMEOUT = 60.0


def hook_command(command: str, device: str) -> str:
    """The command with ``%i`` replaced. An odd device name is quoted: the kernel allows ``$(…)`` in one."""
    return command.replace("%i", shlex.quote(device))


def run_hook(kind: str, command: str, device: str) -> None:
    """Run one hook (``kind``: ``PreUp``, …); UserError when it fails."""
    what = f"{kind} = {command}"
    try:
        process = subprocess.Popen(
            ["/bin/sh", "-c", hook_command(command, device)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_default_signals,  # noqa: PLW1509 - safe here: lifecycles run in processes of one thread
        )
    except OSError as error:
        raise UserError(what, error.strerror or str(error)) from error
    try:
        status = process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise UserError(what, f"it did not end within {TIMEOUT:g} s", "let it run in the background") from None
    except BaseException:
        _kill(process)
        raise
    if status < 0:
        raise UserError(what, f"it was ended by {signal.Signals(-status).name}")
    if status:
        raise UserError(what, f"it failed with exit status {status}")


def _default_signals() -> None:
    """Restore signals that a daemon ignores: what a hook starts in the background must not."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the hook and everything it started in its own session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
