"""A text that a tokenizer fails on costs the others nothing: the texts are halved until it is found.

Tokenizers say of a bad text that it is invalid; what is caught here is a defect of theirs, such as a panic in Rust
code, which is no `Exception` even.
"""

from collections.abc import Callable

import numpy as np

from fletcher_core.errors import FletcherError
from fletcher_core.tokenizers.request import Column
from fletcher_core.tokenizers.tokenizer import InvalidText, TokenizedTexts
from fletcher_core.tokens import TokenBatch, cumulative

_KNOWN_GOOD = ["known good"]
_PANIC = "PanicException"  # what pyo3 makes of a panic: derived from BaseException, importable from nowhere


def tokenize_around_failures(tokenize: Callable[[Column], TokenizedTexts], texts: Column) -> TokenizedTexts:
    """`tokenize(texts)`, in which texts that it raises for are listed as invalid.

    Raises:
        FletcherError: what the tokenizer says on purpose.
        Exception: whatever it is that makes the tokenizer fail on any text.
    """
    try:
        return tokenize(texts)
    except FletcherError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        if len(texts) > 1:
            middle = len(texts) // 2
            return _joined(
                tokenize_around_failures(tokenize, texts[:middle]), tokenize_around_failures(tokenize, texts[middle:])
            )
        _see_that_it_works(tokenize, error)
        reason = f"cannot be tokenized: {type(error).__name__}: {error}"
        nothing = TokenBatch(np.empty(0, np.int32), np.zeros(2, np.int64))
        return TokenizedTexts(nothing, np.zeros(1, np.int32), (InvalidText(0, reason),))


def _see_that_it_works(tokenize: Callable[[Column], TokenizedTexts], failure: BaseException) -> None:
    """Before a text is blamed: the process may be out of memory, or of files."""
    try:
        tokenize(_KNOWN_GOOD)
    except Exception:  # noqa: BLE001 - the first failure says more
        raise failure from None


def _joined(first: TokenizedTexts, second: TokenizedTexts) -> TokenizedTexts:
    lengths = np.concatenate([first.sequences.lengths, second.sequences.lengths])
    shifted = tuple(InvalidText(text.row + len(first.token_counts), text.reason) for text in second.invalid)
    return TokenizedTexts(
        TokenBatch(np.concatenate([first.sequences.ids, second.sequences.ids]), cumulative(lengths)),
        np.concatenate([first.token_counts, second.token_counts]),
        first.invalid + shifted,
    )
