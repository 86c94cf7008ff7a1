"""The fused loss against the obvious one."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tony.model.config import ModelConfig
from tony.model.forward import forward
from tony.model.params import declare, init
from tony.recipe import Language
from tony.train.loss import cross_entropy, language_loss
from tony.train.step import _accumulated, language_loss_fn


@pytest.mark.parametrize("count", [7, 512, 700])
def test_cross_entropy_and_its_gradients(count):
    rng = np.random.default_rng(count)
    hidden, table = (
        rng.standard_normal((count, 16)).astype(np.float32),
        rng.standard_normal((50, 16)).astype(np.float32),
    )
    targets, weights = rng.integers(50, size=count), rng.random(count).astype(np.float32)

    def obvious(hidden, table):
        logits = hidden @ table.T
        log_z = jax.nn.logsumexp(logits, axis=-1)
        nll = log_z - logits[jnp.arange(count), targets]
        return (weights * (nll + 1e-2 * log_z**2)).sum()

    def fused(hidden, table):
        return cross_entropy(hidden, table, targets, weights, 1e-2)[0]

    expected, expected_gradients = jax.value_and_grad(obvious, (0, 1))(hidden, table)
    value, gradients = jax.value_and_grad(fused, (0, 1))(hidden, table)
    assert float(value) == pytest.approx(float(expected), rel=5e-3)
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert np.abs(a - b).mean() < 0.01 * np.abs(b).mean() + 1e-6


SHAPE = {"vocab_size": 32, "layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "hidden": 16}


def make_batch():
    rng = np.random.default_rng(0)
    shape = (2, 12)
    batch = {
        "tokens": rng.integers(32, size=shape),
        "targets": rng.integers(32, size=shape),
        "positions": np.tile(np.arange(12), (2, 1)),
        "segments": np.ones(shape, int),
        "weights": (rng.random(shape) < 0.5).astype(np.float32),
        "modality": rng.integers(2, size=shape),
    }
    batch["weights"][:, -1] = 0
    index = np.full((2, 12), 11)
    for row in range(2):
        places = np.flatnonzero(batch["weights"][row])
        index[row, : len(places)] = places
    return {**batch, "loss_index": index}


def test_language_loss_counts_weights_and_modalities():
    config, batch = ModelConfig(**SHAPE), make_batch()
    params = init(declare(config), jax.random.key(0))
    total, metrics = language_loss(params, config, batch, modality_weights={"text": 1.0, "audio": 0.5}, z_loss=0.0)
    hidden, *_ = forward(params, config, batch["tokens"], batch["positions"], batch["segments"])
    nll = -np.asarray(jax.nn.log_softmax(hidden @ params["embedding"].T))
    nll = np.take_along_axis(nll, batch["targets"][..., None], -1)[..., 0]
    scale = np.where(batch["modality"] == 1, 0.5, 1.0)
    assert float(total) == pytest.approx((nll * batch["weights"] * scale).sum() / batch["weights"].sum(), rel=1e-2)
    for number, name in ((0, "text"), (1, "audio")):
        here = batch["weights"] * (batch["modality"] == number)
        assert float(metrics[name]) == pytest.approx((nll * here).sum() / here.sum(), rel=1e-2)
    assert np.isnan(metrics["image"])


def test_losses_of_experts_are_part_of_the_loss_and_drops_are_told():
    config, batch = ModelConfig(**SHAPE, experts=4, expert_hidden=16, capacity_factor=0.5), make_batch()
    params = init(declare(config), jax.random.key(0))
    measure = partial(language_loss, batch=batch, modality_weights={}, z_loss=0.0)
    total, metrics = measure(params, config)
    assert metrics["dropped_2"] > 0 and metrics["busiest_expert"] >= 1
    free, _ = measure(params, replace(config, balance_weight=0.0, router_z_weight=0.0))
    assert float(total - free) == pytest.approx(float(metrics["load_balance"] + metrics["router_z"]), rel=1e-3)
    gradient = jax.grad(lambda p: measure(p, config)[0])(params)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(gradient["blocks"][0]["feed_forward"]))


@pytest.mark.parametrize("experts", [0, 4])
def test_parts_of_a_batch_count_by_their_targets(experts):
    whole_experts = {"dispatch": "sorted", "balance_weight": 0.0, "router_z_weight": 0.0}  # no part drops others
    config = ModelConfig(**SHAPE, experts=experts, expert_hidden=16, **whole_experts)
    batch = {name: jnp.concatenate([x, x]) for name, x in make_batch().items()}
    rows = len(batch["weights"])
    batch["weights"] = batch["weights"].at[rows // 2 :, 3:].set(0)  # the second half has next to nothing to learn
    params, key = init(declare(config), jax.random.key(0)), jax.random.key(1)
    gradient_of = jax.value_and_grad(language_loss_fn(config, Language()), has_aux=True)
    (loss, metrics), whole = _accumulated(gradient_of, 1)(params, batch, key)
    (in_parts, told), summed = _accumulated(gradient_of, 2)(params, batch, key)
    assert "targets" not in metrics and np.isnan(told["image"])
    of_all = sum(float(told[name]) * float((batch["weights"] * (batch["modality"] == number)).sum())
                 for number, name in enumerate(("text", "audio")))  # fmt: skip
    assert of_all / float(batch["weights"].sum()) == pytest.approx(float(loss), rel=0.03)
    assert float(in_parts) == pytest.approx(float(loss), rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(summed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(theirs).max() + 1e-7)
