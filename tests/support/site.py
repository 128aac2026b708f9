"""A real HTTP/3 site: Caddy with a certificate of a test authority. What the server hides behind."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qre.addresses import host_port
from tests.support.daemons import PATIENCE
from tests.support.namespaces import Namespace

NAME = "site.example"
#: The site has a second name; the server's profile names only the first.
OTHER_NAME = "www.site.example"
PAGE = "<!doctype html><title>A site about gardens</title><p>Tulips are planted in autumn.</p>\n"


def make_authority(directory: Path, name: str = NAME) -> Path:
    """Write ``ca.pem``, ``site.pem`` and ``site.key`` for ``name``; the path of the authority's certificate."""
    now = datetime.datetime.now(datetime.UTC)
    authority_key, site_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])

    def builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=60))
        )

    authority = (
        builder(authority_name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    site = (
        builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), site_key)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name), x509.DNSName(f"www.{name}")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (directory / "site.pem").write_bytes(site.public_bytes(serialization.Encoding.PEM))
    (directory / "site.key").write_bytes(
        site_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return directory / "ca.pem"


class Caddy:
    """Caddy serving ``PAGE`` for ``NAME`` over HTTP/3 on ``address`` of ``namespace``."""

    def __init__(
        self, namespace: Namespace, directory: Path, address: str, port: int = 443, protocols: str = "h1 h2 h3"
    ) -> None:
        self.directory = directory
        self.authority = make_authority(directory)
        root = directory / "www"
        root.mkdir(exist_ok=True)
        (root / "index.html").write_text(PAGE)
        config = directory / "Caddyfile"
        config.write_text(
            "{\n\tadmin off\n\tauto_https off\n\tpersist_config off\n"
            f"\tservers {{\n\t\tprotocols {protocols}\n\t}}\n}}\n"
            f"https://{NAME}:{port}, https://{OTHER_NAME}:{port} {{\n\tbind {address}\n"
            f"\ttls {directory}/site.pem {directory}/site.key\n"
            f"\troot * {root}\n\tfile_server\n}}\n"
        )
        self.log = directory / "caddy.log"
        self.process = namespace.popen(
            [str(Path(sys.executable).parent / "caddy"), "run", "--adapter", "caddyfile", "--config", str(config)],
            env={"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory)},
            log=self.log,
        )
        self._wait(
            namespace, f"{host_port(address.split(maxsplit=1)[0], port)} ", "-Hlun" if "h3" in protocols else "-Hltn"
        )

    def _wait(self, namespace: Namespace, where: str, sockets: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            if where in namespace.run("ss", sockets):
                return
            time.sleep(0.05)
        self.stop()
        raise RuntimeError(f"Caddy did not start: {self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def visit(
    namespace: Namespace, address: str, authority: Path, port: int = 443, timeout: float = 60, path: str = ""
) -> str:
    """Visit https://NAME/PATH over HTTP/3 with a browser's fingerprint (curl built to look like Chrome); the page.

    Raises RuntimeError when no page comes.
    """
    script = (
        "import sys\n"
        "from curl_cffi import CurlHttpVersion, CurlOpt, Session\n"
        "name, port, address, authority, timeout, path = sys.argv[1:]\n"
        "options = {CurlOpt.RESOLVE: [f'{name}:{port}:{address}'.encode()]}\n"
        "with Session(curl_options=options) as session:\n"
        "    answer = session.get(f'https://{name}:{port}/{path}', http_version=CurlHttpVersion.V3ONLY,\n"
        "                         impersonate='chrome', verify=authority, timeout=float(timeout))\n"
        "    answer.raise_for_status()\n"
        "    sys.stdout.write(answer.text)\n"
    )
    done = subprocess.run(
        [
            *namespace.prefix,
            sys.executable,
            "-c",
            script,
            NAME,
            str(port),
            f"[{address}]" if ":" in address else address,
            str(authority),
            str(timeout),
            path,
        ],
        capture_output=True,
        text=True,
        timeout=timeout + 10,
        env=dict(os.environ),
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"no page: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout
