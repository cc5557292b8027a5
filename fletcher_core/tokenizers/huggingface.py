"""A `tokenizer.json` run by Hugging Face `tokenizers`: texts in, one flat id buffer out, without special tokens.

The padding and truncation saved in the file are switched off (MiniLM's says 128 of both): lengths are Fletcher's
business, and the true length must be known to report what was cut.
"""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from fletcher_core.errors import InputError, ModelError
from fletcher_core.tokens import Int32, TokenBatch, cumulative


class HuggingFaceTokenizer:
    """Tokenizes with the model's own `tokenizer.json`.

    `prefix` and `suffix` are the special ids that the model expects around one text, int32, as in `[CLS]` and `[SEP]`.
    """

    prefix: Int32
    suffix: Int32

    def __init__(self, folder: Path):
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{path} is missing: download the model again with its fast tokenizer")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception for a damaged file
            raise ModelError(f"{path} is not a valid tokenizer ({error}): download the model again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.prefix, self.suffix = self._special_ids(path)

    def encode(self, texts: Sequence[str]) -> TokenBatch:
        """Tokenize without special tokens and without truncation.

        Raises:
            InputError: a text is not a str or not encodable as UTF-8; the message names its position.
        """
        try:
            encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):
            _raise_for_bad_text(texts)
            raise
        ids = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=int(lengths.sum()))
        return TokenBatch(flat, cumulative(lengths))

    def _special_ids(self, path: Path) -> tuple[Int32, Int32]:
        """Encode a probe with and without special tokens; what stands before and after it is the template."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return np.array(full[:start], np.int32), np.array(full[start + len(bare) :], np.int32)
        raise ModelError(f"{path}: the special-token template of single texts is not understood")


def _raise_for_bad_text(texts: Sequence[object]) -> None:
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {row} is {type(text).__name__}, not str: drop it or fill it before embedding")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text {row} holds a lone surrogate at character {error.start} and is not valid Unicode: "
                "decode its bytes with errors='replace'"
            ) from error
