"""The speech codec: 16 kHz sound <-> 25 tokens a second of one finite-scalar-quantised codebook, streaming both ways.

Encoder: causal spectral features -> causal transformer -> FSQ code (Mentzer et al. 2023). Decoder: code -> causal
transformer, told which registered voice to speak in -> pitch, voicing and two spectral envelopes every 10 ms ->
harmonic-plus-noise synthesis (`speech_signal`). Both look LOOK_AHEAD tokens ahead: a code is made when the next 80 ms
are known too, and turned into sound when the next two codes are. The encoder learns, first alone and then beside the
sound, to tell the phonemes of a token's two halves, and each single code to say them: so a small language model can
learn what was spoken.

Shapes: b batch, t tokens (40 ms), f = 4 t frames (10 ms), n = 640 t samples.
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tony.arrays import matmul, rms_norm
from tony.errors import TonyError
from tony.tokens import transformer, weights
from tony.tokens.codec import codes_to_values, fsq_quantize, values_to_codes
from tony.tokens.speech_signal import (
    BANDS,
    DELAY,
    FEATURES,
    HOP,
    SAMPLE_RATE,
    SHAPED,
    WINDOW,
    features,
    frames,
    overlap_add,
    pulses,
    shape,
    third_octaves,
)

FRAMES_PER_TOKEN = 4
LOOK_AHEAD = 2  # tokens that the encoder hears, and codes that the decoder knows, beyond the one they are at
HALVES = 2  # of a token, each with its own phoneme: a phoneme takes 40 to 100 ms
UNKNOWN = -1  # phoneme of what nobody labelled
TOKEN = FRAMES_PER_TOKEN * HOP  # samples
VOICES = 16  # row 0 of the voice table means "whoever it is": the codes alone say how it sounds
STFT_SIZES = (256, 512, 1024)
FLOOR = 0.02  # magnitude below which the spectral loss no longer looks; a loud vowel's is about 10
PHONEME_WEIGHT = 0.9
ECHO_WEIGHT = 3.0
ENVELOPE_WEIGHT = 20.0
CORRELATION_WEIGHT = 0.6
PITCH_WEIGHT = 5.0
OWN_PITCH = 2  # of so many rows of a batch, one is spoken at the pitch that the decoder tells, as in use
SILENT = -30.0  # log gain
COLOUR_LEVEL = 4.0  # dB, the standard deviation at each of
COLOUR_POINTS = 7  # points of a random filter between
COLOUR_RANGE = (120.0, 7500.0)  # Hz
COLOUR_TAPS = 255


@dataclass(frozen=True)
class AudioCodecConfig:
    """Everything that fixes the codec's shapes; `symbols` are the phonemes of the read-out, without silence."""

    levels: tuple[int, ...] = (3, 3, 3, 3, 3, 3, 3, 2)
    width: int = 192
    layers: int = 4
    heads: int = 4
    window: int = 48
    symbols: str = ""
    kind: str = field(default="speech-fsq", init=False)


def init(key: jax.Array, config: AudioCodecConfig) -> dict:
    """Random parameters."""
    keys = jax.random.split(key, 10)
    d, phonemes = config.width, HALVES * (len(config.symbols) + 1)
    bias = np.zeros(FRAMES_PER_TOKEN * (2 * BANDS + 2), np.float32)
    bias.reshape(FRAMES_PER_TOKEN, -1)[:, : 2 * BANDS] = -4
    return {
        "encoder": {
            "into": transformer.linear_init(keys[0], FRAMES_PER_TOKEN * FEATURES, d),
            "blocks": transformer.init(keys[1], config.layers, d),
            "norm": jnp.ones(d),
            "hidden": transformer.linear_init(keys[8], d, 2 * d),
            "out": transformer.linear_init(keys[2], 2 * d, len(config.levels)),
        },
        "decoder": {
            "into": transformer.linear_init(keys[3], len(config.levels), d),
            "voices": 0.1 * jax.random.normal(keys[4], (VOICES, d)),
            "end": jnp.zeros(d),
            "blocks": transformer.init(keys[5], config.layers, d),
            "norm": jnp.ones(d),
            "out": transformer.linear_init(keys[6], d, len(bias), scale=0.1),
            "bias": jnp.asarray(bias),
        },
        "phonemes": {
            "into": transformer.linear_init(keys[7], len(config.levels), 256),
            "into_bias": jnp.zeros(256),
            "out": transformer.linear_init(keys[0], 256, phonemes),
            "heard": transformer.linear_init(keys[9], d, phonemes),
        },
    }


