"""Asks the reference and the native tokenizers the same question, and makes a text on which they differ short."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
from configurations import Configuration, Pair, make_pair

from fletcher_core.tokenizers import WordPieceTokenizer

CONTAINERS = ("list", "string", "large_string", "string_view", "chunked", "sliced")


class Panic(Exception):
    """The reference broke off, as it does at some pairs of added tokens: there is nothing to compare with."""


@dataclass(frozen=True)
class Question:
    """How texts are handed over, and what is done with their tokens."""

    container: str = "list"
    special_tokens: bool = False
    max_length: int | None = None
    keep: str = "head"
    prompt: str = ""
    threads: int = 1


@dataclass(frozen=True)
class Difference:
    configuration: Configuration
    implementation: str
    question: Question
    texts: tuple[str, ...]  # the last one differs; those before it were tokenized before it
    expected: tuple[list[int], int]
    given: tuple[list[int], int]

    def __str__(self) -> str:
        return (
            f"{self.configuration.name!r}, {self.implementation}, {self.question}\n  text {self.texts[-1]!a}\n"
            f"  tokenizers {self.expected}\n  native     {self.given}  (ids, count)"
        )


def random_question(rng: Random, specials: int) -> Question:
    """Half of them plain; `specials` tokens always fit."""
    if rng.random() < 0.5:
        return Question(rng.choice(CONTAINERS))
    special_tokens = rng.random() < 0.5
    return Question(
        rng.choice(CONTAINERS),
        special_tokens,
        special_tokens * specials + rng.choice((0, 1, 2, 7, 30, 126)) if rng.random() < 0.8 else None,
        rng.choice(("head", "tail")),
        rng.choice(("", "", "", "query: ", "a", " ", "e\u0301", "[MASK]", "中")),
        rng.choice((1, 1, 3)),
    )


def expected(tokens: Pair, texts: Sequence[str], question: Question) -> list[tuple[list[int], int]]:
    """Ids, and how many there were before truncation, by Hugging Face's own truncation and special tokens.

    Raises:
        Panic: the reference did.
    """
    reference = tokens.reference
    specials = tokens.special_tokens * question.special_tokens
    if question.max_length is not None:
        reference.enable_truncation(question.max_length, direction="right" if question.keep == "head" else "left")
    try:
        encodings = reference.encode_batch_fast(
            [question.prompt + text for text in texts], add_special_tokens=question.special_tokens
        )
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of pyo3, and no Exception
            raise Panic(str(error)) from error
        raise
    finally:
        reference.no_truncation()
    if question.max_length is None:
        return [(encoding.ids, len(encoding)) for encoding in encodings]
    return [
        (encoding.ids, len(encoding) + sum(len(rest) - specials for rest in encoding.overflowing))
        for encoding in encodings
    ]


def contained(texts: Sequence[str], container: str) -> Any:
    if container == "list":
        return list(texts)
    if container == "chunked":
        third = len(texts) // 3
        return pa.chunked_array([texts[:third], texts[third:]], pa.string())
    if container == "sliced":
        return pa.array(["before", *texts, "after"], pa.string())[1 : len(texts) + 1]
    return pa.array(texts, getattr(pa, container)())


def first_difference(
    tokens: Pair, texts: Sequence[str], question: Question, answers: Sequence[tuple[list[int], int]]
) -> Difference | None:
    """Of any of the native tokenizers from `answers`."""
    lengths = [len(ids) for ids, _ in answers]
    flat = np.array([token for ids, _ in answers for token in ids], np.int32)
    offsets = np.array([0, *accumulate(lengths)])
    counts = np.array([count for _, count in answers])
    handed = contained(texts, question.container)
    for implementation, native in tokens.natives.items():
        given, given_offsets, given_counts = ask(native, handed, question)
        if (
            np.array_equal(flat, given)
            and np.array_equal(offsets, given_offsets)
            and np.array_equal(counts, given_counts)
        ):
            continue
        for row, answer in enumerate(answers):
            ids = given[given_offsets[row] : given_offsets[row + 1]].tolist()
            if (ids, given_counts[row]) != answer:
                before = tuple(texts[: row + 1])
                result = (ids, int(given_counts[row]))
                return Difference(tokens.configuration, implementation, question, before, answer, result)
        raise AssertionError(f"{implementation}: the rows agree and the whole does not: {question}")
    return None


def ask(native: WordPieceTokenizer, texts: Any, question: Question) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tokenized = native.encode(
        texts,
        special_tokens=question.special_tokens,
        max_length=question.max_length,
        keep=question.keep,
        prompt=question.prompt,
        threads=question.threads,
    )
    assert not tokenized.invalid, tokenized.invalid
    return tokenized.sequences.ids, tokenized.sequences.cu_seqlens, tokenized.token_counts


def difference(tokens: Pair, texts: Sequence[str], question: Question | None = None) -> Difference | None:
    """The first one, if there is any."""
    question = question or Question()
    return first_difference(tokens, texts, question, expected(tokens, texts, question))


def minimized(found: Difference) -> Difference:
    """The same difference by fewer characters and the simplest question, from caches that are empty.

    Where the text differs only after others, they are joined to one text. `found` itself where that does not show it.
    """
    questions = dict.fromkeys((Question(), Question("string"), found.question))
    for text, question in product((found.texts[-1], " ".join(found.texts)), questions):
        if shown(found.configuration, text, question):
            break
    else:
        return found
    used = make_pair(found.configuration)  # quicker than empty caches, and nearly always as good
    short = shortened(text, lambda shorter: shown(used, shorter, question) is not None)
    if not shown(found.configuration, short, question):
        short = shortened(text, lambda shorter: shown(found.configuration, shorter, question) is not None)
    return shown(found.configuration, short, question) or found


def shown(tokens: Pair | Configuration, text: str, question: Question) -> Difference | None:
    """The difference on one text; of a configuration, from empty caches."""
    try:
        return difference(make_pair(tokens) if isinstance(tokens, Configuration) else tokens, [text], question)
    except Panic:
        return None


def shortened(text: str, fails: Callable[[str], bool]) -> str:
    """Greedily leaves out ever smaller pieces while the rest still fails."""
    size = max(1, len(text) // 2)
    while True:
        at, before = 0, len(text)
        while at < len(text):
            shorter = text[:at] + text[at + size :]
            if fails(shorter):
                text = shorter
            else:
                at += size
        if size == 1 and len(text) == before:
            return text
        size = max(1, size // 2)
