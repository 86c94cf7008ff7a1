"""Words and word errors: one written form for what two recognisers, or a person, may spell differently."""

import re
from dataclasses import dataclass

from tony.data.world.sentences import ONES, TENS
from tony.errors import require

_SIGNS = {"+": " plus ", "=": " is ", "%": " percent ", "&": " and ", "×": " times ", "÷": " divided by "}
_SPELLINGS = {
    "colour": "color", "colours": "colors", "grey": "gray", "neighbour": "neighbor", "neighbours": "neighbors",
    "ok": "okay", "o'clock": "oclock", "favourite": "favorite", "theatre": "theater", "centre": "center",
    "what's": "what is", "it's": "it is", "that's": "that is", "i'm": "i am", "there's": "there is",
    "don't": "do not", "can't": "can not", "cannot": "can not", "you're": "you are", "i'll": "i will",
}  # fmt: skip


def spell(value: int) -> str:
    """English words of a whole number, without hyphens and without "and": 142 -> "one hundred forty two"."""
    if value < 0:
        return f"minus {spell(-value)}"
    if value < 20:
        return ONES[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return TENS[tens - 2] + (f" {ONES[ones]}" if ones else "")
    for size, word in ((10**9, "billion"), (10**6, "million"), (1000, "thousand"), (100, "hundred")):
        if value >= size:
            many, rest = divmod(value, size)
            return f"{spell(many)} {word}" + (f" {spell(rest)}" if rest else "")
    raise AssertionError("every number below one hundred has been spelled above")


def _spell_match(match: re.Match) -> str:
    digits = match[0].replace(",", "")
    # A run longer than twelve digits is a code, not a quantity: read it digit by digit.
    return f" {spell(int(digits)) if len(digits) <= 12 else ' '.join(ONES[int(digit)] for digit in digits)} "


def normalise(text: str) -> str:
    """The written form under which two transcripts are compared.

    Lower case; no punctuation; numerals in words ("42" -> "forty two"); signs in words ("43-11" -> "forty three minus
    eleven"); American spelling; common contractions written out. In the spirit of Whisper's English normaliser
    (Radford et al. 2022, appendix C), but towards words, because that is what the speech corpus is written in.
    """
    text = text.lower().replace("’", "'").replace("−", "-").replace("–", "-")
    text = re.sub(r"(?<=\d)\s*-\s*(?=\d)", " minus ", text)
    text = re.sub(r"(?<![\w)])-(?=\d)", " minus ", text)
    for sign, word in _SIGNS.items():
        text = text.replace(sign, word)
    text = re.sub(r"\d{1,3}(?:,\d{3})+|\d+", _spell_match, text)
    text = text.replace("-", " ")
    words = [word.strip("'") for word in re.sub(r"[^\w' ]", " ", text).replace("_", " ").split()]
    return " ".join(_SPELLINGS.get(word, word.replace("'", "")) for word in words if word)


@dataclass(frozen=True)
class WordErrors:
    """Edit distance in words between one reference and one hypothesis, after `normalise`."""

    errors: int
    words: int


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Substitutions, deletions and insertions that turn the reference into the hypothesis (through jiwer)."""
    jiwer = require("jiwer", extra="evals")
    reference, hypothesis = normalise(reference), normalise(hypothesis)
    if not reference:
        return WordErrors(errors=len(hypothesis.split()), words=0)
    counts = jiwer.process_words(reference, hypothesis)
    return WordErrors(counts.substitutions + counts.deletions + counts.insertions, len(reference.split()))


def word_error_rate(pairs: list[WordErrors]) -> float:
    """Errors over reference words of a whole test set (not the mean of its sentences' rates)."""
    return sum(pair.errors for pair in pairs) / max(1, sum(pair.words for pair in pairs))
