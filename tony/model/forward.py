"""The network: whole packed rows for training (`forward`), a cache extended token by token for use (`decode`).

Legend: b batch, l length, t new tokens, s cached slots, d width, h heads, g key-value heads, k head width.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from tony.arrays import matmul
from tony.model.config import T5_BUCKETS, T5_DISTANCE, ModelConfig

QUERY_BLOCK = 128  # queries whose scores are alive at once; keys in their future are never multiplied


def forward(
    params: dict, config: ModelConfig, tokens: jax.Array, positions: jax.Array, segments: jax.Array
) -> jax.Array:
    """Hidden states [b, l, d] after the last norm, of packed rows of tokens [b, l].

    `positions` count within a document; a token sees only earlier tokens of its own segment (0 is padding).
    """
    x = params["embedding"][tokens] * math.sqrt(config.width)
    bias = params.get("relative_bias")

    def attend(q, k, v):
        return blocked_attention(q, k, v, positions, segments, bias)

    for block in params["blocks"]:
        x = _block(block, config, x, positions, attend)
    return _norm(params["norm"], config, x)


def unembed(params: dict, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Logits [..., vocabulary] of hidden states [..., d]."""
    return hidden @ params["embedding" if config.tied else "unembedding"].T


def _block(block: dict, config: ModelConfig, x: jax.Array, positions: jax.Array, attend, product=matmul) -> jax.Array:
    normed = _norm(block["norm"], config, x)
    attended = _attention(block["attention"], config, normed, positions, attend, product)
    if config.parallel_block:
        return x + attended + feed_forward(block["feed_forward"], config, normed, product)[0]
    x = x + attended
    return x + feed_forward(block["feed_forward"], config, _norm(block["feed_forward_norm"], config, x), product)[0]


def _norm(params: dict, config: ModelConfig, x: jax.Array) -> jax.Array:
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6) * params["gain"]
    return x + params["bias"] if "bias" in params else x


def _linear(params: dict, x: jax.Array, product) -> jax.Array:
    y = product(x, params["weight"])
    return y + params["bias"] if "bias" in params else y


def feed_forward(params: dict, config: ModelConfig, x: jax.Array, product=matmul) -> tuple[jax.Array, dict]:
    """(output [..., d], auxiliary losses). The dense layer has none; experts would add their router's here."""
    up = _linear(params["up"], x, product)
    if config.activation == "gelu":
        hidden = jax.nn.gelu(up)
    else:
        squash = jax.nn.silu if config.activation == "swiglu" else jax.nn.gelu
        hidden = squash(_linear(params["gate"], x, product)) * up
    return _linear(params["down"], hidden, product), {}


def _attention(params: dict, config: ModelConfig, x: jax.Array, positions: jax.Array, attend, product) -> jax.Array:
    b, l, _ = x.shape
    q = _linear(params["query"], x, product).reshape(b, l, config.heads, config.head_dim)
    k = _linear(params["key"], x, product).reshape(b, l, config.kv_heads, config.head_dim)
    v = _linear(params["value"], x, product).reshape(b, l, config.kv_heads, config.head_dim)
    if config.qk_norm:
        q = q * jax.lax.rsqrt(jnp.mean(jnp.square(q), -1, keepdims=True) + 1e-6) * params["query_norm"]
        k = k * jax.lax.rsqrt(jnp.mean(jnp.square(k), -1, keepdims=True) + 1e-6) * params["key_norm"]
    if config.position == "rope":
        q, k = rotate(q, positions, config.rope_base), rotate(k, positions, config.rope_base)
    return _linear(params["out"], attend(q, k, v).reshape(b, l, -1), product)


