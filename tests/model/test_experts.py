"""Experts against a loop over tokens that can't be wrong, and the properties that the papers name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tony.model.config import ModelConfig
from tony.model.count import active_parameter_count, parameter_count
from tony.model.experts import capacity, experts, route, slots_of
from tony.model.forward import feed_forward
from tony.model.params import declare, init

CONFIG = ModelConfig(
    vocab_size=32, layers=1, width=16, heads=2, kv_heads=2, head_dim=8, hidden=24, experts=4, expert_hidden=20,
    capacity_factor=8.0,
)  # fmt: skip


def made(config, seed=0):
    return init(declare(config), jax.random.key(seed))["blocks"][0]["feed_forward"]


def tokens(n=24, width=16, seed=1):
    return np.array(jax.random.normal(jax.random.key(seed), (n, width)))


def slow(params, config, x, places=None):
    """(output, dropped choices by rank), as GShard's algorithm 1 does it; `places` of an expert, None for all."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    scores = x @ p["router"]["weight"]
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    order = np.argsort(-probabilities, axis=1)[:, : config.experts_per_token]
    out, taken = np.zeros(x.shape), np.zeros(config.experts, int)
    dropped = [0] * config.experts_per_token
    for rank in range(config.experts_per_token):
        for i, row in enumerate(x):
            e = order[i, rank]
            taken[e] += 1
            if places is not None and taken[e] > places:
                dropped[rank] += 1
                continue
            gate, up = row @ p["gate"][e], row @ p["up"][e]
            weight = probabilities[i, e] / probabilities[i, order[i]].sum()
            out[i] += weight * ((gate / (1 + np.exp(-gate)) * up) @ p["down"][e])
    return out, dropped


@pytest.mark.parametrize("dispatch", ["dense", "sorted", "capacity"])
def test_every_dispatch_equals_the_loop(dispatch):
    config = dataclasses.replace(CONFIG, dispatch=dispatch)
    params, x = made(config), tokens()
    expected, _ = slow(params, config, x)
    exact, *_ = experts(params, config, x[None], exact=True)
    rounded, _, measures = experts(params, config, x[None])
    np.testing.assert_allclose(exact[0], expected, atol=1e-5)
    np.testing.assert_allclose(rounded[0], expected, atol=0.02 * np.abs(expected).max())
    assert measures.get("dropped_1", 0) == 0


@pytest.mark.parametrize("dispatch", ["sorted", "capacity"])
def test_every_dispatch_has_the_gradient_of_the_dense_one(dispatch):
    params, x, towards = made(CONFIG), tokens(), tokens(seed=2)

    def gradient(name):
        config = dataclasses.replace(CONFIG, dispatch=name)
        return jax.grad(lambda p, x: (experts(p, config, x)[0] * towards).sum(), argnums=(0, 1))(params, x)

    for ours, dense in zip(jax.tree.leaves(gradient(dispatch)), jax.tree.leaves(gradient("dense")), strict=True):
        np.testing.assert_allclose(ours, dense, atol=0.02 * np.abs(dense).max() + 1e-6)


def test_blocks_of_experts_with_very_uneven_loads():
    config = dataclasses.replace(CONFIG, dispatch="sorted")
    params, x, towards = made(config), tokens(600), tokens(600, seed=2)
    params["router"]["weight"] = params["router"]["weight"].at[:, 2].set(0).at[0, 2].set(-9).at[0, 1].set(9)
    x[:, 0] = np.abs(x[:, 0]) + 1  # everybody's first choice is expert 1, nobody's is expert 2
    load = np.bincount(np.asarray(route(params["router"], config, jnp.asarray(x)).chosen).ravel(), minlength=4)
    assert load[1] == 600 and load[2] == 0 and min(load[0], load[3]) > 64
    expected, _ = slow(params, config, x)
    np.testing.assert_allclose(experts(params, config, x)[0], expected, atol=0.02 * np.abs(expected).max())

    def gradient(name):
        there = dataclasses.replace(CONFIG, dispatch=name)
        return jax.grad(lambda p, x: (experts(p, there, x)[0] * towards).sum(), argnums=(0, 1))(params, x)

    for ours, dense in zip(jax.tree.leaves(gradient("sorted")), jax.tree.leaves(gradient("dense")), strict=True):
        np.testing.assert_allclose(ours, dense, atol=0.02 * np.abs(dense).max() + 1e-6)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_full_experts_drop_what_the_loop_drops(factor):
    config = dataclasses.replace(CONFIG, capacity_factor=factor)
    params, x = made(config), tokens(64)
    places = capacity(config, 64)
    expected, dropped = slow(params, config, x, places)
    out, _, measures = experts(params, config, x)
    np.testing.assert_allclose(out, expected, atol=0.02 * np.abs(expected).max())
    assert [round(float(measures[f"dropped_{k}"]) * 64) for k in (1, 2)] == dropped
    assert dropped[1] > 0


