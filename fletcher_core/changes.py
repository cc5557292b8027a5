"""What changed in a source since the vector store last saw it.

One scan of the source is joined with the store's live rows on id and hash. The rows that need work go to a Parquet
snapshot, so that the source is free again before anything is embedded, and memory stays bounded whatever the size.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from fletcher_core.columns import kept_type
from fletcher_core.errors import ConfigError, InputError, StoreError
from fletcher_core.invalid_text import has_mark, is_invalid_text, number_in, quarantined_select
from fletcher_core.sources import (
    ParquetTable,
    Partition,
    Source,
    attached,
    column_types,
    marked_relation,
    partition_condition,
    reading_failed,
)
from fletcher_core.sql import connect, first_line, identifier, literal, stoppable
from fletcher_core.stop import NEVER, Stop
from fletcher_core.store.durable import write_failed
from fletcher_core.store.generation import Generation
from fletcher_core.store.ledger import text_form
from fletcher_core.store.vectors import write_known_vectors
from fletcher_core.template import is_blank, text_sql

_ROW_GROUP_ROWS = 16_384
_ROW_GROUP_BYTES = "32MB"
_EXAMPLES = 5  # ids named in an error


@dataclass(frozen=True)
class Changes:
    """The difference between a source and the store, in rows.

    `source_rows` = new + changed + stale + unchanged + null_text + empty_text + invalid_text + null_ids +
    duplicate_ids.

    Attributes:
        new: not in the store yet.
        changed: in the store with another text or other metadata.
        stale: in an earlier generation, under another model.
        unchanged: in the store as they are.
        deleted: in the store, and no longer embeddable rows of the source; with on_missing="keep" only those of them
            that the source still has.
        null_text: every text column is null.
        empty_text: nothing but white space and control characters.
        invalid_text: rows of Parquet files that have bytes that are no UTF-8 in the id, a text, a metadata column or
            the partition column. With the latter nobody knows which partition a row is of: it counts in each.
        null_ids: rows without id.
        duplicate_ids: further copies of a row, and all rows of an id that stands for different contents.
        to_embed: of new, changed and stale those whose vector the store does not know.
        changes_path: Parquet snapshot of new, changed and stale rows: id, text, content_hash, metadata_hash, status,
            replaces (int64, null), metadata columns, and, when the vector is known, vector (list<float>), tokens,
            truncated (else null).
        deleted_path: Parquet file of deleted rows: id, replaces.
        quarantined: id, reason, message, content_hash: one row for each id with different contents ("duplicate_id")
            and one for each id with invalid texts ("invalid_text"), which has no content_hash.
    """

    source_rows: int
    new: int
    changed: int
    stale: int
    unchanged: int
    deleted: int
    null_text: int
    empty_text: int
    invalid_text: int
    null_ids: int
    duplicate_ids: int
    to_embed: int
    changes_path: Path
    deleted_path: Path
    quarantined: pa.Table


@contextmanager
def changes_database(
    *, memory_limit: str = "2GB", spill: Path, threads: int | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database to find changes in, for a run over several partitions: making one takes 14 ms.

    Args:
        spill: a folder for what exceeds `memory_limit`.
        threads: of DuckDB; one a core when not given.

    Raises:
        ConfigError: `memory_limit` is no size.
    """
    with connect(memory_limit=memory_limit, spill=spill, threads=threads) as database:
        database.execute("SET preserve_insertion_order = false")
        database.execute("SET enable_progress_bar = false")
        # A join keeps its right side in memory: never the side with the texts, whatever the row counts suggest.
        database.execute("SET disabled_optimizers = 'join_order,build_side_probe_side'")
        yield database


