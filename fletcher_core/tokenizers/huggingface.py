"""A `tokenizer.json` run by Hugging Face `tokenizers`: the native tokenizer's reference, and its stand-in for the rest.

The padding and truncation saved in the file are switched off (MiniLM's says 128 of both): lengths are Fletcher's
business, and the true length must be known to report what was cut.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from fletcher_core.errors import ModelError
from fletcher_core.models.json_file import brief, check_size
from fletcher_core.tokenizers.request import (
    Column,
    as_column,
    binary_type,
    bytes_reason,
    check_settings,
    surrogate_reason,
)
from fletcher_core.tokenizers.tokenizer import InvalidText, Keep, Texts, TokenizedTexts
from fletcher_core.tokens import Int32, TokenBatch, cumulative

MAX_BYTES = 128 * 2**20
"""Of a `tokenizer.json`: the largest in use, of a vocabulary of 256,000 tokens, has 34 MB."""


class HuggingFaceTokenizer:
    """Tokenizes with the model's own `tokenizer.json`. `tokenizer` is the library's object.

    Args:
        folder: the model's.
        vocab_size: how many tokens the model has vectors for; None leaves that unchecked.

    Raises:
        ModelError: the file is missing, too large, damaged, puts something else than fixed ids around a text, or has
            an id that the model has no vector for.
    """

    name = "huggingface"
    prefix: Int32
    suffix: Int32

    def __init__(self, folder: Path, vocab_size: int | None = None):
        self._path = path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{path} is missing: download the model again with its fast tokenizer")
        check_size(path, MAX_BYTES)
        with _library_call(f"{path} is not a valid tokenizer"):
            self.tokenizer = Tokenizer.from_file(str(path))
            self.tokenizer.no_padding()
            self.tokenizer.no_truncation()
            vocabulary = self.tokenizer.get_vocab(with_added_tokens=True)
        around = self._special_ids(path)
        largest = max([*vocabulary.values(), *around[0], *around[1]], default=0)
        ids = 2**31 if vocab_size is None else vocab_size
        if largest >= ids:
            raise ModelError(
                f"{path} has a token of id {largest}, and the model has vectors for the ids below {ids}: "
                "the tokenizer and the weights are of different models"
            )
        self.prefix, self.suffix = (np.array(ids, np.int32) for ids in around)

    def encode(
        self,
        texts: Texts,
        *,
        special_tokens: bool = True,
        max_length: int | None = None,
        keep: Keep = "head",
        prompt: str = "",
        threads: int = 1,
        digests: bool = False,
    ) -> TokenizedTexts:
        """As `Tokenizer.encode`; the library chooses the number of threads for itself."""
        specials = (len(self.prefix) + len(self.suffix)) * bool(special_tokens)
        check_settings(specials=specials, max_length=max_length, keep=keep, prompt=prompt, threads=threads)
        column = as_column(texts)
        rows, invalid = _valid_texts(column)
        present = np.array([row is not None for row in rows], dtype=bool)
        with _library_call(f"{self._path} cannot tokenize"):
            encodings = self.tokenizer.encode_batch_fast(
                [prompt + row for row in rows if row is not None], add_special_tokens=False
            )
        ids = [encoding.ids for encoding in encodings]
        lengths = np.zeros(len(rows), np.int64)
        lengths[present] = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum()))
        sequences = TokenBatch(flat, cumulative(lengths))
        if max_length is not None:
            sequences = _cut(sequences, max_length - specials, keep)
        if special_tokens:
            sequences = self._with_specials(sequences, present)
        counts = np.where(present, lengths + specials, 0).astype(np.int32)
        return TokenizedTexts(sequences, counts, invalid, _digests(column) if digests else None)

    def _with_specials(self, pieces: TokenBatch, present: npt.NDArray[np.bool_]) -> TokenBatch:
        prefix, suffix = self.prefix, self.suffix
        cu_seqlens = cumulative(pieces.lengths + (len(prefix) + len(suffix)) * present)
        ids = np.empty(int(cu_seqlens[-1]), dtype=np.int32)
        starts, ends = cu_seqlens[:-1][present], cu_seqlens[1:][present]
        inner = np.ones(len(ids), dtype=bool)
        for place, token in enumerate(prefix):
            ids[starts + place] = token
            inner[starts + place] = False
        for place, token in enumerate(suffix[::-1], start=1):
            ids[ends - place] = token
            inner[ends - place] = False
        ids[inner] = pieces.ids
        return TokenBatch(ids, cu_seqlens)

    def _special_ids(self, path: Path) -> tuple[list[int], list[int]]:
        """Encode probes with and without special tokens; what stands before and after them is the template."""
        with _library_call(f"{path} cannot tokenize"):  # a vocabulary without its own unknown token shows here
            found = [self._around(probe) for probe in ("a", "b c d")]
        if found[0] is None or found[0] != found[1]:
            raise ModelError(f"{path}: the special-token template of single texts is not understood")
        return found[0]

    def _around(self, probe: str) -> tuple[list[int], list[int]] | None:
        bare = self.tokenizer.encode(probe, add_special_tokens=False).ids
        full = self.tokenizer.encode(probe, add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start], full[start + len(bare) :]
        return None


@contextmanager
def _library_call(what: str) -> Iterator[None]:
    """`tokenizers` raises bare Exception for a damaged file, and its panics are not even that."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"{what} ({brief(error)}): it is not the file of a trained model, download it again"
        ) from error


def _valid_texts(column: Column) -> tuple[list[str | None], tuple[InvalidText, ...]]:
    """The texts, None for null and invalid ones; and what is wrong with the latter."""
    values: Sequence[object] = column if isinstance(column, list) else column.cast(binary_type(column)).to_pylist()
    rows: list[str | None] = []
    invalid = []
    for row, value in enumerate(values):
        reason = ""
        if isinstance(value, bytes):
            try:
                value = value.decode()
            except UnicodeDecodeError as error:
                reason = bytes_reason(error.start)
        elif isinstance(value, str):
            reason = surrogate_reason(value)
        if reason:
            invalid.append(InvalidText(row, reason))
        rows.append(value if isinstance(value, str) and not reason else None)
    return rows, tuple(invalid)


def _cut(batch: TokenBatch, room: int, keep: Keep) -> TokenBatch:
    """At most `room` tokens of each sequence."""
    kept = np.minimum(batch.lengths, room)
    return batch.spans(batch.cu_seqlens[:-1] if keep == "head" else batch.cu_seqlens[1:] - kept, kept)


def _digests(column: Column) -> npt.NDArray[np.uint8]:
    if isinstance(column, list):
        values = [text.encode(errors="surrogatepass") for text in column]
    else:
        values = column.cast(binary_type(column)).to_pylist()
    digests = b"".join(bytes(16) if value is None else hashlib.md5(value).digest() for value in values)
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)
