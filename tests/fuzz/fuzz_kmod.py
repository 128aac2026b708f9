"""Bounded fuzzing of the kernel module's codec by libFuzzer: ``python -m tests.fuzz.fuzz_kmod [RUNS [SEED]]``.

The targets: ``kmod_frames.c``, which reads payloads; ``kmod_ackwin.c``, which holds the window of packet numbers
against a naive one; ``kmod_pathmtu.c``, which calls the search for the path's MTU in every order; ``kmod_tcpopt.c``,
which reads TCP headers. All have the very sources of the module, under AddressSanitizer and
UndefinedBehaviorSanitizer. RUNS inputs are tried on each, on the window a tenth of them: there, each is a sequence of
hundreds of numbers.
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
MAX_LENGTH = {"frames": 1500, "ackwin": 256, "pathmtu": 256, "tcpopt": 70}
#: A bound of 1300, then the header of a SYN that offers segments of 1460 bytes.
SYN = (1300).to_bytes(2) + bytes(12) + b"\x60\x02" + bytes(6) + b"\x02\x04\x05\xb4"


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
    if target == "tcpopt":
        (corpus / "syn").write_bytes(SYN)
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
        for target in MAX_LENGTH:
            if not fuzz(target, max(runs // 10, 1) if target == "ackwin" else runs, seed, Path(name)):
                return 1
    print("nothing was found")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, int(sys.argv[2]) if len(sys.argv) > 2 else 1))
