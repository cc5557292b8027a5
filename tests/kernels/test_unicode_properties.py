"""The native tokenizer's Unicode tables say what the installed `tokenizers` does."""

import importlib.util
import re
import sys
from bisect import bisect_right
from pathlib import Path
from types import ModuleType

import pytest
import tokenizers

FOLDER = Path(__file__).resolve().parents[2] / "kernels" / "simd" / "unicode"
COMMITTED = (FOLDER / "properties.inc").read_text(encoding="ascii")

CJK, MARK = 4, 8


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("unicode_generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def entries(table: str) -> list[list[int]]:
    """The numbers of each entry of a committed table."""
    body = COMMITTED.split(f"{table}[] = {{\n")[1].split("\n};")[0]
    return [[int(number, 16) for number in re.findall(r"0x\w+", entry)] for entry in re.findall(r"\{0x.*?\}+,", body)]


RUNS = entries("kRuns")


def properties(code_point: int) -> int:
    return RUNS[bisect_right(RUNS, code_point, key=lambda run: run[0]) - 1][1]


def test_the_committed_tables_are_what_the_installed_tokenizers_does() -> None:
    version = re.findall(r'kReferenceVersion\[\] = "(.*)"', COMMITTED)
    again = (
        "run `python kernels/simd/unicode/generate.py` and look at what the native tokenizer does with the difference"
    )
    assert version == [tokenizers.__version__], (
        f"properties.inc was made from tokenizers {version}, but {tokenizers.__version__} is installed: {again}"
    )
    rendered = generator().render()
    different = [line for line in rendered.splitlines() if line not in set(COMMITTED.splitlines())]
    assert rendered == COMMITTED, f"properties.inc is not what tokenizers does, first at {different[:3]}: {again}"


def test_the_block_that_the_reference_leaves_out_of_chinese_is_left_out() -> None:
    assert all(properties(code) & CJK == 0 for code in range(0x2B820, 0x2B920))
    assert properties(0x2B81F) & CJK
    assert properties(0x2B920) & CJK


def test_marks_newer_than_the_references_table_are_kept() -> None:
    assert properties(0x1DF5) & MARK  # of Unicode 7
    assert properties(0x1DFB) >> 8  # of Unicode 9: NFD orders it,
    assert not properties(0x1DFB) & MARK  # but stripping accents keeps it
    assert properties(0x0898) & (MARK | 0xFF00) == 0  # of Unicode 14: unknown to both


@pytest.mark.parametrize(
    ("table", "entry"),
    [
        ("kLowercase", [0x130, 0x69, 0x307]),
        ("kLowercase", [0x3A3, 0x3C3]),  # never the final sigma
        ("kDecompositions", [0x37E, 0x3B]),
        ("kDecompositions", [0x1F82, 0x3B1, 0x313, 0x300, 0x345]),
    ],
)
def test_a_mapping_stands_in_its_table(table: str, entry: list[int]) -> None:
    assert entry in entries(table)


def test_the_tables_ascend_so_that_they_can_be_searched() -> None:
    for table in ("kRuns", "kDecompositions", "kLowercase"):
        firsts = [entry[0] for entry in entries(table)]
        assert firsts == sorted(set(firsts))
