"""New sentences out of recorded ones: words of one voice, cut where they end and joined again.

A network that hears the same few hundred sentences over and over learns them by heart, and says them instead of what it
is asked to say. Every sentence of the grammar can be put together from a voice's recordings (unit selection, Hunt and
Black 1996), so that no two that it learns from need be alike.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np

from tony.data.corpus import ONSET, SAMPLE_RATE, Utterance
from tony.data.world.sentences import is_held_out, sentence

FRAME = SAMPLE_RATE // 100  # samples of the 10 ms in which ends are given
JOINT = SAMPLE_RATE // 100  # samples over which one piece fades into the next
LONGEST_PIECE = 3  # words
TRIES = 20  # sentences drawn until the voice has all words of one

Place = tuple[Utterance, int]  # a recording and the number of a word in it
Piece = tuple[Utterance, int, int]  # a recording, the first word taken, the word after the last


class Inventory:
    """The words that a voice has recordings of."""

    def __init__(self, utterances: Sequence[Utterance]):
        self.utterances = [utterance for utterance in utterances if utterance.word_ends]
        self._places: dict[str, list[Place]] = {}
        for utterance in self.utterances:
            for index, word in enumerate(utterance.text.split()):
                self._places.setdefault(word, []).append((utterance, index))

    def sentence(self, rng: random.Random) -> str | None:
        """A sentence of the training side, of a kind that the voice has said, in words that it has; None if none of a
        few is."""
        drawn = (sentence(rng, rng.choice(self.utterances).kind) for _ in range(TRIES if self.utterances else 0))
        return next((text for text in drawn if not is_held_out(text) and self.has(text)), None)

    def has(self, text: str) -> bool:
        """Whether the voice has all words of a text."""
        return all(word in self._places for word in text.split())

    def pieces(self, text: str, rng: random.Random) -> list[Piece]:
        """Recordings' parts that make up a text, words in a row from one recording where there are; KeyError if the
        voice lacks a word."""
        words, pieces, at = text.split(), [], 0
        while at < len(words):
            longest = rng.randint(1, LONGEST_PIECE)
            candidates = [
                (_shared(words[at : at + longest], utterance.text.split()[index:]), rng.random(), utterance, index)
                for utterance, index in self._places[words[at]]
            ]
            length, _, utterance, index = max(candidates, key=lambda candidate: candidate[:2])
            pieces.append((utterance, index, index + length))
            at += length
        return pieces


def _shared(words: list[str], others: list[str]) -> int:
    """How many words two lists begin with in common."""
    pairs = zip(words, others, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(words), len(others)))


def splice(pieces: Sequence[Piece], sound: Callable[[Utterance], np.ndarray]) -> tuple[np.ndarray, tuple[float, ...]]:
    """(samples [n], the second at which each word ends) of pieces of recordings; `sound(utterance)` has the samples."""
    made, ends = np.zeros(0, np.float32), []
    for number, (utterance, first, stop) in enumerate(pieces):
        samples = sound(utterance)
        borders = [min(len(samples), frame * FRAME) for frame in (ONSET, *utterance.word_ends)]
        begin = 0 if number == 0 and first == 0 else max(0, borders[first] - JOINT // 2)
        last = number == len(pieces) - 1 and stop == len(utterance.word_ends)
        end = len(samples) if last else min(len(samples), borders[stop] + JOINT // 2)
        joint = min(JOINT, len(made), end - begin)
        start = len(made) - joint
        made = _joined(made, samples[begin:end], joint)
        ends += [(start + border - begin) / SAMPLE_RATE for border in borders[first + 1 : stop + 1]]
    return made, tuple(ends)


def _joined(left: np.ndarray, right: np.ndarray, joint: int) -> np.ndarray:
    """Two sounds one after the other, the last `joint` samples of the first fading into the second's first."""
    rise = np.linspace(0, 1, joint, dtype=np.float32)
    both = left[len(left) - joint :] * (1 - rise) + right[:joint] * rise
    return np.concatenate([left[: len(left) - joint], both, right[joint:]])
