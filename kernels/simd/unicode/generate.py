"""Writes properties.inc: what Hugging Face `tokenizers` does with every Unicode character, as C++ tables.

The reference mixes tables of several Unicode versions (its Rust crates'), none of them Python's, and our tokenizer has
to give the same tokens. So nothing here is looked up: each answer is asked of the installed `tokenizers`, and each
premise that lets a table stand for the code (no context but reordering, Hangul by arithmetic) is tried on the way.

    python kernels/simd/unicode/generate.py
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFD, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

CLEAN_DROP, CLEAN_SPACE, CJK, MARK, PUNCT, WHITESPACE, WORD = (1 << bit for bit in range(7))
RANK_SHIFT = 8  # above the bits: the canonical combining class, as a dense rank

CHARACTERS = [chr(code) for code in [*range(0xD800), *range(0xE000, 0x110000)]]
HANGUL = range(0xAC00, 0xD7A4)
BLOCK = 1024  # characters to a question
FENCE = "|"  # stands between the characters of a question, which first tries that it holds
TOKEN = "[M]"
LINE = 120

Changes = dict[str, str]
Change = Callable[[str], str]


class Surprise(Exception):
    """The reference does what the tables cannot say: the native tokenizer needs more than new tables."""


def require(holds: bool, premise: str) -> None:
    if not holds:
        raise Surprise(f"tokenizers {tokenizers.__version__} breaks a premise of the tables: {premise}")


def blocks(characters: Sequence[str]) -> Iterator[Sequence[str]]:
    return (characters[start : start + BLOCK] for start in range(0, len(characters), BLOCK))


def bert(
    *,
    clean_text: bool = False,
    handle_chinese_chars: bool = False,
    strip_accents: bool = False,
    lowercase: bool = False,
) -> Change:
    normalizer = BertNormalizer(
        clean_text=clean_text,
        handle_chinese_chars=handle_chinese_chars,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )
    return normalizer.normalize_str


def fenced(change: Change, texts: Sequence[str]) -> list[str]:
    """What `change` makes of each text, asked in one string."""
    answers = change(FENCE.join(texts)).split(FENCE)
    require(len(answers) == len(texts), f"a text between {FENCE!r} is changed on its own")
    return answers


def changes(change: Change) -> Changes:
    """What `change` makes of the characters that it does not leave alone."""
    require(change(FENCE) == FENCE, f"{FENCE!r} is left alone")
    changed: Changes = {}
    for block in blocks([character for character in CHARACTERS if character != FENCE]):
        answers = fenced(change, block)
        changed.update((asked, answer) for asked, answer in zip(block, answers, strict=True) if asked != answer)
    return changed


def applying(changed: Changes) -> Change:
    """The same change by the tables."""
    answers = {ord(asked): answer for asked, answer in changed.items()}
    return lambda text: text.translate(answers)


# Canonical decomposition and order


def check_hangul(decomposed: Changes) -> None:
    for index, code in enumerate(HANGUL):
        jamo = [0x1100 + index // 588, 0x1161 + index % 588 // 28, 0x11A7 + index % 28]
        expected = "".join(map(chr, jamo if index % 28 else jamo[:2]))
        require(decomposed.get(chr(code)) == expected, f"U+{code:04X} decomposes by the arithmetic of Hangul")


def reordered(pairs: Sequence[str]) -> list[bool]:
    """Whether NFD swaps the two characters of each pair, neither of which decomposes."""
    swapped: list[bool] = []
    for block in blocks(pairs):
        answers = fenced(NFD().normalize_str, block)
        swaps = [answer != pair for pair, answer in zip(block, answers, strict=True)]
        expected = [pair[::-1] if swap else pair for pair, swap in zip(block, swaps, strict=True)]
        require(answers == expected, "NFD keeps or swaps a pair of characters that do not decompose")
        swapped += swaps
    return swapped


def combining_ranks(decomposed: Changes) -> dict[str, int]:
    """The rank of every combining class from 1 up, of the characters that have one and do not decompose.

    Two marks of different classes find all the others: a class is below the higher one or above the lower one.
    """
    low, high = "\u0334", "\u0345"
    require(NFD().normalize_str(high + low) == low + high, "U+0345 is of a higher class than U+0334")
    require(NFD().normalize_str(high + FENCE + low) == high + FENCE + low, f"{FENCE!r} has no class")
    alone = [character for character in CHARACTERS if character not in decomposed and character != FENCE]
    before_high = reordered([high + character for character in alone])
    after_low = reordered([character + low for character in alone])
    marks = [alone[index] for index in range(len(alone)) if before_high[index] or after_low[index]]

    swaps = reordered([mark + other for mark in marks for other in marks])
    size = len(marks)
    lower = [sum(swaps[row * size : (row + 1) * size]) for row in range(size)]  # marks of a lower class
    rank_of = {count: rank for rank, count in enumerate(sorted(set(lower)), start=1)}
    require(swaps == [row > column for row in lower for column in lower], "the combining classes are one order")
    require(len(rank_of) < 256, "a rank fits a byte")
    return {mark: rank_of[count] for mark, count in zip(marks, lower, strict=True)}


def ordering(ranks: dict[str, int]) -> Change:
    """Canonical order by the tables: every run of ranked characters is sorted, equals kept in order."""

    def order(text: str) -> str:
        stretches = groupby(text, key=ranks.__contains__)
        return "".join("".join(sorted(run, key=ranks.__getitem__) if ranked else run) for ranked, run in stretches)

    return order


# Pieces and words


def pieces(text: str) -> list[tuple[int, int]]:
    return [span for _, span in BertPreTokenizer().pre_tokenize_str(text)]


def separators() -> tuple[set[str], set[str]]:
    """The characters that BertPreTokenizer isolates, and those that it removes."""
    require(pieces("aa") == [(0, 2)], "letters stay together")
    isolated: set[str] = set()
    removed: set[str] = set()
    for block in blocks(CHARACTERS):
        spans = pieces("a" + "a".join(block) + "a")  # the block's characters are at the odd places
        isolated.update(block[start // 2] for start, _ in spans if start % 2)
        kept = {place for start, end in spans for place in range(start, end)}
        removed.update(character for index, character in enumerate(block) if 2 * index + 1 not in kept)
    return isolated, removed


def split(text: str, isolated: set[str], removed: set[str]) -> list[tuple[int, int]]:
    """BertPreTokenizer by the tables."""
    spans: list[tuple[int, int]] = []
    for kind, run in groupby(range(len(text)), key=lambda place: (text[place] in isolated, text[place] in removed)):
        places = list(run)
        if kind == (True, False):
            spans.extend((place, place + 1) for place in places)
        elif kind == (False, False):
            spans.append((places[0], places[-1] + 1))
    return spans


def found(
    token: AddedToken, around: Change, characters: Sequence[str] = CHARACTERS
) -> defaultdict[tuple[int, int], set[str]]:
    """Where in `around(character)` the token is found, how long, and with which characters."""
    tokenizer = Tokenizer(BPE())  # a model of no vocabulary, so that there are no tokens but the added one
    tokenizer.add_tokens([token])
    width = len(around("a"))
    places: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    for block in blocks(characters):
        encoding = tokenizer.encode("".join(map(around, block)), add_special_tokens=False)
        for start, end in encoding.offsets:
            places[start % width, end - start].add(block[start // width])
    return places


def words_and_spaces() -> tuple[set[str], set[str]]:
    r"""What is \w to an AddedToken(single_word=True), and what is \s to an AddedToken(lstrip=True, rstrip=True).

    One question with both neighbours finds what is neither and what is a space; the rest must be of a word on each
    side alone, and no space.
    """
    bare, wide = (2, len(TOKEN)), (1, len(TOKEN) + 2)

    def between(character: str) -> str:
        return f"!{character}{TOKEN}{character}!"

    strict = AddedToken(TOKEN, single_word=True, lstrip=True, rstrip=True, normalized=False)
    places = found(strict, between)
    require(places.keys() == {bare, wide}, "an added token strips alike on its left and on its right")
    spaces = places[wide]
    words = set(CHARACTERS) - places[bare] - spaces

    single = AddedToken(TOKEN, single_word=True, normalized=False)
    left = found(single, lambda character: f"!{character}{TOKEN}!", sorted(words))
    right = found(single, lambda character: f"!{TOKEN}{character}!", sorted(words))
    require(not left and not right, "the same characters are of a word on the left and on the right of a token")
    stripping = AddedToken(TOKEN, lstrip=True, rstrip=True, normalized=False)
    require(found(stripping, between, sorted(words)) == {bare: words}, "no character of a word is stripped")
    return words, spaces


# All the answers


@dataclass(frozen=True)
class Answers:
    """What becomes of the characters that the normalizers change, and the sets and ranks of the others."""

    cleaned: Changes
    spaced: Changes
    stripped: Changes
    lowered: Changes
    decomposed: Changes
    ranks: dict[str, int]
    marks: set[str]
    isolated: set[str]
    removed: set[str]
    words: set[str]


def ask() -> Answers:
    stripped = changes(bert(strip_accents=True))
    decomposed = changes(NFD().normalize_str)
    isolated, removed = separators()
    words, spaces = words_and_spaces()
    require(spaces == removed, "what an added token strips is what BertPreTokenizer removes")
    answers = Answers(
        cleaned=changes(bert(clean_text=True)),
        spaced=changes(bert(handle_chinese_chars=True)),
        stripped=stripped,
        lowered=changes(bert(lowercase=True)),
        decomposed=decomposed,
        ranks=combining_ranks(decomposed),
        marks={character for character, kept in stripped.items() if not kept and character not in decomposed},
        isolated=isolated,
        removed=removed,
        words=words,
    )
    check_each(answers)
    check_context(answers)
    return answers


def check_each(answers: Answers) -> None:
    """That each answer has the form which its table can hold."""
    lowered, decomposed, stripped = answers.lowered, answers.decomposed, answers.stripped
    require(set(answers.cleaned.values()) <= {"", " "}, "cleaning drops a character or makes it a space")
    require(all(put == f" {asked} " for asked, put in answers.spaced.items()), "Chinese characters are put in spaces")
    require(not answers.isolated & answers.removed, "no character is both isolated and removed")
    require(all(1 <= len(answer) <= 3 for answer in lowered.values()), "lowercase is one to three characters")
    require(all(1 <= len(answer) <= 4 for answer in decomposed.values()), "a decomposition is one to four characters")
    require(decomposed.keys().isdisjoint("".join(decomposed.values())), "decompositions are full")
    check_hangul(decomposed)
    for character in stripped.keys() | decomposed.keys():
        left = "".join(part for part in decomposed.get(character, character) if part not in answers.marks)
        require(stripped.get(character, character) == left, f"{character!a} is stripped by decomposing it")


def check_context(answers: Answers) -> None:
    """That the tables, applied to whole texts, do what the reference does."""
    clean, space, lower = map(applying, (answers.cleaned, answers.spaced, answers.lowered))
    decompose, order = applying(answers.decomposed), ordering(answers.ranks)
    strip = applying(dict.fromkeys(answers.marks, ""))
    for text in crowds(answers):
        ordered = order(decompose(text))
        for name, change, expected in [
            ("cleaning", bert(clean_text=True), clean(text)),
            ("spacing Chinese", bert(handle_chinese_chars=True), space(text)),
            ("decomposing", NFD().normalize_str, ordered),
            ("stripping accents", bert(strip_accents=True), strip(ordered)),
            ("lowercasing", bert(lowercase=True), lower(text)),
        ]:
            require(change(text) == expected, f"{name} looks at one character, but for the order of marks")
        require(pieces(text) == split(text, answers.isolated, answers.removed), "splitting looks at one character")


def crowds(answers: Answers) -> Iterator[str]:
    """Texts that would show an effect of context: a final sigma, strangers side by side, the notable ones crowded."""
    yield "ΑΣ ΑΣ. ΑΣ"
    stride = 1009
    yield from map("".join, blocks([character for start in range(stride) for character in CHARACTERS[start::stride]]))
    notable = sorted({*answers.stripped, *answers.lowered, *answers.ranks, *answers.isolated, *answers.removed})
    yield from map("".join, blocks(random.Random(0).choices(notable, k=4 * len(notable))))


def properties(answers: Answers) -> dict[str, int]:
    """The bits and the rank of every character that has any."""
    having: defaultdict[str, int] = defaultdict(int)
    for character, rank in answers.ranks.items():
        having[character] = rank << RANK_SHIFT
    bits: list[tuple[int, Iterable[str]]] = [
        (CLEAN_DROP, (character for character, answer in answers.cleaned.items() if answer == "")),
        (CLEAN_SPACE, (character for character, answer in answers.cleaned.items() if answer == " ")),
        (CJK, answers.spaced),
        (MARK, answers.marks),
        (PUNCT, answers.isolated),
        (WHITESPACE, answers.removed),
        (WORD, answers.words),
    ]
    for bit, characters in bits:
        for character in characters:
            having[character] |= bit
    return having


# The file


def runs(having: dict[str, int]) -> Iterator[tuple[int, int]]:
    """First code point and properties of each stretch. Surrogates are no characters, and fall to the stretch before."""
    for value, run in groupby(CHARACTERS, key=lambda character: having.get(character, 0)):
        yield ord(next(run)), value


def table(declaration: str, entries: Iterable[str]) -> str:
    lines = [""]
    for entry in entries:
        if len(lines[-1]) + len(entry) + 1 > LINE:
            lines.append("")
        lines[-1] += f"{entry},"
    return "\n".join([f"constexpr {declaration}[] = {{", *lines, "};\n"])


def mapping(declaration: str, changed: Changes) -> str:
    entries = (
        f"{{0x{ord(asked):X},{{{','.join(f'0x{ord(part):X}' for part in answer)}}}}}"
        for asked, answer in sorted(changed.items())
    )
    return table(declaration, entries)


def render() -> str:
    """The whole text of properties.inc."""
    answers = ask()
    irregular = {asked: answer for asked, answer in answers.decomposed.items() if ord(asked) not in HANGUL}
    entries = (f"{{0x{first:X},0x{value:X}}}" for first, value in runs(properties(answers)))
    version = tokenizers.__version__
    return (
        f"// Generated by generate.py from what Hugging Face tokenizers {version} does; do not edit.\n"
        f'constexpr char kReferenceVersion[] = "{version}";\n'
        "// Each run reaches to the first code point of the next.\n"
        + table("Run kRuns", entries)
        + "// Canonical decompositions, but for Hangul syllables, which follow by arithmetic; zero-padded.\n"
        + mapping("Decomposition kDecompositions", irregular)
        + mapping("Lowercase kLowercase", answers.lowered)
    )


if __name__ == "__main__":
    (Path(__file__).parent / "properties.inc").write_text(render(), encoding="ascii", newline="\n")
