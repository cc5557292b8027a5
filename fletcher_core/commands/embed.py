"""`fletcher embed`: files, tables or standard input in; a file, a stream or a Longbow of vectors out."""

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fletcher_core.commands import options
from fletcher_core.commands.options import LongbowOptions, asset_folder, in_options, longbow_client, newest
from fletcher_core.commands.output import counted, duration, note, print_json, printable
from fletcher_core.commands.progress import Progress

if TYPE_CHECKING:
    from fletcher_core.embedder import Embedder
    from fletcher_core.files.embed import EmbedReport
    from fletcher_core.files.open import Named
    from fletcher_core.files.outputs import VectorOutput
    from fletcher_core.files.rows import Rows, Selection
    from fletcher_core.telemetry import RunReport

_LONGBOW = re.compile(r"longbow(?::(?P<address>.+))?")


def embed(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Text files (a text a line), .parquet, .csv, .jsonl or .json files and globs of them, a DuckDB "
            "database, or - for standard input.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="OUT", help="A .parquet or .npy file, - for standard output, longbow or longbow:HOST:PORT."
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option("--text", metavar="COLUMN", help="What is embedded; may be repeated.", show_default="text"),
    ] = None,
    row_id: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="Names a row.", show_default="id, or the row's number")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="COLUMN", help="Carry it over; may be repeated.", show_default=False),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", help="How several columns become a text: '{title}: {body}'.", show_default=False),
    ] = None,
    table: Annotated[str | None, typer.Option("--table", help="Of a DuckDB database.", show_default=False)] = None,
    query: Annotated[
        str | None,
        typer.Option("--query", metavar="SQL", help="On a DuckDB database, or FROM files.", show_default=False),
    ] = None,
    lock_timeout: Annotated[
        float,
        typer.Option(
            "--lock-timeout", min=0, metavar="SECONDS", help="How long to wait for who writes the DuckDB database."
        ),
    ] = 30.0,
    on_error: Annotated[
        Literal["null", "fail"],
        typer.Option("--on-error", help="A row that cannot be embedded: it has no vector, or is an error."),
    ] = "null",
    model: options.Model = options.DEFAULT_MODEL,
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    max_length: options.MaxLength = None,
    dimension: options.Dimension = None,
    prompt: options.Prompt = None,
    long_text: options.LongText = "truncate",
    threads: options.Threads = None,
    devices: options.Devices = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="DIR|URL", help="With --to longbow: the vector store.")
    ] = None,
    collection: Annotated[
        str | None,
        typer.Option(
            "--collection", autocompletion=options.complete_collection, help="With --to longbow: its collection."
        ),
    ] = None,
    mirror: Annotated[
        bool,
        typer.Option("--mirror", help="With --to longbow: remove rows that the source does not have. Else they stay."),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="With --to longbow: when the collection was embedded with another model, --dimension or --keep, put "
            "the rows of this source in place of all of its rows. Else that is refused.",
        ),
    ] = False,
    longbow_meta: options.LongbowMeta = "",
    longbow_ca: options.LongbowCa = "",
    longbow_cert: options.LongbowCert = "",
    longbow_key: options.LongbowKey = "",
    longbow_server_name: options.LongbowServerName = "",
    as_json: options.Json = False,
) -> int:
    """Embed texts of files, tables or standard input.

    A row that cannot be embedded (null, empty, not UTF-8) is counted and named, and has a null vector, in .npy NaN. A
    file appears when it is whole. To Longbow only what is new or changed goes, by way of a vector store. Rows that the
    collection has and the source does not are kept, unless --mirror is given.
    """
    from fletcher_core.files.open import Named
    from fletcher_core.files.rows import Selection

    selection = Selection(tuple(text or ()), row_id, tuple(keep or ()), template)
    named = Named(tuple(sources), table, query, lock_timeout)
    named.kind  # noqa: B018 - it is refused before a model is loaded
    target = _LONGBOW.fullmatch(to)
    if not target and to != "-" and Path(to).suffix not in (".parquet", ".npy"):
        raise typer.BadParameter(
            f"--to is {to!r}: it must end in .parquet or .npy, or be -, longbow or longbow:HOST:PORT"
        )
    if not target and to != "-" and Path(to).is_dir():
        raise typer.BadParameter(f"--to is {to!r}, which is a folder: name a file in it")
    if target and (store is None or not collection):
        raise typer.BadParameter("--to longbow needs --store and --collection: what was sent is remembered there")
    if target and store is not None and collection:
        asset_folder(store, collection)  # its name is refused before a model is loaded
    if target and on_error == "fail":
        raise typer.BadParameter(
            "--on-error fail is for files: rows for Longbow that cannot be embedded go to the quarantine"
        )
    if not target and (store is not None or collection):
        raise typer.BadParameter("--store and --collection are for --to longbow: leave them out, or send to longbow")
    if not target and to != "-" and named.includes(Path(to)):
        raise typer.BadParameter(f"--to is {to!r}, which is a source: its texts would be gone. Name another file")
    if (mirror or replace) and not target:
        raise typer.BadParameter("--mirror and --replace are for --to longbow: a file is always written anew")
    if to == "-" and not as_json and sys.stdout.isatty():
        raise typer.BadParameter("--to - writes an Arrow stream, which is not for a terminal: pipe it, or add --json")

    from fletcher_core.embedder import Embedder

    def load() -> Embedder:
        return Embedder.load(
            model,
            engine=engine,
            precision=precision,
            max_length=max_length,
            dimension=dimension,
            prompt=prompt,
            long_text=long_text,
            threads=threads,
            devices=options.devices_of(devices),
        )

    with ExitStack() as stack:
        if target:
            assert store is not None
            assert collection is not None
            said = LongbowOptions(
                *(target["address"] or "", longbow_meta, longbow_ca, longbow_cert, longbow_key, longbow_server_name),
                said_by="--to longbow:HOST:PORT",
            )
            embedder = load()
            stack.callback(embedder.close)
            return _to_longbow(
                named, selection, embedder, store, collection, said, bool(text), mirror, replace, as_json
            )
        from fletcher_core.files.open import open_rows

        rows = stack.enter_context(open_rows(named, selection, has_fields=bool(text)))
        embedder = load()
        stack.callback(embedder.close)
        return _to_file(rows, embedder, to, on_error, as_json)


