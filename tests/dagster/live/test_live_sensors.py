"""Fletcher's sensors under the daemon: one run for each change and none for none, also when the daemon is killed."""

import duckdb
import pytest
from conftest import Live
from webserver_client import until

pytestmark = pytest.mark.xdist_group("live")


@pytest.fixture(scope="module")
def first_portion(live: Live) -> str:
    """All sensors are turned on, and the run is launched after which the others with a budget of rows follow one
    another, while the files and the table are tested. The id of that run."""
    for sensor in ("tickets_files", "orders_watermark", "portions_rest"):
        live.web.turn_on_sensor(sensor)
    return live.web.materialize("portions_embeddings")


def write(live: Live, name: str, *texts: str) -> None:
    """A file of tickets with a row a text; it appears, or takes the place of another one, as a whole."""
    rows = ", ".join(f"('{name}-{number}', '{text}', '{name}')" for number, text in enumerate(texts))
    written = live.folder / f"{name}.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT * FROM (VALUES {rows}) t(id, text, file)) TO '{written}' (FORMAT parquet)")
    written.rename(live.folder / "tickets" / written.name)


@pytest.mark.usefixtures("first_portion")
def test_each_new_or_changed_file_is_one_run_of_its_partition(live: Live) -> None:
    assert "there is no file at" in live.reason_of_idle_ticks("tickets_files")
    write(live, "a", "The tap drips.")
    live.finished_runs(1, sensor_name="tickets_files")
    write(live, "a", "The tap drips.", "It still does.")
    runs = live.finished_runs(2, sensor_name="tickets_files")
    assert live.reason_of_idle_ticks("tickets_files") == "none of 1 files changed"
    assert len(live.web.runs_of(sensor_name="tickets_files")) == 2
    assert [(run.partitions, run.status) for run in runs] == [("a", "SUCCESS")] * 2
    assert [run.figures[-1]["fletcher/rows_embedded"] for run in runs] == [1, 1]
    assert {run.tags["fletcher/trigger"] for run in runs} == {"files"}
    assert live.web.partitions("tickets_embeddings") == {"materialized": ["a"]}
    assert live.rows("tickets_embeddings") == {"a": 2}


@pytest.mark.usefixtures("first_portion")
def test_the_watermark_is_kept_when_the_daemon_is_killed(live: Live) -> None:
    live.sql("INSERT INTO orders VALUES (1, 'one apple'), (2, 'two pears')", "orders")
    until(lambda: live.web.runs_of(sensor_name="orders_watermark") or None, 120)
    live.dagster.kill_daemon()  # maybe before it noted that it asked for that run
    live.sql("INSERT INTO orders VALUES (3, 'three plums')", "orders")
    live.dagster.start_another_daemon()
    runs = live.finished_runs(2, sensor_name="orders_watermark")
    assert live.reason_of_idle_ticks("orders_watermark") == "the watermark is where it was, at 3 rows"
    assert len(live.web.runs_of(sensor_name="orders_watermark")) == 2
    assert {(run.status, run.tags["fletcher/trigger"]) for run in runs} == {("SUCCESS", "watermark")}
    assert sum(figures["fletcher/rows_embedded"] for run in runs for figures in run.figures) == 3  # no row twice
    assert live.rows("orders_embeddings") == {"": 3}


def test_a_changed_model_is_embedded_in_portions_until_nothing_remains(live: Live, first_portion: str) -> None:
    live.finished_runs(2, sensor_name="portions_rest")
    assert live.reason_of_idle_ticks("portions_rest") == "no rows remain"
    runs = live.web.runs_of(sensor_name="portions_rest")
    chain = [run for run in live.web.runs_of() if run.id == first_portion] + runs
    assert [run.status for run in chain] == ["SUCCESS"] * 3
    assert [run.tags["fletcher/trigger"] for run in runs] == ["rest"] * 2
    figures = [run.figures[-1] for run in chain]
    assert [found["fletcher/rows_stale"] for found in figures] == [5, 3, 1]
    assert [found["fletcher/rows_embedded"] for found in figures] == [2, 2, 1]
    assert [found["fletcher/rows_remaining"] for found in figures] == [3, 1, 0]
    times = [time for run in chain for time in (run.start, run.end)]
    assert times == sorted(times), "two of them ran at once"
    assert live.rows("portions_embeddings") == {"": 5}
