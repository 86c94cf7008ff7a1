"""The network: whole packed rows for training (`forward`), a cache extended token by token for use (`decode`).

Legend: b batch, l length, t new tokens, s cached slots, d width, h heads, g key-value heads, k head width.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tony.arrays import gated, products, rms_norm, rotate, rotation
from tony.model.attention import cached_attention, packed_attention
from tony.model.config import ModelConfig
from tony.model.experts import experts
from tony.parallel.sharding import constrain, gathered, moved

# Logical axes of what blocks hand on, and of what their products read.
STREAM, WHOLE = ("batch", None, "residual"), ("batch", None, None)
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def forward(
    params: dict,
    config: ModelConfig,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    exact: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """(hidden states [b, l, d] after the last norm, losses, measures) of packed rows of tokens [b, l].

    The losses of experts, by name, are summed over blocks; what is measured of them is averaged.

    `positions` count within a document; a token sees only earlier tokens of its own segment (0 is padding). Products
    are of bfloat16, or with `exact` of float32, as in `decode`: for comparisons.
    """
    table = gathered(params["embedding"], "vocab", "vocab_embed")
    x = constrain(_embed(table, config, tokens), "batch", None, "vocab_embed")
    x, turn = constrain(x, *STREAM), _turn(config, positions, tokens.shape[1])
    multiply = _exact if exact else products

    def run(x, blocks):
        totals: tuple[dict, dict] = {}, {}
        for block in blocks:

            def attend(q, k, v, bias=block["attention"].get("relative_bias")):
                return packed_attention(q, k, v, positions, segments, bias, config.window, exact)

            x, *told = _block(block, config, x, turn, attend, multiply, segments > 0)
            _add(totals, told)
        return x, totals

    if config.remat != "none":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "products" else None
        run = jax.checkpoint(run, policy=policy)
    if config.stacked:
        x, totals = jax.lax.scan(run, x, params["blocks"])
        losses, measures = jax.tree.map(lambda value: value.sum(0), totals)
    else:
        losses, measures = {}, {}
        for block in params["blocks"]:
            x, told = run(x, [block])
            _add((losses, measures), told)
    sparse = sum(map(config.sparse, range(config.layers)))
    return _norm(params["norm"], config, x), losses, {name: total / sparse for name, total in measures.items()}


def _embed(table: jax.Array, config: ModelConfig, tokens: jax.Array) -> jax.Array:
    return table[tokens] * (config.embedding_scale or math.sqrt(config.width))


def _turn(config: ModelConfig, positions: jax.Array, length: int | None = None) -> tuple[jax.Array, jax.Array]:
    return rotation(positions, config.head_dim, config.rope_base, slowing(config), length)


def slowing(config: ModelConfig) -> np.ndarray | float:
    """What the rotary frequencies are divided by, all of them or each [k / 2], for a context longer than the first
    training's (Llama 3.1)."""
    if not config.rope_original:
        return config.rope_factor
    half = config.head_dim // 2
    turns = config.rope_original * config.rope_base ** (-np.arange(half) / half) / (2 * math.pi)
    kept = np.clip((turns - config.rope_low) / (config.rope_high - config.rope_low), 0, 1)
    return 1 / (kept + (1 - kept) / config.rope_factor)


def _add(totals: tuple[dict, dict], told: Sequence[dict]) -> None:
    """Add what a block tells, (losses, measures), to the totals."""
    for total, new in zip(totals, told, strict=True):
        total.update({name: total.get(name, 0.0) + value for name, value in new.items()})


