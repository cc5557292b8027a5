"""What every tokenizer does: texts in, one flat buffer of token ids out."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fletcher_core.tokens import Int32, TokenBatch

Texts: TypeAlias = "Iterable[str] | pa.Array | pa.ChunkedArray"
Keep = Literal["head", "tail"]


@dataclass(frozen=True)
class InvalidText:
    """A row without valid text: `row` in the input, `reason` to complete the sentence "text 7 ..."."""

    row: int
    reason: str


@dataclass(frozen=True)
class TokenizedTexts:
    """`n` texts as token ids.

    `sequences` holds what is left of each after truncation; `token_counts` int32 [n] is what each had before, special
    tokens included where they were asked for; `digests` uint8 [n, 16] is the MD5 of each text without the prompt, or
    None. Null and `invalid` texts have no tokens at all.
    """

    sequences: TokenBatch
    token_counts: Int32
    invalid: tuple[InvalidText, ...] = ()
    digests: npt.NDArray[np.uint8] | None = None


class Tokenizer(Protocol):
    """Tokenizes as the model's `tokenizer.json` says; the padding and truncation saved in it are ignored.

    Attributes:
        name: what does the work, as in "wordpiece-avx512".
        prefix, suffix: the special ids around one text, int32, as in `[CLS]` and `[SEP]`.
    """

    name: str
    prefix: Int32
    suffix: Int32

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
        """Tokenize `texts`: str, or an Arrow array of strings or UTF-8 bytes (chunked or not, or a Series).

        Args:
            special_tokens: put `prefix` and `suffix` around each text.
            max_length: the most tokens of a text, special tokens included; None cuts nothing.
            keep: which end of a text that is too long stays.
            prompt: put before each text, and tokenized together with it.
            threads: how many work at it; the result is the same whatever their number.
            digests: also take the MD5 of each text.

        Raises:
            InputError: an item is no str, or the array is of another type. A text that is not valid Unicode is no
                error: it is listed in `invalid`, and the others are tokenized.
            ConfigError: a setting has a value that cannot work.
        """
        ...
