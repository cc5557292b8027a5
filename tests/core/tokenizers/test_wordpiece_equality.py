"""The native tokenizer gives Hugging Face's ids, id for id, by every instruction set, on every text.

Configurations, texts and the comparison are those of the fuzzer, `kernels/simd/fuzz`; what it once found, and what is
nasty by design, is in `tests/data/fuzz/wordpiece.json`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import BertNormalizer

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "kernels" / "simd" / "fuzz"))
pytest.importorskip("fletcher_core.tokenizers._wordpiece", reason="the extension was not built: no C++ compiler")

from adversary import NOTABLE_MARKS, SCRIPTS, sweeps  # noqa: E402
from comparison import CONTAINERS, Pair, Question, difference, expected, first_difference  # noqa: E402
from configurations import CONFIGURATIONS, Configuration, make_pair, pair, vocabularies  # noqa: E402
from differential import CORPUS, run_batch  # noqa: E402

from fletcher_core.tokenizers import InvalidText  # noqa: E402
from fletcher_core.tokenizers.request import bytes_reason, surrogate_reason  # noqa: E402

# Beyond these two there is only private use; two of 64 stand for the rest. FLETCHER_CODE_POINTS=all is all.
_ASSIGNED = (range(0x32400), range(0xE0000, 0xE1000))
_ALL = os.environ.get("FLETCHER_CODE_POINTS") == "all"
CHARACTERS = [
    chr(code)
    for code in (*range(0xD800), *range(0xE000, 0x110000))
    if _ALL or any(code in block for block in _ASSIGNED) or code % 64 in (0, 63)
]
BLOCK = 4096
QUARTERS = range(4)

each_configuration = pytest.mark.parametrize("name", CONFIGURATIONS)


def assert_equal(tokens: Pair, texts: Sequence[str], question: Question | None = None) -> None:
    found = difference(tokens, texts, question)
    assert found is None, str(found)


def quarter(items: Sequence[str], number: int) -> Sequence[str]:
    return items[len(items) * number // 4 : len(items) * (number + 1) // 4]


# What is known


@each_configuration
def test_the_corpus_gives_the_same_ids(name: str) -> None:
    texts = [entry["text"] for entry in json.loads(CORPUS.read_text("ascii"))]
    assert len(texts) > 100
    answers = expected(pair(name), texts, Question())
    for container in CONTAINERS:
        found = first_difference(pair(name), texts, Question(container), answers)
        assert found is None, str(found)
    for keep, max_length in (("head", 3), ("tail", 16)):
        assert_equal(pair(name), texts, Question("string", True, max_length, keep, prompt="e\u0301 [MASK]"))


@each_configuration
def test_every_length_around_the_steps_of_the_loop_gives_the_same_ids(name: str) -> None:
    assert_equal(pair(name), sweeps(), Question("string"))


@pytest.mark.parametrize("grown", ["힣", "İ", "\u0390", "\U0001d160", "豈", "ab"])
def test_a_long_word_that_normalizing_makes_longer_gives_the_same_ids(grown: str) -> None:
    """A syllable becomes three letters of three bytes: what room is left for a text must allow for it."""
    for name in ("uncased", "uncased, accents kept", "characters, not cleaned"):
        fresh = make_pair(CONFIGURATIONS[name])
        assert_equal(fresh, [grown * 100_000, grown * 5 + " a"])


@pytest.mark.parametrize("number", QUARTERS)
def test_every_text_of_the_repository_gives_the_same_ids(number: int, golden_texts: list[str]) -> None:
    texts = [*golden_texts, *repository()]
    lines = list(dict.fromkeys(line for text in texts for line in text.splitlines()))
    for name in ("uncased", "cased"):
        assert_equal(pair(name), [*texts[number::4], *lines[number::4]])


def repository() -> list[str]:
    """Its tracked text files."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    names = listed.stdout.decode().split("\0") if listed.returncode == 0 else []
    contents = [(ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()]
    return [content.decode() for content in contents if b"\0" not in content and is_utf8(content)]


def is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


# Every code point


@pytest.mark.parametrize("options", list(product((False, True), repeat=4)), ids=str)
def test_every_code_point_is_normalized_alike(options: tuple[bool, bool, bool, bool]) -> None:
    normalizer = BertNormalizer(*options)
    native = make_pair(Configuration(str(options), "nested", options)).natives["scalar"]
    for start in range(0, len(CHARACTERS), BLOCK):
        text = "|".join(CHARACTERS[start : start + BLOCK])
        if native.normalize(text) == normalizer.normalize_str(text):
            continue
        for character in CHARACTERS[start : start + BLOCK]:
            around = f"|{character}|"
            assert ascii(native.normalize(around)) == ascii(normalizer.normalize_str(around))
        pytest.fail(f"the {BLOCK} code points from {CHARACTERS[start]!a} on differ only together")


@pytest.mark.parametrize("number", QUARTERS)
@pytest.mark.parametrize("name", ["uncased", "cased"])
def test_every_code_point_in_a_word_and_before_one_gives_the_same_ids(name: str, number: int) -> None:
    characters = quarter(CHARACTERS, number)
    for start in range(0, len(characters), BLOCK):
        assert_equal(pair(name), [f"a{c}b {c}c" for c in characters[start : start + BLOCK]], Question("string"))


@pytest.mark.parametrize("name", [name for name, each in CONFIGURATIONS.items() if each.vocabulary == "characters"])
def test_every_code_point_that_is_changed_gives_the_same_characters(name: str) -> None:
    """Against a vocabulary in which hardly two of them are the same id, as they are where all are unknown."""
    known = sorted({token.removeprefix("##") for token in vocabularies()["characters"]})
    texts = [f"a{c}b {c}c{c}" for c in (*known, *map(chr, range(0xAC00, 0xD7A4)), *map(chr, range(0xF900, 0xFB00)))]
    assert_equal(pair(name), texts, Question("string_view"))


# Any text


@each_configuration
@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.one_of(st.text(max_size=200), st.text("".join(SCRIPTS) + NOTABLE_MARKS), st.text("ab \u0301\x00[MASK]")),
        min_size=1,
        max_size=6,
    ),
    container=st.sampled_from(CONTAINERS),
    room=st.none() | st.integers(0, 40),
    keep=st.sampled_from(("head", "tail")),
)
def test_any_text_gives_the_same_ids(name: str, texts: list[str], container: str, room: int | None, keep: str) -> None:
    tokens = pair(name)
    assert_equal(tokens, texts, Question(container))
    max_length = None if room is None else room + tokens.special_tokens
    assert_equal(tokens, texts, Question("list", True, max_length, keep))


