"""Texts in, sequences ready for the engine out: prompt, special tokens, and the policy for texts that are too long."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from fletcher_core.errors import ConfigError
from fletcher_core.tokenizers.huggingface import HuggingFaceTokenizer
from fletcher_core.tokens import Int32, Int64, TokenBatch, cumulative

LongText = Literal["truncate", "chunk", "error"]


@dataclass(frozen=True)
class EncodedTexts:
    """`n` texts as `m >= n` sequences; m > n only where long texts were cut into chunks.

    `sequences` holds the special tokens; `text_of` int64 [m] says which text a sequence belongs to, in ascending order;
    `token_counts` int32 [n] is what each text had before any cut, special tokens included; `cut` bool [n] marks texts
    that lost their tail (truncate) or were split (chunk).
    """

    sequences: TokenBatch
    text_of: Int64
    token_counts: Int32
    cut: npt.NDArray[np.bool_]


class TextEncoder:
    """Puts prompt and special tokens around texts and cuts those longer than `max_length` tokens.

    Args:
        tokenizer: gives bare token ids.
        max_length: the most tokens of a sequence, special tokens included.
        long_text: "truncate" keeps the head; "chunk" makes windows of `max_length` that overlap by `overlap` tokens;
            "error" cuts like "truncate": who uses the vectors must refuse those of texts marked as cut.
        overlap: tokens that neighbouring chunks share.
        prompt: text put before each input; its tokens are repeated in every chunk.

    Raises:
        ConfigError: the prompt or the overlap leaves no room for text.
    """

    def __init__(
        self,
        tokenizer: HuggingFaceTokenizer,
        max_length: int,
        long_text: LongText,
        overlap: int,
        prompt: str = "",
    ):
        if long_text not in get_args(LongText):
            raise ConfigError(f"long_text is {long_text!r}; choose one of {', '.join(get_args(LongText))}")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.long_text = long_text
        self.overlap = overlap
        self.prompt = prompt
        # Chunks after the first begin with the prompt's own tokens. The first keeps the tokens of prompt + text joined,
        # exactly as the reference tokenizes them.
        self._prompt_ids = tokenizer.encode([prompt]).ids if prompt else np.zeros(0, np.int32)
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

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Tokenize `texts` (n of them).

        Raises:
            InputError: a text is no valid str; the message names its position.
        """
        if self.prompt:
            texts = [self.prompt + text if isinstance(text, str) else text for text in texts]
        bare = self.tokenizer.encode(texts)
        lengths = bare.lengths
        long = lengths > self.room
        specials = len(self.tokenizer.prefix) + len(self.tokenizer.suffix)
        if self.long_text == "chunk" and long.any():
            pieces, text_of = self._chunks(bare, long)
        else:
            kept = np.minimum(lengths, self.room)
            pieces = bare if not long.any() else _heads(bare, kept)
            text_of = np.arange(len(texts), dtype=np.int64)
        return EncodedTexts(self._with_specials(pieces), text_of, (lengths + specials).astype(np.int32), long)

    def _with_specials(self, pieces: TokenBatch) -> TokenBatch:
        prefix, suffix = self.tokenizer.prefix, self.tokenizer.suffix
        lengths = pieces.lengths
        cu_seqlens = cumulative(lengths + len(prefix) + len(suffix))
        ids = np.empty(int(cu_seqlens[-1]), dtype=np.int32)
        starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
        inner = np.ones(len(ids), dtype=bool)
        for place, token in enumerate(prefix):
            ids[starts + place] = token
            inner[starts + place] = False
        for place, token in enumerate(suffix[::-1], start=1):
            ids[ends - place] = token
            inner[ends - place] = False
        ids[inner] = pieces.ids
        return TokenBatch(ids, cu_seqlens)

    def _chunks(self, bare: TokenBatch, long: npt.NDArray[np.bool_]) -> tuple[TokenBatch, Int64]:
        """Cut each long sequence into windows; short ones pass as they are."""
        parts: list[Int32] = []
        text_of: list[int] = []
        body = self.room - len(self._prompt_ids)
        for row in range(len(bare)):
            ids = bare.ids[bare.cu_seqlens[row] : bare.cu_seqlens[row + 1]]
            parts.append(ids[: self.room])
            text_of.append(row)
            start = self.room - self.overlap
            while long[row] and start + self.overlap < len(ids):
                parts.append(np.concatenate([self._prompt_ids, ids[start : start + body]]))
                text_of.append(row)
                start += self._stride
        lengths = np.array([len(part) for part in parts], dtype=np.int64)
        return TokenBatch(np.concatenate(parts), cumulative(lengths)), np.array(text_of, dtype=np.int64)


def _heads(batch: TokenBatch, kept: Int64) -> TokenBatch:
    """The first `kept[k]` tokens of each sequence."""
    cu_seqlens = cumulative(kept)
    shift = np.repeat(batch.cu_seqlens[:-1] - cu_seqlens[:-1], kept)
    return TokenBatch(batch.ids[np.arange(cu_seqlens[-1]) + shift], cu_seqlens)