def detect_changes(
    source: Source,
    partition: Partition,
    generation: Generation,
    workspace: Path,
    *,
    on_empty: Literal["skip", "error"] = "skip",
    on_duplicate: Literal["quarantine", "error"] = "quarantine",
    on_missing: Literal["delete", "keep"] = "delete",
    memory_limit: str = "2GB",
    threads: int | None = None,
    database: duckdb.DuckDBPyConnection | None = None,
    stop: Stop = NEVER,
) -> Changes:
    """Compares a partition of the source with the generation's live rows of that partition.

    Args:
        workspace: a folder for the snapshot and for what exceeds `memory_limit`.
        on_empty: what to do with rows whose text is null or empty: leave them out and count them, or fail.
        on_duplicate: what to do with an id that stands for different contents: leave out all its rows, or fail.
        on_missing: what to do with rows of the store whose id the source does not have: delete or keep them.
        threads: of DuckDB; one a core when not given.
        database: of `changes_database`, made with the same `memory_limit`; None: one for this call.
        stop: interrupts the queries.

    Raises:
        RunCancelled, DeadlineExceeded: `stop` says so.
        SourceError: a file, table or column is missing, damaged or locked.
        InputError: rows that a policy of "error" forbids.
        ConfigError: `memory_limit` is too small or no size; the partition has no column to filter by.
    """
    for name, value, known in (
        ("on_empty", on_empty, ("skip", "error")),
        ("on_duplicate", on_duplicate, ("quarantine", "error")),
        ("on_missing", on_missing, ("delete", "keep")),
    ):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}: it must be {known[0]!r} or {known[1]!r}")
    opened = (
        changes_database(memory_limit=memory_limit, spill=workspace / "spill", threads=threads)
        if database is None
        else nullcontext(database)
    )
    with opened as made, made.cursor() as connection, stoppable(connection, stop):
        try:
            generation.refresh_ledger(partition.key)
            _scan(connection, source, partition, generation, workspace / "scan.parquet")
            found = _status_counts(connection)
            _find_repeated(connection, stored=_any_stored_id_repeats(connection, found, generation, partition.key))
            _apply_policies(connection, source, on_empty, on_duplicate)
            _find_earlier(connection, generation, partition.key)
            return _write(connection, source, generation, workspace, found, keep_missing=on_missing == "keep")
        except duckdb.OutOfMemoryException as error:
            raise ConfigError(
                f"change detection needs more than memory_limit={memory_limit!r}: raise it, or make room on the disk "
                f"of {str(workspace)!r} if that is full ({first_line(error)})"
            ) from error
        except duckdb.Error as error:
            raise StoreError(
                f"change detection failed between {generation.name} and {str(workspace)!r}: {first_line(error)}"
                + (". Make room on the disk" if "No space left" in str(error) else "")
            ) from error
        except OSError as error:
            raise write_failed(workspace, error) from error


def _scan(
    connection: duckdb.DuckDBPyConnection, source: Source, partition: Partition, generation: Generation, target: Path
) -> None:
    """Makes the view `scan`, on the file `target`: the source's rows, and those that only the store has.

    Its columns: file_row_number; status; replaces, the sequence of the store's row of the same id; the id, but not of
    unchanged rows, which that sequence tells apart more cheaply; text, hashes and metadata where there is work to do.
    The text of a row of status 'invalid_text' is its mark's number, see `invalid_text`.
    """
    with attached(source, connection, partition) as relation:
        types = column_types(source, connection, relation, partition)
        # Not the types of the partition's own files, which may be narrower than those of all files together.
        kept = {field.name: kept_type(field.type) for field in generation.metadata_schema}

        def compare(rows: str) -> None:
            _copy(connection, _compared(source, rows, partition, generation), target, "COMPRESSION snappy")

        try:
            try:
                compare(_hashed(source, types, kept, relation, partition))
            except duckdb.InvalidInputException as error:
                if not isinstance(source, ParquetTable) or not is_invalid_text(error):
                    raise
                files = marked_relation(source, connection, partition)
                compare(_hashed(source, types, kept, files, partition, marked=True))
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error as error:
            if generation.name in str(error) or str(target.parent) in str(error):  # the store's fault, not the source's
                raise
            raise reading_failed(source, error, partition) from error
    constant = "" if source.metadata_columns else ", '' AS metadata_hash"
    connection.execute(
        f"CREATE TEMP VIEW scan AS SELECT * REPLACE (coalesce(status, 'unchanged') AS status){constant} "
        f"FROM read_parquet({literal(target)}, file_row_number = true)"
    )


