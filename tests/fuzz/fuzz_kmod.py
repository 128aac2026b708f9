"""Bounded fuzzing of the kernel module's codec by libFuzzer: ``python -m tests.fuzz.fuzz_kmod [RUNS [SEED]]``.

The targets: ``kmod_frames.c``, which reads payloads, and ``kmod_ackwin.c``, which holds the window of packet numbers
against a naive one; both with the very sources of the module, under AddressSanitizer and UndefinedBehaviorSanitizer.
RUNS inputs are tried on frames and a tenth of them on the window, where each is a sequence of hundreds of numbers.
Exits 0 and says how many; anything found ends the run with the input that did it. RUNS and SEED repeat a run.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.fuzz_wire import FRAMES
from tests.support.kmod.codec import COMPILE, KMOD

HERE = Path(__file__).resolve().parent
#: Bytes that one input has at most.
MAX_LENGTH = {"frames": 1500, "ackwin": 256}


def build(target: str, directory: Path) -> Path:
    program = directory / target
    sources = [HERE / f"kmod_{target}.c", KMOD / f"{target}.c"]
    subprocess.run([*COMPILE, "-fsanitize=fuzzer,address,undefined", *sources, "-o", program], check=True)
    return program


def fuzz(target: str, runs: int, seed: int, directory: Path) -> bool:
    program, corpus = build(target, directory), directory / f"{target}-corpus"
    corpus.mkdir()
    if target == "frames":
        for number, frame in enumerate([*FRAMES, b"".join(FRAMES[:-1])]):
            (corpus / str(number)).write_bytes(frame)
    done = subprocess.run(
        [program, f"-runs={runs}", f"-seed={seed}", f"-max_len={MAX_LENGTH[target]}", "-timeout=10",
         "-print_final_stats=1", f"-artifact_prefix={directory}/", corpus],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    lines = done.stderr.splitlines()
    if done.returncode:
        print(*lines[-60:], sep="\n")
        for path in [*directory.glob("crash-*"), *directory.glob("timeout-*"), *directory.glob("leak-*")]:
            print(f"{target}: found by {path.read_bytes().hex()}")
        return False
    coverage = next((line.split("cov: ")[1].split()[0] for line in reversed(lines) if "cov: " in line), "?")
    print(f"{target:8}{runs:10} inputs, {coverage} edges covered, {len([*corpus.iterdir()])} inputs kept", flush=True)
    return True


def main(runs: int, seed: int) -> int:
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="qre-fuzz-") as name:
        if not (fuzz("frames", runs, seed, Path(name)) and fuzz("ackwin", max(runs // 10, 1), seed, Path(name))):
            return 1
    print("nothing was found")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, int(sys.argv[2]) if len(sys.argv) > 2 else 1))
