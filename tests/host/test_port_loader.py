"""``shared-port-loader`` and its check on the running kernel: real sockets, and what is left when they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from qre.device.kernel_module import LOADED
from qre.kernel.bpf_program import SLOT_KERNEL, SLOT_USER, open_pinned, slotted
from qre.kernel.port_sockets import bound_sockets
from tests.support.daemons import PATIENCE, TOOL, wait_for
from tests.support.namespaces import run
from tests.support.network import own_network
from tests.support.profiles import SERVER, write_profile
from tests.support.reuseport import short_packet

pytestmark = pytest.mark.root

ELF = Path(__file__).resolve().parents[2] / "workers" / "bpf_loader" / "qre_reuseport.bpf.o"
IP, PORT = "127.0.0.1", 4433
LISTEN = f"{IP}:{PORT}"
CID = bytes(range(20))
NO_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--")
#: What a BPF file system has of its own.
OWN = {"maps.debug", "progs.debug"}


class Place:
    """A network namespace and a BPF file system of one's own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pin_dir = directory / "bpf"
        self.ready = directory / "ready"
        self.env = os.environ | {"QRE_GLOBAL_CONFIG": str(directory / "none"), "RUNTIME_DIRECTORY": str(directory)}
        self.running: list[subprocess.Popen[str]] = []

    def words(self, command: str, *fields: str, listen: str = LISTEN) -> list[str]:
        """The command with what every test gives it; ``fields`` come last."""
        common = {"BpfElf": str(ELF), "Listen": listen, "PinDir": str(self.pin_dir), "RegisterCidMap": "false"}
        given = {name: value for name, _, value in (field.partition("=") for field in fields)}
        return [TOOL, command, *(f"{name}={value}" for name, value in (common | given).items())]

    def start(self, *fields: str, fds: tuple[int, ...] = (), listen: str = LISTEN) -> subprocess.Popen[str]:
        """A loader that is ready."""
        ready = self.directory / f"ready{len(self.running)}"
        words = self.words("shared-port-loader", f"ReadyFile={ready}", *fields, listen=listen)
        started = subprocess.Popen(
            words, env=self.env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=fds
        )
        self.running.append(started)
        wait_for("the ready file", lambda: writer(ready) == started.pid or started.poll() is not None)
        assert started.poll() is None, started.communicate()
        return started

    def ends(self, started: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM) -> list[str]:
        """What it printed; its status is 0 and it complained of nothing."""
        started.send_signal(how)
        printed, said = started.communicate(timeout=PATIENCE)
        assert (started.returncode, said) == (0, ""), (printed, said)
        return printed.splitlines()

    def once(
        self, command: str, *fields: str, prefix: tuple[str, ...] = (), fds: tuple[int, ...] = ()
    ) -> tuple[int, list[str], list[str]]:
        """Status, standard output, standard error of a command that ends by itself."""
        words = [*prefix, *self.words(command, *fields)]
        done = subprocess.run(
            words, env=self.env, text=True, capture_output=True, timeout=PATIENCE, check=False, pass_fds=fds
        )
        return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()

    def refused(self, *fields: str, prefix: tuple[str, ...] = (), fds: tuple[int, ...] = ()) -> str:
        """The one line of a loader that refuses."""
        status, _, said = self.once("shared-port-loader", "RunForMs=1", *fields, prefix=prefix, fds=fds)
        assert (status, len(said)) == (2, 1), said
        assert said[0].startswith("qre-tool: "), said
        return said[0]

    def pins(self) -> set[str]:
        return {path.name for path in self.pin_dir.iterdir()} - OWN

    def nothing_left(self, sockets: int = 0) -> None:
        assert self.pins() == set()
        assert [path.name for path in self.directory.iterdir() if path.name.startswith(("ready", ".ready"))] == []
        assert bound_sockets(IP, PORT) == sockets

    def queued(self) -> list[int]:
        """Bytes that wait at each socket of the port, as the kernel tells."""
        lines = Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]
        return [int(line.split()[4].split(":")[1], 16) for line in lines if line.split()[1].endswith(f":{PORT:04X}")]