def unstacked(blocks: list, config: ModelConfig) -> list:
    """The blocks one by one, whether they are stacked or not."""
    if not config.stacked:
        return blocks
    return [
        jax.tree.map(lambda x, at=index // config.period: x[at], blocks[index % config.period])
        for index in range(config.layers)
    ]


def stacked(blocks: list, config: ModelConfig) -> list:
    """The inverse of `unstacked`, in a stacked network's form."""
    kinds = [blocks[kind :: config.period] for kind in range(config.period)]
    return [jax.tree.map(lambda *arrays: np.stack(arrays), *alike) for alike in kinds]


def unembed(params: dict, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Logits [..., vocabulary] of hidden states [..., d]."""
    return hidden @ params["embedding" if config.tied else "unembedding"].T


def _block(block: dict, config: ModelConfig, x: jax.Array, turn, attend: Attend, multiply, real=None):
    """(x after attention and feed-forward, the feed-forward's losses and measures)."""
    normed = _norm(block["norm"], config, x)
    x = constrain(x + _attention(block["attention"], config, normed, turn, attend, multiply), *STREAM)
    if not config.parallel_block:
        normed = _norm(block["feed_forward_norm"], config, x)
    made, losses, measures = feed_forward(block["feed_forward"], config, normed, multiply, real)
    return constrain(x + made, *STREAM), losses, measures


def _norm(params: dict, config: ModelConfig, x: jax.Array) -> jax.Array:
    if config.norm == "layernorm":
        x = x - x.mean(-1, keepdims=True)
    x = rms_norm(x, params["gain"], config.norm_epsilon)
    return x + params["bias"] if "bias" in params else x


def _linear(layers: tuple[dict, ...], x: jax.Array, multiply, *axes: str) -> tuple[jax.Array, ...]:
    """x through several layers {"weight", "bias"?} that all read it; `axes` are the logical ones of their outputs."""
    made = multiply(x, tuple(layer["weight"] for layer in layers))
    made = tuple(constrain(y, "batch", None, axis) for y, axis in zip(made, axes, strict=True))
    return tuple(y + layer["bias"] if "bias" in layer else y for layer, y in zip(layers, made, strict=True))


def feed_forward(
    params: dict, config: ModelConfig, x: jax.Array, multiply=products, real: jax.Array | None = None
) -> tuple[jax.Array, dict, dict]:
    """(output [..., d], losses, measures), the last two of experts alone; tokens that are not `real` are padding."""
    if "router" in params:
        made, losses, measures = experts(params, config, x, real, exact=multiply is _exact)
        if "shared" in params:
            made += feed_forward(params["shared"], config, x, multiply)[0]
        return made, losses, measures
    x = moved(x, STREAM, WHOLE)
    if config.gated:
        gate, up = _linear((params["gate"], params["up"]), x, multiply, "hidden", "hidden")
        hidden = gated(gate, up, config.activation, exact=multiply is _exact)
    else:
        hidden = jax.nn.gelu(_linear((params["up"],), x, multiply, "hidden")[0])
    return _linear((params["down"],), hidden, multiply, "residual")[0], {}, {}


def _attention(params: dict, config: ModelConfig, x: jax.Array, turn, attend: Attend, multiply) -> jax.Array:
    b, l, _ = x.shape
    x = moved(x, STREAM, WHOLE)
    shared = "kv_heads" if config.kv_heads > 1 else "head_dim"
    layers = tuple(params[name] for name in ("query", "key", "value"))
    made = _linear(layers, x, multiply, "heads", shared, shared)
    q, k, v = (y.reshape(b, l, -1, config.head_dim) for y in made)
    if config.qk_norm:
        q = rms_norm(q, params["query_norm"], config.norm_epsilon)
        k = rms_norm(k, params["key_norm"], config.norm_epsilon)
    if config.position == "rope":
        q, k = rotate(q, turn, multiply), rotate(k, turn, multiply)
    return _linear((params["out"],), attend(q, k, v).reshape(b, l, -1), multiply, "residual")[0]


# ----------------------------------------------------------------------------------------------- decoding


def init_cache(config: ModelConfig, batch: int, length: int) -> dict:
    """Empty keys and values of `batch` sequences of at most `length` tokens."""
    shape = (batch, config.kv_heads, length, config.head_dim)
    return {name: [jnp.zeros(shape) for _ in range(config.layers)] for name in ("k", "v")}


def decode(
    params: dict, config: ModelConfig, cache: dict, tokens: jax.Array, positions: jax.Array, span: int | None = None,
    row: jax.Array | None = None,
) -> tuple[jax.Array, dict]:  # fmt: skip
    """Extend each sequence: tokens [b, t] at positions [b, t] -> (hidden [b, t, d], cache).

    The slot of a token in the cache is its position, so a sequence is rolled back by going on from an earlier one.
    A negative position marks a token that is not there: nothing is stored for it. With a `span`, only so many slots of
    the cache are looked at; every position must be below it. With a `row`, tokens [1, t] extend that sequence of the
    cache alone.
    """
    slots = jnp.where(positions < 0, cache["k"][0].shape[2], positions)
    rows = jnp.arange(tokens.shape[0])[:, None] if row is None else row
    x, turn = _embed(params["embedding"], config, tokens), _turn(config, positions)
    kept: dict[str, list[jax.Array]] = {"k": [], "v": []}
    for index, block in enumerate(unstacked(params["blocks"], config)):

        def attend(q, k, v, index=index, block=block):
            for name, new in (("k", k), ("v", v)):
                kept[name].append(cache[name][index].at[rows, :, slots].set(new, mode="drop"))
            k, v = (kept[name][index] for name in ("k", "v"))
            if row is not None:
                k, v = (jax.lax.dynamic_slice_in_dim(x, row, 1) for x in (k, v))
            k, v = k[:, :, :span], v[:, :, :span]
            return cached_attention(q, k, v, positions, block["attention"].get("relative_bias"), config.window)

        x, *_ = _block(block, config, x, turn, attend, _exact)
    return _norm(params["norm"], config, x), kept


def _exact(x: jax.Array, weights: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """`products` in float32: of few rows, reading the weights is what takes time."""
    return tuple(x @ weight for weight in weights)
