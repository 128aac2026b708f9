"""qre.ko's interface is told in four places, and all of them say the same: ``uapi/qre.h``, the table in
``attributes.c``, ``qre.yaml`` and ``qre/kernel/abi.py``. The header is the truth; a compiler says what it means."""

from __future__ import annotations

import enum
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from qre.kernel import abi

KMOD = Path(__file__).resolve().parents[2] / "kmod"
#: Enums of the header by the prefix of their members, and what mirrors each.
ENUMS: dict[str, type[enum.IntEnum]] = {
    "QRE_ROLE_": abi.KernelRole,
    "QRE_SESSION_": abi.SessionState,
    "QRE_LOSS_": abi.Loss,
    "QRE_EVENT_": abi.Event,
    "QRE_DROP_": abi.Drop,
    "QRE_CMD_": abi.QreCommand,
    "QRE_A_": abi.Attribute,
}
#: Words of the header that are C's own.
BOUNDS = ("QRE_DROP_MAX", "QRE_CMD_MAX", "QRE_A_MAX")
#: What the kernel's headers call numbers that attributes.c uses.
KERNEL = """
#define U16_MAX 0xffffULL
#define U32_MAX 0xffffffffULL
#define S32_MAX 0x7fffffffULL
#define U64_MAX 0xffffffffffffffffULL
#define IFNAMSIZ 16
#define QRE_VARINT_MAX ((1ULL << 62) - 1)
"""
Attributes = dict[str, dict[str, Any]]


