"""Attention over packed rows, in blocks of queries, with a backward pass that stores no probabilities.

Legend: b batch, l length, h heads, g key-value heads, r = h / g queries of a group, k head width, q and s queries and
keys of a block.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tony.arrays import settled
from tony.model.config import T5_BUCKETS, T5_DISTANCE

QUERY_BLOCK = 128  # queries whose scores are alive at once; keys in their future are never multiplied
HIDDEN = -1e30  # score of what may not be seen


def packed_attention(q, k, v, positions, segments, relative_bias=None) -> jax.Array:
    """Causal attention within segments: q [b, l, h, k], k and v [b, l, g, k] -> float32 [b, l, h, k].

    `positions` [b, l] count within a document and matter only to `relative_bias` [buckets, h].
    """
    b, l, h, dim = q.shape
    groups = k.shape[2]
    q = (q / math.sqrt(dim)).reshape(b, l, groups, h // groups, dim)
    q = settled(q.transpose(0, 2, 3, 1, 4).astype(jnp.bfloat16))  # [b, g, r, l, k]
    k, v = (settled(x.transpose(0, 2, 1, 3).astype(jnp.bfloat16)) for x in (k, v))  # [b, g, l, k]
    outputs = []
    for start in range(0, l, QUERY_BLOCK):
        stop = min(l, start + QUERY_BLOCK)
        allowed = (jnp.arange(start, stop)[:, None] >= jnp.arange(stop)) & (
            segments[:, start:stop, None] == segments[:, None, :stop]
        )
        block = (q[:, :, :, start:stop], k[:, :, :stop], v[:, :, :stop])
        if relative_bias is None:
            outputs.append(_block(*block, allowed))
        else:
            bias = bias_of(relative_bias, positions[:, start:stop], positions[:, :stop], groups)
            outputs.append(_biased_block(*block, allowed, bias))
    return jnp.concatenate(outputs, axis=3).transpose(0, 3, 1, 2, 4).reshape(b, l, h, dim)


_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


@jax.checkpoint
def _biased_block(q, k, v, allowed, bias):
    scores = jnp.where(allowed[:, None, None], _product("bgrqk,bgsk->bgrqs", q, k) + bias, HIDDEN)
    return _product("bgrqs,bgsk->bgrqk", jax.nn.softmax(scores).astype(jnp.bfloat16), v)


@jax.custom_vjp
def _block(q, k, v, allowed):
    """A block of queries [b, g, r, q, k] against keys and values [b, g, s, k] where allowed [b, q, s]."""
    return _block_forward(q, k, v, allowed)[0]


def _block_forward(q, k, v, allowed):
    scores = settled(jnp.where(allowed[:, None, None], _product("bgrqk,bgsk->bgrqs", q, k), HIDDEN))
    top = settled(scores.max(-1, keepdims=True))
    weights = settled(jnp.exp(scores - top))
    total = settled(weights.sum(-1, keepdims=True))
    out = settled(_product("bgrqs,bgsk->bgrqk", weights.astype(jnp.bfloat16), v) / total)
    return out, (q, k, v, allowed, out, (top + jnp.log(total))[..., 0])


def _block_backward(residuals, gradient):
    """Dao et al. 2022, "FlashAttention", appendix B.2; scores are made again as [s, q], which two products need."""
    q, k, v, allowed, out, log_total = residuals
    b, g, r, n, dim = q.shape
    delta = settled((gradient * out).sum(-1))  # [b, g, r, q]
    gradient = settled(gradient.astype(jnp.bfloat16))
    seen = jnp.swapaxes(allowed, 1, 2)[:, None, :, None]  # [b, 1, s, 1, q]
    q, gradient = (x.reshape(b, g, r * n, dim) for x in (q, gradient))
    turned = _product("bgsk,bgqk->bgsq", k, q).reshape(b, g, -1, r, n)
    weights = settled(jnp.where(seen, jnp.exp(turned - log_total[:, :, None]), 0))
    to_weights = _product("bgsk,bgqk->bgsq", v, gradient).reshape(weights.shape)
    to_scores = settled((weights * (to_weights - delta[:, :, None])).astype(jnp.bfloat16)).reshape(b, g, -1, r * n)
    weights = weights.astype(jnp.bfloat16).reshape(b, g, -1, r * n)
    to_v = _product("bgsq,bgqk->bgsk", weights, gradient)
    to_k = _product("bgsq,bgqk->bgsk", to_scores, q)
    to_q = _product("bgsq,bgsk->bgqk", to_scores, k).reshape(b, g, r, n, dim)
    return *(x.astype(jnp.bfloat16) for x in (to_q, to_k, to_v)), None


_block.defvjp(_block_forward, _block_backward)


def cached_attention(q, k, v, positions, relative_bias=None) -> jax.Array:
    """q [b, t, h, k] at positions [b, t] against every cached slot up to its own: k, v [b, g, s, k] -> [b, t, h, k]."""
    b, t, h, dim = q.shape
    groups, length = k.shape[1:3]
    q = (q / math.sqrt(dim)).reshape(b, t, groups, h // groups, dim)
    scores = jnp.einsum("bqgrk,bgsk->bgrqs", q, k)
    slots = jnp.broadcast_to(jnp.arange(length), (b, length))
    if relative_bias is not None:
        scores += bias_of(relative_bias, positions, slots, groups)
    allowed = slots[:, None, :] <= positions[:, :, None]
    weights = jax.nn.softmax(jnp.where(allowed[:, None, None], scores, HIDDEN))
    return jnp.einsum("bgrqs,bgsk->bqgrk", weights, v).reshape(b, t, h, dim)


def t5_bucket(distance: jax.Array) -> jax.Array:
    """Bucket of how far back a key is (Raffel et al. 2020): half of the buckets exact, the rest logarithmic."""
    distance = jnp.maximum(distance, 0)
    exact = T5_BUCKETS // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(T5_DISTANCE / exact)
    far = exact + (ratio * (T5_BUCKETS - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, distance, jnp.minimum(far, T5_BUCKETS - 1))


def bias_of(table, positions, key_positions, groups):
    """T5's learned bias [b, g, r, q, s] of a table [buckets, h] for queries and keys at positions [b, q] and [b, s]."""
    bias = table[t5_bucket(positions[:, :, None] - key_positions[:, None, :])]  # [b, q, s, h]
    b, q, s, h = bias.shape
    return bias.transpose(0, 3, 1, 2).reshape(b, groups, h // groups, q, s)


def rotation(positions: jax.Array, head_dim: int, base: float) -> tuple[jax.Array, jax.Array]:
    """(cosines, sines) [b, l, 1, k] of the rotary embedding (Su et al. 2021) at positions [b, l]."""
    half = head_dim // 2
    frequencies = np.tile(base ** (-np.arange(half) / half), 2).astype(np.float32)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return settled(jnp.cos(angles)[:, :, None]), settled(jnp.sin(angles)[:, :, None])


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array], multiply) -> jax.Array:
    """x [b, l, h, k] turned by a `rotation`; halves are paired, as in GPT-NeoX and Llama.

    (first, second) -> (-second, first) is a product with a constant matrix: XLA's CPU back end concatenates slowly.
    """
    half = x.shape[-1] // 2
    quarter_turn = np.kron([[0, 1], [-1, 0]], np.eye(half)).astype(np.float32)
    return x * turn[0] + multiply(x, (jnp.asarray(quarter_turn),))[0] * turn[1]
