"""What a codec is, and finite scalar quantisation (FSQ), the codebook that both of Tony's codecs share.

FSQ (Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", section 3.1) bounds each of a few latent
dimensions and rounds it to one of a few levels; a code is the mixed-radix number of the levels, first dimension least
significant. Nothing is learned, so nothing can collapse.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

SAMPLE_RATE = 16_000  # Hz, of all sound inside Tony
TOKENS_PER_SECOND = 25  # of sound


class ImageCodec(Protocol):
    """Pictures <-> codes; 32x32 pictures are 16 codes, 64x64 are 64."""

    @property
    def codebook_size(self) -> int:
        """Number of distinct codes."""

    @property
    def features(self) -> np.ndarray:
        """float32 [codebook_size, k]: what is known of each code before any language model is trained."""

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [n, h, w, 3] -> int32 [n, tokens]."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """int [n, tokens] -> uint8 [n, h, w, 3]."""

    def save(self, directory: Path) -> None:
        """Write the codec's folder, with a config.json that holds its `kind`."""


class Encoder(Protocol):
    """Sound pushed in pieces of any length; codes come out as soon as they are sure."""

    def push(self, samples: np.ndarray) -> np.ndarray:
        """float32 [n] -> int32 [t], t may be 0."""

    def flush(self) -> np.ndarray:
        """The codes of what is still held back, int32 [t]."""


class Decoder(Protocol):
    """Codes pushed in pieces of any length; sound comes out as soon as it is sure."""

    def push(self, codes: np.ndarray) -> np.ndarray:
        """int [t] -> float32 [n], n may be 0."""

    def flush(self) -> np.ndarray:
        """The sound still held back, float32 [n]."""


class AudioCodec(Protocol):
    """Sound at SAMPLE_RATE <-> TOKENS_PER_SECOND codes; `voice` is a registered voice, never a recording."""

    sample_rate: int
    tokens_per_second: int

    @property
    def codebook_size(self) -> int:
        """Number of distinct codes."""

    @property
    def features(self) -> np.ndarray:
        """float32 [codebook_size, k]: what is known of each code before any language model is trained."""

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """float32 [n] in [-1, 1] -> int32 [t]."""

    def decode(self, codes: np.ndarray, voice: int) -> np.ndarray:
        """int [t] -> float32 [n]."""

    def encoder(self) -> Encoder:
        """A new streaming encoder."""

    def decoder(self, voice: int) -> Decoder:
        """A new streaming decoder."""

    def save(self, directory: Path) -> None:
        """Write the codec's folder, with a config.json that holds its `kind`."""


# --------------------------------------------------------------------------------------------------- FSQ


def fsq_quantize(z, levels: Sequence[int]):
    """Latents [..., len(levels)] -> quantised values in [-1, 1], with the bounding tanh's gradient (straight through).

    A dimension with an even number of levels is shifted by half a level, so that zero falls on a level and not on
    the border between two, and so that all of them can be reached (section 3.1 and appendix A.1 of the paper).
    """
    import jax
    import jax.numpy as jnp

    sizes = _checked(levels, z.shape[-1])
    # The bound is a thousandth wider than the outermost level: tanh reaches its limits only at infinity.
    widths = (sizes - 1) * 1.001 / 2
    offsets = np.where(sizes % 2 == 0, 0.5, 0.0)
    dtype = jnp.result_type(z, jnp.float32)
    reach, offset, shift = (jnp.asarray(x, dtype) for x in (widths, offsets, np.arctanh(offsets / widths)))
    bounded = jnp.tanh(z + shift) * reach - offset
    rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
    return rounded / jnp.asarray(sizes // 2, dtype)


def values_to_codes(values, levels: Sequence[int]):
    """Quantised values [..., len(levels)] -> codes int32 [...]; NumPy in, NumPy out; JAX in, JAX out."""
    xp = values.__array_namespace__()
    sizes = _checked(levels, values.shape[-1])
    half = sizes // 2
    digits = xp.round(values * half.astype(np.float32)).astype(np.int32) + half.astype(np.int32)
    return (digits * _radix(sizes)).sum(-1).astype(np.int32)


def codes_to_values(codes, levels: Sequence[int]):
    """Codes int [...] -> quantised values float32 [..., len(levels)], the inverse of `values_to_codes`."""
    sizes = _checked(levels, len(levels))
    digits = codes[..., None] // _radix(sizes) % sizes.astype(np.int32)
    half = (sizes // 2).astype(np.float32)
    return (digits.astype(np.float32) - half) / half


def _radix(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[1], np.cumprod(sizes[:-1])]).astype(np.int32)


def _checked(levels: Sequence[int], dimensions: int) -> np.ndarray:
    if len(levels) != dimensions or min(levels, default=0) < 2:
        raise ValueError(f"FSQ levels {tuple(levels)} for {dimensions} dimensions; expected one number >= 2 for each")
    return np.asarray(levels, np.int64)