def test_groups_have_places_of_their_own():
    config = dataclasses.replace(CONFIG, capacity_factor=1.0, expert_group=16)
    params, x = made(config), tokens(64)
    expected = np.concatenate([slow(params, config, part, capacity(config, 16))[0] for part in np.split(x, 4)])
    np.testing.assert_allclose(experts(params, config, x)[0], expected, atol=0.02 * np.abs(expected).max())


def test_first_choices_are_served_before_second_ones():
    chosen = jnp.array([[0, 1], [1, 0], [0, 1]])
    assert slots_of(chosen, 2, 2).tolist() == [[0, 3], [2, 4], [1, 4]]  # 4: no place


@pytest.mark.parametrize("dispatch", ["dense", "sorted", "capacity"])
def test_padding_takes_no_place_and_does_not_count(dispatch):
    config = dataclasses.replace(CONFIG, dispatch=dispatch, capacity_factor=1.0)
    params, x = made(config), tokens(64)
    real = np.arange(64) % 2 == 1
    out, losses, measures = experts(params, config, x, real)
    if dispatch == "capacity":
        expected, dropped = slow(params, config, x[real], capacity(config, 64))
        assert [round(float(measures[f"dropped_{k}"]) * 32) for k in (1, 2)] == dropped
    else:
        expected, _ = slow(params, config, x[real])
    np.testing.assert_allclose(out[real], expected, atol=0.02 * np.abs(expected).max())
    np.testing.assert_array_equal(out[~real], 0)
    alone = route(params["router"], config, x[real])
    for name, value in alone.losses.items():
        assert float(losses[name]) == pytest.approx(float(value), rel=1e-5)
    assert float(measures["busiest_expert"]) == pytest.approx(float(alone.measures["busiest_expert"]), rel=1e-5)


def test_a_single_choice_still_teaches_the_router():
    config = dataclasses.replace(
        CONFIG, experts_per_token=1, dispatch="sorted", balance_weight=0.0, router_z_weight=0.0
    )
    gradient = jax.grad(lambda p: jnp.square(experts(p, config, tokens())[0]).sum())(made(config))
    assert np.abs(gradient["router"]["weight"]).max() > 0


def test_one_expert_is_the_dense_feed_forward():
    config = dataclasses.replace(CONFIG, experts=1, experts_per_token=1, dispatch="sorted")
    sparse = made(config)
    dense = {name: {"weight": sparse[name][0]} for name in ("gate", "up", "down")}
    x = tokens()
    np.testing.assert_allclose(feed_forward(sparse, config, x)[0], feed_forward(dense, config, x)[0], atol=1e-3)


def test_load_balance_is_one_where_all_is_even_and_pushes_the_busy_expert_down():
    config = dataclasses.replace(CONFIG, balance_weight=1.0)
    even = {"weight": jnp.zeros((16, 4))}
    x = tokens()
    # Equal probabilities: whoever is first, the mean probability is 1/4.
    assert float(route(even, config, x).losses["load_balance"]) == pytest.approx(1, abs=1e-5)
    x[:, 0] = 1
    busy = {"weight": jnp.zeros((16, 4)).at[0, 2].set(1.0)}
    assert float(route(busy, config, x).losses["load_balance"]) > 1.5
    gradient = jax.grad(lambda w: route({"weight": w}, config, x).losses["load_balance"])(busy["weight"])
    assert gradient[0, 2] > 0 > gradient[0, 1]