# ----------------------------------------------------------------------------------------------- network


def _late(x: jax.Array) -> jax.Array:
    """x [b, t, ...] where each token has what was made LOOK_AHEAD tokens later; the last ones of a row have zeros."""
    return jnp.concatenate([x[:, LOOK_AHEAD:], jnp.zeros_like(x[:, :LOOK_AHEAD])], axis=1)


def _listen(params, config, samples, segments, positions):
    """What the encoder makes of samples [b, n]: [b, t, d]; segments [b, t] keep utterances in a row apart.

    An utterance's segment is LOOK_AHEAD tokens longer than it: there the encoder hears what comes after the last code.
    """
    seen = features(samples, jnp.zeros((samples.shape[0], WINDOW - HOP)))
    x = matmul(seen.reshape(*segments.shape, -1), params["into"])
    x = transformer.apply(params["blocks"], x, segments, positions, config.heads, window=config.window)
    return _late(rms_norm(x, params["norm"]))


def _latent(params, heard):
    """What becomes the code, before it is rounded: [..., levels] of what was heard [..., d]."""
    return jax.nn.gelu(heard @ params["hidden"]) @ params["out"]


def _moments_penalty(latent: jax.Array, real: jax.Array) -> jax.Array:
    """Distance of each latent dimension's mean and deviation from (0, 1.2), where a bounded normal fills all levels,
    and of each two dimensions' correlation from 0, so that they tell different things.

    Without the first a dimension can drift into the flat end of the bounding tanh and never come back.
    """
    weight = (real / real.sum())[..., None]
    mean = (latent * weight).sum((0, 1))
    covariance = jnp.einsum("btk,btl->kl", (latent - mean) * weight, latent - mean)
    deviation = jnp.sqrt(jnp.diag(covariance) + 1e-6)
    correlation = covariance / deviation[:, None] / deviation * (1 - jnp.eye(len(mean)))
    moments = jnp.mean(jnp.square(mean) + jnp.square(deviation - 1.2))
    return moments + CORRELATION_WEIGHT * jnp.square(correlation).sum(0).mean()


def _heads(params, hidden):
    """Split decoder output [b, t, d] into (harmonic, noise) log gains [b, f, BANDS], pitch and voicing [b, f]."""
    out = matmul(rms_norm(hidden, params["norm"]), params["out"]) + params["bias"]
    out = out.reshape(out.shape[0], -1, 2 * BANDS + 2)
    return out[..., :BANDS], out[..., BANDS : 2 * BANDS], out[..., -2], out[..., -1]


def _decoder_input(params, values, voices, real):
    """Decoder input [b, t, d] of codes' values [b, t, levels]; where real [b, t] is false, the end of an utterance."""
    codes = jnp.where(real[..., None] > 0, matmul(values, params["into"]), params["end"])
    return codes + params["voices"][voices]


def phoneme_logits(params: dict, values: jax.Array) -> jax.Array:
    """Logits [..., HALVES, symbols + 1] (0 is silence) read from single codes' values [..., levels]."""
    hidden = jax.nn.gelu(values @ params["into"] + params["into_bias"])
    return _in_halves(hidden @ params["out"])


def _in_halves(x: jax.Array) -> jax.Array:
    return x.reshape(*x.shape[:-1], HALVES, -1)


