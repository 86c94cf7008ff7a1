"""What the speech codec is trained on: the corpus' utterances with their pitch, phonemes and registered voice."""

import random

import numpy as np

from tony.data.corpus import ONSET, PAUSES, Corpus, Utterance
from tony.data.world.tasks import ASSISTANT_VOICES
from tony.errors import TonyError
from tony.tokens.audio import UNKNOWN, Spoken
from tony.tokens.speech_signal import pitch

STRESS = "ˈˌ"  # no sound of its own, and PAUSES are none at all


def phonemes_of(spelled: str) -> str:
    """A transcription without what the codec's read-out need not tell."""
    return "".join(symbol for symbol in spelled if symbol not in STRESS + PAUSES)


def symbols_of(corpus: Corpus) -> str:
    """Every phoneme of the training transcriptions, the space between words among them, sorted."""
    return "".join(sorted(set("".join(phonemes_of(u.phonemes) for u in corpus.speech("train")))))


def phoneme_frames(utterance: Utterance, symbols: str, frames: int) -> np.ndarray:
    """The phoneme of each 10 ms frame, int8 [frames]: 0 for silence, 1 + its place in `symbols`, UNKNOWN everywhere
    if nobody labelled the utterance. A stress mark's time goes to the vowel after it."""
    if not utterance.ends:
        return np.full(frames, UNKNOWN, np.int8)
    labels, start = np.zeros(frames, np.int8), ONSET
    for symbol, end in zip(utterance.phonemes, utterance.ends, strict=True):
        if symbol in STRESS:
            continue
        labels[start:end] = 0 if symbol in PAUSES else 1 + symbols.index(symbol)
        start = end
    return labels


def training_speech(corpus: Corpus, symbols: str, limit: int | None = None) -> list[Spoken]:
    """Synthetic and human training utterances, at most `limit` of them; nobody labelled a human one's phonemes."""
    utterances = corpus.speech("train") + corpus.speech("human_train")
    if not any(utterance.ends for utterance in utterances):
        raise TonyError(
            f"no utterance of the corpus in {corpus.path} says when its phonemes end; build it again with "
            "scripts/build_corpus.py"
        )
    random.Random(0).shuffle(utterances)
    spoken = []
    for utterance in utterances[:limit]:
        samples = corpus.samples(utterance)
        hertz = pitch(samples)
        spoken.append(
            Spoken(
                samples=(np.clip(samples, -1, 1) * 32767).astype(np.int16),
                hertz=hertz,
                phonemes=phoneme_frames(utterance, symbols, len(hertz)),
                voice=ASSISTANT_VOICES.get(utterance.voice, 0),
            )
        )
    return [item for item in spoken if len(item.samples) < 5 * 16_000]
