import random
from itertools import pairwise

import numpy as np
import pytest

from tony.data.corpus import ONSET, Corpus, Utterance
from tony.data.world.sentences import is_held_out
from tony.data.world.splicing import FRAME, JOINT, Inventory, splice


def utterance(text: str, ends: tuple[int, ...]) -> Utterance:
    """A recording with one phoneme for each word."""
    phonemes = " ".join("a" for _ in text.split()) + "."
    return Utterance(text, text, phonemes, "x", "everyday", "train", 0, 0, ends)


# Phonemes a, space, b, space, c, full stop end here; each word's number is its sound.
FIRST = utterance("one two three", (10, 12, 22, 24, 34, 40))
SECOND = utterance("two four", (15, 17, 30, 33))
SOUNDS = {
    FIRST.id: np.repeat(np.float32([0, 1, 2, 3]), np.diff([0, ONSET, 10, 22, 45]) * FRAME),
    SECOND.id: np.repeat(np.float32([0, 2, 4]), np.diff([0, ONSET, 15, 40]) * FRAME),
}


def sound(recording: Utterance) -> np.ndarray:
    return SOUNDS[recording.id]


def test_words_end_where_their_last_phonemes_do():
    assert FIRST.word_ends == (10, 22, 34)
    assert SECOND.word_ends == (15, 30)
    assert Utterance("1", "a b", "", "x", "y", "train", 0, 0).word_ends == ()


def test_a_sentence_is_put_together_from_the_longest_runs_of_words():
    voice = Inventory([FIRST, SECOND])
    assert voice.has("one four three") and not voice.has("one five")
    found = [voice.pieces("one two four", random.Random(seed)) for seed in range(30)]
    assert all(" ".join(w for u, a, b in pieces for w in u.text.split()[a:b]) == "one two four" for pieces in found)
    assert [(FIRST, 0, 2), (SECOND, 1, 2)] in found and [(FIRST, 0, 1), (SECOND, 0, 2)] in found
    with pytest.raises(KeyError, match="five"):
        voice.pieces("five", random.Random(0))


def test_spliced_words_sound_until_they_end():
    samples, ends = splice([(FIRST, 0, 1), (SECOND, 1, 2), (FIRST, 1, 3)], sound)
    lengths = [0.09, 0.15, 0.12, 0.12]
    assert np.diff([0, *ends]) == pytest.approx([0.10, *lengths[1:]], abs=1e-6)
    starts = [ONSET / 100, *ends[:-1]]
    for start, end, expected in zip(starts, ends, (1, 4, 2, 3), strict=True):
        inside = samples[int(start * 16_000) + JOINT : int(end * 16_000) - JOINT]
        assert (inside == expected).all()
    first = round(ends[0] * 16_000) - JOINT // 2  # pieces fade into each other: of one there is all, then nothing
    assert samples[first] == 1 and samples[first + JOINT - 1] == 4


def test_a_whole_recording_comes_back_whole():
    samples, ends = splice([(FIRST, 0, 3)], sound)
    np.testing.assert_array_equal(samples, SOUNDS[FIRST.id])
    assert ends == pytest.approx((0.10, 0.22, 0.34))


def test_made_up_sentences_are_never_held_out_ones():
    corpus = Corpus.builtin()
    voice = Inventory([u for u in corpus.speech("train") if u.voice == "af_heart"])
    rng = random.Random(0)
    held_out = {u.text for split in ("heard", "asked", "spoken") for u in corpus.speech(split) if u.kind != "chat"}
    for _ in range(50):
        text = voice.sentence(rng)
        assert text not in held_out and not is_held_out(text)
        samples, ends = splice(voice.pieces(text, rng), corpus.samples)
        assert len(ends) == len(text.split()) and all(a < b for a, b in pairwise(ends))
        assert ends[-2:][0] < len(samples) / 16_000
