"""The manual pages: qre-tool(8) is the table of commands, qre.conf(5) the parser's rules; both render cleanly."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from qre.cli.commands import COMMANDS, GLOBAL_OPTIONS, GROUPS, Command
from qre.cli.help.examples import EXAMPLES
from qre.cli.help.man_page import man_page
from qre.config.keys import GLOBAL_KEYS, PROFILE_KEYS, SECTION_KEYS
from qre.config.model import GlobalConfig, ServerSettings
from qre.config.normalise import global_values
from qre.config.profile import profile_from_values
from qre.config.settings import _ENVIRONMENT, attribute_of
from qre.config.values import MAX_TIME_DIFF_MS, parse_duration, show_duration
from qre.ends import DEFAULT_MTU
from qre.errors import UserError
from tests.support.config_parsers import global_from_values
from tests.support.profiles import CLIENT, SERVER

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATION = (ROOT / "docs" / "qre.conf.5").read_text()
#: Of these no value is the default, but a sentence.
IN_WORDS = {"BpfElf": "the installed one", "RoutedCidLen": "dest", "User": "one for each role"}


@pytest.fixture(params=["qre-tool.8", "qre.conf.5"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    path.write_text(man_page() if request.param == "qre-tool.8" else CONFIGURATION)
    return path


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def rendered(text: str, tmp_path: Path) -> str:
    """As a wide terminal shows it, without the codes for bold and underlined, blanks between words made one."""
    path = tmp_path / "page"
    path.write_text(text)
    environment = os.environ | {"MANWIDTH": "2000", "LC_ALL": "C.UTF-8", "MANROFFOPT": "-c", "MANPAGER": "cat"}
    done = subprocess.run(["man", "-l", str(path)], env=environment, capture_output=True, text=True, check=True)
    plain = re.sub(".\b", "", re.sub(r"\033\[[0-9;]*m", "", done.stdout))
    return re.sub(r"\s+", " ", re.sub(r" \\\n|\n +#", "\n", plain))  # a call that is broken is one call


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_man_shows_the_page_without_a_warning(page: Path, locale: str) -> None:
    needs("man")
    done = subprocess.run(
        ["man", "--warnings", "-l", str(page)],
        env=os.environ | {"LC_ALL": locale, "MANPAGER": "cat"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "SEE ALSO" in re.sub(".\b", "", done.stdout)


@pytest.mark.parametrize("device", ["ascii", "utf8"])
def test_groff_has_nothing_to_complain_of(page: Path, device: str) -> None:
    needs("groff")
    done = subprocess.run(
        ["groff", "-ww", "-man", f"-T{device}", str(page)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_no_line_is_wider_than_a_terminal_of_80_columns(page: Path) -> None:
    needs("man")
    environment = os.environ | {"MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANROFFOPT": "-c", "MANPAGER": "cat"}
    done = subprocess.run(["man", "-l", str(page)], env=environment, capture_output=True, text=True, check=True)
    plain = re.sub(".\b", "", re.sub(r"\033\[[0-9;]*m", "", done.stdout))
    assert [line for line in plain.splitlines() if len(line) > 80] == []


# --- qre-tool(8) ---


def test_every_command_option_field_and_example_is_on_the_page(tmp_path: Path) -> None:
    needs("man")
    shown = rendered(man_page(), tmp_path)
    for name, command in COMMANDS.items():
        start = shown.index(f" {name} qre-tool {name}")
        for text in (command.summary[1:], *command.options, *command.options.values(), *command.fields()):
            assert text.replace("…", "...") in shown[start:], f"{name}: {text}"
        for example, meaning in EXAMPLES.get(name, ()):
            assert example in shown[start:]
            assert meaning in shown[start:]
    assert all(option in shown and meaning in shown for option, meaning in GLOBAL_OPTIONS.items())


def test_text_of_the_table_cannot_be_taken_for_roff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("man")
    text = ".SH is \\fBnot\\fR a request,\n'nor is this\n  [-Key=A~^`B]  .it\\n is\n  .so text\n"
    new = Command("", "", "\\*try it", options={"--a VALUE": "'b"}, text=text)
    monkeypatch.setitem(COMMANDS, "new", new)
    monkeypatch.setitem(GROUPS, "New", {"new": new})
    shown = rendered(man_page(), tmp_path)
    for line in (
        ".SH is \\fBnot\\fR a request,",
        "'nor is this",
        "[-Key=A~^`B]",
        ".it\\n is",
        ".so text",
        "\\*try it",
    ):
        assert line in shown


# --- qre.conf(5) ---


class Entry(NamedTuple):
    """One key of the page: what its value is called, and what is said of it."""

    value: str
    text: str

    @property
    def default(self) -> str:
        found = re.search(r"Default: (.*?)\.\n", self.text + "\n", re.DOTALL)
        return found[1] if found else ""

    @property
    def bounds(self) -> tuple[str, str] | None:
        found = re.search(r"(?:from |, |^)(\d\w*) to (\d\w*)\b(?! bytes| ASCII| digits)", self.text, re.MULTILINE)
        return (found[1], found[2]) if found else None


def entries(section: str) -> dict[str, Entry]:
    """The keys of a section in their order; those of one group (.TQ) have the same text."""
    part = CONFIGURATION.partition(f"\n.SH {section}\n")[2].partition("\n.SH ")[0]
    found = {}
    for group in part.split("\n.TP\n")[1:]:
        heads = re.findall(r'^\.BI (\w+) " = ([^"]+)"$', group, re.MULTILINE)
        assert heads, f"this is no key: {group}"
        text = group.partition(f'{heads[-1][1]}"\n')[2]
        found |= {name: Entry(value, text) for name, value in heads}
    return found


PROFILE, GLOBAL = entries("PROFILE"), entries("GLOBAL FILE")
SECTION = entries("CLIENTS OF A SERVER")


def test_every_key_is_there_and_no_other() -> None:
    assert list(PROFILE) == list(PROFILE_KEYS)
    assert list(GLOBAL) == list(GLOBAL_KEYS)
    assert list(SECTION) == list(SECTION_KEYS)


@pytest.mark.parametrize("key", GLOBAL_KEYS)
def test_a_global_key_has_the_default_unit_and_variable_of_the_parser(key: str) -> None:
    default = global_values(GlobalConfig())[key]
    duration = attribute_of(key).endswith("_ms")
    if isinstance(default, bool):
        default = str(default).lower()
    elif duration and isinstance(default, int):
        default = show_duration(default)
    assert GLOBAL[key].default == IN_WORDS.get(key, str(default))
    assert (GLOBAL[key].value == "duration") is duration
    variables = [variable for variable, of in _ENVIRONMENT.items() if of == key]
    assert re.findall(r"Variable: (\w+)\.", GLOBAL[key].text) == variables


@pytest.mark.parametrize("key", [key for key in GLOBAL if GLOBAL[key].bounds])
def test_the_bounds_of_a_global_key_are_those_of_the_parser(key: str) -> None:
    low, high = GLOBAL[key].bounds or ("", "")
    others = {
        "ReconnectMin": "ReconnectMax",
        "ReconnectMax": "ReconnectMin",
        "RelayMaxFlows": "RelayMaxFlowsPerPrefix",
    }
    for text in (low, high):
        other = {others[key]: text} if key in others else {}
        global_from_values({key: text, **other})
    if GLOBAL[key].value == "duration":
        beyond = [f"{parse_duration(low, 0, 1 << 62) - 1}ms", f"{parse_duration(high, 0, 1 << 62) + 1}ms"]
    else:
        beyond = [str(int(low) - 1), str(int(high) + 1)]
    for text in beyond:
        other = {others[key]: text} if key in others else {}
        with pytest.raises(UserError, match=f"{key}.* is not "):
            global_from_values({key: text, **other})


def test_every_number_and_duration_but_one_has_its_bounds() -> None:
    """RelayMaxFlowsPerPrefix goes up to RelayMaxFlows."""
    counted = {key for key, entry in GLOBAL.items() if entry.value in ("bytes", "duration", "number")}
    assert {key for key, entry in GLOBAL.items() if entry.bounds} == counted - {"RelayMaxFlowsPerPrefix"}


def values(profile: str) -> dict[str, str | list[str]]:
    """Keys and values of a profile's text."""
    return dict(line.split(" = ", 1) for line in profile.splitlines() if " = " in line)


