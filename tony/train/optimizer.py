"""Optimisers from a recipe's training section."""

import jax
import jax.numpy as jnp
import optax

from tony.train.muon import scale_by_muon


def schedule(config, peak: float) -> optax.Schedule:
    """Learning rate by step: a linear warm-up, then constant, or down to `final_fraction` linearly or by a cosine.

    "rsqrt" is constant for `hold` steps and falls with the inverse square root of the step after that, whatever the
    number of steps (PaLM, section 5; GLaM, section 5.1).
    """
    if config.schedule == "rsqrt":
        return _rsqrt(peak, config.warmup, config.hold)
    warmup = min(config.warmup, max(1, config.steps // 10))
    rest = max(1, config.steps - warmup)
    final = config.final_fraction
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=final),
        "linear": optax.linear_schedule(peak, peak * final, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup]) if warmup else after


def _rsqrt(peak: float, warmup: int, hold: int) -> optax.Schedule:
    def rate(count):
        step = jnp.maximum(1, count)
        return peak * jnp.minimum(1, step / max(1, warmup)) * jnp.minimum(1, jnp.sqrt(hold / step))

    return rate


def make_optimizer(config) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019), Adafactor (Shazeer and Stern 2018), or Muon (Jordan 2024) for the matrices
    inside blocks and AdamW for the rest.

    Gradients are clipped by their global norm first; only matrices decay.
    """

    def adamw():
        return optax.adamw(
            schedule(config, config.learning_rate), b1=0.9, b2=0.98, weight_decay=config.weight_decay,
            mask=_matrices,
        )  # fmt: skip

    def muon():
        return optax.chain(scale_by_muon(), optax.scale_by_learning_rate(schedule(config, config.matrix_learning_rate)))

    parts = {
        "adamw": {"others": adamw()},
        "adafactor": {"others": _adafactor(config), "stacked": _one_by_one(_adafactor(config))},
        "muon": {"others": adamw(), "muon": muon()},
    }[config.optimizer]
    balance = optax.chain(optax.scale_by_sign(), optax.scale(-BALANCE_RATE))
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.multi_transform({**parts, "balance": balance}, lambda params: _labels(params, set(parts))),
        *([clip_update(config.update_norm)] if config.update_norm else []),
    )


def clip_update(most: float) -> optax.GradientTransformation:
    """Shorten an update whose norm is more than `most` times that of the parameters.

    Clipped gradients do not bound what Adam and its like make of them after a quiet time.
    """

    def update(updates, state, params):
        longest = most * optax.global_norm(params)
        scale = jnp.minimum(1, longest / jnp.maximum(optax.global_norm(updates), 1e-30))
        return jax.tree.map(lambda x: x * scale, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _adafactor(config) -> optax.GradientTransformation:
    """Adafactor whose second moments decay by 1 - k^-0.8 and whose steps are relative to a matrix' size.

    PaLM's (section 5) is unfactored, with momentum and without clipped updates; GLaM's (section 5.1) factored, without
    momentum, its updates clipped.
    """
    rate = schedule(config, config.learning_rate)
    decay = (lambda k: rate(k) ** 2) if config.decay_squared else (lambda k: rate(k) * config.weight_decay)
    return optax.chain(
        optax.adafactor(
            rate, factored=config.factored, decay_rate=0.8, clipping_threshold=config.update_clip or None,
            momentum=config.momentum or None, multiply_by_parameter_scale=True,
        ),
        optax.scale(-1.0), optax.add_decayed_weights(decay, mask=_matrices), optax.scale(-1.0),
    )  # fmt: skip


BALANCE_RATE = 0.001  # by which a router's bias goes up or down at each step (Wang et al. 2024, section 3.1)
VECTORS = ("gain", "bias", "query_norm", "key_norm")  # of stacked blocks they have two axes too
TABLES = {"relative_bias", "router"}  # no directions to make alike


def _matrices(params) -> dict:
    def is_matrix(path, x):
        return x.ndim >= 2 and getattr(path[-1], "key", "") not in VECTORS

    return jax.tree_util.tree_map_with_path(is_matrix, params)


def _labels(params, parts: set[str]) -> dict:
    """Which of the parts of an optimiser each parameter belongs to."""
    gains = [x for path, x in jax.tree_util.tree_leaves_with_path(params) if _names(path) >= {"blocks", "gain"}]
    stacked = any(gain.ndim > 1 for gain in gains)

    def label(path, matrix):
        names = _names(path)
        if names >= {"router", "bias"}:
            return "balance"
        if "stacked" in parts and stacked and "blocks" in names:
            return "stacked"
        return "muon" if "muon" in parts and matrix and "blocks" in names and not names & TABLES else "others"

    return jax.tree_util.tree_map_with_path(label, _matrices(params))


def _names(path) -> set[str]:
    return {getattr(key, "key", "") for key in path}


def _one_by_one(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimiser that sees the layers of stacked arrays as arrays of their own."""

    def init(params):
        return jax.vmap(optimizer.init)(params) if jax.tree.leaves(params) else optimizer.init(params)

    def update(updates, state, params=None):
        if not jax.tree.leaves(updates):
            return optimizer.update(updates, state, params)
        return jax.vmap(optimizer.update)(updates, state, params)

    return optax.GradientTransformation(init, update)
