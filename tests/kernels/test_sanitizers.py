"""The native tokenizer under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path


def test_no_input_makes_the_native_tokenizer_overstep_its_memory_or_differ_from_the_reference(
    build_run_corpus: Callable[..., Path], native_corpus: list[str]
) -> None:
    run_corpus = build_run_corpus(os.environ.get("CXX", "c++"), "-O1", "-DFLETCHER_SANITIZE=ON")
    done = subprocess.run(
        [run_corpus, *native_corpus, "--random", "2000"],
        env=os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"},
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert f"{len(native_corpus)} files and 2000 random inputs" in done.stdout
