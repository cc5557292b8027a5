"""Text in, token ids out."""

from fletcher_core.tokenizers.encode import EncodedTexts, TextEncoder
from fletcher_core.tokenizers.huggingface import HuggingFaceTokenizer
from fletcher_core.tokenizers.load import load_tokenizer
from fletcher_core.tokenizers.tokenizer import InvalidText, TokenizedTexts, Tokenizer
from fletcher_core.tokenizers.wordpiece import NotWordPiece, WordPieceTokenizer

__all__ = [
    "EncodedTexts",
    "HuggingFaceTokenizer",
    "InvalidText",
    "NotWordPiece",
    "TextEncoder",
    "TokenizedTexts",
    "Tokenizer",
    "WordPieceTokenizer",
    "load_tokenizer",
]