def read(name: str) -> str:
    """A source without comments, its spaces single."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", (KMOD / name).read_text(), flags=re.DOTALL)
    return re.sub(r"[ \t\n]+", " ", text)


def values(directory: Path, expressions: list[str]) -> list[int]:
    """What the header makes of C expressions, as unsigned 64 bits."""
    lines = "".join(f'\tprintf("%llu\\n", (unsigned long long)({each}));\n' for each in expressions)
    source = f'#include <stdio.h>\n#include "uapi/qre.h"\n{KERNEL}int main(void)\n{{\n{lines}\treturn 0;\n}}\n'
    program = directory / "values"
    compiler = ["clang", "-Wall", "-Werror", "-I", str(KMOD), "-x", "c", "-o", str(program), "-"]
    subprocess.run(compiler, input=source, text=True, check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return [int(line) for line in printed.split()]


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Every number that uapi/qre.h gives a name."""
    text = (KMOD / "uapi" / "qre.h").read_text()
    defined = re.findall(r"^#define (QRE_\w+)\s+[^\s\"]", text, re.MULTILINE)
    enumerated = re.findall(r"^\t(QRE_\w+) =", text, re.MULTILINE)
    names = [*defined, *enumerated, "sizeof(struct qre_allowed_ip)", "sizeof(struct qre_cid)"]
    assert len(names) == len(set(names)) > 150
    return dict(zip(names, values(tmp_path_factory.mktemp("header"), names), strict=True))


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((KMOD / "qre.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def attributes(spec: dict[str, Any]) -> Attributes:
    """The specification's attributes by the header's names."""
    return {
        c_name("QRE_A_", each["name"]): each
        for space in spec["attribute-sets"]
        if space["name"] == "qre"
        for each in space["attributes"]
    }


def c_name(prefix: str, name: str) -> str:
    return prefix + name.upper().replace("-", "_")


def words(name: str) -> str:
    """What a name of the header stands for that is a string."""
    found = re.search(rf'#define {name}\s+"(\w+)"', (KMOD / "uapi" / "qre.h").read_text())
    assert found is not None
    return found[1]


def members(header: dict[str, int], prefix: str) -> dict[str, int]:
    others = [other for other in ENUMS if other.startswith(prefix) and other != prefix]
    return {
        name.removeprefix(prefix): value
        for name, value in header.items()
        if name.startswith(prefix) and name not in BOUNDS and not name.startswith(tuple(others) or "-")
    }


def enumerations(header: dict[str, int]) -> dict[str, dict[str, int]]:
    """The header's enums by prefix. QRE_SESSION_ is that of two constants, too."""
    found = {prefix: members(header, prefix) for prefix in ENUMS}
    for constant in ("ID_SIZE", "CIDS_MAX"):
        del found["QRE_SESSION_"][constant]
    return found


def constants(header: dict[str, int]) -> dict[str, int]:
    enumerated = {prefix + name for prefix, of in enumerations(header).items() for name in of}
    return {
        name.removeprefix("QRE_"): value
        for name, value in header.items()
        if name.startswith("QRE_") and name not in enumerated and name not in BOUNDS
    }


def test_the_python_mirror_has_every_enum_of_the_header_and_nothing_else(header: dict[str, int]) -> None:
    for prefix, of in enumerations(header).items():
        assert {each.name: each.value for each in ENUMS[prefix]} == of, prefix
    for bound, mirror in (("QRE_DROP_MAX", abi.Drop), ("QRE_CMD_MAX", abi.QreCommand), ("QRE_A_MAX", abi.Attribute)):
        assert header[bound] == max(mirror)


def test_the_python_mirror_has_every_constant_of_the_header_and_nothing_else(header: dict[str, int]) -> None:
    mirrored = {name: value for name, value in vars(abi).items() if name.isupper() and isinstance(value, int)}
    assert mirrored == constants(header)
    for name in ("GENL_NAME", "GENL_EVENTS", "GENL_FRAMES", "LINK_KIND"):
        assert getattr(abi, name) == words(f"QRE_{name}")


def test_the_python_structures_are_the_headers(header: dict[str, int]) -> None:
    assert abi.ALLOWED_IP.size == header["sizeof(struct qre_allowed_ip)"]
    assert abi.CID.size == header["sizeof(struct qre_cid)"]


def test_the_specification_has_the_headers_numbers(header: dict[str, int], spec: dict[str, Any]) -> None:
    assert spec["name"] == words("QRE_GENL_NAME")
    assert spec["version"] == header["QRE_GENL_VERSION"]
    groups = [words("QRE_GENL_EVENTS"), words("QRE_GENL_FRAMES")]
    assert [group["name"] for group in spec["mcast-groups"]["list"]] == groups
    assert re.findall(
        r"\[QRE_GROUP_\w+\] = {\.name = (\w+), \.flags = GENL_MCAST_CAP_NET_ADMIN}", read("netlink.c")
    ) == [
        "QRE_GENL_EVENTS",
        "QRE_GENL_FRAMES",
    ]
    told = {c_name("", each["name"]): each["value"] for each in spec["definitions"] if each["type"] == "const"} | {
        "GENL_VERSION": spec["version"]
    }
    assert told == constants(header)
    enums = {
        c_name("", each["name-prefix"]): {c_name("", entry["name"]): entry["value"] for entry in each["entries"]}
        for each in spec["definitions"]
        if each["type"] == "enum"
    }
    for space in spec["attribute-sets"]:
        enums[c_name("", space["name-prefix"])] = {
            c_name("", each["name"]): each["value"] for each in space["attributes"]
        }
    operations = spec["operations"]
    enums[c_name("", operations["name-prefix"])] = {"UNSPEC": 0} | {
        c_name("", each["name"]): each["value"] for each in operations["list"]
    }
    assert enums == enumerations(header)


def test_the_specifications_structures_are_the_headers(header: dict[str, int], spec: dict[str, Any]) -> None:
    text = read("uapi/qre.h")
    for each in (each for each in spec["definitions"] if each["type"] == "struct"):
        c_struct = c_name("", each["name"]).lower()
        body = re.search(rf"struct qre_{c_struct} {{ (.*?) }};", text)
        assert body is not None
        fields = re.findall(r"__u8 (\w+)(?:\[(\w+)\])?;", body[1])
        told = [(member["name"], member.get("len")) for member in each["members"]]
        assert told == [
            (name, (int(size) if size.isdigit() else header[size]) if size else None) for name, size in fields
        ]
        assert sum(size or 1 for _, size in told) == header[f"sizeof(struct qre_{c_struct})"]


def test_the_specifications_references_lead_somewhere(spec: dict[str, Any], attributes: Attributes) -> None:
    kinds = {
        kind: {each["name"] for each in spec["definitions"] if each["type"] == kind} for kind in ("enum", "struct")
    }
    spaces = {space["name"] for space in spec["attribute-sets"]}
    for each in attributes.values():
        assert each.get("enum") in {None, *kinds["enum"]}
        assert each.get("struct") in {None, *kinds["struct"]}
        assert each.get("nested-attributes") in {None, *spaces}
        assert (each["type"] == "nest") == ("nested-attributes" in each)
    names = {each["name"] for each in attributes.values()}
    for operation in spec["operations"]["list"]:
        lists = [operation.get("event", {})]
        lists += [
            operation[way].get(part, {})
            for way in ("do", "dump")
            if way in operation
            for part in ("request", "reply")
        ]
        for listed in (each.get("attributes", []) for each in lists):
            assert len(listed) == len(set(listed)) and set(listed) <= names, operation["name"]


# --- what attributes.c checks ---


def ranges() -> dict[str, tuple[str, str]]:
    """The wide ranges that it names: least and most, as written."""
    found = re.findall(r"struct netlink_range_validation (\w+) = \{([^}]*)\};", read("attributes.c"))
    told = {name: dict(re.findall(r"\.(min|max) = ([^,]+?)(?:,|$)", body.strip())) for name, body in found}
    return {name: (bounds.get("min", "0"), bounds["max"]) for name, bounds in told.items()}


def table(directory: Path) -> dict[str, tuple[str, int, int]]:
    """Kind, least and most of every attribute that some command takes."""
    found = re.findall(
        r"#define QRE_IS_(\w+) (?:\\ )?QRE_(\w+)\((\w+)(?:, ([^#]*?))?\)(?= #define| QRE_TAKES|$| #)",
        read("attributes.c"),
    )
    assert len(found) == read("attributes.c").count("#define QRE_IS_")
    kinds, bounds = [], []
    wide = ranges()
    for name, macro, same, rest in found:
        assert name == same
        words = [each.strip() for each in rest.split(",", 2)] if rest else []
        match macro:
            case "EXACTLY":
                kind, least, most = "BYTES", rest, rest
            case "BYTES":
                kind, (least, most) = "BYTES", rest.split(", ", 1)
            case "BYTES_UP_TO":
                kind, least, most = "BYTES", "0", rest
            case "TEXT":
                kind, least, most = "TEXT", "0", rest
            case "FLAG":
                kind, least, most = "FLAG", "0", "0"
            case "ANY" if words[0].startswith("NLA_BE"):
                size = str(int(words[0].removeprefix("NLA_BE")) // 8)
                kind, least, most = "BYTES", size, size
            case "ANY":
                kind, least, most = words[0].removeprefix("NLA_"), "0", f"{words[0].removeprefix('NLA_')}_MAX"
            case "RANGE":
                kind, least, most = words[0].removeprefix("NLA_"), words[1], words[2]
            case "WIDE":
                kind, (least, most) = words[0].removeprefix("NLA_"), wide[words[1]]
            case _:
                raise AssertionError(macro)
        kinds.append((name, kind))
        bounds += [least, most]
    numbers = iter(values(directory, bounds))
    return {"QRE_A_" + name: (kind, next(numbers), next(numbers)) for name, kind in kinds}


def checked(attribute: dict[str, Any]) -> tuple[str, int, int]:
    """The same of an attribute of the specification."""
    checks, kind = attribute.get("checks", {}), attribute["type"]
    if "exact-len" in checks:
        checks = {"min-len": checks["exact-len"], "max-len": checks["exact-len"]}
    if kind.startswith("u"):
        size = int(kind[1:])
        if attribute.get("byte-order") == "big-endian":
            return "BYTES", size // 8, size // 8
        return kind.upper(), checks.get("min", 0), checks.get("max", (1 << size) - 1)
    bounds = 0 if kind == "string" else checks.get("min-len", 0), checks.get("max-len", 0)
    return {"binary": "BYTES", "string": "TEXT", "flag": "FLAG"}[kind], *bounds


def test_the_kernel_checks_what_the_specification_says(attributes: Attributes, tmp_path: Path) -> None:
    kernel = table(tmp_path)
    assert {name: checked(attributes[name]) for name in kernel} == kernel
    unchecked = {name for name in attributes if name not in kernel}
    assert not [name for name in unchecked if "checks" in attributes[name]]


def test_each_command_takes_what_the_specification_says(spec: dict[str, Any], attributes: Attributes) -> None:
    source = read("attributes.c")
    policies = {
        name: {"QRE_A_" + each for each in re.findall(r"QRE_IS_(\w+)", body)}
        for name, body in re.findall(r"QRE_TAKES\((\w+), ?([^)]*)\);", source)
    }
    needed = {
        "QRE_CMD_" + command: [each.strip() for each in body.split(",")]
        for command, body in re.findall(r"QRE_NEEDS\((\w+), ([^)]*)\)", source)
    }
    family = read("netlink.c")
    taken = {
        "QRE_CMD_" + command: policies[policy]
        for command, policy in re.findall(r"QRE_CALLED\((\w+), \w+, (\w+)\),", family)
    } | {
        command: policies[policy]
        for command, policy in re.findall(r"\{\.cmd = (QRE_CMD_\w+), [^}]*?\.policy = qre_policy_(\w+)", family)
    }
    operations = {c_name("QRE_CMD_", each["name"]): each for each in spec["operations"]["list"]}
    assert set(operations) == {*taken, "QRE_CMD_EVENT"}
    for command, attributes_taken in taken.items():
        request = [c_name("QRE_A_", each) for each in operations[command]["do"]["request"]["attributes"]]
        assert set(request) == attributes_taken, command
        for each in needed.get(command, []):
            assert each in attributes_taken and each in attributes
            word = each.removeprefix("QRE_A_").lower().replace("_", "-")
            assert re.search(rf"\bneeds [^.]*\b{word}\b", operations[command]["doc"]), (command, word)
    assert set().union(*taken.values()) == {"QRE_A_" + name for name in re.findall(r"#define QRE_IS_(\w+)", source)}


def test_everything_but_reading_a_device_wants_a_capability(spec: dict[str, Any]) -> None:
    source = read("netlink.c")
    changes = {f"QRE_CMD_{name}" for name in re.findall(r"QRE_CALLED\((\w+), qre_cmd", source)}
    reads = set(re.findall(r"\{\.cmd = (QRE_CMD_\w+), \.doit", source))
    free = set(re.findall(r"called->cmd == (QRE_CMD_\w+)", source))
    assert free == {"QRE_CMD_DEVICE_GET"}, "what qre_before_command lets anybody do"
    assert ".pre_doit = qre_before_command" in source and "GENL_MCAST_CAP_NET_ADMIN" in source
    operations = {c_name("QRE_CMD_", each["name"]): each for each in spec["operations"]["list"]}
    assert {name for name, each in operations.items() if each.get("flags") == ["admin-perm"]} == {
        *changes,
        "QRE_CMD_SESSION_GET",
    }
    assert {name for name, each in operations.items() if "dump" in each} == reads
    assert set(operations) == {*changes, *reads, "QRE_CMD_EVENT"}


def test_what_the_kernel_tells_is_of_the_specifications_types(spec: dict[str, Any], attributes: Attributes) -> None:
    source = read("netlink.c") + read("events.c")
    put = re.findall(r"\bnla_(?:put|nest|reserve)(_\w+)?\( ?skb, (QRE_A_\w+)", source)
    kinds = {
        "_u8": {"u8"},
        "_u16": {"u16"},
        "_u32": {"u32"},
        "_u64_64bit": {"u64"},
        "_be16": {"u16 big-endian"},
        "_be32": {"u32 big-endian"},
        "_string": {"string"},
        "_start": {"nest"},
        "": {"binary"},
    }
    assert len(put) > 60
    for call, name in put:
        attribute = attributes[name]
        kind = " ".join(filter(None, (attribute["type"], attribute.get("byte-order"))))
        assert kind in kinds[call], name
    replies: set[str] = set()
    for operation in spec["operations"]["list"]:
        for told in (
            operation.get("event", {}),
            *(operation.get(way, {}).get("reply", {}) for way in ("do", "dump")),
        ):
            replies.update(c_name("QRE_A_", each) for each in told.get("attributes", []))
    assert replies == {name for _, name in put}
    assert not [name for name in replies if re.search(r"KEY$|_IV$|TOKEN", name)]
