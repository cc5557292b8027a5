"""Which tokenizer a model folder gets: the native one where it gives the same ids, else the reference itself."""

import logging
from pathlib import Path

from fletcher_core.tokenizers.huggingface import HuggingFaceTokenizer
from fletcher_core.tokenizers.tokenizer import Tokenizer
from fletcher_core.tokenizers.wordpiece import NotWordPiece, WordPieceTokenizer

_LOG = logging.getLogger(__name__)
_said: set[str] = set()


def load_tokenizer(folder: Path, vocab_size: int | None = None) -> Tokenizer:
    """The fastest tokenizer that does exactly what `folder`/tokenizer.json says.

    `vocab_size` is how many tokens the model has vectors for.

    Raises:
        ModelError: the file is missing or damaged, or has ids from `vocab_size` on.
    """
    reference = HuggingFaceTokenizer(folder, vocab_size)
    try:
        return WordPieceTokenizer(reference)
    except NotWordPiece as reason:
        _LOG.info("%s is tokenized by Hugging Face tokenizers, slower than natively: %s", folder.name, reason)
    except ImportError as error:
        _say_once(
            f"the native tokenizer is not there ({error}); Hugging Face tokenizers does its work, many times slower. "
            "Install a C++ compiler (g++ 12, clang 15 or later), then install Fletcher again"
        )
    return reference


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _LOG.warning(message)
