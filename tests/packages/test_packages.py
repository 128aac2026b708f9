"""A server and a client that apt installs: built the same twice, small, upgraded under traffic, purged."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

import qre
from tests.container.conftest import Machine
from tests.packages.conftest import APT, LATER, Installed, Packages, all_of, build
from tests.support.container import TREE
from tests.support.daemons import wait_for
from tests.support.ping import numbers_answered
from tests.support.tunnel import SERVER_INNER

pytestmark = pytest.mark.timeout(1800)  # the first test builds the packages and may have to make a Debian

#: What a client needs, in MiB.
MOST = 130
#: Packets a second, while a machine is upgraded.
RATE = 20


def test_the_same_tree_gives_the_same_bytes(packages: Packages, tmp_path: Path) -> None:
    again = build(tmp_path / "again")
    assert sorted(again) == ["qre", "qre-dkms"]
    for name, path in packages.of_now.items():
        assert path.read_bytes() == again[name].read_bytes(), name


def test_lintian_has_nothing_to_say(packages: Packages) -> None:
    call = ["lintian", "--allow-root", "--fail-on", "error,warning", *packages.of_now.values()]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_client_is_small_and_gets_neither_bcc_nor_a_compiler(
    ends: Installed, record_property: pytest.RecordProperty
) -> None:
    record_property("seconds", round(ends.seconds))
    record_property("mebibytes", ends.mebibytes)
    assert ends.mebibytes < MOST
    client = ends.client.container
    names = client.check("dpkg-query -W -f '${Package}\\n'").split()
    assert not [
        name for name in names if re.match(r"gcc-[0-9]+$|clang|libllvm|make$|python3-(bpfcc|venv|pip)|libbpf", name)
    ]
    assert client.check("qre-tool version") == f"qre-tool {qre.__version__}"
    assert client.run("qre-tool check client0")[1].startswith("yes  python packages")


def test_a_server_without_bcc_says_what_to_install_and_changes_nothing(ends: Installed) -> None:
    text = ends.server.read()
    client = ends.client.container
    client.check("umask 077; cat >/etc/qre/dev/server0.conf", stdin=text)
    before = ends.tunnel.lab.client.ip("link")
    status, said = client.run("qre-tool daemon server0")
    client.check("rm /etc/qre/dev/server0.conf")
    assert (status, said) == (
        2, "qre-tool: bcc : it is not installed, and a server needs it; apt install python3-bpfcc",
    )  # fmt: skip
    assert ends.tunnel.lab.client.ip("link") == before


def test_the_manual_the_documents_and_completion_are_there(ends: Installed) -> None:
    wanted = (
        "man/man8/qre-tool.8.gz", "man/man5/qre.conf.5.gz", "doc/qre/user-guide.md", "doc/qre/changelog.gz",
        "bash-completion/completions/qre-tool", "zsh/vendor-completions/_qre-tool",
        "fish/vendor_completions.d/qre-tool.fish",
    )  # fmt: skip
    client = ends.client.container
    assert [name for name in wanted if client.run(f"test -s /usr/share/{name}")[0] != 0] == []
    assert client.check("systemd-analyze verify --recursive-errors=no qred@client0.service") == ""


@pytest.mark.parametrize("end", ["server", "client"])
def test_an_upgrade_under_traffic_is_one_new_connection(
    end: str, ends: Installed, record_property: pytest.RecordProperty
) -> None:
    ends.up()
    machine: Machine = getattr(ends, end)
    connected = [line for line in ends.client.journal() if "connected to" in line]
    before = machine.pid
    words = ("ping", "-n", "-i", f"{1 / RATE:g}", "-W", "1", SERVER_INNER)
    ping = subprocess.Popen([*ends.tunnel.lab.client.prefix, *words], stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(1)
        later = ends.packages.of_later["qre"]
        machine.container.check(f"{APT} {TREE}/later/{later.name} >/tmp/apt.log 2>&1", timeout=300)
        wait_for("the next daemon", lambda: machine.pid not in (0, before), interval=0.2)
        wait_for("its session", lambda: "connected to" in ends.client.told("StatusText"), interval=0.2)
        wait_for("packets", ends.pass_packets)
        time.sleep(2)
    finally:
        ping.send_signal(2)
        said = ping.communicate(timeout=30)[0]
    answered = numbers_answered(said)
    record_property("lost", max(answered) - len(answered))
    record_property("of", max(answered))
    assert {1, max(answered)} <= answered
    assert machine.container.check("qre-tool version") == f"qre-tool {LATER}"
    assert len([line for line in ends.client.journal() if "connected to" in line]) == len(connected) + 1


def test_removal_stops_and_cleans_and_keeps_what_the_user_wrote(ends: Installed) -> None:
    ends.up()
    client = ends.client.container
    client.check("systemctl enable qred@client0; apt-get remove --yes qre", timeout=300)
    assert ends.client.told("ActiveState") != "active"
    left = "".join(
        ends.tunnel.lab.client.ip(*words) for words in (("link",), ("rule",), ("route", "show", "table", "all"))
    )
    assert "client0" not in left
    assert "proto 81" not in left
    assert "qre" not in client.check("cat /proc/[0-9]*/comm; ls /usr/lib /usr/bin")
    assert client.check("stat -c %a /etc/qre/dev/client0.conf") == "600"


def test_a_purge_leaves_nothing(ends: Installed) -> None:
    client = ends.client.container
    client.check("apt-get purge --yes qre; rm -r /etc/systemd/system/qred@.service.d", timeout=300)
    wait_for("the users to go", lambda: "qre" not in client.check("cat /etc/passwd /etc/group"))
    assert sorted(set(all_of(client, ends.tunnel.lab.client)) ^ set(ends.before)) == []
