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
    return tuple(sorted({piece for source, tree in modules(stdlib_files()) for piece in _pieces_of(source, tree)}))


def _pieces_of(source: str, tree: ast.Module) -> Iterator[str]:
    """The docstrings and the short functions of a module that have at least three words."""
    lines = [line.encode() for line in source.split("\n")]  # ast counts columns in bytes
    for node in ast.walk(tree):
        pieces = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            pieces.append(ast.get_docstring(node) or "")
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None and node.end_lineno - node.lineno < 12:
            pieces.append(_segment(lines, node))
        yield from (piece for piece in pieces if len(piece.split()) >= 3)


def _segment(lines: list[bytes], node: ast.FunctionDef) -> str:
    """As `ast.get_source_segment`, which splits the whole module again for every function."""
    segment = lines[node.lineno - 1 : node.end_lineno]
    segment[-1] = segment[-1][: node.end_col_offset]
    segment[0] = segment[0][node.col_offset :]
    return b"\n".join(segment).decode()


def mixed_texts(count: int) -> list[str]:
    """`count` distinct texts, mean about 55 tokens; beyond what the library has, numbered copies."""
    pieces = list(_pieces())
    random.Random(7).shuffle(pieces)
    rounds = (f"{n}. {piece}" if n else piece for n in range(count // len(pieces) + 1) for piece in pieces)
    return [next(rounds) for _ in range(count)]


def first_texts(count: int) -> list[str]:
    """`count` distinct texts of the same kind from no more modules than it takes: other texts, in a second."""
    found: dict[str, None] = {}
    for source, tree in modules(stdlib_files()):
        found.update(dict.fromkeys(_pieces_of(source, tree)))
        if len(found) >= count:
            break
    pieces = list(found)
    random.Random(7).shuffle(pieces)
    return pieces[:count]
