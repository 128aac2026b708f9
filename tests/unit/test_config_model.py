"""The values of the model: immutable, comparable, made by keyword or position, paths read as paths."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest

from qre.config.model import GlobalConfig, Hooks, HostPort


def test_a_value_cannot_be_changed() -> None:
    value = HostPort("a.example", 443)
    with pytest.raises(AttributeError):
        value.port = 1  # type: ignore[misc]  # that is the point
    with pytest.raises(AttributeError):
        del value.port


def test_values_compare_hash_copy_and_pickle_by_their_fields() -> None:
    value = HostPort(host="a.example", port=443)
    assert value == HostPort("a.example", 443) != HostPort("a.example", 444)
    assert value != Hooks()
    assert len({value, HostPort("a.example", 443)}) == 1
    assert copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value
    assert value.replace(port=1) == HostPort("a.example", 1)


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [(("a",), {}), (("a", 1, 2), {}), (("a", 1), {"port": 2}), (("a", 1), {"colour": 2})],
)
def test_wrong_arguments_are_type_errors(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        HostPort(*arguments, **keywords)


def test_paths_are_given_as_text_or_path_and_read_as_paths() -> None:
    config: Any = GlobalConfig
    one, other = config(state_dir="/x"), GlobalConfig(state_dir=Path("/x"))
    assert one == other
    assert one.state_dir == Path("/x")
    assert (one.bpf_elf, one.config_dir) == (None, Path("/etc/qre/dev"))
    with pytest.raises(AttributeError):
        one.state_dir = Path("/y")
    assert GlobalConfig.runtime_dir == Path("/run/qre")