@pytest.mark.parametrize("part", range(8))
def test_twenty_thousand_adversarial_texts_give_the_same_ids(part: int) -> None:
    for number in range(part * 7, part * 7 + 7):
        outcome = run_batch("tests", number, 360)
        assert outcome.panics == 0
        assert outcome.difference is None, str(outcome.difference)


# Bytes that are no text

VALIDITY = ("uncased", "cased, stripped", "no normalizer", "added, every flag", "added, not normalized")
# Stray continuations, what is cut short, overlong forms, surrogates, and what lies beyond U+10FFFF; in hexadecimal.
BAD_HEX = (
    "80 bf c2 c328 e4b8 e4b861 efbf f09f f09f98 f09f9861 c080 c1bf e08080 e09fbf f0808080 f08fbfbf "
    "eda080 edbfbf f4908080 f5808080 ff fe f888808080"
)
BAD = tuple(map(bytes.fromhex, BAD_HEX.split()))
BINARY = {
    "binary": lambda rows: pa.array(rows, pa.binary()),
    "large_binary": lambda rows: pa.array(rows, pa.large_binary()),
    "binary_view": lambda rows: pa.array(rows, pa.binary_view()),
    "chunked": lambda rows: pa.chunked_array([rows[:1], rows[1:]], pa.binary()),
    "sliced": lambda rows: pa.array([b"\xff", *rows, b"\xff"], pa.binary())[1:-1],
}


