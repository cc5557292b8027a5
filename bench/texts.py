"""Texts that every Python has: docstrings and source code of the standard library, mixed, in a fixed order."""

import ast
import random
import sysconfig
from functools import cache
from pathlib import Path


@cache
def _pieces() -> tuple[str, ...]:
    pieces: set[str] = set()
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"test", "tests", "site-packages", "idlelib"} & set(file.parts):
            continue
        try:
            source = file.read_text("utf-8")
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
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
