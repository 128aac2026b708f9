"""`import --replace`: what the link says is changed, and nothing else that the client's owner wrote."""

from __future__ import annotations

import io
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qre.cli.main import main
from qre.config.profile import load_profile_file
from tests.support.profiles import PUBLIC_KEY

OTHER_KEY = "AQEB" * 10 + "AQE="
_OWN = """\
# the office's
DNS = 10.77.0.1, example.internal
PersistentKeepalive = 25
AllowedIPs = 192.168.50.0/24
AllowedIPs = 10.77.0.0/24
PostUp = echo up # of mine
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With server0 and its client0, which has lines of its own."""
    for name in ("QRE_CONFIG_DIR", "QRE_STATE_DIR", "RUNTIME_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("QRE_GLOBAL_CONFIG", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert main(["init", "Endpoint=vpn.example.org:443", "Dest=www.example.org:443"]) == 0
    client = tmp_path / "client0.conf"
    client.write_text(client.read_text() + _OWN)
    yield tmp_path


@pytest.fixture
def link(directory: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Of client0, after the server's key was rotated."""
    return rotated(capsys)


def rotated(capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["rotate-key", "server0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return next(line.partition(" ")[2] for line in lines if line.startswith("client0 "))


def replace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, text: str, *words: str, status: int = 0
) -> str:
    """What is said; a refusal is one line on standard error."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    capsys.readouterr()
    assert main(["import", "--replace", "-", *words]) == status
    printed = capsys.readouterr()
    assert printed.err.count("\n") == (1 if status else 0), printed.err
    return printed.err if status else printed.out


def without(text: str, *keys: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith(keys)]


def test_a_new_key_changes_one_line_of_the_profile(
    directory: Path, link: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "client0.conf"
    before = path.read_text()
    plan = replace(capsys, monkeypatch, link, "--dry-run")
    assert plan.startswith("replace ") and path.read_text() == before
    told = replace(capsys, monkeypatch, link)
    assert plan.splitlines()[1:] == told.splitlines()[1:]
    after = path.read_text()
    assert without(after, "RealityPublicKey") == without(before, "RealityPublicKey") and after != before
    assert "\nchanged: RealityPublicKey of vpn.example.org:443\n" in told
    (kept,) = (line for line in told.splitlines() if line.startswith("kept: "))
    assert set(kept.removeprefix("kept: ").split(", ")) == {
        "MTU",
        "PersistentKeepalive",
        "AllowedIPs",
        "DNS",
        "PostUp",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "nothing is changed" in replace(capsys, monkeypatch, link)
    assert path.read_text() == after


def test_what_the_link_says_of_lists_replaces_all_their_lines(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = directory / "server0.conf"
    text = server.read_text().replace("vpn.example.org:443", "new.example.org:8443").replace("10.77.0.2", "10.77.0.9")
    server.write_text(text.replace("[Client", "ClientAllowedIPs = 10.0.0.0/8\n[Client"))
    told = replace(capsys, monkeypatch, rotated(capsys))
    assert "\nchanged: Address is 10.77.0.9/24, was 10.77.0.2/24\n" in told
    assert "\nchanged: Endpoint is new.example.org:8443, was vpn.example.org:443\n" in told
    assert "\nchanged: AllowedIPs is 10.0.0.0/8, was 192.168.50.0/24, 10.77.0.0/24\n" in told
    text = (directory / "client0.conf").read_text()
    assert (
        text.count("AllowedIPs = ") == 1 and "# the office's\nDNS = " in text and "PostUp = echo up # of mine" in text
    )


def test_of_several_servers_that_one_changes_which_the_link_names(
    directory: Path, link: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "client0.conf"
    alone = load_profile_file(path).client
    assert alone is not None
    path.write_text(
        path.read_text()
        .replace("Endpoint = vpn.example.org:443", "Endpoint = a.example.org:443, vpn.example.org:443, 192.0.2.7:443")
        .replace("RealityPublicKey = ", f"RealityPublicKey = {PUBLIC_KEY}, ")
        .replace("Address = 10.77.0.2", "Address = 10.77.0.5")
        .replace("\nRealityShortId", f", {OTHER_KEY}\nRealityShortId")
        .replace("RealityShortId = ", "RealityShortId = 00aa, ")
        .replace("MTU", "EndpointOrder = random\nMTU")
        .replace(alone.short_id.hex(), f"{alone.short_id.hex()}, 00bb")
    )
    before = path.read_text()
    told = replace(capsys, monkeypatch, link)
    assert without(path.read_text(), "RealityPublicKey") == without(before, "RealityPublicKey")
    assert "\nchanged: RealityPublicKey of vpn.example.org:443\n" in told
    assert "\nnot changed: Address, which holds for all servers; here it is 10.77.0.2/24\n" in told
    made = load_profile_file(path).client
    assert made is not None
    assert made.public_key == alone_key(PUBLIC_KEY) and made.others[1].public_key == alone_key(OTHER_KEY)
    assert made.others[0].public_key not in (made.public_key, alone.public_key)


def alone_key(text: str) -> bytes:
    from qre.config.values import parse_key

    return parse_key(text)


def test_further_addresses_of_the_same_server_get_its_new_key(
    directory: Path, link: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "client0.conf"
    path.write_text(path.read_text().replace(":443\n", ":443, [2001:db8::7]:443\n", 1))
    told = replace(capsys, monkeypatch, link)
    assert "changed: RealityPublicKey of vpn.example.org:443, [2001:db8::7]:443\n" in told
    made = load_profile_file(path).client
    assert made is not None and len(made.endpoints) == 2
    assert made.others[0].public_key == made.public_key


def test_a_server_that_the_profile_does_not_have_is_not_put_in_place_of_another(
    directory: Path, link: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "client0.conf"
    text = path.read_text().replace("vpn.example.org:443", "a.example.org:443, b.example.org:443")
    lines = [line for line in text.splitlines() if not line.startswith("Reality")]
    lines += [f"RealityPublicKey = {PUBLIC_KEY}, {OTHER_KEY}", "RealityShortId = 00aa, 00bb", ""]
    path.write_text("\n".join(lines))
    told = replace(capsys, monkeypatch, link, status=2)
    assert "its servers are a.example.org:443, b.example.org:443, and the new one is none of them" in told
    assert path.read_text() == "\n".join(lines)


def test_a_profile_that_is_not_valid_is_not_guessed_at(
    directory: Path, link: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "client0.conf"
    path.write_text(path.read_text() + "Adress = 1\n")
    assert "move it away and leave --replace out" in replace(capsys, monkeypatch, link, status=2)


def test_the_link_in_a_comment_goes_when_it_is_no_longer_the_profiles(
    directory: Path, link: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "client0.conf"
    path.write_text(f"# qre://v1/AAAA\n{path.read_text()}")
    replace(capsys, monkeypatch, link)
    assert "qre://" not in path.read_text()


def test_each_profile_has_a_device_of_its_own(
    directory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (directory / "client0.conf").read_text().partition("# the office's")[0]
    names = ["workstation-of-alice", "workstation-of-bob", "workstation-of-carol"]
    for name in names:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        assert main(["import", "-", f"Profile={name}"]) == 0
    devices = [load_profile_file(directory / f"{name}.conf").device for name in names]
    assert devices == ["workstation-of-", "workstation-o-2", "workstation-o-3"]


def test_without_a_profile_to_replace_the_one_that_is_meant_is_named(
    directory: Path, link: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "client0.conf").rename(directory / "laptop.conf")
    before = sorted(directory.iterdir())
    told = replace(capsys, monkeypatch, link, status=2)
    assert "there is none to replace; profile laptop has this short id: write Profile=laptop" in told
    assert sorted(directory.iterdir()) == before
    assert "replaced " in replace(capsys, monkeypatch, link, "Profile=laptop")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(link.encode())))
    assert main(["--dry-run", "import", "-"]) == 0
    assert "profile laptop has this short id, too" in capsys.readouterr().err
    (directory / "laptop.conf").unlink()
    assert "leave --replace out for a new profile" in replace(capsys, monkeypatch, link, status=2)
