"""Texts made to tell two tokenizers apart, in great numbers.

Fragments aimed at one weakness each are drawn once a batch; texts are strung together from them, spliced with each
other, and cut to the lengths at which the native code takes another path.
"""

import random
import unicodedata
from collections.abc import Callable
from functools import cache

from configurations import SPECIAL, Configuration, vocabularies

# Bytes: words of the two caches, steps of 16, 32 and 64, what the loop reads ahead (72), the padding of buffers (128).
LENGTHS = tuple(edge + by for edge in (4, 8, 15, 16, 31, 32, 63, 64, 72, 100, 128, 136, 144, 192) for by in (-1, 0, 1))
WORDS = 2048  # found before they are looked up (scratch.h)

SCRIPTS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFXYZ  \t\n.,!?#[]'-_0123456789",
    "abab c\u00e9 ",
    "ab",
    "àéîõüÀÉÎÕÜçñßẞİıſΑαΣσςΆάЖжЁё",
    "中文字東京豈更\u3400\u4dbf\u4dc0\u9fff\ua000\ufa0e\ufa6d\uf8ff",
    "한국어가각\u1100\u1161\u11a8ㄱ日本語カナかな、。がぱ",
    "\x00\x01\t\n\x0b\x0c\r\x1c\x1f\x7f\x85\xa0\xad\u1680\u180e\u2009\u200b\u200d\u2028\u2029\u202f\u3000\ufeff\ufffd\ue000",
    "😀👨\u200d👩👧🏽𝐀𐐀𐐨\U0001d15e\U0001d160\U0001e900\U0001e922\U000e0001\U0010ffff",
    "\U00020000\U0002a6df\U0002a6e0\U0002b73f\U0002b740\U0002b81f\U0002b820\U0002b91f\U0002b920\U0002ceaf\U0002ceb0\U0002f800\U0002fa1f",
    "हिन्दीภาษาไทยعربيעבריתবাংলাதமிழ்",
    "«»—–…‘’“”¡¿§¶†‡•※〈〉（）！～$+<=>^`|~\u00a2\u20ac",
    "ǅǆǇﬁﬀŉǰΐևẖẚᾳᾼῼΩKÅ\u0130",
)
SPACES = (
    "",
    "",
    "",
    " ",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\x0b",
    "\x00",
    "\u00a0",
    "\u3000",
    "\u2028",
    "\u200b",
    " \u0301",
)


@cache
def marks() -> str:
    """All characters of a combining class that Python knows, and some that are marks without one."""
    known = [chr(code) for code in range(0x300, 0x1F000) if unicodedata.combining(chr(code))]
    return "".join(known) + "\u0903\u093e\u0d3e\U0001d165\u20dd\u0488\u034f\ufe0f"


# Those whose places among their neighbours matter: they are kept, or decompose, or are of the classes at both ends.
NOTABLE_MARKS = (
    "\u0300\u0301\u0323\u0315\u05ae\u0307\u0334\u0345\u1dfa\u1dfb\u08d4\u0f71\u0f72\u0344\u0f73\u0f81\u1dce\u302a\u302e"
    "\U0001d165\U0001d166\U0001d16d\U0001d16e\U0001d172\U00016ff0\U0001e8d0\u0340\u0343\u3099\u094d\u0bcd\U00010eab"
)