def assert_valid_rows_only(
    tokens: Pair, rows: Sequence[bytes | None], container: str = "binary", prompt: str = ""
) -> None:
    """Rows that Python decodes have the reference's ids; the others have none, and the offset at which Python stops."""
    texts: list[str | None] = []
    invalid = []
    for row, value in enumerate(rows):
        try:
            texts.append(None if value is None else value.decode())
        except UnicodeDecodeError as error:
            invalid.append(InvalidText(row, bytes_reason(error.start)))
            texts.append(None)
    assert_rows(tokens, BINARY[container](rows), texts, invalid, prompt)


def assert_rows(
    tokens: Pair, handed: object, texts: Sequence[str | None], invalid: Sequence[InvalidText], prompt: str = ""
) -> None:
    valid = [prompt + text for text in texts if text is not None]
    encodings = iter(tokens.reference.encode_batch_fast(valid, add_special_tokens=True))
    rows = [[] if text is None else next(encodings).ids for text in texts]
    for implementation, native in tokens.natives.items():
        given_rows = native.encode(handed, prompt=prompt)
        assert given_rows.invalid == tuple(invalid), implementation
        assert given_rows.token_counts.tolist() == list(map(len, rows)), implementation
        assert given_rows.sequences.lengths.tolist() == list(map(len, rows)), implementation
        assert given_rows.sequences.ids.tolist() == [token for ids in rows for token in ids], implementation


@pytest.mark.parametrize("name", VALIDITY)
def test_bad_bytes_anywhere_in_a_text_are_found_where_they_begin(name: str) -> None:
    tokens = pair(name)
    before = ("", "a", "é", "[MASK] ", "\U0001d165\U0001d16e", *("a" * size for size in range(55, 75)), "中. " * 40)
    after = ("", "a", "[MASK]é", "\u0323 b" + "x" * 80)
    rows = [head.encode() + bad + tail.encode() for head, bad, tail in product(before, BAD, after)]
    fine = "fine, naïve".encode()
    assert_valid_rows_only(tokens, [row for bad in rows for row in (bad, fine)])
    assert_valid_rows_only(tokens, rows[::7], "binary_view", prompt="query: é ")


def damaged(text: str, place: int, change: str, byte: int) -> bytes:
    content = text.encode()
    place %= len(content) + 1
    tail = content[place:] if change == "insert" else content[place + 1 :]
    return (
        content[:place] + (b"" if change in ("delete", "cut") else bytes([byte])) + (b"" if change == "cut" else tail)
    )


byte_rows = st.lists(
    st.one_of(
        st.none(),
        st.binary(max_size=100),
        st.text(max_size=200).map(str.encode),
        st.builds(
            damaged,
            st.text("aé中😀 .\u0301\U0001d165[MASK]", min_size=1, max_size=150),
            st.integers(0, 600),
            st.sampled_from(("insert", "replace", "delete", "cut")),
            st.integers(0, 255),
        ),
        st.tuples(st.text(max_size=80), st.sampled_from(BAD)).map(lambda pieces: pieces[0].encode() + pieces[1]),
    ),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("name", VALIDITY)
@settings(max_examples=150, deadline=None)
@given(rows=byte_rows, container=st.sampled_from(sorted(BINARY)), prompt=st.sampled_from(("", "", "a é")))
def test_any_bytes_are_tokenized_or_listed_as_invalid(
    name: str, rows: list[bytes | None], container: str, prompt: str
) -> None:
    assert_valid_rows_only(pair(name), rows, container, prompt)


@pytest.mark.parametrize("name", VALIDITY)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=()) | st.sampled_from("\ud800\udfffaé ")), min_size=1))
def test_a_lone_surrogate_is_listed_as_invalid_and_nothing_else_is(name: str, texts: list[str]) -> None:
    reasons = [surrogate_reason(text) for text in texts]
    invalid = [InvalidText(row, reason) for row, reason in enumerate(reasons) if reason]
    valid = [None if reason else text for text, reason in zip(texts, reasons, strict=True)]
    assert_rows(pair(name), texts, valid, invalid)
