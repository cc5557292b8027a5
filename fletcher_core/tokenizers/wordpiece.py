"""BERT's WordPiece by the native extension (`kernels/simd`): the ids of Hugging Face `tokenizers`, many times faster.

What the extension does is fixed at the version `REFERENCE_VERSION` of `tokenizers`, whose Unicode tables it carries.
"""

from typing import Any

import numpy as np
from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from fletcher_core.errors import InputError
from fletcher_core.tokenizers.huggingface import HuggingFaceTokenizer
from fletcher_core.tokenizers.request import Column, as_column, bytes_reason, check_settings, surrogate_reason
from fletcher_core.tokenizers.tokenizer import InvalidText, Keep, Texts, TokenizedTexts
from fletcher_core.tokens import TokenBatch

# Texts on which the two are compared when a tokenizer is loaded: cheap, and enough to notice a `tokenizers` of another
# behaviour than the one that the extension was made after.
_PROBES = (
    "The quick brown fox, it's 3.14 [MASK] unaffordably Übergrößen naïve CAFÉ İstanbul",
    "tab\tnewline\nvertical\x0bnull\x00delete\x7fsoft\xadhyphen zero\u200bwidth line\u2028separator\xa0nbsp\u3000wide",
    "北京大学 東京 한국어 ภาษาไทย हिन्दी العربية עברית ελληνικά русский \U0002b820\U0002b920\ufa0e",
    "e\u0301\u0323 q\u0307\u0323 a\u0315\u0300\u05aeb \u1dfa\u0301 \u0f71\u0f72 \U0001d165\U0001d16e",
    "unassigned \u0378, private \ue000, emoji \U0001f600",
    "x" * 100 + " " + "y" * 101 + " ##ing [CLS][SEP]a[UNK]b [unused1] ﬁ ǅ ß ẞ Σς",
)


class NotWordPiece(Exception):
    """The tokenizer does something that the extension does not; the message says what."""


class WordPieceTokenizer:
    """The native tokenizer. Made from the reference's own, which says what every setting is.

    Raises:
        NotWordPiece: the tokenizer is not one that the extension reproduces id for id.
        ImportError: the extension was not built, or does not load here.
        ValueError: `implementation` (avx512, avx2, neon, scalar; "" for the best) does not run on this processor.
    """

    def __init__(self, reference: HuggingFaceTokenizer, implementation: str = ""):
        from fletcher_core.tokenizers import _wordpiece

        self._native = _wordpiece.Tokenizer(**native_settings(reference), implementation=implementation)
        self.name = f"wordpiece-{self._native.implementation}"
        self.prefix, self.suffix = reference.prefix, reference.suffix
        ours, theirs = self.encode(_PROBES).sequences, reference.encode(_PROBES).sequences
        if not (np.array_equal(ours.ids, theirs.ids) and np.array_equal(ours.cu_seqlens, theirs.cu_seqlens)):
            raise NotWordPiece(
                f"native code does as tokenizers {_wordpiece.REFERENCE_VERSION} did, and the installed version does not"
            )

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
        """As `Tokenizer.encode`. Arrow buffers are read where they lie; the interpreter's lock is released."""
        specials = (len(self.prefix) + len(self.suffix)) * bool(special_tokens)
        check_settings(specials=specials, max_length=max_length, keep=keep, prompt=prompt, threads=threads)
        column = as_column(texts)
        ids, offsets, counts, hashes, invalid = self._native.encode(
            column,
            prompt=prompt,
            special_tokens=bool(special_tokens),
            max_length=-1 if max_length is None else max_length,
            keep_tail=keep == "tail",
            threads=threads,
            digests=bool(digests),
        )
        reasons = tuple(InvalidText(row, _reason(column, row, at)) for row, at in invalid)
        return TokenizedTexts(TokenBatch(ids, offsets), counts, reasons, hashes)

    def normalize(self, text: str) -> str:
        """What the words of `text` are taken from, between added tokens.

        Raises:
            InputError: the text is no valid str.
        """
        if reason := surrogate_reason(text):
            raise InputError(f"the text {reason}")
        return self._native.normalize(text)


def native_settings(reference: HuggingFaceTokenizer) -> dict[str, Any]:
    """What the extension needs to know. Raises `NotWordPiece` at the first thing that it cannot do."""
    tokenizer = reference.tokenizer
    model, normalizer, splitter = tokenizer.model, tokenizer.normalizer, tokenizer.pre_tokenizer
    if type(model) is not WordPiece:
        raise NotWordPiece(f"its model is {type(model).__name__}, not WordPiece")
    if normalizer is not None and type(normalizer) is not normalizers.BertNormalizer:
        raise NotWordPiece(f"its normalizer is {type(normalizer).__name__}, not BertNormalizer")
    if type(splitter) is not pre_tokenizers.BertPreTokenizer:
        raise NotWordPiece(f"its pre-tokenizer is {type(splitter).__name__}, not BertPreTokenizer")
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if model.unk_token not in vocabulary:
        raise NotWordPiece(f"its vocabulary lacks the unknown token {model.unk_token!r}")
    lowercase = normalizer is not None and normalizer.lowercase
    strip = normalizer is not None and normalizer.strip_accents
    added, added_normalized = [], []
    for token_id, token in tokenizer.get_added_tokens_decoder().items():
        flags = (token_id, token.single_word, token.lstrip, token.rstrip)
        if not token.normalized:
            added.append((token.content, *flags))
        else:
            content = normalizer.normalize_str(token.content) if normalizer is not None else token.content
            added_normalized.append((content, *flags))
    contents = [content for content, *_ in added_normalized]
    if len(set(contents)) < len(contents) or "" in contents:
        raise NotWordPiece("added tokens of it are empty or alike once they are normalized")
    return {
        "vocabulary": vocabulary,
        "continuing_prefix": model.continuing_subword_prefix,
        "unknown": vocabulary[model.unk_token],
        "max_characters": model.max_input_chars_per_word,
        "clean_text": normalizer is not None and normalizer.clean_text,
        "handle_chinese_chars": normalizer is not None and normalizer.handle_chinese_chars,
        "strip_accents": lowercase if strip is None else strip,
        "lowercase": lowercase,
        "added": added,
        "added_normalized": added_normalized,
        "prefix": reference.prefix.tolist(),
        "suffix": reference.suffix.tolist(),
    }


def _reason(column: Column, row: int, at: int) -> str:
    if at < 0:
        return "has more than 1 GiB: split it"
    return surrogate_reason(column[row]) if isinstance(column, list) else bytes_reason(at)
