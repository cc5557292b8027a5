"""Texts that every machine has, as two Arrow tables: `docstrings()` and `manuals()`.

Docstrings come from the sources of Python's standard library and of a few installed packages, read with
`ast` (nothing is imported); manuals are the language reference that `help()` shows, the packages' own
descriptions and their licence texts.

Licences: the standard library's texts are under the PSF licence, the packages' under their own (MIT, BSD,
Apache-2.0 and the like). They are read where they lie and written only below the demo's folder: Fletcher
distributes none of them.
"""

import ast
import hashlib
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pyarrow as pa

WORDS = range(3, 2001)
"""Number of words a text of the corpus may have; others are left out."""

_PACKAGES = ("dagster", "duckdb", "huggingface_hub", "numpy", "pyarrow")
_SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "__pycache__",
    "_vendor",
}
_LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice)[^/]*$", re.IGNORECASE)
_HEADING = re.compile(r"(#{1,6})\s+(?P<title>\S.*?)\s*#*$")
_PASSAGE_WORDS = 40
_OWN_NAME = "fletcher"  # our own README changes from commit to commit

DOCSTRINGS = pa.schema(
    {
        "id": pa.string(),
        "text": pa.string(),
        "package": pa.string(),
        "module": pa.string(),
        "kind": pa.string(),
    }
)
MANUALS = pa.schema(
    {
        "id": pa.string(),
        "title": pa.string(),
        "text": pa.string(),
        "package": pa.string(),
        "kind": pa.string(),
    }
)


def docstrings(limit: int = 6000) -> pa.Table:
    """Up to `limit` docstrings: id ("json.decoder.JSONDecoder.decode"), text, package, module, kind.

    The kinds are module, class, function and method. The choice and the order depend on the ids alone, so
    the same Python and packages always give the same table.
    """
    standard_library = Path(sysconfig.get_paths()["stdlib"])
    rows = list(_docstrings_below(standard_library, prefix=""))
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            rows.extend(_docstrings_below(Path(folder), prefix=package))
    return _choose(rows, DOCSTRINGS, limit)


def manuals(limit: int = 2500) -> pa.Table:
    """Up to `limit` passages of documentation: id ("topic/assignment#2"), title, text, package, kind.

    The kinds are topic (Python's reference), readme (descriptions of installed packages) and licence. A text
    that several packages share, as licences are, is taken once.
    """
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    for source, package, kind, title, document in _documents():
        for number, (heading, text) in enumerate(_passages(document)):
            if text not in seen and len(text.split()) in WORDS:
                seen.add(text)
                row = {"id": f"{source}#{number}", "title": heading or title, "text": text}
                rows.append(row | {"package": package, "kind": kind})
    return _choose(rows, MANUALS, limit)


def _choose(rows: Iterable[dict[str, str]], schema: pa.Schema, limit: int) -> pa.Table:
    """The first row of each id, the `limit` rows whose ids hash lowest, in the order of the ids."""
    unique: dict[str, dict[str, str]] = {}
    for row in rows:
        unique.setdefault(row["id"], row)
    chosen = sorted(unique, key=lambda key: hashlib.md5(key.encode()).digest())[:limit]
    return pa.Table.from_pylist([unique[key] for key in sorted(chosen)], schema=schema)


def _docstrings_below(root: Path, prefix: str) -> Iterator[dict[str, str]]:
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root).with_suffix("")
        if _SKIPPED_FOLDERS.intersection(relative.parts):
            continue
        parts = [part for part in (prefix, *relative.parts) if part and part != "__init__"]
        if parts and all(part.isidentifier() for part in parts):
            yield from _docstrings_of(path, ".".join(parts))


def _docstrings_of(path: Path, module: str) -> Iterator[dict[str, str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes are not the demo's news
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and files for other versions of Python
        return
    package = module.split(".", 1)[0]
    for name, kind, node in _documented(tree, module):
        text = ast.get_docstring(node) or ""
        if len(text.split()) in WORDS and _is_text(text):
            yield {"id": name, "text": text, "package": package, "module": module, "kind": kind}


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(node: _Documented, name: str) -> Iterator[tuple[str, str, _Documented]]:
    """`node` and the classes and functions inside it at any depth, as (qualified name, kind, node)."""
    yield name, _kind(node, inside=None), node
    yield from _documented_inside(node, name)


def _documented_inside(node: _Documented, name: str) -> Iterator[tuple[str, str, _Documented]]:
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{name}.{child.name}", _kind(child, inside=node), child
            yield from _documented_inside(child, f"{name}.{child.name}")


def _kind(node: _Documented, inside: _Documented | None) -> str:
    if isinstance(node, ast.Module):
        return "module"
    if isinstance(node, ast.ClassDef):
        return "class"
    return "method" if isinstance(inside, ast.ClassDef) else "function"


def _documents() -> Iterator[tuple[str, str, str, str, str]]:
    """(id, package, kind, title, whole text) of every document, in a fixed order."""
    for topic, text in sorted(_topics().items()):
        yield f"topic/{topic}", "python", "topic", topic, text
    packages = {(d.metadata["Name"] or "").lower(): d for d in metadata.distributions()}
    for name, distribution in sorted(packages.items()):
        if name in ("", _OWN_NAME):
            continue
        if "Description" in distribution.metadata:  # importlib puts the METADATA file's body here
            yield f"readme/{name}", name, "readme", name, distribution.metadata["Description"]
        for file in sorted(distribution.files or [], key=str):
            path = Path(str(file.locate()))
            if _LICENCE_FILE.search(str(file)) and path.suffix in ("", ".txt", ".md", ".rst") and path.is_file():
                text = path.read_text(encoding="utf-8", errors="ignore")
                yield f"licence/{name}/{path.name}", name, "licence", f"Licence of {name}", text


def _topics() -> dict[str, str]:
    """The topics of `help()`: the only assignment in the standard library's pydoc_data/topics.py."""
    path = Path(sysconfig.get_paths()["stdlib"]) / "pydoc_data" / "topics.py"
    if not path.is_file():
        return {}
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign):
            return {str(name): str(text) for name, text in ast.literal_eval(node.value).items()}
    return {}


def _passages(document: str) -> Iterator[tuple[str, str]]:
    """(heading or '', text) of the document's parts: whole paragraphs of `_PASSAGE_WORDS` words or more."""
    heading, paragraphs = "", list[str]()
    for paragraph in re.split(r"\n\s*\n", document.replace("\r\n", "\n")):
        found = _HEADING.match(paragraph.strip())
        if (found or sum(len(p.split()) for p in paragraphs) >= _PASSAGE_WORDS) and paragraphs:
            yield heading, "\n\n".join(paragraphs)
            paragraphs = []
        if found and "\n" not in paragraph.strip():
            heading = found["title"]
        elif _is_text(paragraph):
            paragraphs.append(paragraph.strip("\n"))
    if paragraphs:
        yield heading, "\n\n".join(paragraphs)


def _is_text(text: str) -> bool:
    """Whether most characters are letters or spaces (rulers are not) and none is a control or surrogate."""
    if any((c < " " and c not in "\n\t") or "\ud800" <= c <= "\udfff" for c in text):
        return False
    return sum(c.isalpha() or c == " " for c in text) > 0.6 * len(text)
