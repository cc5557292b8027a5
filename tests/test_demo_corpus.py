"""The demo's texts: enough of them on any machine, stable, and read without importing anything."""

import re
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from demo import corpus, tables


def rows_by_id(table: pa.Table) -> dict[str, str]:
    return dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


def docstrings_on_disk(folder: Path) -> pa.Table:
    with duckdb.connect(tables.database(folder), read_only=True) as connection:
        return connection.sql("FROM docstrings").to_arrow_table()


def manuals_on_disk(folder: Path) -> pa.Table:
    return pq.read_table(tables.parquet_folder(folder))


def test_the_sources_are_big_enough_and_an_edit_changes_one_percent_and_deletes_ten(tmp_path: Path) -> None:
    built = tables.build(tmp_path)
    before = {"docstrings": docstrings_on_disk(tmp_path), "manuals": manuals_on_disk(tmp_path)}
    assert {name: table.num_rows for name, table in before.items()} == built
    assert built["docstrings"] >= 5000
    assert built["manuals"] >= 2000
    for table in before.values():
        assert len(set(table["id"].to_pylist())) == table.num_rows
        assert all(3 <= len(text.split()) <= 2000 for text in table["text"].to_pylist())
        assert all(table[name].null_count == 0 for name in table.column_names)
        assert len(set(table["package"].to_pylist())) > 10
    assert set(before["docstrings"]["kind"].to_pylist()) == {"module", "class", "function", "method"}
    assert set(before["manuals"]["kind"].to_pylist()) == {"topic", "readme", "licence"}

    edits = tables.edit(tmp_path)
    after = {"docstrings": docstrings_on_disk(tmp_path), "manuals": manuals_on_disk(tmp_path)}
    for name, edit in edits.items():
        old, new = rows_by_id(before[name]), rows_by_id(after[name])
        assert edit.changed == sum(old[key] != text for key, text in new.items()) == round(len(old) / 100)
        assert edit.deleted == len(old.keys() - new.keys()) == len(old) - len(new)
    assert sum(edit.deleted for edit in edits.values()) == 10
    assert manuals_on_disk(tmp_path).schema.equals(corpus.MANUALS)


def test_the_same_machine_gives_the_same_rows() -> None:
    assert corpus.manuals(300).equals(corpus.manuals(300))


def test_docstrings_are_read_without_importing_and_named_by_where_they_stand(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text('"""Words of the whole package."""\nraise SystemExit("imported")\n')
    (package / "part.py").write_text(
        "class Shape:\n"
        '    """Something with an area."""\n'
        "    async def area(self):\n"
        '        """How large it is."""\n'
        "    @property\n"
        "    def name(self):\n"
        '        """What it is called."""\n'
        "    @name.setter\n"
        "    def name(self, value):\n"
        '        """A second docstring under the same name."""\n'
        "def short():\n"
        '    """Too short."""\n'
        "def surrogate():\n"
        '    """Not \\ud800 any text at all."""\n'
    )
    (package / "broken.py").write_text('"""Never a module of Python."""\nthis is { not python')
    (tmp_path / "not-a-module.py").write_text('"""Words in a script beside it."""')

    rows = corpus._choose(corpus._docstrings_below(tmp_path, prefix=""), corpus.DOCSTRINGS, limit=100).to_pylist()

    assert {row["id"]: (row["kind"], row["text"]) for row in rows} == {
        "pack": ("module", "Words of the whole package."),
        "pack.part.Shape": ("class", "Something with an area."),
        "pack.part.Shape.area": ("method", "How large it is."),
        "pack.part.Shape.name": ("method", "What it is called."),
    }
    assert {(row["package"], row["module"]) for row in rows} == {("pack", "pack"), ("pack", "pack.part")}


def test_a_document_is_cut_at_headings_and_whole_paragraphs() -> None:
    long_paragraph = "word " * 60
    document = f"# First\n\n{long_paragraph}\n\nclosing words of it\n\n## Second ##\n\nbelow the second\n\n======\n"
    assert [(heading, len(text.split())) for heading, text in corpus._passages(document)] == [
        ("First", 60),
        ("First", 4),
        ("Second", 3),
    ]


def test_ids_tell_where_a_manual_came_from() -> None:
    pattern = re.compile(r"(topic/[^#]+|readme/[^#/]+|licence/[^#/]+/[^#/]+)#\d+")
    assert all(pattern.fullmatch(key) for key in corpus.manuals(500)["id"].to_pylist())