def _pitch_in_hertz(octave, voicing):
    return jnp.where(voicing > 0, 128.0 * 2.0 ** jnp.clip(octave, -1.1, 1.7), 0.0)


# ---------------------------------------------------------------------------------------------- training


def loss(params: dict, batch: dict, key: jax.Array, *, config: AudioCodecConfig) -> tuple[jax.Array, dict]:
    """Training loss of a batch of packed utterances.

    batch: samples [b, n] in [-1, 1], hertz [b, f], segments, positions and voices [b, t], real [b, t] (0 in the tokens
    after each utterance and in padding), phonemes [b, f] (0 for silence, UNKNOWN).

    "echo" is how differently the encoder itself hears the decoded sound: it knows what tells phonemes apart, which a
    distance of spectra does not. The encoder learns nothing from that.
    """
    segments, positions, samples = batch["segments"], batch["positions"], batch["samples"]
    heard, values, wrong, moments = _codes_and_phonemes(params, batch, config)
    x = _decoder_input(params["decoder"], values, batch["voices"], batch["real"])
    hidden = transformer.apply(params["decoder"]["blocks"], x, segments, positions, config.heads, window=config.window)
    harmonic, noisy, octave, voicing = _heads(params["decoder"], _late(hidden))

    hertz, count = batch["hertz"], samples.shape[1]
    told = jax.lax.stop_gradient(_pitch_in_hertz(octave, voicing))
    own = np.arange(len(hertz))[:, None] % OWN_PITCH == 0
    train, _ = pulses(jnp.where(own, told, hertz), jnp.zeros(len(hertz)))
    noise = jax.random.normal(key, train.shape)
    tone, hiss = (
        shape(jnp.pad(source, ((0, 0), (HOP, 0))), gains) for source, gains in ((train, harmonic), (noise, noisy))
    )
    made = overlap_add(tone + hiss)[:, DELAY : DELAY + count]
    spoken = jnp.repeat(batch["real"], TOKEN, axis=1)
    spectral = _spectral_distance(made * spoken, samples * spoken)
    envelopes = envelope_distance(made * spoken, samples * spoken, segments)
    critic, heard = jax.lax.stop_gradient((params["encoder"], heard))
    echo = jnp.square(_listen(critic, config, made * spoken, segments, positions) - heard).mean(-1)
    echo = (echo * batch["real"]).sum() / batch["real"].sum()

    voiced = (hertz > 0).astype(jnp.float32)
    real = jnp.repeat(batch["real"], FRAMES_PER_TOKEN, axis=1)
    octaves = jnp.log2(jnp.where(hertz > 0, hertz, 128.0) / 128.0)
    pitch_loss = (jnp.abs(octave - octaves) * voiced * real).sum() / jnp.maximum(1, (voiced * real).sum())
    voicing_loss = (optax.sigmoid_binary_cross_entropy(voicing, voiced) * real).sum() / jnp.maximum(1, real.sum())
    total = spectral + ENVELOPE_WEIGHT * envelopes + ECHO_WEIGHT * echo
    total += PITCH_WEIGHT * pitch_loss + 0.3 * voicing_loss + PHONEME_WEIGHT * wrong + moments
    return total, {
        "spectral": spectral,
        "envelopes": envelopes,
        "echo": echo,
        "pitch": pitch_loss,
        "voicing": voicing_loss,
        "phonemes": wrong,
    }


def phoneme_loss(params: dict, batch: dict, key: jax.Array, *, config: AudioCodecConfig) -> tuple[jax.Array, dict]:
    """Loss of the encoder and the read-out alone, for a start: a third of the work of `loss`."""
    *_, phonemes, moments = _codes_and_phonemes(params, batch, config)
    return phonemes + moments, {"phonemes": phonemes}


def _codes_and_phonemes(params, batch, config):
    """(what the encoder heard [b, t, d], quantised values [b, t, levels], loss of phonemes, moments penalty)."""
    heard = _listen(params["encoder"], config, batch["samples"], batch["segments"], batch["positions"])
    latent = _latent(params["encoder"], heard)
    values = fsq_quantize(latent, config.levels)
    wrong = _phoneme_loss(params["phonemes"], heard, values, batch)
    return heard, values, wrong, _moments_penalty(latent, batch["real"])


