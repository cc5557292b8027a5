"""Text in, token ids out."""

from fletcher_core.tokenizers.encode import EncodedTexts, TextEncoder
from fletcher_core.tokenizers.huggingface import HuggingFaceTokenizer

__all__ = ["EncodedTexts", "HuggingFaceTokenizer", "TextEncoder"]
