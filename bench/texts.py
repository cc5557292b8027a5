"""Texts that every Python has: docstrings and source code of the standard library, mixed, in a fixed order."""

import ast
import random
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path


def stdlib_files() -> list[Path]:
    """The modules of the standard library, without its tests."""
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    return [file for file in files if not {"test", "tests", "site-packages", "idlelib"} & set(file.parts)]


def modules(files: Iterable[Path]) -> Iterator[tuple[str, ast.Module]]:
    """Source and tree of each file that parses."""
    for file in files:
        try:
            source = file.read_text("utf-8")
            yield source, ast.parse(source)
        except (SyntaxError, ValueError):
            continue


@cache
def _pieces() -> tuple[str, ...]:
    pieces: set[str] = set()
    for source, tree in modules(stdlib_files()):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                if doc := ast.get_docstring(node):
                    pieces.add(doc)
                if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno < 12:
                    pieces.add(ast.get_source_segment(source, node) or "")
    return tuple(sorted(piece for piece in pieces if len(piece.split()) >= 3))


def mixed_texts(count: int) -> list[str]:
    """`count` distinct texts, mean about 55 tokens; beyond what the library has, numbered copies."""
    pieces = list(_pieces())
    random.Random(7).shuffle(pieces)
    rounds = (f"{n}. {piece}" if n else piece for n in range(count // len(pieces) + 1) for piece in pieces)
    return [next(rounds) for _ in range(count)]