@pytest.mark.parametrize("key", PROFILE_KEYS)
def test_a_profile_key_is_required_where_the_page_says_so(key: str) -> None:
    needed = []
    for role, text in (("server", SERVER), ("client", CLIENT)):
        whole = values(text) | {"Role": role}
        profile_from_values("qre0", whole)
        whole.pop(key, None)
        try:
            profile_from_values("qre0", whole)
        except UserError as error:
            assert f"{key} is missing" in f"{error.what.rpartition(': ')[2]} {error.why}"
            needed.append(role)
    said = PROFILE[key].text
    if key == "ServerName":
        assert (needed, "Required of a client." in said) == (["client"], True)
    elif key == "Role":  # told by Listen and Endpoint
        assert needed == []
    else:
        assert ("Required." in said) is bool(needed)
    owners = re.match(r"(Server|Client):", said)
    assert owners is None or needed in ([], [owners[1].lower()])


def test_the_defaults_and_bounds_of_a_profile_are_those_of_the_parser() -> None:
    assert PROFILE["MTU"].default == str(DEFAULT_MTU)
    assert PROFILE["RealityMaxTimeDiff"].default == show_duration(ServerSettings.max_time_diff_ms)
    assert f"up to {MAX_TIME_DIFF_MS // 3_600_000}h" in PROFILE["RealityMaxTimeDiff"].text
    assert PROFILE["PersistentKeepalive"].default == "off"
    assert profile_from_values("qre0", values(CLIENT)).keepalive_s == 0
    for key in ("MTU", "PersistentKeepalive"):
        low, high = PROFILE[key].bounds or ("", "")
        for text in (low, high):
            profile_from_values("qre0", values(CLIENT) | {key: text})
        for number in (int(low) - 1, int(high) + 1):
            with pytest.raises(UserError):
                profile_from_values("qre0", values(CLIENT) | {key: str(number)})


def test_the_other_documentation_has_the_same_keys() -> None:
    tables = (ROOT / "docs" / "configuration.md").read_text().split("\n## ")
    for title, keys in (
        ("Profile", PROFILE_KEYS),
        ("Clients of a server", SECTION_KEYS),
        ("Global file", GLOBAL_KEYS),
    ):
        (table,) = [part for part in tables if part.startswith(f"{title}\n")]
        rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
        assert [key.strip() for row in rows[1:] for key in row.split(",")] == list(keys)


@pytest.mark.parametrize("key", SECTION_KEYS)
def test_a_key_of_a_section_is_required_where_the_page_says_so(key: str) -> None:
    section = {
        "ShortId": "00112233445566aa",
        "Address": "10.77.0.2",
        "AllowedIPs": "192.168.7.0/24",
        "Endpoint": "vpn.example.org:443",
    }
    profile_from_values("qre0", values(SERVER), clients=[("a", section)])
    del section[key]
    try:
        profile_from_values("qre0", values(SERVER), clients=[("a", section)])
    except UserError as error:
        assert f"{key}: is missing" in str(error)
        assert "Required." in SECTION[key].text
    else:
        assert "Required." not in SECTION[key].text
