"""What a test that failed leaves behind ends with its network namespace."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.support.namespaces import Namespace
from tests.support.network import own_network

pytestmark = pytest.mark.root


def test_a_namespace_that_is_deleted_takes_its_processes_along() -> None:
    namespace = Namespace("left")
    process = namespace.popen(["sh", "-c", "sleep 600 & wait"])
    namespace.delete()
    assert process.wait(5) == -signal.SIGKILL


def test_so_does_one_of_a_tests_own_when_the_test_fails() -> None:
    with pytest.raises(ZeroDivisionError), own_network():
        process = subprocess.Popen(["sleep", "600"])
        assert 1 / 0
    assert process.wait(5) == -signal.SIGKILL
