"""What the kernel module encrypts by itself is what OpenSSL encrypts (``kmod/gcm.c``, built for user space under
AddressSanitizer and UndefinedBehaviorSanitizer)."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.kmod.codec import COMPILE, KMOD

TAG = 16
#: The largest header is 25 bytes, the largest packet 1,472; borders lie at every 16 and 128 bytes.
HEADERS = (0, 1, 2, 3, 15, 16, 17, 24, 25, 31, 32, 33, 127, 128, 129, 300)
SIZES = (*range(300), 511, 512, 513, 1200, 1203, 1250, 1331, 1407, 1408, 1409, 1472)
SHIM = Path(__file__).resolve().parents[1] / "support" / "kmod" / "gcm.c"


def can_run() -> bool:
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if platform.machine() == "x86_64" and cpu.exists() else []
    return {"aes", "pclmulqdq", "avx"} <= set(flags)


pytestmark = pytest.mark.skipif(not can_run(), reason="this processor has no AES, PCLMULQDQ and AVX")


class Module:
    """The process of ``tests/support/kmod/gcm.c``."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, what: str, *values: bytes) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(what, *(value.hex() or "-" for value in values), file=self._process.stdin, flush=True)
        said = self._process.stdout.readline()
        assert said, "a sanitizer, or the shim, ended it"
        return said.strip()

    def seal(self, key: bytes, iv: bytes, header: bytes, plain: bytes) -> bytes:
        return bytes.fromhex(self.ask("seal", key, iv, header, plain))

    def open(self, key: bytes, iv: bytes, header: bytes, sealed: bytes, *, in_place: bool = False) -> bytes | None:
        """None: not authentic."""
        said = self.ask("in-place" if in_place else "open", key, iv, header, sealed)
        return None if said == "!" else bytes.fromhex("" if said == "-" else said)


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Module]:
    program = tmp_path_factory.mktemp("gcm") / "gcm"
    vectors = ("-maes", "-mpclmul", "-mavx")  # as kmod/Kbuild has them
    subprocess.run(
        [*COMPILE, *vectors, "-fsanitize=address,undefined", SHIM, KMOD / "gcm.c", "-o", program], check=True
    )
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Module(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.mark.parametrize("header_size", HEADERS)
def test_packets_of_every_size_are_sealed_and_opened_as_by_openssl(module: Module, header_size: int) -> None:
    random = Random(header_size)
    for size in SIZES:
        key, iv, header, plain = (random.randbytes(count) for count in (16, 12, header_size, size))
        sealed = AESGCM(key).encrypt(iv, plain, header)
        assert module.seal(key, iv, header, plain) == sealed, size
        assert module.open(key, iv, header, sealed) == plain, size
        assert module.open(key, iv, header, sealed, in_place=True) == plain, size


def test_no_bit_of_a_packet_can_be_changed(module: Module) -> None:
    random = Random(1)
    key, iv, header, plain = (random.randbytes(count) for count in (16, 12, 25, 150))
    sealed = AESGCM(key).encrypt(iv, plain, header)
    packet = header + sealed
    for bit in range(8 * len(packet)):
        changed = bytearray(packet)
        changed[bit // 8] ^= 1 << bit % 8
        assert module.open(key, iv, bytes(changed[:25]), bytes(changed[25:])) is None, bit
    assert module.open(key, iv, header, sealed) == plain


@pytest.mark.parametrize("seed", range(4))
def test_packets_of_a_stranger_are_refused_as_by_openssl(module: Module, seed: int) -> None:
    random = Random(seed)
    key = random.randbytes(16)
    for _ in range(200):
        iv, header, sealed = random.randbytes(12), random.randbytes(25), random.randbytes(random.randint(TAG, 1472))
        with pytest.raises(InvalidTag):
            AESGCM(key).decrypt(iv, sealed, header)
        assert module.open(key, iv, header, sealed) is None


@pytest.mark.parametrize("key", [bytes(16), b"\xff" * 16, bytes(range(16))])
@pytest.mark.parametrize("byte", [0, 0xFF, 0x80, 0x01])
def test_keys_and_packets_of_one_byte_alone_are_no_exception(module: Module, key: bytes, byte: int) -> None:
    iv = bytes([byte]) * 12
    for size in (0, 1, 16, 128, 144, 257):
        plain, header = bytes([byte]) * size, bytes([byte]) * 25
        assert module.seal(key, iv, header, plain) == AESGCM(key).encrypt(iv, plain, header)


def test_a_block_is_encrypted_as_by_openssl(module: Module) -> None:
    random = Random(2)
    for _ in range(300):
        key, block = random.randbytes(16), random.randbytes(16)
        encryptor = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()
        assert bytes.fromhex(module.ask("block", key, block)) == encryptor.update(block)
