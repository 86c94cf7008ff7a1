"""Optimisers and schedules against the papers' formulas, written out step by step."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tony.recipe import Language, Training
from tony.stages.language import tokens_seen
from tony.train.optimizer import make_optimizer, schedule

PALM = Training(
    optimizer="adafactor", learning_rate=0.01, schedule="rsqrt", hold=3, warmup=0, factored=False, momentum=0.9,
    update_clip=0.0, decay_squared=True, clip=1e9,
)  # fmt: skip
GLAM = Training(
    optimizer="adafactor", learning_rate=0.01, schedule="rsqrt", hold=3, warmup=0, weight_decay=0.0, clip=1e9
)


def gradients(step: int, shape) -> np.ndarray:
    return np.random.default_rng(step).standard_normal(shape).astype(np.float32) * (1 + step)


def run(config, start: np.ndarray, steps: int) -> np.ndarray:
    optimizer = make_optimizer(config)
    params = {"w": start}
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update({"w": gradients(step, start.shape)}, state, params)
        params = {"w": np.asarray(params["w"] + updates["w"])}
    return params["w"]


def rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def test_adafactor_as_palm_describes_it():
    start = np.random.default_rng(9).standard_normal((6, 5)).astype(np.float32)
    w, v, m = start.astype(np.float64), np.zeros((6, 5)), np.zeros((6, 5))
    for k in range(1, 7):
        g = gradients(k - 1, w.shape).astype(np.float64)
        rate, beta2 = 0.01 * min(1, (3 / max(1, k - 1)) ** 0.5), 1 - k**-0.8
        v = beta2 * v + (1 - beta2) * g**2
        m = 0.9 * m + 0.1 * rate * rms(w) * g / np.sqrt(v)
        w = w - m - rate**2 * w
    np.testing.assert_allclose(run(PALM, start, 6), w, rtol=2e-4)


def test_adafactor_as_glam_describes_it():
    start = np.random.default_rng(9).standard_normal((130, 140)).astype(np.float32)  # both sides are worth factoring
    w, rows, columns = start.astype(np.float64), np.zeros(130), np.zeros(140)
    for k in range(1, 5):
        g = gradients(k - 1, w.shape).astype(np.float64)
        rate, beta2 = 0.01 * min(1, (3 / max(1, k - 1)) ** 0.5), 1 - k**-0.8
        rows = beta2 * rows + (1 - beta2) * (g**2).mean(1)
        columns = beta2 * columns + (1 - beta2) * (g**2).mean(0)
        update = g / np.sqrt(np.outer(rows, columns) / rows.mean())
        w = w - rate * rms(w) * update / max(1, rms(update))
    np.testing.assert_allclose(run(GLAM, start, 4), w, rtol=1e-3, atol=1e-5)


def test_factored_moments_are_rows_and_columns():
    params = {"w": np.zeros((256, 512), np.float32)}

    def numbers(config):
        return sum(x.size for x in jax.tree.leaves(make_optimizer(config).init(params)))

    assert numbers(GLAM) < 2_000 < 256 * 512 * 2 <= numbers(PALM)


def test_layers_of_a_stack_are_arrays_of_their_own():
    start = (
        np.random.default_rng(9).standard_normal((3, 130, 140)).astype(np.float32)
        * np.array([1, 10, 0.1])[:, None, None]
    )
    stack = {"blocks": [{"w": start.astype(np.float32), "norm": {"gain": np.ones((3, 140), np.float32)}}]}
    apart = {"blocks": [{"w": w.astype(np.float32), "norm": {"gain": np.ones(140, np.float32)}} for w in start]}
    optimizer = make_optimizer(GLAM)
    push = {"w": gradients(0, (3, 130, 140)), "norm": {"gain": gradients(1, (3, 140))}}
    together, _ = optimizer.update({"blocks": [push]}, optimizer.init(stack), stack)
    pushes = {"blocks": [jax.tree.map(lambda x, i=i: x[i], push) for i in range(3)]}
    separate, _ = optimizer.update(pushes, optimizer.init(apart), apart)
    for i, one in enumerate(separate["blocks"]):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(together["blocks"][0]), strict=True):
            np.testing.assert_allclose(a, b[i], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
def test_a_routers_bias_goes_by_the_sign_alone(optimizer):
    chosen = make_optimizer(Training(optimizer=optimizer))
    params = {"blocks": [{"router": {"weight": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)}}]}
    push = {"blocks": [{"router": {"weight": np.ones((4, 3), np.float32), "bias": np.float32([1e-6, 0, -1e-6])}}]}
    updates, _ = chosen.update(push, chosen.init(params), params)
    np.testing.assert_allclose(updates["blocks"][0]["router"]["bias"], [-0.001, 0, 0.001], atol=1e-9)


def test_rsqrt_is_palms_schedule():
    rate = schedule(Training(schedule="rsqrt", warmup=0), 0.01)
    for step in (1, 5_000, 10_000):
        assert float(rate(step)) == pytest.approx(0.01)
    for step in (40_000, 255_000):
        assert float(rate(step)) == pytest.approx(step**-0.5, rel=1e-5)


def test_palms_batch_ramp_sees_the_tokens_of_the_paper():
    section = Language(length=2048, rows=512, ramp=((50_000, 1024), (115_000, 2048)), steps=255_000)
    assert tokens_seen(section) / 1e9 == pytest.approx(775.9, abs=0.05)
    assert tokens_seen(SimpleNamespace(length=10, rows=2, ramp=((5, 4),), steps=3)) == 60


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
def test_an_update_is_no_longer_than_its_share_of_the_parameters(optimizer):
    start = np.random.default_rng(9).standard_normal((6, 4)).astype(np.float32)
    config = Training(optimizer=optimizer, learning_rate=0.5, matrix_learning_rate=0.5, warmup=0, schedule="constant")
    free = run(config, start, 1) - start
    for share in (0.01, 100.0):
        clipped = run(replace(config, update_norm=share), start, 1) - start
        norm = np.linalg.norm(free)
        expected = free * min(1.0, share * np.linalg.norm(start) / norm)
        np.testing.assert_allclose(clipped, expected, rtol=1e-4, atol=1e-6)
