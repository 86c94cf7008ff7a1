"""What the speech codec is trained on: the corpus' utterances with their pitch, phonemes and registered voice."""

import random

import numpy as np

from tony.data.corpus import Corpus
from tony.data.world.tasks import ASSISTANT_VOICES
from tony.tokens.audio import Spoken
from tony.tokens.speech_signal import pitch

UNSPOKEN = "ˈˌ.?!,"  # stress marks and punctuation are no sounds of their own


def phonemes_of(spelled: str) -> str:
    """A transcription without what the codec's read-out need not tell."""
    return "".join(symbol for symbol in spelled if symbol not in UNSPOKEN)


def symbols_of(corpus: Corpus) -> str:
    """Every phoneme of the training transcriptions, the space between words among them, sorted."""
    return "".join(sorted(set("".join(phonemes_of(u.phonemes) for u in corpus.speech("train")))))


def training_speech(corpus: Corpus, symbols: str, limit: int | None = None) -> list[Spoken]:
    """Synthetic and human training utterances, at most `limit` of them; a human one has no phonemes to learn from."""
    utterances = corpus.speech("train") + corpus.speech("human_train")
    random.Random(0).shuffle(utterances)
    spoken = []
    for utterance in utterances[:limit]:
        samples = corpus.samples(utterance)
        spelled = phonemes_of(utterance.phonemes)
        spoken.append(
            Spoken(
                samples=(np.clip(samples, -1, 1) * 32767).astype(np.int16),
                hertz=pitch(samples),
                phonemes=np.array([symbols.index(symbol) + 1 for symbol in spelled], np.int32),
                voice=ASSISTANT_VOICES.get(utterance.voice, 0),
            )
        )
    return [item for item in spoken if len(item.samples) < 5 * 16_000]