def _to_file(rows: "Rows", embedder: "Embedder", to: str, on_error: Literal["null", "fail"], as_json: bool) -> int:
    from fletcher_core.files.embed import embed_rows

    with Progress("texts") as progress, _output(to, rows, embedder, as_json) as output:
        report = embed_rows(
            rows, embedder, output, on_error=on_error, progress=lambda done: progress.show(done, rows.total)
        )
    for reason, refused in report.refused.items():
        more = ", ..." if refused.count > len(refused.ids) else ""
        note(
            printable(
                f"{counted(refused.count, 'row has', 'rows have')} no vector "
                f"({reason}): id {', '.join(refused.ids)}{more}. {refused.message}"
            )
        )
    if report.truncated:
        cut = counted(report.truncated, "text was", "texts were")
        note(f"{cut} longer than {embedder.encoder.max_length} tokens and cut (--long-text)")
    facts = _facts(report, embedder)
    if as_json and to != "-":
        print_json({"to": to, **facts})
    else:
        print(_described(report, embedder, to), file=sys.stderr if to == "-" else sys.stdout)
    return 0


@contextmanager
def _output(to: str, rows: "Rows", embedder: "Embedder", as_json: bool) -> Iterator["VectorOutput"]:
    from fletcher_core.files.outputs import ArrowOutput, JsonOutput, file_output

    if to != "-":
        with file_output(Path(to), rows.schema, embedder.dimension) as output:
            yield output
        return
    if as_json:
        lines = JsonOutput(sys.stdout)
        yield lines
        lines.finish()
    else:
        stream = ArrowOutput(sys.stdout.buffer, rows.schema, embedder.dimension)
        yield stream
        stream.finish()
        sys.stdout.buffer.flush()


def _facts(report: "EmbedReport", embedder: "Embedder") -> dict[str, Any]:
    return {
        **asdict(report),
        "texts_per_second": round(report.rows / max(report.seconds, 1e-9), 1),
        "dimension": embedder.dimension,
        "model": embedder.card.name,
        "fingerprint": embedder.card.fingerprint,
        "engine": embedder.engine.name,
        "precision": embedder.engine.precision,
    }


