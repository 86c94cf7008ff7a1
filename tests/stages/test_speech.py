import numpy as np

from tony.data.corpus import ONSET, Utterance
from tony.stages.speech import phoneme_frames
from tony.tokens.audio import UNKNOWN


def utterance(phonemes: str, ends: tuple[int, ...]) -> Utterance:
    return Utterance("1", "a b", phonemes, "x", "y", "train", 0, 0, ends)


def test_each_frame_has_its_phoneme():
    labels = phoneme_frames(utterance("bˈA.", (ONSET + 2, ONSET + 3, ONSET + 6, ONSET + 9)), "Ab", 20)
    assert labels.tolist() == [0] * ONSET + [2, 2] + [1] * 4 + [0] * (20 - ONSET - 6)


def test_frames_after_the_sound_are_cut_and_recordings_without_labels_are_unknown():
    assert phoneme_frames(utterance("bA", (ONSET + 2, ONSET + 9)), "Ab", ONSET + 3).tolist() == [0] * ONSET + [2, 2, 1]
    np.testing.assert_array_equal(phoneme_frames(utterance("", ()), "Ab", 5), [UNKNOWN] * 5)
