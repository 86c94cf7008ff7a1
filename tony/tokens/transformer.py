"""A small pre-norm transformer for the codecs: plain functions, rotary positions, windowed attention, a cache.

Legend of shapes: b batch, t time (tokens), d width, h heads, k head width, s keys seen.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tony.arrays import matmul

Params = dict


def linear_init(key: jax.Array, inputs: int, outputs: int, scale: float = 1.0) -> jax.Array:
    """Normal weights [inputs, outputs] of variance scale^2 / inputs."""
    return scale / math.sqrt(inputs) * jax.random.normal(key, (inputs, outputs))


def init(key: jax.Array, layers: int, width: int) -> list[Params]:
    """Parameters of `layers` blocks of `width`; the hidden layer of each is four times as wide."""

    def block(key):
        keys = jax.random.split(key, 4)
        return {
            "attention_norm": jnp.ones(width),
            "qkv": linear_init(keys[0], width, 3 * width),
            "out": linear_init(keys[1], width, width, scale=1 / math.sqrt(2 * layers)),
            "mlp_norm": jnp.ones(width),
            "up": linear_init(keys[2], width, 4 * width),
            "down": linear_init(keys[3], 4 * width, width, scale=1 / math.sqrt(2 * layers)),
        }

    return [block(key) for key in jax.random.split(key, layers)]


def rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """Root-mean-square normalisation over the last axis (Zhang and Sennrich 2019)."""
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6) * gain


def _rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary embedding (Su et al. 2021) of x [b, t, h, k] at integer positions [b, t]."""
    half = x.shape[-1] // 2
    angles = positions[..., None].astype(jnp.float32) * (10_000.0 ** (-np.arange(half) / half))
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attend(q, k, v, allowed):
    """Attention of q [b, t, h, k] to keys and values [b, s, h, k] where allowed [b, t, s]."""
    scores = jnp.einsum("bthk,bshk->bhts", q, k) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(allowed[:, None], scores, -1e30), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weights, v)


def window_mask(segments: jax.Array, window: int | None, causal: bool) -> jax.Array:
    """[b, t, t] of who may see whom: the same segment, not the future if causal, at most `window - 1` steps away."""
    index = jnp.arange(segments.shape[1])
    distance = index[:, None] - index[None, :]
    allowed = segments[:, :, None] == segments[:, None, :]
    if causal:
        allowed &= distance >= 0
    if window is not None:
        allowed &= jnp.abs(distance) < window
    return allowed


def apply(blocks: list[Params], x: jax.Array, allowed: jax.Array, positions: jax.Array, heads: int) -> jax.Array:
    """Run the blocks over x [b, t, d] under an attention mask [b, t, t]; positions [b, t] rotate queries and keys."""
    for block in blocks:
        x = _block(block, x, positions, heads, lambda k, v: (k, v, allowed))
    return x


def _block(block: Params, x, positions, heads, keys_and_values):
    b, t, d = x.shape
    qkv = matmul(rms_norm(x, block["attention_norm"]), block["qkv"]).reshape(b, t, 3, heads, d // heads)
    q, k, v = _rotate(qkv[:, :, 0], positions), _rotate(qkv[:, :, 1], positions), qkv[:, :, 2]
    x = x + matmul(_attend(q, *keys_and_values(k, v)).reshape(b, t, d), block["out"])
    hidden = jax.nn.gelu(matmul(rms_norm(x, block["mlp_norm"]), block["up"]))
    return x + matmul(hidden, block["down"])


def init_cache(layers: int, width: int, heads: int, window: int) -> Params:
    """Empty streaming state of one causal sequence: the last window - 1 keys and values of each layer."""
    shape = (layers, 1, window - 1, heads, width // heads)
    return {"k": jnp.zeros(shape), "v": jnp.zeros(shape), "length": jnp.zeros((), jnp.int32)}


@partial(jax.jit, static_argnames=("heads",))
def stream(blocks: list[Params], cache: Params, x: jax.Array, heads: int) -> tuple[jax.Array, Params]:
    """Continue one causal windowed sequence by x [1, t, d]; equals `apply` over the whole of it."""
    steps, past, length = x.shape[1], cache["k"].shape[2], cache["length"]
    positions = (length + jnp.arange(steps))[None]
    sources = length - past + jnp.arange(past + steps)  # the absolute position of every key
    distance = positions[0][:, None] - sources[None, :]
    allowed = ((distance >= 0) & (distance <= past) & (sources >= 0)[None, :])[None]
    kept_k, kept_v = [], []
    for index, block in enumerate(blocks):

        def after_past(k, v, index=index):
            k = jnp.concatenate([cache["k"][index], k], axis=1)
            v = jnp.concatenate([cache["v"][index], v], axis=1)
            kept_k.append(k[:, steps:])
            kept_v.append(v[:, steps:])
            return k, v, allowed

        x = _block(block, x, positions, heads, after_past)
    return x, {"k": jnp.stack(kept_k), "v": jnp.stack(kept_v), "length": length + steps}
