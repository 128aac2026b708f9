"""What is said when another program took away a part of the device, and who it was, as far as the kernel tells.

A notification names the netlink port of the request. A program's first netlink socket has its process id for a port
(netlink(7)), so the port names a process while that runs; further sockets have numbers of no meaning.
"""

from __future__ import annotations

from pathlib import Path

from qre.ipc.messages import DeviceTampered


def tampering_line(device: str, message: DeviceTampered) -> str:
    """One line for the log, or for the end of the daemon."""
    text = f"device {device}: {program_at(message.port)} removed {message.what}"
    if message.error:
        text += f", which cannot be put back: {message.error}"
    elif not message.final:
        text += "; put back"
    if message.final:
        text += "; more than three times in a minute: the tunnel ends. Stop that program, or take the profile down"
    return text


def program_at(port: int) -> str:
    """Who has this netlink port."""
    if not port:
        return "the kernel or an unknown program"
    try:
        name = Path(f"/proc/{port}/comm").read_text(errors="replace").strip()
    except OSError:
        return f"a program with netlink port {port}, which has ended,"
    return f"{name} (process {port})"