def _compared(source: Source, rows: str, partition: Partition, generation: Generation) -> str:
    """A SELECT of `_hashed` rows beside those of the store, with the columns of `scan`."""
    # Without metadata columns all rows have the same hash of them, and the join does not carry it.
    metadata = "s.fletcher_metadata IS NOT DISTINCT FROM l.metadata_hash" if source.metadata_columns else "true"
    ledger = "id, content_hash, sequence" + (", metadata_hash" if source.metadata_columns else "")
    compared = f"""
        SELECT coalesce(s.id, l.id) AS id, l.sequence AS replaces, s.* EXCLUDE (id),
            CASE WHEN fletcher_kind IS NULL THEN 'deleted'
                 WHEN fletcher_kind <> 'text' THEN fletcher_kind
                 WHEN l.sequence IS NULL THEN 'new'
                 WHEN s.fletcher_content = l.content_hash AND {metadata} THEN 'unchanged'
                 ELSE 'changed' END AS status
        FROM ({rows}) s FULL OUTER JOIN
             (SELECT {ledger} FROM ({generation.ledger_sql(partition.key)})) l
        ON s.fletcher_key = l.id"""
    contents = {"text": "text", "content_hash": text_form("fletcher_content")}
    if source.metadata_columns:
        contents["metadata_hash"] = text_form("fletcher_metadata")
    contents |= {identifier(name): identifier(name) for name in source.metadata_columns}
    # Nearly all rows are unchanged: nulls are what costs least to write of them.
    kept = "nullif(status, 'unchanged') AS status, CASE WHEN status <> 'unchanged' THEN id END AS id, " + ", ".join(
        f"CASE WHEN status IN ('new', 'changed', 'invalid_text') THEN {value} END AS {name}"
        for name, value in contents.items()
    )
    return f"SELECT replaces, {kept} FROM ({compared})"


def _hashed(
    source: Source,
    types: dict[str, str],
    kept: dict[str, str],
    relation: str,
    partition: Partition,
    *,
    marked: bool = False,
) -> str:
    """A SELECT of the source's rows: id, text, metadata columns, fletcher_kind, fletcher_key, and the hashes as the
    ledger has them, fletcher_content and fletcher_metadata.

    The kind says whether a row can be embedded ('text'); the key is the id of such a row, and null for others.
    `kept` is what metadata columns are cast to. `marked` says that the relation may hold marks.
    """
    row_id = identifier(source.id_column)
    texts = [identifier(name) for name in source.text_columns]
    metadata = [f"CAST({identifier(name)} AS {kept[name]}) AS {identifier(name)}" for name in source.metadata_columns]
    kind = (
        f"CASE WHEN {row_id} IS NULL THEN 'null_id' WHEN {' AND '.join(f'{name} IS NULL' for name in texts)} "
        f"THEN 'null_text' WHEN {' AND '.join(map(is_blank, texts))} THEN 'empty_text' ELSE 'text' END"
    )
    text = text_sql(source.text_columns, source.template)
    condition = partition_condition(source, partition, types, marked=marked)
    if marked:
        everything = f"concat({', '.join(f'CAST({identifier(name)} AS VARCHAR)' for name in types)})"
        kind = f"CASE WHEN {row_id} IS NOT NULL AND {has_mark(everything)} THEN 'invalid_text' ELSE {kind} END"
        text = f"CASE WHEN {has_mark(everything)} THEN CAST({number_in(everything)} AS VARCHAR) ELSE {text} END"
    columns = [f"CAST({row_id} AS VARCHAR) AS id", f"{text} AS text", f"{kind} AS fletcher_kind", *metadata]
    return (
        "SELECT *, CAST(md5_number(text) AS UUID) AS fletcher_content, "
        f"{_metadata_number(source)} AS fletcher_metadata, "
        "CASE WHEN fletcher_kind = 'text' THEN id END AS fletcher_key FROM "
        f"(SELECT {', '.join(columns)} FROM {relation} WHERE {condition})"
    )


def _metadata_number(source: Source) -> str:
    """MD5 over the metadata columns, each with its length, so that no two different rows look alike; null if none."""
    parts = []
    for name in source.metadata_columns:
        value = f"CAST({identifier(name)} AS VARCHAR)"
        parts.append(f"CASE WHEN {value} IS NULL THEN '-' ELSE concat(strlen({value}), ':', {value}) END")
    return f"CAST(md5_number(concat({', '.join(parts)})) AS UUID)" if parts else "CAST(NULL AS UUID)"


