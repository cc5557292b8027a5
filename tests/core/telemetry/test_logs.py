"""Lines of the log: their fields, the ids that they carry on every thread of a run, and what they never show."""

import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fletcher_core import Embedder
from fletcher_core.errors import ConfigError
from fletcher_core.longbow.client import LongbowClient, LongbowSettings
from fletcher_core.longbow.secret import Secret
from fletcher_core.longbow.server import LongbowServer
from fletcher_core.pipeline import materialize
from fletcher_core.sources import DuckDBTable
from fletcher_core.store import Generation, VectorStore
from fletcher_core.telemetry.context import in_this_context
from fletcher_core.telemetry.logs import log_ids, start_logging
from fletcher_core.telemetry.redaction import without_secrets
from fletcher_core.telemetry.tracing import span
from fletcher_core.tokenizers import TextEncoder

LOG = logging.getLogger("fletcher_core.tests")
PASSWORD = "correct-horse-battery"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def out() -> io.StringIO:
    """What is logged as JSON."""
    stream = io.StringIO()
    start_logging("json", "DEBUG", stream)
    return stream


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_has_its_fields_in_order(out: io.StringIO, spans: InMemorySpanExporter) -> None:
    with log_ids(run_id="r-1"), log_ids(request_id="q-2"), span("work") as work:
        LOG.warning("%d rows of\n%s", 7, "Ärger", extra={"path": Path("/x"), "rows": 7})
    (line,) = lines(out)
    context = work.get_span_context()
    assert list(line)[:8] == ["ts", "level", "event", "logger", "run_id", "request_id", "trace_id", "span_id"]
    moment = datetime.fromisoformat(line.pop("ts"))
    assert moment.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)
    assert line == {
        "level": "warning",
        "event": "7 rows of\nÄrger",
        "logger": "fletcher_core.tests",
        "run_id": "r-1",
        "request_id": "q-2",
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "path": "/x",
        "rows": 7,
    }


def test_outside_of_runs_and_requests_there_are_no_ids(out: io.StringIO) -> None:
    with log_ids(run_id="r-1"):
        pass
    LOG.info("idle")
    assert set(lines(out)[0]) == {"ts", "level", "event", "logger"}


def test_an_exception_is_one_field_of_its_line(out: io.StringIO) -> None:
    try:
        raise ValueError(f"cannot connect with password={PASSWORD}")
    except ValueError:
        LOG.exception("failed")
    (line,) = lines(out)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: cannot connect with password=***")