def _described(report: "EmbedReport", embedder: "Embedder", to: str) -> str:
    rate = report.rows / max(report.seconds, 1e-9)
    return (
        f"{report.embedded:,} of {report.rows:,} rows embedded by {embedder.card.name} on {embedder.engine.name} "
        f"{embedder.engine.precision} in {duration(report.seconds)} ({rate:,.0f} texts/s)"
        + ("" if to == "-" else f"; {to}: {report.rows:,} x {embedder.dimension} float32")
    )


def _to_longbow(
    named: "Named",
    selection: "Selection",
    embedder: "Embedder",
    folder: str,
    collection: str,
    said: LongbowOptions,
    has_fields: bool,
    mirror: bool,
    replace: bool,
    as_json: bool,
) -> int:
    """What is new or changed, by way of the store; 0 when every row is searchable."""
    from fletcher_core.commands.fitting import check_fits, filled
    from fletcher_core.errors import ConfigError
    from fletcher_core.files.open import open_rows
    from fletcher_core.files.spool import spooled
    from fletcher_core.pipeline import MaterializeSettings, materialize
    from fletcher_core.sources import metadata_schema
    from fletcher_core.store import VectorStore
    from fletcher_core.store.status import outbox_rows

    root = below if VectorStore.exists(below := asset_folder(folder, collection)) else folder
    with ExitStack() as stack:
        source, numbered = named.table_source(selection, name=collection, metadata=selection.keep), False
        if source is None:
            rows = stack.enter_context(open_rows(named, selection, has_fields=has_fields))
            numbered = rows.numbered
            source = stack.enter_context(spooled(rows, selection, name=collection))
        store = stack.enter_context(VectorStore.open(root, collection=collection))
        present = filled(store)
        if present is not None and numbered and not (mirror or replace):
            raise ConfigError(
                f"the rows have no id but their numbers, which the rows of {collection!r} have too: they would take "
                "their places. Name a column with --id, or give --mirror if this source is all of the collection"
            )
        if present is not None and not replace:
            check_fits(present, embedder.card, metadata_schema(source))
        client = stack.enter_context(longbow_client(said, store, folder))
        progress = stack.enter_context(Progress("texts"))
        report = materialize(
            source,
            embedder=embedder,
            store=store,
            longbow=client,
            settings=MaterializeSettings(
                vector_type="float32" if present is None else present.vector_type,
                on_missing="delete" if mirror or replace else "keep",
            ),
            progress=lambda now: progress.show(now.embedded, now.total),
        )
        live = outbox_rows(newest(store), client.address.target)["searchable"]
    problem = in_options(report.delivery.problem) if report.delivery.problem else ""
    if as_json:
        print_json(_run_facts(report, problem))
    else:
        print(_run_described(report, client.address.target, live))
    if report.quarantined or report.null_text or report.empty_text:
        note(
            f"not embedded: {counted(report.quarantined, 'row', 'rows')} set aside "
            "(`fletcher quarantine list` says why), "
            f"{report.null_text} with a null text, {report.empty_text} with an empty one"
        )
    if problem:
        note(f"{problem}. What waits is in the store: `fletcher deliver` sends it")
    return 1 if problem else 0


def _run_facts(report: "RunReport", problem: str) -> dict[str, Any]:
    facts = asdict(report)
    for series in ("timeline", "stages"):
        facts.pop(series, None)
    return {**facts, "problem": problem}


def _run_described(report: "RunReport", target: str, live: int) -> str:
    rate = report.embedded / max(report.seconds_total, 1e-9)
    delivery = report.delivery
    return (
        f"{report.generation}: {report.new} new, {report.changed} changed, {report.deleted} removed, "
        f"{report.unchanged} unchanged, {counted(report.rows_in_store, 'row', 'rows')} in all; "
        f"{counted(report.embedded, 'text', 'texts')} embedded in {duration(report.seconds_total)} "
        f"({rate:,.0f} texts/s)\nLongbow at {target}: {counted(delivery.sent, 'row', 'rows')} sent, "
        f"{counted(live, 'live row', 'live rows')} searchable, "
        f"{delivery.pending} waiting"
    )
