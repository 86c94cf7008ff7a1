"""The parameters, declared once: shape, logical axes and initialiser. All else about them is derived from that."""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from tony.errors import TonyError
from tony.model.config import T5_BUCKETS, ModelConfig
from tony.parallel.sharding import Extent, Layout, extents, place, whole


@dataclass(frozen=True)
class ParamSpec:
    """One array: its shape, the logical name of each axis, and how it starts.

    `init` is "ones", "zeros" or "normal", of standard deviation `scale`.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    init: Literal["ones", "zeros", "normal"] = "normal"
    scale: float = 1.0


def declare(config: ModelConfig) -> dict:
    """The tree of ParamSpecs of a network: {"embedding", "blocks": [...], "norm", ...}.

    Of a `stacked` network "blocks" has one tree for each kind of block, its arrays with an axis "layers" in front.
    """
    d = config.width
    kinds = config.period if config.stacked else config.layers
    blocks = [_block(config, config.sparse(index)) for index in range(kinds)]
    if config.stacked:
        blocks = jax.tree.map(partial(_stack, config.layers // kinds), blocks, is_leaf=is_spec)
    tree = {
        "embedding": ParamSpec((config.vocab_size, d), ("vocab", "vocab_embed"), scale=1 / math.sqrt(d)),
        "blocks": blocks,
        "norm": _norm(config, d),
    }
    if not config.tied:
        tree["unembedding"] = ParamSpec((config.vocab_size, d), ("vocab", "vocab_embed"), scale=1 / math.sqrt(d))
    return tree


def _stack(layers: int, spec: ParamSpec) -> ParamSpec:
    return replace(spec, shape=(layers, *spec.shape), axes=("layers", *spec.axes))


def _norm(config: ModelConfig, size: int) -> dict:
    spec = {"gain": ParamSpec((size,), ("norm",), "ones")}
    if config.norm == "layernorm" and config.biases:
        spec["bias"] = ParamSpec((size,), ("norm",), "zeros")
    return spec


def _linear(
    config: ModelConfig, inputs: int, outputs: int, axes: tuple[str, str], scale: float = 1.0, biased: bool = False
) -> dict:
    spec = {"weight": ParamSpec((inputs, outputs), axes, scale=scale / math.sqrt(inputs))}
    if config.biases or biased:
        spec["bias"] = ParamSpec((outputs,), axes[1:], "zeros")
    return spec


def _block(config: ModelConfig, sparse: bool) -> dict:
    d, q, kv = config.width, config.heads * config.head_dim, config.kv_heads * config.head_dim
    depth = 1 / math.sqrt(2 * config.layers) if config.residual_init == "depth" else 1.0
    shared = "kv_heads" if config.kv_heads > 1 else "head_dim"  # one head is not split
    attention: dict[str, dict[str, ParamSpec] | ParamSpec] = {
        "query": _linear(config, d, q, ("embed", "heads"), biased=config.qkv_biases),
        "key": _linear(config, d, kv, ("embed", shared), biased=config.qkv_biases),
        "value": _linear(config, d, kv, ("embed", shared), biased=config.qkv_biases),
        "out": _linear(config, q, d, ("heads", "embed"), depth),
    }
    if config.qk_norm:
        attention["query_norm"] = ParamSpec((config.head_dim,), ("head_dim",), "ones")
        attention["key_norm"] = ParamSpec((config.head_dim,), ("head_dim",), "ones")
    if config.position == "t5":
        attention["relative_bias"] = ParamSpec((T5_BUCKETS, config.heads), ("buckets", "heads"), "zeros")
    feed_forward = _experts(config, depth) if sparse else _feed_forward(config, config.hidden, depth)
    block = {"norm": _norm(config, d), "attention": attention, "feed_forward": feed_forward}
    if not config.parallel_block:
        block["feed_forward_norm"] = _norm(config, d)
    return block


def _feed_forward(config: ModelConfig, hidden: int, depth: float) -> dict:
    spec = {
        "up": _linear(config, config.width, hidden, ("embed", "hidden")),
        "down": _linear(config, hidden, config.width, ("hidden", "embed"), depth),
    }
    if config.gated:
        spec["gate"] = _linear(config, config.width, hidden, ("embed", "hidden"))
    return spec


def _experts(config: ModelConfig, depth: float) -> dict:
    d, e, hidden = config.width, config.experts, config.expert_hidden
    into, out = ("expert", "embed", "hidden"), ("expert", "hidden", "embed")
    router = {"weight": ParamSpec((d, e), ("embed", "experts"), scale=1 / math.sqrt(d))}
    if config.balance == "bias":
        router["bias"] = ParamSpec((e,), ("experts",), "zeros")
    spec: dict[str, dict[str, ParamSpec] | ParamSpec] = {
        "router": router,
        "up": ParamSpec((e, d, hidden), into, scale=1 / math.sqrt(d)),
        "down": ParamSpec((e, hidden, d), out, scale=depth / math.sqrt(hidden)),
    }
    if config.expert_activation != "gelu":
        spec["gate"] = ParamSpec((e, d, hidden), into, scale=1 / math.sqrt(d))
    if config.shared_hidden:
        spec["shared"] = _feed_forward(config, config.shared_hidden, depth)
    return spec


def is_spec(value) -> bool:
    """Leaves of the declared tree."""
    return isinstance(value, ParamSpec)


def init(specs: dict, key: jax.Array, embedding_features: np.ndarray | None = None, placed: dict | None = None) -> dict:
    """Random float32 parameters, each device of a mesh making its parts of them if they are `placed` by shardings.

    `embedding_features` [vocab, k]: tokens of which something is known (rows that are not zero) start with a fixed
    random projection of it in place of noise, so that codes alike in sound or colour start alike.
    """
    leaves, tree = jax.tree.flatten(specs, is_leaf=is_spec)
    keys = jax.random.split(key, len(leaves))

    def make(keys):
        return jax.tree.unflatten(tree, [_initial(spec, k) for spec, k in zip(leaves, keys, strict=True)])

    params = jax.jit(make, out_shardings=placed)(keys) if placed else make(keys)
    if embedding_features is not None:
        table = whole(params["embedding"]) if placed else params["embedding"]
        table = _with_features(table, embedding_features, specs["embedding"].scale, keys[0])
        params["embedding"] = place(table, placed["embedding"]) if placed else table
    return params


def _initial(spec: ParamSpec, key: jax.Array) -> jax.Array:
    if spec.init == "normal":
        return spec.scale * jax.random.normal(key, spec.shape)
    return jnp.full(spec.shape, 1.0 if spec.init == "ones" else 0.0)


def _with_features(embedding: jax.Array, features: np.ndarray, scale: float, key: jax.Array) -> jax.Array:
    known = np.abs(features).sum(1) > 0
    active = np.abs(features).sum(0) > 0
    rows = features[:, active]
    # Blocks of columns belong to different codecs: centre and scale each column over the tokens that have it.
    present = rows != 0
    count = np.maximum(1, present.sum(0))
    mean = rows.sum(0) / count
    centred = np.where(known[:, None] & (np.abs(rows).sum(1) > 0)[:, None], rows - mean * present, 0)
    spread = np.sqrt((centred**2).sum(0) / count) + 1e-6
    projected = (centred / spread) @ np.asarray(jax.random.normal(key, (rows.shape[1], embedding.shape[1])))
    norms = np.sqrt((projected**2).mean(1, keepdims=True)) + 1e-6
    # Three quarters of a row's variance is shared with its likes, a quarter its own.
    mixed = np.sqrt(0.75) * scale * projected / norms + np.sqrt(0.25) * np.asarray(embedding)
    return jnp.where(known[:, None], mixed, embedding).astype(jnp.float32)


def abstract(specs: dict, shardings: dict | None = None) -> dict:
    """ShapeDtypeStructs of the parameters, for compiling ahead of time."""
    if shardings is None:
        return jax.tree.map(lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), specs, is_leaf=is_spec)
    return jax.tree.map(
        lambda spec, sharding: jax.ShapeDtypeStruct(spec.shape, jnp.float32, sharding=sharding),
        specs, shardings, is_leaf=is_spec,
    )  # fmt: skip


def network_extents(config: ModelConfig) -> list[Extent]:
    """What a mesh must divide of a network: heads, and every parameter's axes."""
    heads = [Extent("model.heads", ("heads",), (config.heads,))]
    if config.kv_heads > 1:
        heads.append(Extent("model.kv_heads", ("kv_heads",), (config.kv_heads,)))
    return [*heads, *extents(declare(config))]


def shardings(config: ModelConfig, layout: Layout) -> dict:
    """NamedShardings of a network's parameters; TonyError if the mesh does not divide one of them, or the heads, or
    splits experts whose tokens it can't exchange."""
    if config.experts and layout.ways("expert") > 1 and (config.dispatch != "capacity" or not config.expert_group):
        raise TonyError(
            f"mesh.expert = {layout.ways('expert')} with model.dispatch = {config.dispatch!r} and model.expert_group = "
            f"{config.expert_group}: devices exchange buffers of fixed size; set dispatch to 'capacity' and "
            "expert_group to a number of tokens that divides those of a device"
        )
    layout.check(network_extents(config))
    return layout.shardings(declare(config))
