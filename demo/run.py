"""What `make demo` runs: the Dagster project of workspace.yaml from nothing to searches, then a second, small run.

Both materializations are real runs of the project's own jobs, executed in this process and kept in the home that
`make ui` shows; their progress lines are Dagster's log messages.
"""

import logging
import shutil
import sys
import time
import uuid
from collections.abc import Callable

import dagster as dg

from demo import home, tables
from demo.definitions import FOLDER, LONGBOW, VECTORS, defs, fletcher
from demo.launch import launch
from demo.near_duplicates import COSINE
from demo.report import AssetRun, asset_runs, hit_lines, table_lines
from fletcher_core.errors import FletcherError
from fletcher_core.longbow.embedded import stop_embedded

SEARCHES = (
    ("docstrings", "read a compressed file line by line"),
    ("docstrings", "wait until another process lets go of a lock"),
    ("manuals", "who is liable if the software breaks something?"),
)
HITS = 3

Say = Callable[[str], None]


class DemoFailed(Exception):
    """A step did not do what the demo promises; the message says which and why."""


def main() -> int:
    """The whole demo; the exit status is 0 when every step did what it promises."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(text, flush=True)

    def heading(text: str) -> None:
        say(f"\n[{time.monotonic() - started:5.1f} s] {text}")

    try:
        heading(f"Starting afresh in {FOLDER}")
        forget_earlier_demo()
        home.prepare(FOLDER)
        with dg.DagsterInstance.get() as instance:
            heading("First run: write both tables from this machine's own texts, embed them, send them to Longbow")
            first = run_job(instance, "everything", "first", say)
            say(duplicates_line(instance))
            heading(f"Three searches against the Longbow server at {longbow_address()}, the {HITS} best hits of each")
            for source, query in SEARCHES:
                show_search(source, query, say)
            heading("Meanwhile an application changes 1 % of the rows and deletes ten")
            edits = tables.edit(FOLDER)
            for source, edit in edits.items():
                say(f"  {source}: {edit.changed} changed, {edit.deleted} deleted")
            heading("Second run: the same assets")
            second = run_job(instance, "update_embeddings", "second", say)
        expect_only_changes_embedded(second, edits)
        heading("Done. Only what had changed was embedded again:\n")
        say("\n".join(table_lines(first + second)))
        say(f"\nEqual texts are embedded once: {shared_vectors(first):,} rows took the vector of another row.")
        say("Both runs in Dagster's UI, with plots of these figures: make ui")
    except (DemoFailed, FletcherError) as error:
        say(f"\nThe demo stopped: {error}")
        return 1
    except KeyboardInterrupt:
        say("\nInterrupted. `make demo` starts afresh.")
        return 130
    finally:
        stop_embedded(LONGBOW)  # it keeps its data, and the UI's runs start it again
    return 0


def forget_earlier_demo() -> None:
    """Ends an earlier demo's embedded server and removes its texts and vectors; Dagster's history stays."""
    stop_embedded(LONGBOW)
    for path in (VECTORS, tables.parquet_folder(FOLDER)):
        shutil.rmtree(path, ignore_errors=True)
    tables.database(FOLDER).unlink(missing_ok=True)


def run_job(instance: dg.DagsterInstance, job: str, name: str, say: Say) -> list[AssetRun]:
    """Run a job of the project in this process, saying what its assets log; returns the embedding assets' figures."""

    def on_event(event: dg.EventLogEntry) -> None:
        happened = event.dagster_event
        if happened is None and event.level != logging.DEBUG:
            say(f"  {event.user_message}")
        elif happened is not None and happened.is_step_failure:
            failure = happened.step_failure_data
            in_words = failure.user_failure_data and failure.user_failure_data.description
            problems.append(in_words or failure.error_display_string)

    problems: list[str] = []
    run_id = str(uuid.uuid4())
    instance.add_event_listener(run_id, on_event)
    result = launch(instance, defs.resolve_job_def(job), run_id)
    if not result.success:
        raise DemoFailed("\n".join(problems) or f"the run {run_id} of {job} failed")
    return asset_runs(name, result)


def duplicates_line(instance: dg.DagsterInstance) -> str:
    """What the asset downstream of the docstrings' vectors found."""
    record = instance.get_latest_materialization_event(dg.AssetKey("near_duplicates"))
    if record is None or record.asset_materialization is None:
        raise DemoFailed("near_duplicates was not materialized")
    metadata = record.asset_materialization.metadata
    rows, pairs, equal = (f"{metadata[key].value:,}" for key in ("rows_compared", "pairs", "pairs_of_equal_texts"))
    return (
        f"  near_duplicates: {pairs} pairs among {rows} docstrings at cosine {COSINE} or above, {equal} of equal texts"
    )


def longbow_address() -> str:
    """Where the vectors went to."""
    client = fletcher.longbow_client()
    if client is None:
        raise DemoFailed("the project's Longbow is switched off")
    with client:
        return f"grpc://{client.address.data}"


def show_search(source: str, query: str, say: Say) -> None:
    """Search an asset's dataset on the server and print the nearest rows with their texts."""
    hits = fletcher.search(f"{source}_embeddings", query, k=HITS)
    if len(hits) < HITS:
        raise DemoFailed(f"the search for {query!r} found {len(hits)} rows instead of {HITS}")
    texts = tables.texts(FOLDER, source, [hit.id for hit in hits])
    say(f"\n  {query!r} in {source}")
    for hit in hits:
        for line in hit_lines(hit.cosine, hit.id, texts[hit.id]):
            say(line)


def shared_vectors(runs: list[AssetRun]) -> int:
    """Rows that needed no embedding because another row has the same text."""
    return int(sum(run.figures["cache_hits"] for run in runs))


def expect_only_changes_embedded(runs: list[AssetRun], edits: dict[str, tables.Edit]) -> None:
    """Raises DemoFailed when the second run's figures are not exactly the edits."""
    for run in runs:
        edit = edits[run.source]
        found = {key: int(run.figures[f"rows_{key}"]) for key in ("new", "changed", "deleted", "embedded")}
        wanted = {"new": 0, "changed": edit.changed, "deleted": edit.deleted, "embedded": edit.changed}
        if found != wanted:
            raise DemoFailed(f"the second run of {run.source} did {found}, and the edit was {wanted}")


if __name__ == "__main__":
    sys.exit(main())
