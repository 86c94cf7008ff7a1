"""Signal processing of the audio codec: causal spectral features, pitch, and a harmonic-plus-noise synthesiser.

All times are in frames of 10 ms (HOP samples at 16 kHz). The synthesiser shapes a pulse train and white noise with
smooth spectral envelopes, frame by frame, and inverts their DFT. It follows the source-filter idea of Engel et al.,
"DDSP: Differentiable Digital Signal Processing" (2020), sections 3.2-3.4: the network need not predict phase, which a
code of 300 bits a second could not carry.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

SAMPLE_RATE = 16_000
HOP = 160
WINDOW = 640  # samples seen by one feature frame, all of them in the past
SHAPED = 512  # DFT size of the synthesiser's filters
BANDS = 80
LOW_BINS = 40  # DFT bins below 1 kHz that keep the harmonics of the voice apart
FEATURES = BANDS + LOW_BINS
LOWEST_PITCH, HIGHEST_PITCH = 60.0, 420.0


def _mel(hertz):
    return 2595 * np.log10(1 + np.asarray(hertz) / 700)


def _from_mel(mel):
    return 700 * (10 ** (np.asarray(mel) / 2595) - 1)


@cache
def band_centres() -> np.ndarray:
    """Centre frequencies in hertz of the BANDS mel-spaced bands [BANDS]."""
    return _from_mel(np.linspace(_mel(40), _mel(7_900), BANDS))


@cache
def mel_filters() -> np.ndarray:
    """Triangular filters [WINDOW // 2 + 1, BANDS] over the bins of a WINDOW-point DFT, each of unit sum."""
    edges = _from_mel(np.linspace(_mel(0), _mel(8_000), BANDS + 2))
    hertz = np.arange(WINDOW // 2 + 1) * SAMPLE_RATE / WINDOW
    rising = (hertz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    return (filters / np.maximum(filters.sum(0), 1e-3)).astype(np.float32)


@cache
def third_octaves(size: int) -> np.ndarray:
    """Which bins of a `size`-point DFT are in which of 15 thirds of an octave, from 150 Hz up: [bins, 15]."""
    hertz = np.arange(size // 2 + 1)[:, None] * SAMPLE_RATE / size
    centres = 150 * 2 ** (np.arange(15) / 3)
    return ((hertz >= centres * 2 ** (-1 / 6)) & (hertz < centres * 2 ** (1 / 6))).astype(np.float32)


@cache
def _envelope_bins() -> np.ndarray:
    """Matrix [BANDS, SHAPED // 2 + 1] that interpolates band values linearly to DFT bins."""
    hertz = np.arange(SHAPED // 2 + 1) * SAMPLE_RATE / SHAPED
    position = np.interp(hertz, band_centres(), np.arange(BANDS))
    below = np.minimum(position.astype(int), BANDS - 2)
    matrix = np.zeros((BANDS, len(hertz)), np.float32)
    matrix[below, np.arange(len(hertz))] = 1 - (position - below)
    matrix[below + 1, np.arange(len(hertz))] += position - below
    return matrix


@cache
def _hann(size: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def frames(samples: jax.Array, size: int, hop: int) -> jax.Array:
    """Overlapping frames [..., n, size] of samples [..., m] where n = (m - size) // hop + 1; hop must divide size."""
    count, parts = (samples.shape[-1] - size) // hop + 1, size // hop
    blocks = samples[..., : (count + parts - 1) * hop].reshape(*samples.shape[:-1], count + parts - 1, hop)
    return jnp.concatenate([blocks[..., i : i + count, :] for i in range(parts)], axis=-1)


def features(samples: jax.Array, past: jax.Array) -> jax.Array:
    """Causal features [b, n, FEATURES] of samples [b, n * HOP]; `past` [b, WINDOW - HOP] are the samples before them.

    Frame i sees the WINDOW samples that end with its own last one: log mel energies, and log magnitudes of the bins
    below 1 kHz, each of about zero mean and unit deviation in speech.
    """
    framed = frames(jnp.concatenate([past, samples], axis=-1), WINDOW, HOP) * _hann(WINDOW)
    power = jnp.square(jnp.abs(jnp.fft.rfft(framed)))
    mel = jnp.log(power @ mel_filters() + 1e-4)
    low = jnp.log(power[..., 1 : LOW_BINS + 1] + 1e-3)
    return (jnp.concatenate([mel, low], axis=-1) + 4.8) / 3


def pitch(samples: np.ndarray) -> np.ndarray:
    """Pitch in hertz per 10 ms frame [n], 0 where unvoiced: peaks of the normalised autocorrelation, median filtered.

    Used for training targets only, so a frame may look 30 ms ahead.
    """
    size, count = 1024, len(samples) // HOP
    padded = np.pad(samples.astype(np.float32), (size // 2 - HOP // 2, size))
    framed = np.lib.stride_tricks.sliding_window_view(padded, size)[::HOP][:count] * _hann(size)
    spectrum = np.fft.rfft(framed, 2 * size)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:, :size]
    window = np.fft.irfft(np.abs(np.fft.rfft(_hann(size), 2 * size)) ** 2)[:size]
    shortest, longest = int(SAMPLE_RATE / HIGHEST_PITCH), int(SAMPLE_RATE / LOWEST_PITCH)
    energy = correlation[:, :1]
    normalised = correlation / (energy + 1e-3) * (window[0] / np.maximum(window, 1e-3 * window[0]))
    lags = normalised[:, shortest : longest + 1]
    # A small preference for short lags breaks ties between a period and its multiples.
    best = np.argmax(lags - 0.1 * np.log2(np.arange(shortest, longest + 1) / shortest), axis=1)
    rows = np.arange(count)
    left, middle, right = (normalised[rows, best + shortest + shift] for shift in (-1, 0, 1))
    offset = 0.5 * (left - right) / np.minimum(left - 2 * middle + right, -1e-6)
    hertz = SAMPLE_RATE / (best + shortest + np.clip(offset, -0.5, 0.5))
    voiced = (middle > 0.5) & (energy[:, 0] > 0.02)
    hertz = np.where(voiced, hertz, 0)
    neighbours = np.lib.stride_tricks.sliding_window_view(np.pad(hertz, 2, mode="edge"), 5)
    return np.median(neighbours, axis=1).astype(np.float32)


def pulses(hertz: jax.Array, phase: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pulse train of unit power for hertz [b, n] (0: silent), going on from phase [b] in cycles.

    Returns (pulses [b, n * HOP], the new phase [b]). The pulses are the sum of all harmonics below 7.6 kHz, in closed
    form (the Dirichlet kernel).
    """
    voiced = hertz > 0
    per_sample = jnp.repeat(jnp.where(voiced, hertz, 100.0), HOP, axis=-1)
    cycles = phase[:, None] + jnp.cumsum(per_sample / SAMPLE_RATE, axis=-1)
    theta = 2 * jnp.pi * (cycles % 1.0)
    harmonics = jnp.floor(7_600 / per_sample)
    half = jnp.sin(theta / 2)
    near_zero = jnp.abs(half) < 1e-3
    kernel = jnp.where(
        near_zero, harmonics, jnp.sin((harmonics + 0.5) * theta) / (2 * jnp.where(near_zero, 1, half)) - 0.5
    )
    gate = jnp.repeat(voiced.astype(jnp.float32), HOP, axis=-1)
    return kernel * jnp.sqrt(2 / harmonics) * gate, cycles[:, -1] % 1.0


def shape(source: jax.Array, log_gains: jax.Array) -> jax.Array:
    """Filter a source frame by frame: [b, (n + 1) * HOP] and band gains [b, n, BANDS] -> pieces [b, n, SHAPED].

    Piece i is samples i * HOP ... (i + 2) * HOP of the source under a Hann window, filtered with zero phase, with
    (SHAPED - 2 * HOP) / 2 samples of room before and after it.
    """
    framed = frames(source, 2 * HOP, HOP) * _hann(2 * HOP)
    spectrum = jnp.fft.rfft(framed, SHAPED)
    margin = (SHAPED - 2 * HOP) // 2
    return jnp.roll(jnp.fft.irfft(spectrum * jnp.exp(log_gains @ _envelope_bins())), margin, axis=-1)


def overlap_add(pieces: jax.Array) -> jax.Array:
    """Sum pieces [b, n, SHAPED] that begin HOP samples apart: [b, (n + 3) * HOP]."""
    b, n, _ = pieces.shape
    parts = -(-SHAPED // HOP)
    blocks = jnp.pad(pieces, ((0, 0), (0, 0), (0, parts * HOP - SHAPED))).reshape(b, n, parts, HOP)
    moved = (jnp.pad(blocks[:, :, i], ((0, 0), (i, parts - 1 - i), (0, 0))) for i in range(parts))
    total = sum(moved, start=jnp.zeros((), pieces.dtype))
    return total.reshape(b, -1)


DELAY = HOP + (SHAPED - 2 * HOP) // 2  # samples by which `overlap_add` runs ahead of the frames' own times