def test_a_bias_balances_without_touching_the_weights_of_the_choice():
    config = dataclasses.replace(CONFIG, balance="bias")
    weight = 0.2 * jax.random.normal(jax.random.key(4), (16, 4))
    router = {"weight": weight.at[0, 2].add(1.0), "bias": jnp.zeros(4)}
    x = tokens(400)
    x[:, 0] = 1
    before = route(router, config, x)
    assert float(before.losses["load_balance"]) == 0
    for _ in range(100):
        pushed = jax.grad(lambda b: sum(route({**router, "bias": b}, config, x).losses.values()))(router["bias"])
        assert np.abs(pushed).max() < 1e-5
        router["bias"] -= 0.01 * np.sign(pushed)
    after = route(router, config, x)
    assert float(after.measures["busiest_expert"]) < 1.2 < float(before.measures["busiest_expert"])
    probabilities = jax.nn.softmax(x @ router["weight"])
    own = np.take_along_axis(np.asarray(probabilities), np.asarray(after.chosen), 1)
    np.testing.assert_allclose(after.weights, own / own.sum(1, keepdims=True), rtol=1e-5)


def test_router_z_loss_is_the_mean_square_of_the_log_normaliser():
    router = {"weight": jax.random.normal(jax.random.key(3), (16, 4))}
    x = tokens()
    log_z = np.log(np.exp(x @ np.asarray(router["weight"])).sum(1))
    assert float(route(router, CONFIG, x).losses["router_z"]) == pytest.approx(0.001 * (log_z**2).mean(), rel=1e-5)


PALM = {"8B": (32, 16, 4096), "62B": (64, 32, 8192), "540B": (118, 48, 18432)}


@pytest.mark.parametrize(("name", "billions"), [("8B", 8.632), ("62B", 62.495), ("540B", 540.354)])
def test_palm_has_the_papers_parameters(name, billions):
    layers, heads, width = PALM[name]
    config = ModelConfig(
        vocab_size=256_000, layers=layers, width=width, heads=heads, kv_heads=1, head_dim=256, hidden=4 * width,
        parallel_block=True, norm="layernorm", qk_norm=False,
    )  # fmt: skip
    assert parameter_count(config) / 1e9 == pytest.approx(billions, abs=0.005)
    assert active_parameter_count(config) == parameter_count(config)


# Name, layers, width, hidden, heads, head width, experts, vocabulary, total and active parameters of Du et al. 2022,
# table 4. The rows up to 8B fit a vocabulary of 32,000, the largest one of 256,000. Three printed numbers no vocabulary
# explains: 130M and 145M active of the 0.1B rows (138M and 152M), and 20B of 1.7B/32E (14.0B).
GLAM = [
    ("0.1B", 12, 768, 3072, 12, 64, 0, 32_000, 0.138e9, 0.138e9),
    ("0.1B/64E", 12, 768, 3072, 12, 64, 64, 32_000, 1.9e9, 0.152e9),
    ("1.7B", 24, 2048, 8192, 16, 128, 0, 32_000, 1.7e9, 1.700e9),
    ("1.7B/32E", 24, 2048, 8192, 16, 128, 32, 32_000, 14.0e9, 1.878e9),
    ("1.7B/64E", 24, 2048, 8192, 16, 128, 64, 32_000, 27e9, 1.879e9),
    ("1.7B/128E", 24, 2048, 8192, 16, 128, 128, 32_000, 53e9, 1.881e9),
    ("1.7B/256E", 24, 2048, 8192, 16, 128, 256, 32_000, 105e9, 1.886e9),
    ("8B", 32, 4096, 16384, 32, 128, 0, 32_000, 8.7e9, 8.7e9),
    ("8B/64E", 32, 4096, 16384, 32, 128, 64, 32_000, 143e9, 9.8e9),
    ("137B", 64, 8192, 65536, 128, 128, 0, 32_000, 137e9, 137e9),
    ("64B/64E", 64, 8192, 32768, 128, 128, 64, 256_000, 1161.8e9, 96.60e9),
]


@pytest.mark.parametrize(
    ("name", "layers", "width", "hidden", "heads", "head_dim", "e", "vocabulary", "total", "active"), GLAM
)
def test_glam_has_the_papers_parameters(name, layers, width, hidden, heads, head_dim, e, vocabulary, total, active):
    config = ModelConfig(
        vocab_size=vocabulary, layers=layers, width=width, heads=heads, kv_heads=heads, head_dim=head_dim,
        hidden=hidden, activation="geglu", position="t5", qk_norm=False, experts=e, expert_every=2,
        expert_hidden=hidden, expert_activation="gelu",
    )  # fmt: skip
    assert parameter_count(config) == pytest.approx(total, rel=0.02)
    assert active_parameter_count(config) == pytest.approx(active, rel=0.02)
