"""The trust store: where the authorities come from, and that verification needs no file."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from qre.errors import MachineError
from qre.quic.client.trust import TrustStore
from qre.visit.visitor_files import load_trust
from tests.support.stock_site import NAME, UNIX_TIME, authority, issue

PEM = authority()[0].public_bytes(Encoding.PEM)


def test_ssl_cert_file_is_honoured(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(b"# comment\n" + PEM)
    store = load_trust({"SSL_CERT_FILE": str(bundle)})
    assert len(store) == 1
    assert store.source == str(bundle)
    assert store.problem_untrusted([issue()[0]], NAME, UNIX_TIME) is None


def test_without_it_the_machines_bundle_is_read() -> None:
    assert len(load_trust({})) > 50


@pytest.mark.parametrize(
    "content", [None, b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"]
)
def test_a_bundle_that_is_missing_or_empty_is_named(tmp_path: Path, content: bytes | None) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_bytes(content)
    with pytest.raises(MachineError, match="SSL_CERT_FILE"):
        load_trust({"SSL_CERT_FILE": str(bundle)})


def test_an_authority_that_does_not_parse_takes_no_other_with_it() -> None:
    broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert len(TrustStore.from_pem(broken + PEM + broken, "a test")) == 1


def test_verification_opens_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TrustStore.from_pem(PEM, "a test")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file is opened")

    leaf = issue()[0]
    monkeypatch.setattr(builtins, "open", refuse)
    assert store.problem_untrusted([leaf], NAME, UNIX_TIME) is None


def test_the_time_is_the_one_that_is_given_at_each_verification() -> None:
    store = TrustStore.from_pem(PEM, "a test")
    leaf = issue()[0]
    for days, good in ((0, True), (-30, False), (30, False), (0, True)):
        problem = store.problem_untrusted([leaf], NAME, UNIX_TIME + days * 86_400)
        assert (problem is None) is good


AUDIT = """
import sys
from tests.support.pair import Pair
from tests.support.stock_site import StockSite, client, issue, meet, trust
from qre.visit.visitor_files import load_fingerprint

load_fingerprint(), trust()
sites = [StockSite(leaf) for leaf in (issue(), issue("other.example"), issue(days=(-9, -8)))]
seen = []
sys.addaudithook(lambda event, arguments: seen.append((event, arguments[0])) if event in ("open", "import") else None)
assert Pair().run().complete
for site in sites:
    meet(client(), site)
print(seen)
"""


def test_a_whole_handshake_opens_no_file_and_imports_nothing() -> None:
    """After the sandbox neither would work."""
    done = subprocess.run([sys.executable, "-c", AUDIT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
