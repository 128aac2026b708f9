"""Echo requests of which each may be answered late: a machine with much else to do loses none by that.

``ping`` itself waits for the answers behind the last request only for two round trips or one interval, whichever is
longer: with a short interval it takes for lost what is late.
"""

from __future__ import annotations

import re
import subprocess

from tests.support.daemons import PATIENCE
from tests.support.namespaces import Namespace


def ping(namespace: Namespace, address: str, *options: str, count: int = 5, wait: float = PATIENCE) -> str:
    """What ping says of ``count`` requests that are sent at once, complaints included. ``wait``: seconds for answers,
    where they need not come."""
    at_once = ("-c", str(count), "-l", str(count), "-i", f"{wait:g}", "-W", f"{wait:g}")
    return _said(namespace, ("ping", "-n", *at_once, *options, address))


def answered(namespace: Namespace, address: str, *options: str, count: int = 5, wait: float = PATIENCE) -> int:
    """How many of ``count`` requests that are sent at once were answered."""
    (received,) = re.findall(r"(\d+) received", ping(namespace, address, *options, count=count, wait=wait))
    return int(received)


def answered_in_a_row(namespace: Namespace, address: str, count: int) -> int:
    """How many of the first ``count`` requests were answered, of one every 50 ms until there were so many answers."""
    words = ("ping", "-n", "-c", str(count), "-i", "0.05", "-w", f"{PATIENCE:g}", address)
    return len(numbers_answered(_said(namespace, words)) & set(range(1, count + 1)))


def numbers_answered(said: str) -> set[int]:
    """The numbers of the requests that were answered; the first is 1."""
    return set(answers_in_order(said))


def answers_in_order(said: str) -> list[int]:
    """The same, in the order of the answers."""
    return [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl=", said)]


def _said(namespace: Namespace, words: tuple[str, ...]) -> str:
    done = subprocess.run(
        [*namespace.prefix, *words], capture_output=True, text=True, timeout=2 * PATIENCE, check=False
    )
    return done.stdout + done.stderr
