"""Optimisers from a recipe's training section."""

import jax
import optax

from tony.train.muon import scale_by_muon


def schedule(config, peak: float) -> optax.Schedule:
    """Learning rate by step: a linear warm-up, then constant, or down to `final_fraction` linearly or by a cosine."""
    warmup = min(config.warmup, max(1, config.steps // 10))
    rest = max(1, config.steps - warmup)
    final = config.final_fraction
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=final),
        "linear": optax.linear_schedule(peak, peak * final, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def make_optimizer(config) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019), or Muon (Jordan 2024) for the matrices inside blocks and AdamW for the rest.

    Gradients are clipped by their global norm first; only matrices decay.
    """

    def adamw():
        return optax.adamw(
            schedule(config, config.learning_rate), b1=0.9, b2=0.98, weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda x: x.ndim >= 2, params),
        )  # fmt: skip

    if config.optimizer == "adamw":
        return optax.chain(optax.clip_by_global_norm(config.clip), adamw())
    muon = optax.chain(scale_by_muon(), optax.scale_by_learning_rate(schedule(config, config.matrix_learning_rate)))
    return optax.chain(
        optax.clip_by_global_norm(config.clip), optax.multi_transform({"muon": muon, "adamw": adamw()}, _labels)
    )


def _labels(params) -> dict:
    def label(path, x):
        return "muon" if x.ndim == 2 and "blocks" in jax.tree_util.keystr(path) else "adamw"

    return jax.tree_util.tree_map_with_path(label, params)
