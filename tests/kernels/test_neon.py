"""The native tokenizer's NEON path, compiled for and run as a 64-bit ARM program on whatever processor this is."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"


@pytest.mark.skipif(
    shutil.which(EMULATOR) is None, reason=f"no {EMULATOR} on the PATH (Debian: apt install qemu-user-static)"
)
@pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"no {COMPILER} on the PATH (Debian: apt install g++-aarch64-linux-gnu)"
)
def test_neon_and_scalar_agree_with_the_reference_on_an_arm_processor(
    build_run_corpus: Callable[..., Path], native_corpus: list[str]
) -> None:
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_EXE_LINKER_FLAGS=-static")
    run_corpus = build_run_corpus(COMPILER, "-O2", *target)
    done = subprocess.run(
        [EMULATOR, run_corpus, *native_corpus, "--random", "500"], capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("500 random inputs (seed 1) agree with the reference: neon scalar\n")
