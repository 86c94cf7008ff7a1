"""Sparsely activated feed-forwards: a router, and three ways to bring tokens to their experts and back.

- "dense": every expert sees every token; the obvious reference, for tests and a handful of experts.
- "sorted": tokens sorted by expert, one grouped product over rows of unequal counts (Gale et al. 2022, "MegaBlocks");
  no token is dropped.
- "capacity": a buffer of fixed size for each expert and group of tokens, as GShard and GLaM do (Lepikhin et al. 2020,
  section 2.2; Du et al. 2022, section 4). All first choices take their places before any second one, and what finds no
  place is dropped: the residual stream passes it by. So who is dropped depends on the whole group, also on later
  tokens and other documents; decoding, which drops nobody, can differ from training in that.

Legend: n tokens, d width, e experts, k choices of a token, c places of an expert in a group, f hidden width.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tony.arrays import gated, products
from tony.errors import TonyError
from tony.model.config import ModelConfig
from tony.parallel.sharding import constrain, is_spread, mean_over_pods, moved

# Logical axes of buffers [e, g, c, d] before and after the all-to-all (GShard, section 3.2): "batch" leaves the mesh
# axis that "expert" has taken.
BY_GROUP, BY_EXPERT = (None, "batch", None, "residual"), ("expert", "batch", None, "residual")
SIGN = 1e-6  # size of a gradient that is only a sign, so that it has no part in the norm of all gradients


class Routing(NamedTuple):
    """Who goes where: experts [n, k] and their weights [n, k], see `route`; losses and measures by name."""

    chosen: jax.Array
    weights: jax.Array
    losses: dict[str, jax.Array]
    measures: dict[str, jax.Array]


def experts(
    params: dict, config: ModelConfig, x: jax.Array, real: jax.Array | None = None, *, exact: bool = False
) -> tuple[jax.Array, dict, dict]:
    """(output [..., d], losses, measures) of the expert feed-forward on x [..., d]; `exact` multiplies in float32.

    Tokens that are not `real` [...] take nobody's place and do not count.
    """
    tokens = x.reshape(-1, x.shape[-1])
    real = jnp.ones(len(tokens), bool) if real is None else real.reshape(-1)
    routing = route(params["router"], config, tokens, real)
    dispatch = {"dense": _dense, "sorted": _sorted, "capacity": _capacity}
    # A few tokens at a time, as in decoding, there is nothing to balance: none is dropped.
    name = "sorted" if exact and config.dispatch == "capacity" else config.dispatch
    made, measures = dispatch[name](params, config, tokens, routing, exact)
    return made.reshape(x.shape), routing.losses, {**routing.measures, **measures}


def route(router: dict, config: ModelConfig, x: jax.Array, real: jax.Array | None = None) -> Routing:
    """The top experts of tokens [n, d], in float32 whatever the rest is computed in; one that is not `real` [n] goes to
    expert e, which does not exist.

    The weights of several choices sum to one; a single choice has its probability, or the router would learn nothing.
    Losses: the load balance of GShard (e * sum of the share of first choices times the mean probability, so 1 when all
    is even), and the router's z-loss (Zoph et al. 2022, section 3.1). With `balance` "bias" the first is replaced by a
    bias on the choice alone (Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing"): its gradient has the sign of an
    expert's excess load, whatever the loss, and next to no size; the optimiser goes by the sign.
    """
    share = jnp.ones(len(x)) if real is None else real.astype(jnp.float32)
    share = share / jnp.maximum(1, mean_over_pods(share.sum()))  # of a token in every mean
    logits = x.astype(jnp.float32) @ router["weight"]
    probabilities = jax.nn.softmax(logits)
    preference = probabilities
    if config.balance == "bias":
        preference = preference + jax.lax.stop_gradient(router["bias"])
    chosen = _top(preference, config.experts_per_token)
    weights = jnp.take_along_axis(probabilities, chosen, axis=-1)
    if config.experts_per_token > 1:
        weights = weights / weights.sum(-1, keepdims=True)
    first = mean_over_pods(jnp.zeros(config.experts).at[chosen[:, 0]].add(share))
    load = mean_over_pods(jnp.zeros(config.experts).at[chosen].add(share[:, None]) / config.experts_per_token)
    losses = {"router_z": config.router_z_weight * (share * jnp.square(jax.nn.logsumexp(logits, axis=-1))).sum()}
    if config.balance == "loss":
        even = config.experts * (jax.lax.stop_gradient(first) * (share @ probabilities)).sum()
        losses["load_balance"] = config.balance_weight * even
    else:
        excess = SIGN * jnp.sign(load - 1 / config.experts) @ router["bias"]
        losses["load_balance"] = excess - jax.lax.stop_gradient(excess)  # 0, with a gradient
    if real is not None:
        chosen, weights = jnp.where(real[:, None], chosen, config.experts), weights * real[:, None]
    return Routing(chosen, weights, losses, {"busiest_expert": config.experts * load.max()})


def _top(preference: jax.Array, count: int) -> jax.Array:
    """The experts [n, count] that tokens prefer [n, e]: `jax.lax.top_k`, which partitioners don't split by token."""
    chosen = []
    for _ in range(count):
        chosen.append(jnp.argmax(preference, axis=-1))
        preference = jnp.where(jnp.arange(preference.shape[-1]) == chosen[-1][:, None], -jnp.inf, preference)
    return jnp.stack(chosen, axis=-1)


# ------------------------------------------------------------------------------------------------ dispatches


def _dense(params, config, x, routing, exact):
    every = _feed(params, config, jnp.broadcast_to(x, (config.experts, *x.shape)), exact)  # [e, n, d]
    rows = jnp.arange(len(x))[:, None]
    weights = jnp.zeros((len(x), config.experts)).at[rows, routing.chosen].add(routing.weights, mode="drop")
    return jnp.einsum("end,ne->nd", every, weights), {}


def _sorted(params, config, x, routing, exact):
    flat = jnp.minimum(routing.chosen.reshape(-1), config.experts - 1)  # padding goes anywhere, with weight 0
    order = jnp.argsort(flat, stable=True)
    rows = jnp.bincount(flat, length=config.experts)
    taken = x[order // config.experts_per_token]
    if exact or is_spread():
        made = _feed_ragged(params, config, taken, rows, exact)
    else:
        made = _feed_either(params, config, taken, rows)
    weighted = made * routing.weights.reshape(-1)[order][:, None]
    return jnp.zeros(x.shape).at[order // config.experts_per_token].add(weighted), {}


def _capacity(params, config, x, routing, exact):
    n, d = x.shape
    size = config.expert_group or n
    if n % size:
        raise TonyError(f"model.expert_group = {size}: it must divide the {n} tokens that are taken at once")
    places = capacity(config, size)
    grouped = (part.reshape(n // size, size, -1) for part in (x, routing.chosen, routing.weights))
    tokens, chosen, weights = grouped
    slots = jax.vmap(lambda c: slots_of(c, config.experts, places))(chosen)  # [g, s, k], e * c where there is no place
    sources = jax.vmap(lambda s: _sources(s, config.experts * places))(slots)  # [g, e * c], s where a place is empty
    padded = jnp.concatenate([tokens, jnp.zeros((n // size, 1, d), x.dtype)], axis=1)
    buffers = jnp.take_along_axis(padded, sources[..., None], axis=1).reshape(-1, config.experts, places, d)
    buffers = moved(buffers.swapaxes(0, 1), BY_GROUP, BY_EXPERT)  # [e, g, c, d]
    made = _feed(params, config, buffers.reshape(config.experts, -1, d), exact)  # [e, g * c, d]
    made = moved(made.reshape(config.experts, -1, places, d), BY_EXPERT, BY_GROUP)
    made = made.swapaxes(0, 1).reshape(-1, config.experts * places, d)
    made = jnp.concatenate([made, jnp.zeros((len(made), 1, d), made.dtype)], axis=1)
    back = jnp.take_along_axis(made, slots.reshape(len(made), -1, 1), axis=1).reshape(n, -1, d)
    here = chosen < config.experts
    dropped = (here & (slots == config.experts * places)).sum((0, 1)) / jnp.maximum(1, here.sum((0, 1)))
    measures = {f"dropped_{order + 1}": dropped[order] for order in range(config.experts_per_token)}
    return (back * weights.reshape(n, -1, 1)).sum(1), measures


def capacity(config: ModelConfig, size: int) -> int:
    """Places of an expert in a group of `size` tokens: `capacity_factor` of an even share of the tokens, rounded up
    to a multiple of 4. With a factor of `experts_per_token` there are as many places as choices."""
    return 4 * math.ceil(size * config.capacity_factor / config.experts / 4)


def slots_of(chosen: jax.Array, experts: int, places: int) -> jax.Array:
    """The place [s, k] of each choice [s, k] in the buffers [experts * places], `experts * places` if it has none.

    First choices are served before second ones, each in the order of the tokens.
    """
    size, choices = chosen.shape
    ranked = chosen.T.reshape(-1)  # all first choices, then all second ones
    taken = jnp.cumsum(jax.nn.one_hot(ranked, experts, dtype=jnp.int32), axis=0)
    place = jnp.take_along_axis(taken, jnp.minimum(ranked, experts - 1)[:, None], axis=1)[:, 0] - 1
    slots = jnp.where((ranked < experts) & (place < places), ranked * places + place, experts * places)
    return slots.reshape(choices, size).T


def _sources(slots: jax.Array, count: int) -> jax.Array:
    """Which token is in each of `count` places, given the places [s, k] of tokens; s where nobody is."""
    size, choices = slots.shape
    tokens = jnp.broadcast_to(jnp.arange(size)[:, None], (size, choices))
    return jnp.full(count, size).at[slots.reshape(-1)].set(tokens.reshape(-1), mode="drop")


# --------------------------------------------------------------------------------------------- feed-forwards


def _activate(config: ModelConfig, gate: list[jax.Array], up: jax.Array, exact: bool) -> jax.Array:
    return gated(gate[0], up, config.expert_activation, exact) if gate else jax.nn.gelu(up)


def _feed(params, config, x, exact):
    """Each expert on its own rows: [e, r, d] -> [e, r, d]."""

    def multiply(x, weights, axis):
        if exact:
            made = tuple(jnp.einsum("erd,edf->erf", x, weight) for weight in weights)
        else:
            made = jax.vmap(products)(x, weights)
        return [constrain(each, "expert", "batch", axis) for each in made]

    *gate, up = multiply(x, tuple(params[name] for name in ("gate", "up") if name in params), "hidden")
    return multiply(_activate(config, gate, up, exact), (params["down"],), "residual")[0]


def _feed_ragged(params, config, x, rows, exact):
    """Experts on consecutive rows of x [r, d]: the first `rows[0]` are the first expert's, and so on."""

    def product(x, weight):
        if exact:
            return jax.lax.ragged_dot(x, weight, rows)
        x, weight = x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
        return jax.lax.ragged_dot(x, weight, rows, preferred_element_type=jnp.float32)

    gate = [product(x, params["gate"])] if "gate" in params else []
    return product(_activate(config, gate, product(x, params["up"]), exact), params["down"])


def _feed_either(params, config, x, rows):
    """As `_feed_ragged`: XLA multiplies rows by every expert on a CPU, so there they go in blocks."""
    return jax.lax.platform_dependent(
        x, rows, params,
        cpu=lambda x, rows, params: _feed_blocks(params, config, x, rows),
        default=lambda x, rows, params: _feed_ragged(params, config, x, rows, False),
    )  # fmt: skip


def _feed_blocks(params, config, x, rows):
    """As `_feed_ragged`, each expert's rows filled up to whole blocks, of which each is one expert's (MegaBlocks,
    section 5.1). Blocks of half an even share waste a quarter of the rows; each block has its own copy of a weight."""
    size = min(512, max(64, 2 ** round(math.log2(max(1, len(x) / config.experts / 2)))))
    blocks = -(-rows // size)
    ends = jnp.cumsum(blocks)
    count = len(x) // size + config.experts  # at most, whoever has how many
    owner = jnp.minimum(jnp.searchsorted(ends, jnp.arange(count), side="right"), config.experts - 1)
    shift = (ends - blocks) * size - (jnp.cumsum(rows) - rows)  # of an expert's rows, by the padding before them
    place = jnp.arange(len(x)) + jnp.repeat(shift, rows, total_repeat_length=len(x))
    source = _sources(place[:, None], count * size)
    padded = _moved_rows(x, source, place).reshape(count, size, -1)
    own = {name: _by_block(params[name], owner, config.experts) for name in ("gate", "up", "down") if name in params}
    return _moved_rows(_feed(own, config, padded, False).reshape(count * size, -1), place, source)


@jax.custom_vjp
def _moved_rows(x, source, place):
    """Row source[i] of x in row i, zeros where there is none; row i of x is in row place[i], if that is one."""
    return jnp.take(x, source, axis=0, mode="fill", fill_value=0)


_moved_rows.defvjp(
    lambda x, source, place: (_moved_rows(x, source, place), place),
    lambda place, g: (jnp.take(g, place, axis=0, mode="fill", fill_value=0), None, None),
)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _by_block(weight, owner, experts):
    """The weight [e, ...] of each block's owner, in bfloat16; gradients of blocks are summed in float32."""
    return weight.astype(jnp.bfloat16)[owner]


_by_block.defvjp(
    lambda weight, owner, experts: (_by_block(weight, owner, experts), owner),
    lambda experts, owner, g: (jax.ops.segment_sum(g.astype(jnp.float32), owner, experts), None),
)