def test_structlog_itself_and_its_context_come_out_the_same_way(out: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(tenant="7"), log_ids(run_id="r-1"):
        structlog.get_logger("theirs").info("hello", api_key=PASSWORD)
    (line,) = lines(out)
    line.pop("ts")
    assert line == {
        "level": "info",
        "event": "hello",
        "logger": "theirs",
        "run_id": "r-1",
        "tenant": "7",
        "api_key": "***",
    }


def test_the_level_and_a_second_start(out: io.StringIO) -> None:
    later = io.StringIO()
    start_logging("json", "warning", later)
    LOG.info("not shown")
    LOG.warning("shown")
    assert out.getvalue() == ""
    assert [line["event"] for line in lines(later)] == ["shown"]


@pytest.mark.parametrize(("stream", "is_json"), [(io.StringIO(), True), (Terminal(), False)])
def test_auto_is_for_people_on_a_terminal_and_json_elsewhere(stream: io.StringIO, is_json: bool) -> None:
    start_logging(stream=stream)
    with log_ids(run_id="r-1"):
        LOG.info("evil \x1b]0;title\x07 %s", PASSWORD and "fine", extra={"figures": {"a": 1}})
    said = stream.getvalue()
    assert said.startswith("{") == is_json
    if not is_json:
        assert "evil \\x1b]0;title\\x07 fine" in said
        assert "r-1" in said
        assert "figures" not in said


@pytest.mark.parametrize(("format", "level", "words"), [("xml", "INFO", "log format"), ("json", "LOUD", "log level")])
def test_a_setting_that_cannot_work_is_named(format: Any, level: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        start_logging(format, level)


@pytest.mark.parametrize(
    ("message", "arguments", "extra"),
    [
        ("secret is %s", (Secret(PASSWORD),), {}),
        ("Authorization: Bearer %s", (PASSWORD,), {}),
        ("sent {'authorization': 'Bearer %s'}", (PASSWORD,), {}),
        ("token=%s&k=3", (PASSWORD,), {}),
        ('{"api_key": "%s"}', (PASSWORD,), {}),
        ("LONGBOW_TOKEN=%s", (PASSWORD,), {}),
        ("https://me:%s@host/path", (PASSWORD,), {}),
        ("", (), {"token": PASSWORD}),
        ("", (), {"x_api_key": PASSWORD, "X-Api-Key": PASSWORD}),
        ("", (), {"headers": {"Authorization": PASSWORD, "cookie": PASSWORD}}),
        ("", (), {"headers": [("authorization", f"Bearer {PASSWORD}")]}),
        ("", (), {"settings": [{"db": {"password": PASSWORD}}], "held": Secret(PASSWORD)}),
        ("", (), {"url": f"grpc://me:{PASSWORD}@host:3000"}),
    ],
)
def test_no_secret_is_shown(
    message: str, arguments: tuple[object, ...], extra: dict[str, Any], out: io.StringIO
) -> None:
    LOG.error(message, *arguments, extra=extra)
    people = io.StringIO()
    start_logging("pretty", stream=people)
    LOG.error(message, *arguments, extra=extra)
    for said in (out.getvalue(), people.getvalue()):
        assert "***" in said
        assert PASSWORD not in said


def test_figures_of_tokens_are_no_secrets() -> None:
    figures = {"tokens": 5, "tokens_per_s": 7.5, "event": "1,000 tokens/s; tokens: 5, token ids 3", "secretary": "Ann"}
    assert without_secrets(figures) == figures


def test_a_long_text_is_looked_through_in_no_time() -> None:
    began = time.perf_counter()
    for part in ("a.", "a-", "bearer ", "token ", "a://b", "api_", "token= "):
        without_secrets(part * (1_000_000 // len(part)))
    assert time.perf_counter() - began < 60


@given(
    st.dictionaries(
        st.text(), st.recursive(st.text() | st.integers() | st.binary() | st.none(), st.lists, max_leaves=5)
    )
)
def test_whatever_is_logged_is_one_line_of_json(extra: dict[str, Any]) -> None:
    stream = io.StringIO()
    start_logging("json", stream=stream)
    LOG.info("event", extra={"given": extra})
    assert stream.getvalue().count("\n") == 1
    assert set(json.loads(stream.getvalue())["given"]) == {*extra}


def telling(function: Callable[..., Any], said: str) -> Callable[..., Any]:
    def told(*arguments: Any, **named: Any) -> Any:
        LOG.info(said, extra={"on": threading.current_thread().name})
        return function(*arguments, **named)

    return told


def test_every_thread_of_a_run_names_it_and_its_figures_are_one_line(
    source: DuckDBTable,
    tmp_path: Path,
    tiny: Embedder,
    out: io.StringIO,
    spans: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for owner, method in ((TextEncoder, "encode"), (Generation, "write_segment"), (LongbowClient, "put")):
        monkeypatch.setattr(owner, method, telling(getattr(owner, method), method))
    server = LongbowServer(tmp_path / "longbow")
    try:
        with (
            LongbowClient(LongbowSettings(server.address.data, server.address.meta)) as longbow,
            VectorStore.open(tmp_path / "store", collection="notes") as store,
        ):
            report = materialize(source, embedder=tiny, store=store, longbow=longbow, run_id="run-7")
    finally:
        server.close()
    (root,) = [each for each in spans.get_finished_spans() if each.name == "materialize"]
    said = {line["event"]: line for line in lines(out) if "on" in line}
    assert {line["on"].split("-")[0] for line in said.values()} == {"fletcher", "longbow"}
    assert {said[each]["on"] for each in ("encode",)} == {"fletcher-prefetch"}
    assert said["write_segment"]["on"].startswith("fletcher-write")
    for line in said.values():
        assert (line["run_id"], line["trace_id"]) == ("run-7", f"{root.context.trace_id:032x}")
    (last,) = [line for line in lines(out) if "figures" in line]
    assert last["run_id"] == "run-7"
    assert last["logger"] == "fletcher_core.telemetry.run_figures"
    figures = last["figures"]
    assert (figures["rows_new"], figures["rows_embedded"], figures["longbow_rows_searchable"]) == (300, 300, 300)
    assert figures["tokens_per_s"] == round(report.tokens_per_s, 1)
    assert figures["seconds_compute"] == round(report.seconds.compute, 4)
    assert "300 new, 0 changed" in last["event"]
    assert f"{report.texts_per_s:,.0f} texts/s" in last["event"]
    assert "Longbow: 300 rows sent, 300 searchable, 0 wait" in last["event"]


def test_a_thread_has_the_ids_of_whoever_began_it() -> None:
    stream = io.StringIO()
    start_logging("json", stream=stream)
    with log_ids(run_id="r-1"):
        threads = [threading.Thread(target=in_this_context(LOG.info), args=(f"{n}",)) for n in range(3)]
    threads.append(threading.Thread(target=LOG.info, args=("without",)))
    for thread in threads:
        thread.start()
        thread.join()
    assert [line.get("run_id") for line in lines(stream)] == ["r-1", "r-1", "r-1", None]
