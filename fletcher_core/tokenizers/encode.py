"""Texts in, sequences ready for the engine out: prompt, special tokens, and the policy for texts that are too long."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fletcher_core.errors import ConfigError
from fletcher_core.setting_values import LongText, check_choice
from fletcher_core.tokenizers.bisection import tokenize_around_failures
from fletcher_core.tokenizers.request import Column, as_column
from fletcher_core.tokenizers.tokenizer import InvalidText, Texts, TokenizedTexts, Tokenizer
from fletcher_core.tokens import Int32, Int64, TokenBatch, cumulative


@dataclass(frozen=True)
class EncodedTexts:
    """`n` texts as `m >= n` sequences; m > n only where long texts were cut into chunks.

    `sequences` holds the special tokens; `text_of` int64 [m] says which text a sequence belongs to, in ascending order;
    `token_counts` int32 [n] is what each text had before any cut, special tokens included; `cut` bool [n] marks texts
    that lost their tail (truncate) or were split (chunk). Texts in `invalid` have one sequence without any token.
    """

    sequences: TokenBatch
    text_of: Int64
    token_counts: Int32
    cut: npt.NDArray[np.bool_]
    invalid: tuple[InvalidText, ...] = ()

    def part(self, first: int, last: int) -> "EncodedTexts":
        """The texts from `first` up to `last`, which is not among them."""
        begin, end = np.searchsorted(self.text_of, [first, last]).tolist()
        starts = self.sequences.cu_seqlens[begin : end + 1]
        return EncodedTexts(
            TokenBatch(self.sequences.ids[starts[0] : starts[-1]], starts - starts[0]),
            self.text_of[begin:end] - first,
            self.token_counts[first:last],
            self.cut[first:last],
            tuple(InvalidText(bad.row - first, bad.reason) for bad in self.invalid if first <= bad.row < last),
        )

    @classmethod
    def joined(cls, parts: "Sequence[EncodedTexts]") -> "EncodedTexts":
        """The texts of all of `parts`, one after another."""
        if len(parts) == 1:
            return parts[0]
        before = cumulative(np.array([len(part.token_counts) for part in parts]))[:-1].tolist()
        lengths = np.concatenate([part.sequences.lengths for part in parts])
        return cls(
            TokenBatch(np.concatenate([part.sequences.ids for part in parts]), cumulative(lengths)),
            np.concatenate([part.text_of + rows for part, rows in zip(parts, before, strict=True)]),
            np.concatenate([part.token_counts for part in parts]),
            np.concatenate([part.cut for part in parts]),
            tuple(
                InvalidText(bad.row + rows, bad.reason)
                for part, rows in zip(parts, before, strict=True)
                for bad in part.invalid
            ),
        )


class TextEncoder:
    """Puts prompt and special tokens around texts and cuts those longer than `max_length` tokens.

    Args:
        max_length: the most tokens of a sequence, special tokens included.
        long_text: "truncate" keeps the head; "chunk" makes windows of `max_length` that overlap by `overlap` tokens;
            "error" cuts like "truncate": who uses the vectors must refuse those of texts marked as cut.
        overlap: tokens that neighbouring chunks share.
        prompt: text put before each input; its tokens are repeated in every chunk.
        threads: how many tokenize.

    Raises:
        ConfigError: the prompt or the overlap leaves no room for text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        long_text: LongText,
        overlap: int,
        prompt: str = "",
        threads: int = 1,
    ):
        check_choice("long_text", long_text, LongText)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.long_text = long_text
        self.overlap = overlap
        self.prompt = prompt
        self.threads = threads
        # Chunks after the first begin with the prompt's own tokens. The first keeps the tokens of prompt + text joined,
        # exactly as the reference tokenizes them.
        self._prompt_ids = tokenizer.encode([prompt], special_tokens=False).sequences.ids
        self.room = max_length - len(tokenizer.prefix) - len(tokenizer.suffix)
        self._stride = self.room - len(self._prompt_ids) - overlap
        if self.room <= len(self._prompt_ids):
            raise ConfigError(
                f"max_length {max_length} leaves no room for text beside the special tokens and a prompt of "
                f"{len(self._prompt_ids)} tokens: raise max_length or shorten the prompt"
            )
        if long_text == "chunk" and (overlap < 0 or self._stride < 1):
            raise ConfigError(
                f"chunk_overlap {overlap} must be at least 0 and less than the {self.room - len(self._prompt_ids)} "
                f"tokens that max_length {max_length} leaves for text"
            )

    def encode(self, texts: Texts) -> EncodedTexts:
        """Tokenize `texts` (n of them): str, or an Arrow array of strings.

        Raises:
            InputError: an item is no str, or the array is of another type. Texts that are not valid Unicode, and those
                that the tokenizer fails on, are listed in the result.
        """
        chunked = self.long_text == "chunk"
        column = as_column(texts)  # an iterator could not be read again
        tokenized = tokenize_around_failures(self._tokenize, column)
        cut = tokenized.token_counts > self.max_length
        sequences, text_of = tokenized.sequences, np.arange(len(tokenized.sequences), dtype=np.int64)
        if chunked and cut.any():
            sequences, text_of = self._chunks(tokenized.sequences, cut)
        return EncodedTexts(sequences, text_of, tokenized.token_counts, cut, tokenized.invalid)

    def _tokenize(self, texts: Column) -> TokenizedTexts:
        return self.tokenizer.encode(
            texts,
            max_length=None if self.long_text == "chunk" else self.max_length,
            prompt=self.prompt,
            threads=self.threads,
        )

    def _chunks(self, whole: TokenBatch, cut: npt.NDArray[np.bool_]) -> tuple[TokenBatch, Int64]:
        """Split each sequence that is too long into windows; the others pass as they are."""
        prefix, suffix = self.tokenizer.prefix, self.tokenizer.suffix
        body = self.room - len(self._prompt_ids)
        parts: list[Int32] = []
        text_of: list[int] = []
        for row in range(len(whole)):
            ids = whole.ids[whole.cu_seqlens[row] : whole.cu_seqlens[row + 1]]
            text_of.append(row)
            if not cut[row]:
                parts.append(ids)
                continue
            ids = ids[len(prefix) : len(ids) - len(suffix)]
            parts.append(np.concatenate([prefix, ids[: self.room], suffix]))
            start = self.room - self.overlap
            while start + self.overlap < len(ids):
                parts.append(np.concatenate([prefix, self._prompt_ids, ids[start : start + body], suffix]))
                text_of.append(row)
                start += self._stride
        lengths = np.array([len(part) for part in parts], dtype=np.int64)
        return TokenBatch(np.concatenate(parts), cumulative(lengths)), np.array(text_of, dtype=np.int64)
