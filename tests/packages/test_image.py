"""The images of Containerfile, in podman: a server and a client as the user guide runs them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.packages.conftest import Packages
from tests.support.daemons import wait_for
from tests.support.kernels import ROOT
from tests.support.namespaces import run
from tests.support.ping import answered
from tests.support.podman import Podman, podman, why_not
from tests.support.tunnel import SERVER_INNER, Tunnel

pytestmark = [pytest.mark.timeout(1800), pytest.mark.skipif(bool(why_not()), reason=why_not())]

#: The stage that builds the packages, and what it leaves: the ring has built them already, by the same script.
STAGE = "RUN /src/packaging/build-deb.sh"


@pytest.fixture(scope="module")
def images(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """qre-client and qre-server."""
    context = tmp_path_factory.mktemp("context")
    (context / "packages").mkdir()
    shutil.copy(packages.of_now["qre"], context / "packages")
    _, first, client, server = (ROOT / "Containerfile").read_text().split("\nFROM ")
    assert STAGE in first
    build = f"{first.splitlines()[0]}\nCOPY packages /packages\n"
    (context / "Containerfile").write_text("".join(f"FROM {stage}\n" for stage in (build, client, server)))
    with podman() as made:
        made.bootstrap()
        for target in ("client", "server"):
            words = ("build", "--isolation=chroot", "--pull=never", "--network=host", "--target", target)
            made(*words, "-t", f"qre-{target}", str(context), timeout=900)
        yield made


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Tunnel]:
    """A network with a site; ``tmp_path`` has each end's /etc/qre, and a BPF file system."""
    with ExitStack() as stack:
        tunnel = stack.enter_context(Tunnel())
        for name in ("server0", "client0"):
            (tmp_path / name / "dev").mkdir(parents=True)
            shutil.copy(tunnel.profile(name), tmp_path / name / "dev")
            shutil.copy(tunnel.site.authority, tmp_path / name / "authority.pem")
        (tmp_path / "bpf").mkdir()
        run("mount", "-t", "bpf", "bpf", str(tmp_path / "bpf"))
        stack.callback(run, "umount", str(tmp_path / "bpf"))
        yield tunnel


def test_a_server_and_a_client_run_in_containers_and_a_client_is_added_in_one(
    images: Podman, lab: Tunnel, tmp_path: Path
) -> None:
    common = ("--device", "/dev/net/tun", "-e", "SSL_CERT_FILE=/etc/qre/authority.pem")
    images.start(
        lab.lab.server, "server0", "--cap-add", "NET_ADMIN,BPF,NET_RAW", *common,
        "--security-opt", "seccomp=unconfined",
        "-v", f"{tmp_path}/server0:/etc/qre", "-v", "server0:/var/lib/qre", "-v", f"{tmp_path}/bpf:/sys/fs/bpf",
        "qre-server", "daemon", "server0",
    )  # fmt: skip
    images.start(
        lab.lab.client, "client0", "--cap-add", "NET_ADMIN", *common,
        "-v", f"{tmp_path}/client0:/etc/qre:ro", "-v", "client0:/var/lib/qre",
        "qre-client", "daemon", "client0",
    )  # fmt: skip
    try:
        wait_for("packets", lambda: answered(lab.lab.client, SERVER_INNER, wait=3) == 5, interval=0.3)
        assert "profile: client0 (client, user data plane)" in images("exec", "client0", "qre-tool", "show")
        images("exec", "server0", "qre-tool", "add-client", "server0", "alice")
        assert "alice" in images("exec", "server0", "qre-tool", "list-clients", "server0")
        assert "[Client alice]" in (tmp_path / "server0/dev/server0.conf").read_text()
        assert answered(lab.lab.client, SERVER_INNER) == 5, "nobody's session ends by that"
    finally:
        said = [images("logs", name) for name in ("client0", "server0")]
        print("\n".join(said))
    for name in ("client0", "server0"):
        images("stop", "--time", "20", name)
        assert images("inspect", "--format", "{{.State.ExitCode}}", name).strip() == "0"
    assert [path for path in (tmp_path / "bpf").rglob("*") if "server0" in path.name] == []
    for namespace in (lab.lab.client, lab.lab.server):
        assert "proto 81" not in namespace.ip("rule")
        assert "client0" not in namespace.ip("link") and "server0" not in namespace.ip("link")