@pytest.fixture
def place() -> Iterator[Place]:
    with ExitStack() as stack:
        stack.enter_context(own_network())
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qre-t-")))
        directory.chmod(0o711)
        made = Place(directory)
        made.pin_dir.mkdir()
        run("mount", "-t", "bpf", "bpf", str(made.pin_dir))
        stack.callback(run, "umount", str(made.pin_dir))
        try:
            yield made
        finally:
            for started in made.running:
                if started.poll() is None:
                    started.kill()
                started.communicate()


@contextmanager
def bound(
    ip: str = IP, port: int = PORT, *, reuseport: bool = True, kind: int = socket.SOCK_DGRAM
) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, kind) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuseport)
        made.bind((ip, port))
        made.settimeout(PATIENCE)
        yield made


def writer(ready: Path) -> int | None:
    """The process that a ready file names."""
    try:
        pid: int = json.loads(ready.read_text())["pid"]
    except FileNotFoundError:
        return None
    return pid


def send(packet: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(packet, (IP, PORT))


def adopt(place: Place, cid: bytes = CID) -> None:
    """Written through the pin, by another program than ours."""
    path = place.pin_dir / "QRE_CID_ROUTES-127-0-0-1-4433"
    key = [f"{octet:02x}" for octet in (len(cid), *cid.ljust(20, b"\0"))]
    run("bpftool", "map", "update", "pinned", str(path), "key", "hex", *key, "value", "hex", "01", "00", "00", "00")


# --- it holds the port ---


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_binds_attaches_pins_and_takes_everything_away_on_a_signal(place: Place, how: signal.Signals) -> None:
    started = place.start("UserspaceBind=true")
    names = {f"{name}-127-0-0-1-4433" for name in ("QRE_CID_ROUTES", "QRE_SOCKETS", "qre_reuseport_demux")}
    assert place.pins() == names
    fd = open_pinned(place.pin_dir / "QRE_SOCKETS-127-0-0-1-4433")
    assert set(slotted(fd)) == {SLOT_USER, SLOT_KERNEL}
    os.close(fd)
    adopt(place)
    shown = run(TOOL, "show-cid-map", f"BpfMapPath={place.pin_dir}/QRE_CID_ROUTES-127-0-0-1-4433")
    assert f"connection_id {CID.hex()}  socket_index 1" in shown

    for packets, waiting in ((short_packet(CID), 1), (b"\xc0" + bytes(39), 2)):
        for _ in range(16):
            send(packets)
        wait_for("packets in the queues", lambda waiting=waiting: sum(map(bool, place.queued())) == waiting)
    wait_for("sixteen packets at each socket", lambda: place.queued()[0] == place.queued()[1])

    printed = place.ends(started, how)
    assert "ready" in printed and "ending: stopped by a signal" in printed
    assert f"closed the sockets of UDP {IP}:{PORT}" in printed, "and nobody else has them"
    place.nothing_left()


@pytest.mark.parametrize("length", [17, 20])
def test_it_steers_by_connection_ids_of_the_length_that_it_was_told(place: Place, length: int) -> None:
    started = place.start("UserspaceBind=true", f"RoutedCidLen={length}")
    adopt(place, CID[:length])
    for _ in range(16):
        send(short_packet(CID[:length]))
    wait_for("packets in a queue", lambda: any(place.queued()))
    assert sum(map(bool, place.queued())) == 1, "all at one socket"
    for _ in range(16):
        send(short_packet(bytes(length)))
    wait_for("packets in the other", lambda: all(place.queued()))
    place.ends(started)


def test_it_ends_by_itself_when_its_time_is_over(place: Place) -> None:
    status, printed, said = place.once(
        "shared-port-loader", "UserspaceBind=true", "RunForMs=300", f"ReadyFile={place.ready}"
    )
    assert (status, said) == (0, [])
    assert "ending: RunForMs is over" in printed
    place.nothing_left()


def test_it_takes_over_a_socket_that_was_handed_in_and_gives_it_back(place: Place) -> None:
    with bound() as ours:
        started = place.start(f"UserspaceSocketFd={ours.fileno()}", fds=(ours.fileno(),))
        adopt(place)
        for number in range(16):
            send(short_packet(CID))  # to the kernel's slot
            send(b"\xc0%d" % number)
        assert [ours.recv(100) for _ in range(16)] == [b"\xc0%d" % number for number in range(16)]
        place.ends(started)
        place.nothing_left(sockets=1)
        send(short_packet(CID))
        assert ours.recv(100) == short_packet(CID)


def test_two_loaders_on_two_ports_do_not_disturb_each_other(place: Place) -> None:
    one = place.start("UserspaceBind=true")
    other = place.start("UserspaceBind=true", "RoutedCidLen=17", listen=f"{IP}:{PORT + 1}")
    assert len(place.pins()) == 6
    place.ends(one)
    assert len(place.pins()) == 3
    place.ends(other)
    place.nothing_left()


def test_a_second_loader_on_the_same_port_is_refused_and_the_first_goes_on(place: Place) -> None:
    started = place.start("UserspaceBind=true")
    before = place.pins()
    assert "a loader that runs has pinned" in place.refused("UserspaceBind=true")
    other = place.directory / "other"
    other.mkdir()
    run("mount", "-t", "bpf", "bpf", str(other))
    try:
        assert "another program uses this UDP port" in place.refused("UserspaceBind=true", f"PinDir={other}")
        assert {path.name for path in other.iterdir()} <= OWN
    finally:
        run("umount", str(other))
    assert "wrote it and runs" in place.refused("UserspaceBind=true", f"ReadyFile={place.directory}/ready0")
    assert place.pins() == before
    place.ends(started)
    place.nothing_left()


# --- what a killed one leaves ---


def test_the_next_one_clears_what_a_killed_one_left(place: Place) -> None:
    killed = place.start("UserspaceBind=true")
    killed.kill()
    killed.wait()
    assert len(place.pins()) == 3
    (place.directory / "ready0").rename(place.directory / "ready1")
    printed = place.ends(place.start("UserspaceBind=true"))
    assert printed[0].startswith("removed the pins of a loader that was killed")
    place.nothing_left()


def test_the_next_one_clears_it_behind_a_socket_that_lives_on(place: Place) -> None:
    with bound() as ours:
        field, fds = f"UserspaceSocketFd={ours.fileno()}", (ours.fileno(),)
        killed = place.start(field, fds=fds)
        assert "a loader that runs has pinned" in place.refused(field, fds=fds)
        killed.kill()
        killed.wait()
        (place.directory / "ready0").unlink()
        place.ends(place.start(field, fds=fds))
        place.nothing_left(sockets=1)


def test_pins_of_which_some_are_gone_are_cleared(place: Place) -> None:
    for name in ("QRE_SOCKETS", "QRE_CID_ROUTES"):
        killed = place.start("UserspaceBind=true")
        pinned = place.pins()
        killed.kill()
        killed.wait()
        (place.pin_dir / f"{name}-127-0-0-1-4433").unlink()
        (place.directory / f"ready{len(place.running) - 1}").unlink()
        started = place.start("UserspaceBind=true")
        assert place.pins() == pinned, "all of them are its own"
        place.ends(started)
        place.nothing_left()


def test_a_pin_of_somebody_else_is_left_alone(place: Place) -> None:
    path = place.pin_dir / "QRE_SOCKETS-127-0-0-1-4433"
    run(TOOL, "create-cid-map", f"BpfMapPath={path}")
    assert "it is not a QRE_SOCKETS" in place.refused("UserspaceBind=true")
    assert place.pins() == {path.name}


# --- what fails half-way ---


def test_a_port_that_others_use_is_refused_and_nothing_is_left(place: Place) -> None:
    for reuseport in (False, True):
        with bound(reuseport=reuseport):
            assert "another program uses this UDP port" in place.refused("UserspaceBind=true")
            place.nothing_left(sockets=1)
    assert "does not have that address" in place.refused("UserspaceBind=true", "Listen=192.0.2.1:4433")
    place.nothing_left()


def test_a_pin_directory_that_cannot_be_written_is_refused_and_nothing_is_left(place: Place) -> None:
    run("mount", "-o", "remount,ro", str(place.pin_dir))
    said = place.refused("UserspaceBind=true", f"ReadyFile={place.ready}")
    assert "Read-only file system" in said
    run("mount", "-o", "remount,rw", str(place.pin_dir))
    place.nothing_left()


def test_what_cannot_be_done_is_refused_in_one_line_and_nothing_is_left(place: Place, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("nothing")
    for fields, said in (
        (("BpfElf=/none/elf",), "BpfElf /none/elf : No such file"),
        (("BpfElf=/dev/zero",), "it is not a regular file"),
        ((f"BpfElf={tmp_path}",), "it is not a regular file"),
        ((f"BpfElf={text}",), "BPF ELF"),
        ((f"PinDir={tmp_path}",), "not a BPF file system; mount -t bpf bpf"),
        ((f"PinDir={tmp_path}/none",), "No such file"),
        ((f"ReadyFile={tmp_path}/none/ready",), "its directory does not exist"),
        ((f"ReadyFile={text}",), "it exists and was not written by qre-tool"),
        ((f"ReadyFile={tmp_path}",), "it exists and was not written by qre-tool"),
        (("Device=none0",), "device none0 : it is not up"),
        (("RegisterCidMap=true",), "RegisterCidMap=false"),
    ):
        line = place.refused("UserspaceBind=true", *fields)
        assert said in line, line
        place.nothing_left()
    assert text.read_text() == "nothing"


def test_a_ready_file_that_cannot_be_written_undoes_everything(place: Place) -> None:
    directory = place.directory / "readonly"
    directory.mkdir()
    run("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(directory))
    try:
        status, printed, said = place.once(
            "shared-port-loader", "UserspaceBind=true", f"ReadyFile={directory}/ready", "RunForMs=1"
        )
    finally:
        run("umount", str(directory))
    assert (status, len(said)) == (2, 1)
    assert "Read-only file system" in said[0]
    assert "attached qre_reuseport_demux" in printed and "removed the pins" in printed
    place.nothing_left()


def test_without_capabilities_it_says_which_are_missing(place: Place) -> None:
    said = place.refused("UserspaceBind=true", prefix=NO_CAPABILITIES)
    assert "it needs CAP_BPF, CAP_NET_ADMIN, which are missing; run it as root" in said


def test_when_nobody_reads_what_it_prints_it_still_takes_everything_away(place: Place) -> None:
    place.env.pop("PYTHONUNBUFFERED", None)  # what cannot be written is tried again at the end
    started = place.start("UserspaceBind=true")
    assert started.stdout is not None
    assert "ready\n" in iter(started.stdout.readline, ""), "the last words before it waits"
    started.stdout.close()
    started.send_signal(signal.SIGTERM)
    assert started.wait(PATIENCE) == 0
    place.nothing_left()


# --- sockets that are not what they should be ---


def test_a_socket_that_is_not_the_ports_is_refused(place: Place) -> None:
    for made, said in (
        (bound(reuseport=False), "SO_REUSEPORT is off"),
        (bound(port=PORT + 1), f"it is bound to {IP}:{PORT + 1}, not to Listen {LISTEN}"),
        (bound("0.0.0.0"), f"it is bound to 0.0.0.0:{PORT}, not to Listen {LISTEN}"),
        (bound(kind=socket.SOCK_STREAM), "a socket of another family, type or protocol"),
    ):
        with made as ours:
            line = place.refused(f"UserspaceSocketFd={ours.fileno()}", fds=(ours.fileno(),))
            assert said in line, line
    with open(os.devnull) as null:
        assert "not a socket" in place.refused(f"UserspaceSocketFd={null.fileno()}", fds=(null.fileno(),))
    with bound() as ours, bound():
        line = place.refused(f"UserspaceSocketFd={ours.fileno()}", fds=(ours.fileno(),))
        assert "another socket is bound there, too" in line
    with bound() as ours, own_network():
        line = place.refused(f"UserspaceSocketFd={ours.fileno()}", fds=(ours.fileno(),))
        assert "it belongs to another network namespace" in line
    place.nothing_left()


# --- the check ---


@pytest.mark.parametrize("length", [17, 20])
def test_the_check_sees_every_kind_of_packet_steered(place: Place, length: int) -> None:
    fields = (f"ConnectionId={os.urandom(length).hex()}", f"RoutedCidLen={length}")
    status, printed, said = place.once("shared-port-loader-check", *fields)
    assert (status, said) == (0, [])
    verified = [line.removeprefix("ok ") for line in printed if line.startswith("ok ")]
    assert verified[:11] == [
        "a long header: slot 0 (user space)",
        "a short header with an unknown connection ID: slot 0 (user space)",
        "a short header with the connection ID before it is adopted: slot 0 (user space)",
        "the connection ID is in the map",
        "a short header with the connection ID: slot 1 (kernel)",
        "the same, and not a byte more: slot 1 (kernel)",
        "a packet that ends inside the connection ID: slot 0 (user space)",
        "a long header with the adopted connection ID: slot 0 (user space)",
        "the connection ID is gone from the map",
        "a short header with the connection ID after its release: slot 0 (user space)",
        verified[10],
    ]
    assert verified[10].startswith("after detach the kernel chooses by itself")
    assert verified[11:] == ["everything"]
    place.nothing_left()


def test_the_check_finds_a_program_that_does_not_steer(place: Place, tmp_path: Path) -> None:
    """One that was compiled for slots the other way round."""
    source = (ELF.parents[2] / "bpf" / "qre_reuseport.bpf.c").read_text()
    wrong = source.replace("#define QRE_SLOT_KERNEL 1", "#define QRE_SLOT_KERNEL 0")
    assert wrong != source
    (tmp_path / "wrong.c").write_text(wrong)
    include = f"/usr/include/{os.uname().machine}-linux-gnu"
    run("clang", "-target", "bpf", "-g", "-O2", f"-I{include}", "-c", str(tmp_path / "wrong.c"), "-o",
        str(tmp_path / "wrong.o"))  # fmt: skip
    status, printed, said = place.once(
        "shared-port-loader-check", f"ConnectionId={CID.hex()}", f"BpfElf={tmp_path}/wrong.o"
    )
    assert (status, len(said)) == (2, 1)
    assert "a short header with the connection ID : it reached slot 0 (user space), not slot 1 (kernel)" in said[0]
    assert "ok a long header: slot 0 (user space)" in printed
    place.nothing_left()


#: setsockopt() of a kernel in which a detach succeeds and does nothing.
NEVER_DETACHES = """
#define _GNU_SOURCE
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    if (level == SOL_SOCKET && name == SO_DETACH_REUSEPORT_BPF)
        return 0;
    return syscall(SYS_setsockopt, fd, level, name, value, length);
}
"""


def test_the_check_finds_a_program_that_still_steers_after_the_detach(place: Place, tmp_path: Path) -> None:
    (tmp_path / "never.c").write_text(NEVER_DETACHES)
    run("gcc", "-shared", "-fPIC", "-o", str(tmp_path / "never.so"), str(tmp_path / "never.c"))
    place.env["LD_PRELOAD"] = str(tmp_path / "never.so")
    status, printed, said = place.once("shared-port-loader-check", f"ConnectionId={CID.hex()}")
    assert (status, len(said)) == (2, 1)
    assert "detach : one socket still gets every packet" in said[0]
    assert "ok a short header with the connection ID after its release: slot 0 (user space)" in printed
    assert not [line for line in printed if "after detach" in line or line == "ok everything"]
    place.nothing_left()


@pytest.mark.skipif(LOADED.exists(), reason="qre.ko is loaded")
def test_the_check_of_a_device_whose_packets_nobody_counts_fails_before_anything_is_set_up(place: Place) -> None:
    write_profile(place.directory, "qre0", SERVER)
    for variable in ("QRE_CONFIG_DIR", "QRE_STATE_DIR"):
        place.env[variable] = str(place.directory)
    place.env["QRE_DATAPLANE"] = "user"
    subprocess.run([TOOL, "up", "qre0"], env=place.env, check=True, timeout=PATIENCE)
    status, printed, said = place.once("shared-port-loader-check", f"ConnectionId={CID.hex()}", "Device=qre0")
    subprocess.run([TOOL, "down", "qre0"], env=place.env, check=True, timeout=PATIENCE)
    assert (status, printed) == (2, [])
    why = "qre.ko alone counts the packets of a shared port; it is not loaded"
    assert said == [f"qre-tool: field Device : {why}; load it with `modprobe qre`, or leave Device out"]
    place.nothing_left()


def test_the_check_leaves_a_port_that_others_use_alone(place: Place) -> None:
    with bound():
        status, _, said = place.once("shared-port-loader-check", f"ConnectionId={CID.hex()}")
    assert (status, len(said)) == (2, 1)
    assert "another program uses this UDP port" in said[0]
    place.nothing_left()
