"""Attention over packed rows, in blocks of queries, and over a cache; T5's bias by distance.

Legend: b batch, l length, h heads, g key-value heads, r = h / g queries of a group, k head width, q and s queries and
keys of a block.
"""

import math

import jax
import jax.numpy as jnp

from tony import kernels
from tony.arrays import HIDDEN, bf16_einsum, masked_attention, settled
from tony.model.config import T5_BUCKETS, T5_DISTANCE

QUERY_BLOCK = 128  # queries whose scores are alive at once; keys in their future are never multiplied


def packed_attention(q, k, v, positions, segments, relative_bias=None, window=0, exact=False) -> jax.Array:
    """Causal attention within segments: q [b, l, h, k], k and v [b, l, g, k] -> float32 [b, l, h, k].

    `positions` [b, l] count within a document and matter only to `relative_bias` [buckets, h]. A token sees the last
    `window` tokens, or all if that is 0. `exact` multiplies in float32.
    """
    dtype = jnp.float32 if exact else jnp.bfloat16
    b, l, h, dim = q.shape
    groups = k.shape[2]
    q = q / math.sqrt(dim)
    if relative_bias is None and not exact and kernels.available():
        return kernels.windowed_attention(q, k, v, segments, window)
    q = q.reshape(b, l, groups, h // groups, dim)
    q = settled(q.transpose(0, 2, 3, 1, 4).astype(dtype))  # [b, g, r, l, k]
    k, v = (settled(x.transpose(0, 2, 1, 3).astype(dtype)) for x in (k, v))  # [b, g, l, k]
    starts = range(0, l, QUERY_BLOCK)
    sizes = [min(l - start, QUERY_BLOCK) for start in starts]
    queries = jax.lax.split(q, sizes, axis=3)
    keys, values = (jax.lax.split(x, sizes, axis=2) for x in (k, v))  # slices would have padded gradients to add up
    outputs = []
    for index, start in enumerate(starts):
        stop = start + sizes[index]
        back = jnp.arange(start, stop)[:, None] - jnp.arange(stop)
        allowed = _within(back, window) & (segments[:, start:stop, None] == segments[:, None, :stop])
        block = (queries[index], *(jnp.concatenate(x[: index + 1], axis=2) for x in (keys, values)))
        if relative_bias is None and not exact:
            outputs.append(masked_attention(*block, allowed))
        else:
            bias = 0.0
            if relative_bias is not None:
                bias = bias_of(relative_bias, positions[:, start:stop], positions[:, :stop], groups)
            outputs.append(_biased_block(*block, allowed, bias))
    return jnp.concatenate(outputs, axis=3).transpose(0, 3, 1, 2, 4).reshape(b, l, h, dim)


@jax.checkpoint
def _biased_block(q, k, v, allowed, bias):
    scores = jnp.where(allowed[:, None, None], bf16_einsum("bgrqk,bgsk->bgrqs", q, k) + bias, HIDDEN)
    return bf16_einsum("bgrqs,bgsk->bgrqk", jax.nn.softmax(scores).astype(v.dtype), v)


def _within(back, window):
    """Whether a key lies so many tokens back that it is seen: not ahead, and in the window if there is one."""
    return (back >= 0) & (back < window) if window else back >= 0


def cached_attention(q, k, v, positions, relative_bias=None, window=0) -> jax.Array:
    """q [b, t, h, k] at positions [b, t] against every cached slot up to its own: k, v [b, g, s, k] -> [b, t, h, k].

    With a `window` only the last so many slots are seen.
    """
    b, t, h, dim = q.shape
    groups, length = k.shape[1:3]
    q = (q / math.sqrt(dim)).reshape(b, t, groups, h // groups, dim)
    scores = jnp.einsum("bqgrk,bgsk->bgrqs", q, k)
    slots = jnp.broadcast_to(jnp.arange(length), (b, length))
    if relative_bias is not None:
        scores += bias_of(relative_bias, positions, slots, groups)
    allowed = _within(positions[:, :, None] - slots[:, None, :], window)
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