def _phoneme_loss(params, heard, values, batch):
    """Cross-entropy of the phonemes told from `heard`, plus that of the codes' read-out with what `heard` tells.

    The first, which no rounding hinders, is learnt several times faster; the second, a distillation (Hinton et al.
    2015), makes the codes keep it, and needs no label.
    """
    labels = _in_halves(batch["phonemes"].reshape(*batch["segments"].shape, -1))[..., -1]  # of the last frame of each
    real = jnp.broadcast_to(batch["real"][..., None], labels.shape)
    known = (labels != UNKNOWN) * real
    told = _in_halves(matmul(heard, params["heard"]))
    wrong = optax.softmax_cross_entropy_with_integer_labels(told, jnp.maximum(labels, 0))
    teacher = jax.lax.stop_gradient(jax.nn.softmax(told))
    unlike = optax.softmax_cross_entropy(phoneme_logits(params, values), teacher)
    return (wrong * known).sum() / jnp.maximum(1, known.sum()) + (unlike * real).sum() / jnp.maximum(1, real.sum())


def _spectral_distance(made: jax.Array, real: jax.Array) -> jax.Array:
    """Mean over STFT_SIZES of the L1 distance of log magnitudes (Yamamoto et al. 2020, multi-resolution STFT loss)."""
    total = jnp.zeros(())
    for size in STFT_SIZES:
        window = np.hanning(size + 1)[:-1].astype(np.float32)
        ours, theirs = (jnp.abs(jnp.fft.rfft(frames(x, size, size // 2) * window) + 1e-7) for x in (made, real))
        floor = FLOOR * np.sqrt(size / 512)
        total += jnp.mean(jnp.abs(jnp.log(ours + floor) - jnp.log(theirs + floor)))
    past = jnp.zeros((made.shape[0], WINDOW - HOP))
    bands = jnp.mean(jnp.abs(features(made, past) - features(real, past))[..., :BANDS])
    return total / len(STFT_SIZES) + 1.5 * bands


def envelope_distance(made: jax.Array, real: jax.Array, segments: jax.Array) -> jax.Array:
    """1 - how alike two sounds [b, n] rise and fall in each third of an octave, over 0.4 s; segments [b, t] of `real`.

    After the short-time objective intelligibility measure (Taal et al. 2011, equations 1 to 6): frames 40 dB below the
    loudest of a row are left out, loudness within a stretch does not matter, and what is 15 dB too loud is as wrong as
    can be.
    """
    size, hop, points, stretch = 400, 200, 512, 30
    window = np.hanning(size + 2)[1:-1].astype(np.float32)
    theirs, ours = (frames(x, size, hop) * window for x in (real, made))
    energy = jnp.square(theirs).sum(-1)
    loud = energy > 1e-4 * energy.max(1, keepdims=True)
    order = jnp.argsort(~loud, axis=1, stable=True)  # the loud ones first
    at = np.arange(0, loud.shape[1] - stretch + 1, stretch // 5)[:, None] + np.arange(stretch)
    whose = loud * segments[:, (np.arange(loud.shape[1]) * hop + size // 2) // TOKEN]
    whose = jnp.take_along_axis(whose, order, axis=1)[:, at]
    counted = (whose[..., 0] == whose[..., -1]) & (whose[..., -1] > 0)  # [b, stretches]

    def envelopes(x):
        power = jnp.square(jnp.abs(jnp.fft.rfft(x, points) + 1e-9))
        bands = jnp.sqrt(power @ third_octaves(points) + 1e-6)  # [b, frames, 15]
        return jnp.take_along_axis(bands, order[..., None], axis=1)[:, at]

    theirs, ours = envelopes(theirs), envelopes(ours)  # [b, stretches, stretch, 15]
    loudness = jnp.sqrt(jnp.square(theirs).sum(2, keepdims=True) / jnp.square(ours).sum(2, keepdims=True))
    ours = jnp.minimum(loudness * ours, theirs * (1 + 10 ** (15 / 20)))
    theirs, ours = (x - x.mean(2, keepdims=True) for x in (theirs, ours))
    alike = (theirs * ours).sum(2) / jnp.sqrt(jnp.square(theirs).sum(2) * jnp.square(ours).sum(2) + 1e-9)
    return 1 - (alike.mean(-1) * counted).sum() / jnp.maximum(1, counted.sum())


@dataclass(frozen=True)
class Spoken:
    """One training utterance: 16 kHz int16 samples, pitch (0 unvoiced) and phoneme (0 silence) a frame, voice row."""

    samples: np.ndarray
    hertz: np.ndarray
    phonemes: np.ndarray
    voice: int


def pack_batch(utterances: list[Spoken], seed: int, step: int, rows: int, tokens: int) -> dict[str, np.ndarray]:
    """Batch number `step`: rows of utterances one after another, a pure function of its arguments.

    Utterances of no registered voice are made `another_speaker`'s; all get a random gain and a random start within the
    first token.
    """
    rng = np.random.default_rng((seed, step))
    frames_per_row = tokens * FRAMES_PER_TOKEN
    batch = {
        "samples": np.zeros((rows, tokens * TOKEN), np.float32),
        "hertz": np.zeros((rows, frames_per_row), np.float32),
        "segments": np.zeros((rows, tokens), np.int32),
        "positions": np.zeros((rows, tokens), np.int32),
        "real": np.zeros((rows, tokens), np.float32),
        "voices": np.zeros((rows, tokens), np.int32),
        "phonemes": np.full((rows, frames_per_row), UNKNOWN, np.int32),
    }
    for row in range(rows):
        start, segment = 0, 0
        for _ in range(3 * tokens // 32):  # tries: what does not fit is drawn again, so that rows are nearly full
            item = utterances[rng.integers(len(utterances))]
            change = _drawn_change(item, rng)
            if start + change.length + LOOK_AHEAD > tokens:
                continue
            item, length = _changed(item, change), change.length
            segment += 1
            here = slice(start, start + length)
            batch["samples"][row, start * TOKEN : start * TOKEN + len(item.samples)] = item.samples
            first = start * FRAMES_PER_TOKEN
            for name, values in (("hertz", item.hertz), ("phonemes", item.phonemes)):
                values = values[: length * FRAMES_PER_TOKEN]
                batch[name][row, first : first + len(values)] = values
            whole = slice(start, start + length + LOOK_AHEAD)
            batch["segments"][row, whole] = segment
            batch["positions"][row, whole] = np.arange(length + LOOK_AHEAD)
            batch["voices"][row, whole] = item.voice
            batch["real"][row, here] = 1
            start += length + LOOK_AHEAD
    return batch


def another_speaker(samples: np.ndarray, rate: float, tilt: float) -> np.ndarray:
    """Speech [n] as somebody else might say it: pitch, formants and pace by `rate`, brightness by `tilt` in -1..1."""
    count = int(len(samples) / rate)
    samples = np.interp(np.arange(count) * rate, np.arange(len(samples)), samples).astype(np.float32)
    return samples - np.float32(tilt) * np.pad(samples, (1, 0))[:-1]


def coloured(samples: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Speech [n] through a filter of these levels (dB) at frequencies evenly apart in logarithm, as of another throat.

    The filter is symmetric, so that nothing comes later or earlier.
    """
    points = np.geomspace(*COLOUR_RANGE, len(levels))
    at = np.fft.rfftfreq(COLOUR_TAPS, 1 / SAMPLE_RATE)
    gains = 10 ** (np.interp(np.log(np.maximum(at, points[0])), np.log(points), levels) / 20)
    response = np.roll(np.fft.irfft(gains, COLOUR_TAPS), COLOUR_TAPS // 2) * np.hanning(COLOUR_TAPS)
    return np.convolve(samples, response, "same").astype(np.float32)


class _Change(NamedTuple):
    """What is done to an utterance: tokens of length afterwards, frames of silence before it, gain, the voice that it
    then counts as, and of a stranger made of it the rate, tilt and levels."""

    length: int
    late: int
    gain: np.float32
    voice: int
    rate: float
    tilt: float
    levels: np.ndarray | None


def _drawn_change(item: Spoken, rng: np.random.Generator) -> _Change:
    voice, rate, tilt, levels = item.voice, 1.0, 0.0, None
    if voice == 0 or rng.random() < 0.15:
        voice, rate, tilt = 0, rng.uniform(0.85, 1.18), rng.uniform(-0.3, 0.3)
        levels = rng.normal(0, COLOUR_LEVEL, COLOUR_POINTS)
    late = int(rng.integers(FRAMES_PER_TOKEN))
    gain = np.float32(rng.uniform(0.5, 1.2))
    length = -(-(int(len(item.samples) / rate) + late * HOP) // TOKEN)
    return _Change(length, late, gain, voice, rate, tilt, levels)


def _changed(item: Spoken, change: _Change) -> Spoken:
    samples, hertz, phonemes = item.samples.astype(np.float32) / 32768, item.hertz, item.phonemes
    if change.levels is not None:
        samples = coloured(another_speaker(samples, change.rate, change.tilt), change.levels)
        nearest = np.minimum((np.arange(int(len(hertz) / change.rate)) * change.rate).astype(int), len(hertz) - 1)
        hertz, phonemes = hertz[nearest] * change.rate, phonemes[nearest]
    samples = np.pad(samples * change.gain, (change.late * HOP, 0))
    hertz, phonemes = np.pad(hertz, (change.late, 0)).astype(np.float32), np.pad(phonemes, (change.late, 0), "edge")
    return Spoken(samples, hertz, phonemes, change.voice)


# --------------------------------------------------------------------------------------------------- use


@partial(jax.jit, static_argnames="config")
def _encode_packed(params, config, samples, segments, positions):
    latent = _latent(params["encoder"], _listen(params["encoder"], config, samples, segments, positions))
    return values_to_codes(fsq_quantize(latent, config.levels), config.levels)


@partial(jax.jit, static_argnames="config")
def _encode_step(params, config, state, samples):
    seen = features(samples[None], state["past"])
    x = matmul(seen.reshape(1, len(samples) // TOKEN, -1), params["into"])
    x, cache = transformer.stream(params["blocks"], state["cache"], x, config.heads)
    values = fsq_quantize(_latent(params, rms_norm(x, params["norm"])), config.levels)
    past = jnp.concatenate([state["past"], samples[None]], axis=1)[:, -(WINDOW - HOP) :]
    return values_to_codes(values[0], config.levels), {"cache": cache, "past": past}


@partial(jax.jit, static_argnames="config")
def _decode_step(params, config, state, codes, voice, noise):
    """Sound of the codes LOOK_AHEAD before each of `codes` [t]; -1 stands after the last one, silence comes first."""
    values = codes_to_values(jnp.maximum(codes, 0), config.levels)[None]
    x = _decoder_input(params, values, voice[None, None], codes[None] >= 0)
    first = jnp.repeat(state["cache"]["length"] + jnp.arange(len(codes)) < LOOK_AHEAD, FRAMES_PER_TOKEN)[None, :, None]
    x, cache = transformer.stream(params["blocks"], state["cache"], x, config.heads)
    harmonic, noisy, octave, voicing = _heads(params, x)
    harmonic, noisy = (jnp.where(first, SILENT, gains) for gains in (harmonic, noisy))
    train, phase = pulses(_pitch_in_hertz(octave, voicing), state["phase"])
    train = jnp.concatenate([state["train"], train], axis=1)
    noise = jnp.concatenate([state["noise"], noise[None]], axis=1)
    total = overlap_add(shape(train, harmonic) + shape(noise, noisy))
    tail = state["tail"].shape[1]
    total = total.at[:, :tail].add(state["tail"])
    return total[0, :-tail], {
        "cache": cache,
        "phase": phase,
        "train": train[:, -HOP:],
        "noise": noise[:, -HOP:],
        "tail": total[:, -tail:],
    }


def _chunks(count: int, sizes: tuple[int, ...] = (32, 4, 1)) -> list[int]:
    """Split a number of tokens into chunks of the few compiled sizes."""
    chunks = []
    for size in sizes:
        chunks += [size] * (count // size)
        count %= size
    return chunks


class _Encoder:
    """Sound in pieces of any length -> codes, LOOK_AHEAD tokens behind."""

    def __init__(self, codec: "SpeechCodec"):
        self.codec, self.waiting, self.heard, self.ahead = codec, np.zeros(0, np.float32), 0, 0
        config = codec.config
        self.state = {
            "cache": transformer.init_cache(config.layers, config.width, config.heads, config.window),
            "past": jnp.zeros((1, WINDOW - HOP)),
        }

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Codes [t] that `samples` [n] complete."""
        self.waiting = np.concatenate([self.waiting, np.asarray(samples, np.float32)])
        codes = [np.zeros(0, np.int32)]
        self.heard += len(samples)
        for size in _chunks(len(self.waiting) // TOKEN):
            piece, self.waiting = self.waiting[: size * TOKEN], self.waiting[size * TOKEN :]
            new, self.state = _encode_step(self.codec.params["encoder"], self.codec.config, self.state, piece)
            early = min(size, LOOK_AHEAD - self.ahead)  # the first tokens have no code to tell
            codes.append(np.asarray(new, np.int32)[early:])
            self.ahead += early
        return np.concatenate(codes)

    def flush(self) -> np.ndarray:
        """Codes of what is left, filled up with silence."""
        missing = -len(self.waiting) % TOKEN + LOOK_AHEAD * TOKEN
        return self.push(np.zeros(missing if self.heard else 0, np.float32))


class _Decoder:
    """Codes in pieces of any length -> sound, LOOK_AHEAD codes and DELAY samples behind."""

    def __init__(self, codec: "SpeechCodec", voice: int):
        config = codec.config
        self.codec, self.voice, self.sent = codec, voice, 0
        self.state: dict[str, Any] = {
            "cache": transformer.init_cache(config.layers, config.width, config.heads, config.window),
            "phase": jnp.zeros(1),
            "train": jnp.zeros((1, HOP)),
            "noise": jnp.zeros((1, HOP)),
            "tail": jnp.zeros((1, -(-SHAPED // HOP) * HOP - HOP)),
        }

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Samples [n] that `codes` [t] make final."""
        made, start = [np.zeros(0, np.float32)], 0
        for size in _chunks(len(codes)):
            piece = np.asarray(codes[start : start + size], np.int32)
            noise = _noise_table()[(self.sent + np.arange(size * TOKEN)) % len(_noise_table())]
            new, self.state = _decode_step(
                self.codec.params["decoder"], self.codec.config, self.state, piece, jnp.int32(self.voice), noise
            )
            made.append(np.asarray(new)[max(0, LOOK_AHEAD * TOKEN + DELAY - self.sent) :])
            start, self.sent = start + size, self.sent + size * TOKEN
        return np.concatenate(made)

    def flush(self) -> np.ndarray:
        """The sound of the last codes."""
        if not self.sent:
            return np.zeros(0, np.float32)
        return np.concatenate([self.push(np.full(LOOK_AHEAD, -1)), np.asarray(self.state["tail"][0, :DELAY])])


def _noise_table() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(4 * SAMPLE_RATE).astype(np.float32)


class SpeechCodec:
    """A trained codec: implements `tony.tokens.codec.AudioCodec`."""

    sample_rate = SAMPLE_RATE
    tokens_per_second = SAMPLE_RATE // TOKEN

    def __init__(self, config: AudioCodecConfig, params: dict):
        self.config, self.params = config, params

    @property
    def codebook_size(self) -> int:
        """Number of distinct codes."""
        return int(np.prod(self.config.levels))

    @property
    def features(self) -> np.ndarray:
        """What is known of each code [codebook_size, k]: its quantised values and its phoneme probabilities."""
        values = codes_to_values(jnp.arange(self.codebook_size), self.config.levels)
        probabilities = np.asarray(jax.nn.softmax(phoneme_logits(self.params["phonemes"], values)))
        return np.concatenate([np.asarray(values), probabilities.reshape(len(values), -1)], axis=1)

    def encoder(self) -> _Encoder:
        """A new streaming encoder."""
        return _Encoder(self)

    def decoder(self, voice: int = 0) -> _Decoder:
        """A new streaming decoder that speaks in a registered voice (0: as the codes say)."""
        return _Decoder(self, voice)

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """Codes int32 [t] of samples float32 [n] at 16 kHz in [-1, 1]; the last token is filled up with silence."""
        encoder = self.encoder()
        return np.concatenate([encoder.push(samples), encoder.flush()])

    def decode(self, codes: np.ndarray, voice: int = 0) -> np.ndarray:
        """Samples float32 [640 t] of codes int32 [t]."""
        decoder = self.decoder(voice)
        return np.concatenate([decoder.push(codes), decoder.flush()])

    def encode_many(self, sounds: list[np.ndarray], rows: int = 8, tokens: int = 256) -> list[np.ndarray]:
        """`encode` of many sounds, several to a row of one compiled shape; a sound longer than a row goes alone."""
        results: list = [None] * len(sounds)
        lengths = [-(-len(sound) // TOKEN) for sound in sounds]
        plan: list[list[tuple[int, int]]] = [[]]
        used = 0
        for index in sorted(range(len(sounds)), key=lambda i: -lengths[i]):
            if lengths[index] + LOOK_AHEAD > tokens:
                results[index] = self.encode(sounds[index])
                continue
            if used + lengths[index] + LOOK_AHEAD > tokens:
                plan.append([])
                used = 0
            plan[-1].append((index, used))
            used += lengths[index] + LOOK_AHEAD
        for first in range(0, len(plan), rows):
            samples = np.zeros((rows, tokens * TOKEN), np.float32)
            segments, positions = np.zeros((rows, tokens), np.int32), np.zeros((rows, tokens), np.int32)
            group = plan[first : first + rows]
            for row, items in enumerate(group):
                for order, (index, start) in enumerate(items):
                    samples[row, start * TOKEN : start * TOKEN + len(sounds[index])] = sounds[index]
                    whole = slice(start, start + lengths[index] + LOOK_AHEAD)
                    segments[row, whole] = order + 1
                    positions[row, whole] = np.arange(lengths[index] + LOOK_AHEAD)
            codes = np.asarray(_encode_packed(self.params, self.config, samples, segments, positions))
            for row, items in enumerate(group):
                for index, start in items:
                    results[index] = codes[row, start : start + lengths[index]]
        return results

    def save(self, directory: Path) -> None:
        """Write the codec's folder."""
        weights.save(Path(directory), asdict(self.config), jax.device_get(self.params))

    @classmethod
    def load(cls, directory: Path) -> "SpeechCodec":
        """Read a folder written by `save`; TonyError if it is damaged or of another shape."""
        stored, params = weights.load(Path(directory))
        stored.pop("kind", None)
        config = AudioCodecConfig(**{**stored, "levels": tuple(stored["levels"])})
        expected = weights.flatten(jax.eval_shape(lambda: init(jax.random.key(0), config)))
        for name, array in weights.flatten(params).items():
            if name not in expected or expected[name].shape != array.shape:
                raise TonyError(f"the codec in {directory} does not fit its config.json: {name} is {array.shape}")
        return cls(config, params)