class Adversary:
    """An endless source of texts against one configuration. The same seed gives the same texts."""

    def __init__(self, configuration: Configuration, seed: str):
        self._rng = random.Random(seed)
        tokens = configuration.vocabulary
        self._tokens = vocabularies()[tokens] if isinstance(tokens, str) else tokens
        self._prefix = configuration.prefix
        self._limit = configuration.max_characters
        self._added = [token.content for token in configuration.added] + list(SPECIAL)
        self._makers: tuple[tuple[Callable[[], str], int], ...] = (
            (self._word, 6),
            (self._letter_run, 4),
            (self._script, 6),
            (self._mark_run, 3),
            (self._anywhere, 4),
            (self._interleaved, 2),
            (self._pieces, 6),
            (self._added_token, 4 + 6 * bool(configuration.added)),
            (self._space, 6),
            (self._punctuation, 3),
            (self._long_word, 1),
            (self._shadowed, 1),
        )

    def texts(self, count: int) -> list[str]:
        rng = self._rng
        makers, weights = zip(*self._makers, strict=True)
        fragments = [make() for make in rng.choices(makers, weights, k=max(64, count))]
        texts: list[str] = []
        for _ in range(count):
            kind = rng.random()
            if kind < 0.55 or len(texts) < 2:
                text = "".join(rng.choices(fragments, k=rng.choice((1, 2, 3, 5, 8, 13))))
            elif kind < 0.7:
                text = " ".join(rng.choices(fragments, k=rng.choice((2, 4, 8, 20))))
            elif kind < 0.85:
                first, second = rng.choice(texts), rng.choice(texts)
                text = first[: rng.randint(0, len(first))] + second[rng.randint(0, len(second)) :]
            elif kind < 0.998:
                text = self._fitted("".join(rng.choices(fragments, k=8)), rng.choice(LENGTHS))
            else:
                text = self._many_words(fragments)
            texts.append(text)
        return texts

    def _word(self) -> str:
        size = self._rng.choice((1, 2, 3, 3, 4, 4, 5, 6, 7, 9, 12, 15, 16))
        word = "".join(self._rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=size))
        return self._rng.choice((word, word, word.upper(), word.title()))

    def _letter_run(self) -> str:
        """A word of one or two letters, as long as some limit."""
        letters = self._rng.choice(("a", "b", "ab", "aab", "Ab", "é", "中", "aé", "\u0301", "\U00010400", "ς"))
        return self._fitted(letters * 40, self._rng.choice(LENGTHS), letters[-1])

    def _script(self) -> str:
        return "".join(self._rng.choices(self._rng.choice(SCRIPTS), k=self._rng.choice((1, 2, 4, 8, 20))))

    def _mark_run(self) -> str:
        pool = self._rng.choice((NOTABLE_MARKS, NOTABLE_MARKS, marks()))
        run = "".join(self._rng.choices(pool, k=self._rng.choice((1, 2, 2, 3, 5, 30))))
        return self._rng.choice(("", "a", "e", "É", "ứ", "中", "\u00ad", "[", " ", "가", "\U0001d15f")) + run

    def _anywhere(self) -> str:
        """Characters of all planes, assigned or not, most of them low."""
        top = self._rng.choice((0x80, 0x250, 0x3000, 0x10000, 0x10000, 0x20000, 0x30000, 0x110000))
        codes = (self._rng.randrange(top) for _ in range(self._rng.choice((1, 1, 2, 6))))
        return "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)

    def _interleaved(self) -> str:
        """Characters of one to four bytes by turns."""
        pools = ("aZ .\x00", "éß\u0301\u00a0Ωא", "中가、\u200b\u1e00\ufffd", "😀𐐀\U00020000\U0001d165\U000e0020")
        return "".join(self._rng.choice(pool) for pool in self._rng.choices(pools, k=self._rng.choice((4, 16, 40))))

    def _pieces(self) -> str:
        """Tokens of the vocabulary in one word, so that greedy matching goes far before it fails or does not."""
        pieces = self._rng.choices(self._tokens, k=self._rng.choice((1, 1, 2, 3, 6)))
        return "".join(piece.removeprefix(self._prefix) for piece in pieces) + self._rng.choice(
            ("", "", "", "a", "\u0301", "Q")
        )

    def _added_token(self) -> str:
        """One whole, glued to something, in another case, or nearly."""
        content = self._rng.choice(self._added)
        cut = self._rng.randint(0, len(content))
        variants = (
            content,
            content,
            content.upper(),
            content.lower(),
            content * 2,
            content[:cut],
            content[:cut] + content[cut + 1 :],
            content[:cut] + "\u0301" + content[cut:],
            unicodedata.normalize("NFD", content),
        )
        before, after = self._rng.choices(SPACES, k=2)
        return before + self._rng.choice(variants) + after

    def _space(self) -> str:
        return self._rng.choice(SPACES) + self._rng.choice(SPACES)

    def _punctuation(self) -> str:
        return "".join(
            self._rng.choices("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~—“”、¿", k=self._rng.choice((1, 1, 2, 5, 64)))
        )

    def _long_word(self) -> str:
        """About as many characters as a word may have."""
        letters = self._rng.choice(("a", "é", "e\u0301", "가", "\U00010400", "ab", "İ"))
        size = min(self._limit, 300) + self._rng.choice((-1, 0, 1))
        return (letters * (size + 1))[: max(size, 1)]

    def _shadowed(self) -> str:
        """Words that differ only in zero bytes at their ends, which a cache's key might leave out."""
        word = self._word()[:13]
        return " ".join(word + "\x00" * zeros for zeros in self._rng.choices((0, 1, 2), k=3))

    def _fitted(self, text: str, size: int, filler: str = "a") -> str:
        """Cut or filled up to `size` bytes, or a few less where a character does not fit."""
        cut = text.encode()[:size].decode(errors="ignore")
        return cut + filler * ((size - len(cut.encode())) // len(filler.encode()))

    def _many_words(self, fragments: list[str]) -> str:
        """So many that they are looked up before the text is at its end."""
        rng = self._rng
        some = [fragment for fragment in rng.choices(fragments, k=3) if len(fragment) < 20]
        unit = rng.choice(("a ", ".", "中", "a.", "é ", "ab cd ", "!" * 64, " ".join(some) + " ", "a\u0301\U0001d165 "))
        many = unit * (WORDS // max(1, len(unit.split()) if " " in unit else len(unit)) + rng.randint(-3, 3))
        return "".join(rng.choices(fragments, k=2)) + many + "".join(rng.choices((*fragments[:8], "\U0001d165"), k=3))


def sweeps() -> list[str]:
    """Every length around the steps of the loop, with every kind of character at either end of them."""
    sizes = (*range(18), *range(29, 35), *range(54, 76), *range(126, 147))
    kinds = ("é", "中", "😀", "\u0301", "\x00", ".", " ", "A", "\u00a0", "\U0001d165", "가", "İ", "\ufb1d")
    texts = [filler * size + kind for filler in ("a", "a ", "é") for size in sizes for kind in kinds]
    texts += [kind + "b" * size for size in sizes for kind in kinds]
    texts += [kind * size for size in sizes for kind in kinds]
    for size in range(1, 36):  # words that differ in one byte, met twice
        words = ["x" * size, "x" * (size - 1) + "y", "y" + "x" * (size - 1), "X" * size, "x" * size + "\x00"]
        texts.append(" ".join(words + words[::-1]))
    texts += [" ".join(words) for words in crowds()]
    for unit, words in (("a ", 1), (".", 1), ("中", 1), ("a.", 2), ("é ", 1), ("a\u0301. ", 2), ("!" * 64, 64)):
        for by in (-65, -1, 0, 1, WORDS):
            many = unit * ((WORDS + by) // words)
            texts += (many, "." + many + "open", many + "é" * 30 + "a" * 200, many + "\U0001d16e\U0001d165 a")
    return texts


def crowds() -> list[list[str]]:
    """Words that differ in eight bytes of a cache's key alone, so many that some share an entry, whatever the hash.

    They are of few pieces, as only such words are kept.
    """
    rng = random.Random(0)
    tokens = [token for token in vocabularies()["minilm"] if token.isascii() and token.removeprefix("##").isalpha()]
    openings = [token for token in tokens if len(token) == 8 and token[0] != "#"]
    inner = {size: [token[2:] for token in tokens if len(token) == size + 2 and token[0] == "#"] for size in (3, 4)}

    def opening() -> str:
        return rng.choice(openings)

    def inside(size: int) -> str:
        return rng.choice(inner[size - 4]) + rng.choice(inner[4])

    makers: tuple[Callable[[], str], ...] = (
        lambda: opening() + "ization",
        lambda: "internal" + inside(7),
        lambda: opening() + "izationabilitys",
        lambda: "internal" + inside(8) + "ization",
        lambda: "internalizations" + inside(8),
        lambda: "internalizationabilities" + inside(7),
    )
    return [[make() for _ in range(600)] for make in makers]
