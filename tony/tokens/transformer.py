"""A small pre-norm transformer for the codecs: plain functions, rotary positions, windowed attention, a cache.

Legend of shapes: b batch, t time (tokens), d width, h heads, k head width, s keys seen.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from tony import kernels
from tony.arrays import HIDDEN, masked_attention, matmul, products, rms_norm, rotate, rotation, settled

Params = dict
ROPE_BASE = 10_000.0  # of the rotary frequencies


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


def apply(
    blocks: list[Params],
    x: jax.Array,
    segments: jax.Array,
    positions: jax.Array,
    heads: int,
    *,
    window: int | None = None,
    causal: bool = True,
    furthest: int | None = None,
) -> jax.Array:
    """Run the blocks over x [b, t, d]; who sees whom is as in `window_mask`.

    Positions [b, t] rotate queries and keys; they are below `furthest`, which is t unless given.
    """
    turn = rotation(positions, x.shape[-1] // heads, ROPE_BASE, length=furthest or x.shape[1])

    def attend(q, k, v):
        if kernels.available():
            return kernels.windowed_attention(q, k, v, segments, window, causal)
        q, k, v = (settled(y.transpose(0, 2, 1, 3).astype(jnp.bfloat16)) for y in (q, k, v))  # [b, h, t, k]
        allowed = window_mask(segments, window, causal)
        return masked_attention(q[:, :, None], k, v, allowed)[:, :, 0].transpose(0, 2, 1, 3)

    for block in blocks:
        x = _block(block, x, turn, heads, attend)
    return x


def _block(block: Params, x, turn, heads, attend):
    b, t, d = x.shape
    qkv = matmul(rms_norm(x, block["attention_norm"]), block["qkv"]).reshape(b, t, 3, heads, d // heads)
    q, k, v = rotate(qkv[:, :, 0], turn, products), rotate(qkv[:, :, 1], turn, products), qkv[:, :, 2]
    x = x + matmul(attend(q / math.sqrt(d // heads), k, v).reshape(b, t, d), block["out"])
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
    allowed = (distance >= 0) & (distance <= past) & (sources >= 0)[None, :]
    turn = rotation(positions, x.shape[-1] // heads, ROPE_BASE)
    kept: dict[str, list[jax.Array]] = {"k": [], "v": []}
    for index, block in enumerate(blocks):

        def attend(q, k, v, index=index):
            k, v = (jnp.concatenate([cache[name][index], new], axis=1) for name, new in (("k", k), ("v", v)))
            for name, whole in (("k", k), ("v", v)):
                kept[name].append(whole[:, steps:])
            scores = jnp.where(allowed, jnp.einsum("bthk,bshk->bhts", q, k), HIDDEN)
            return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(scores), v)

        x = _block(block, x, turn, heads, attend)
    return x, {**{name: jnp.stack(layers) for name, layers in kept.items()}, "length": length + steps}