def _status_counts(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    return dict(connection.execute("SELECT status, count(*) FROM scan GROUP BY status").fetchall())


def _any_stored_id_repeats(
    connection: duckdb.DuckDBPyConnection, found: dict[str, int], generation: Generation, partition_key: str
) -> bool:
    """Whether some id of the store occurs more than once among the source's embeddable rows.

    Each of the store's rows is either deleted or met by at least one row of the source: by one each, if the numbers
    are equal. That spares grouping all rows in the common case.
    """
    (rows,) = connection.execute(f"SELECT count(*) FROM ({generation.ledger_sql(partition_key)})").fetchall()[0]
    met = found.get("changed", 0) + found.get("unchanged", 0)
    return bool(met != rows - found.get("deleted", 0))


def _find_repeated(connection: duckdb.DuckDBPyConnection, *, stored: bool) -> None:
    """Table `copies`: embeddable rows whose id occurs more than once, and which of them to pass over.

    Ids that the store has are looked at only if `stored`. Of equal rows one counts; of different ones none, and their
    id is in the view `ambiguous`.
    """
    columns = (
        "file_row_number, id, status, replaces, content_hash, coalesce(content_hash || metadata_hash, '') AS content"
    )
    met = "status IN ('changed', 'unchanged')" if stored else "false"
    same_id = "replaces, CASE WHEN replaces IS NULL THEN id END"
    connection.execute(f"""
        CREATE TEMP TABLE copies AS
        SELECT *, count(*) OVER same AS copies, count(DISTINCT content) OVER same AS contents,
            contents > 1 OR file_row_number <> min(file_row_number) OVER same AS passed_over
        FROM (
            SELECT {columns} FROM scan WHERE {met} AND replaces IN
                (SELECT replaces FROM scan WHERE {met} GROUP BY replaces HAVING count(*) > 1)
            UNION ALL
            SELECT {columns} FROM scan WHERE status = 'new' AND id IN
                (SELECT id FROM scan WHERE status = 'new' GROUP BY id HAVING count(*) > 1))
        WINDOW same AS (PARTITION BY {same_id})""")
    connection.execute(f"""
        CREATE TEMP VIEW ambiguous AS
        SELECT max(id) AS id, replaces, max(copies) AS copies, max(contents) AS contents,
            min(content_hash) AS content_hash
        FROM copies WHERE contents > 1 GROUP BY {same_id}""")
    connection.execute("""
        CREATE TEMP VIEW work AS
        SELECT * FROM scan WHERE status IN ('new', 'changed')
        AND file_row_number NOT IN (SELECT file_row_number FROM copies WHERE passed_over)""")


def _apply_policies(connection: duckdb.DuckDBPyConnection, source: Source, on_empty: str, on_duplicate: str) -> None:
    if on_empty == "error":
        empty = _ids(connection, "FROM scan WHERE status IN ('null_text', 'empty_text')")
        if empty:
            raise InputError(
                f"{source.origin()} has rows with a null or empty text, such as {source.id_column} {', '.join(empty)}: "
                "fill them in, leave them out through query=, or set on_empty='skip'"
            )
    if on_duplicate == "error":
        ambiguous = _ids(connection, "FROM ambiguous")
        if ambiguous:
            raise InputError(
                f"{source.origin()} has different rows of the same id, such as {source.id_column} "
                f"{', '.join(ambiguous)}: make {source.id_column} unique, or set on_duplicate='quarantine'"
            )


def _ids(connection: duckdb.DuckDBPyConnection, rows: str) -> list[str]:
    found = connection.execute(f"SELECT DISTINCT id {rows} ORDER BY id LIMIT {_EXAMPLES}").fetchall()
    return [repr(row_id) for (row_id,) in found]


def _find_earlier(connection: duckdb.DuckDBPyConnection, generation: Generation, partition_key: str) -> None:
    """Table `earlier`: those new ids that other generations have, and whether one of them has the same model."""
    rows = [
        f"SELECT id, {str(other.card.fingerprint == generation.card.fingerprint).lower()} AS same_model "
        f"FROM ({other.live_sql(partition_key)})"
        for other in generation.siblings()
        if other.files(partition_key)
    ] or ["SELECT NULL::VARCHAR AS id, NULL::BOOLEAN AS same_model WHERE false"]
    connection.execute(
        f"CREATE TEMP TABLE earlier AS SELECT id, bool_or(same_model) AS same_model FROM ({' UNION ALL '.join(rows)}) "
        "WHERE id IN (SELECT id FROM scan WHERE status = 'new') GROUP BY id"
    )


def _write(
    connection: duckdb.DuckDBPyConnection,
    source: Source,
    generation: Generation,
    workspace: Path,
    found: dict[str, int],
    *,
    keep_missing: bool,
) -> Changes:
    known = workspace / "known_vectors.parquet"
    hashes = "SELECT content_hash FROM work" if found.get("new") or found.get("changed") else None
    write_known_vectors(connection, hashes, generation, known)
    columns = ["text", "content_hash", "metadata_hash", "replaces", *source.metadata_columns]
    wanted = ", ".join(f"work.{identifier(name)}" for name in columns)
    changes_path, deleted_path = workspace / "changes.parquet", workspace / "deleted.parquet"
    _copy(
        connection,
        "SELECT work.id, CASE WHEN earlier.id IS NULL THEN status WHEN same_model THEN 'changed' ELSE 'stale' END AS "
        f"status, {wanted}, vector, tokens, truncated FROM work "
        "LEFT JOIN earlier ON earlier.id = work.id AND status = 'new' "
        f"LEFT JOIN read_parquet({literal(known)}) known ON known.content_hash = work.content_hash",
        changes_path,
        f"COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP_ROWS}",
    )
    still_there = "status IN ('null_text', 'empty_text', 'invalid_text')"
    condition = f" AND id IN (SELECT id FROM scan WHERE {still_there})" if keep_missing else ""
    _copy(
        connection,
        f"SELECT id, replaces FROM scan WHERE status = 'deleted'{condition} UNION ALL "
        "SELECT id, replaces FROM ambiguous WHERE replaces IS NOT NULL",
        deleted_path,
        "COMPRESSION zstd",
    )
    counts = _counts(connection, found, changes_path, deleted_path, known)
    quarantined = (
        "SELECT id, 'duplicate_id' AS reason, concat('the id occurs ', copies, ' times with ', contents, "
        "' different texts or metadata') AS message, content_hash FROM ambiguous"
    )
    if found.get("invalid_text"):
        invalid = "SELECT id, CAST(text AS BIGINT) AS number FROM scan WHERE status = 'invalid_text'"
        quarantined += f" UNION ALL {quarantined_select(invalid)}"
    table = connection.sql(f"SELECT * FROM ({quarantined}) ORDER BY id, reason").to_arrow_table()
    known.unlink()
    (workspace / "scan.parquet").unlink()
    return Changes(**counts, changes_path=changes_path, deleted_path=deleted_path, quarantined=table)


def _copy(connection: duckdb.DuckDBPyConnection, select: str, path: Path, options: str) -> None:
    connection.execute(
        f"COPY ({select}) TO {literal(path)} (FORMAT parquet, ROW_GROUP_SIZE_BYTES '{_ROW_GROUP_BYTES}', {options})"
    )


def _counts(
    connection: duckdb.DuckDBPyConnection, rows: dict[str, int], changes_path: Path, deleted_path: Path, known: Path
) -> dict[str, int]:
    copies = dict(
        connection.execute("SELECT status, count(*) FROM copies WHERE passed_over GROUP BY status").fetchall()
    )
    # The snapshot knows which of the new rows an earlier generation has.
    work = dict(connection.execute(f"SELECT status, count(*) FROM {literal(changes_path)} GROUP BY status").fetchall())
    (to_embed,) = connection.execute(
        f"SELECT count(*) FROM {literal(changes_path)} ANTI JOIN {literal(known)} USING (content_hash)"
    ).fetchall()[0]
    (deleted,) = connection.execute(f"SELECT count(*) FROM {literal(deleted_path)}").fetchall()[0]
    return {
        "source_rows": sum(rows.values()) - rows.get("deleted", 0),
        "new": work.get("new", 0),
        "changed": work.get("changed", 0),
        "stale": work.get("stale", 0),
        "unchanged": rows.get("unchanged", 0) - copies.get("unchanged", 0),
        "deleted": deleted,
        "null_text": rows.get("null_text", 0),
        "empty_text": rows.get("empty_text", 0),
        "invalid_text": rows.get("invalid_text", 0),
        "null_ids": rows.get("null_id", 0),
        "duplicate_ids": sum(copies.values()),
        "to_embed": to_embed,
    }