def rotate(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotary embedding of x [b, l, h, k] at positions [b, l]; halves are paired, as in GPT-NeoX and Llama."""
    half = x.shape[-1] // 2
    angles = positions[..., None].astype(jnp.float32) * (base ** (-np.arange(half) / half)).astype(np.float32)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def t5_bucket(distance: jax.Array) -> jax.Array:
    """Bucket of how far back a key is (Raffel et al. 2020): half of the buckets exact, the rest logarithmic."""
    distance = jnp.maximum(distance, 0)
    exact = T5_BUCKETS // 2
    ratio = jnp.log(jnp.maximum(distance, 1) / exact) / math.log(T5_DISTANCE / exact)
    far = exact + (ratio * (T5_BUCKETS - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, distance, jnp.minimum(far, T5_BUCKETS - 1))


def _scores_to_values(scores, v, allowed):
    """Softmax of scores [b, g, r, q, s] where allowed [b, q, s], times v [b, s, g, k] -> [b, q, g, r, k]."""
    scores = jnp.where(allowed[:, None, None], scores, -1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    weights = weights / weights.sum(-1, keepdims=True)
    return jnp.einsum("bgrqs,bsgk->bqgrk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)


def blocked_attention(q, k, v, positions, segments, relative_bias=None) -> jax.Array:
    """Causal attention within segments: q [b, l, h, k], k and v [b, l, g, k] -> [b, l, h, k].

    Queries go in blocks, each against the keys up to its own end, and each block's scores are computed again in the
    backward pass rather than stored.
    """
    b, l, h, dim = q.shape
    groups = k.shape[2]
    q = (q / math.sqrt(dim)).reshape(b, l, groups, h // groups, dim).astype(jnp.bfloat16)
    k, v = k.astype(jnp.bfloat16), v.astype(jnp.bfloat16)

    @jax.checkpoint
    def block(q, k, v, positions, key_positions, segments, key_segments, start, bias):
        scores = jnp.einsum("bqgrk,bsgk->bgrqs", q, k, preferred_element_type=jnp.float32)
        if bias is not None:
            scores += _bias(bias, positions, key_positions, groups)
        index = start + jnp.arange(q.shape[1])
        allowed = (index[:, None] >= jnp.arange(k.shape[1])) & (segments[:, :, None] == key_segments[:, None, :])
        return _scores_to_values(scores, v, allowed)

    outputs = []
    for start in range(0, l, QUERY_BLOCK):
        stop = min(l, start + QUERY_BLOCK)
        here, seen = slice(start, stop), slice(0, stop)
        outputs.append(
            block(q[:, here], k[:, seen], v[:, seen], positions[:, here], positions[:, seen], segments[:, here],
                  segments[:, seen], start, relative_bias)
        )  # fmt: skip
    return jnp.concatenate(outputs, axis=1).reshape(b, l, h, dim)


def _bias(table, positions, key_positions, groups):
    bias = table[t5_bucket(positions[:, :, None] - key_positions[:, None, :])]  # [b, q, s, h]
    b, q, s, h = bias.shape
    return bias.transpose(0, 3, 1, 2).reshape(b, groups, h // groups, q, s)


# ----------------------------------------------------------------------------------------------- decoding


def init_cache(config: ModelConfig, batch: int, length: int) -> dict:
    """Empty keys and values of `batch` sequences of at most `length` tokens."""
    shape = (batch, length, config.kv_heads, config.head_dim)
    return {name: [jnp.zeros(shape) for _ in range(config.layers)] for name in ("k", "v")}


def decode(
    params: dict, config: ModelConfig, cache: dict, tokens: jax.Array, positions: jax.Array
) -> tuple[jax.Array, dict]:
    """Extend each sequence: tokens [b, t] at positions [b, t] -> (hidden [b, t, d], cache).

    The slot of a token in the cache is its position, so a sequence is rolled back by going on from an earlier one.
    A negative position marks a token that is not there: nothing is stored for it.
    """
    slots = jnp.where(positions < 0, cache["k"][0].shape[1], positions)
    rows = jnp.arange(tokens.shape[0])[:, None]
    x = params["embedding"][tokens] * math.sqrt(config.width)
    bias = params.get("relative_bias")
    kept = {"k": [], "v": []}
    for index, block in enumerate(params["blocks"]):

        def attend(q, k, v, index=index):
            for name, new in (("k", k), ("v", v)):
                kept[name].append(cache[name][index].at[rows, slots].set(new, mode="drop"))
            return _cached_attention(q, kept["k"][index], kept["v"][index], positions, bias)

        x = _block(block, config, x, positions, attend, product=jnp.matmul)
    return _norm(params["norm"], config, x), kept


def _cached_attention(q, k, v, positions, relative_bias):
    """q [b, t, h, k] against every cached slot up to its own position: k and v [b, s, g, k] -> [b, t, h, k]."""
    b, t, h, dim = q.shape
    groups, length = k.shape[2], k.shape[1]
    q = (q / math.sqrt(dim)).reshape(b, t, groups, h // groups, dim)
    scores = jnp.einsum("bqgrk,bsgk->bgrqs", q, k)
    slots = jnp.broadcast_to(jnp.arange(length), (b, length))
    if relative_bias is not None:
        scores += _bias(relative_bias, positions, slots, groups)
    allowed = slots[:, None, :] <= positions[:, :, None]
    return _scores_to_values(scores, v, allowed).reshape(b, t, h, dim)
