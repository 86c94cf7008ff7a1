"""The C++ kernels beside slow obvious implementations in float32, and what happens where they can't be had."""

import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tony import arrays, kernels
from tony.model.config import ModelConfig
from tony.model.params import declare, init
from tony.recipe import Language
from tony.train.loss import _logits_loss
from tony.train.step import language_loss_fn

needed = pytest.mark.skipif(not kernels.available(), reason="no CPU with bfloat16 products, or no C++ compiler")
ROUNDING = 2e-2  # of bfloat16, in the largest number of a result


@pytest.fixture(scope="module")
def plain() -> str:
    """The kernels without AMX tiles, as CPUs that have none run them; their suffix."""
    compiler = next(filter(None, map(shutil.which, kernels.COMPILERS)))
    kernels.register(kernels.build(compiler, "-DTONY_NO_TILES"), "_plain")
    return "_plain"


def near(got, expected) -> None:
    """Equal but for rounding."""
    expected = np.asarray(expected, np.float32)
    np.testing.assert_allclose(np.asarray(got, np.float32), expected, atol=ROUNDING * max(1e-3, np.abs(expected).max()))


def slow_attention(q, k, v, segments, past, future):
    """Softmax over whoever is seen, with every score in float32."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    back = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
    seen = (segments[:, :, None] == segments[:, None, :]) & (back <= past) & (back >= -future)
    scores = jnp.where(seen[:, None], jnp.einsum("bqhk,bshk->bhqs", q, k, precision="highest"), -1e30)
    return jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(scores), v, precision="highest")


CASES = {  # batch, length, heads, groups, head width, past, future
    "short": (2, 7, 2, 1, 16, kernels.ENDLESS, 0),
    "of one token": (3, 1, 2, 2, 32, kernels.ENDLESS, 0),
    "a whole block": (1, 32, 2, 2, 64, kernels.ENDLESS, 0),
    "several blocks, shared keys": (2, 130, 4, 2, 64, kernels.ENDLESS, 0),
    "a window": (2, 100, 2, 2, 48, 19, 0),
    "both ways": (2, 70, 2, 2, 24, kernels.ENDLESS, kernels.ENDLESS),
    "a window both ways": (2, 70, 2, 1, 128, 5, 3),
}


@needed
@pytest.mark.parametrize("tiles", [True, False], ids=["tiles", "no tiles"])
@pytest.mark.parametrize("case", CASES)
def test_attention_and_its_gradients_are_the_slow_ones_but_for_rounding(case, tiles, plain):
    b, l, h, g, d, past, future = CASES[case]
    rng = np.random.default_rng(0)
    q, k, v, out = (
        jnp.asarray(rng.standard_normal((b, l, n, d)), jnp.bfloat16) * s
        for n, s in ((h, d**-0.5), (g, 1), (g, 1), (h, 1))
    )
    segments = (
        jnp.asarray(np.sort(rng.integers(0, 3, (b, l))), jnp.int32).at[:, -3:].set(0)
    )  # one comes back at the end
    suffix = "" if tiles else plain
    made, back = jax.vjp(lambda *x: kernels.attention(*x, segments, past, future, suffix), q, k, v)
    exact = (x.astype(jnp.float32) for x in (q, k, v))
    expected, exact_back = jax.vjp(lambda *x: slow_attention(*x, segments, past, future), *exact)
    near(made, expected)
    for got, wanted in zip(back(out), exact_back(out.astype(jnp.float32)), strict=True):
        near(got, wanted)


@needed
def test_attention_mapped_over_an_axis_is_that_of_each():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((3, 2, 20, 2, 16)), jnp.bfloat16) for _ in range(3))
    segments = jnp.asarray(rng.integers(0, 2, (2, 20)), jnp.int32)
    mapped = jax.vmap(kernels.attention, in_axes=(0, 0, 0, None))(q, k, v, segments)
    each = [kernels.attention(*parts, segments) for parts in zip(q, k, v, strict=True)]
    np.testing.assert_array_equal(np.asarray(mapped, np.float32), np.asarray(jnp.stack(each), np.float32))


@needed
def test_attention_of_shapes_that_do_not_fit_is_refused():
    q, k = jnp.zeros((1, 8, 3, 16), jnp.bfloat16), jnp.zeros((1, 8, 2, 16), jnp.bfloat16)
    with pytest.raises(jax.errors.JaxRuntimeError, match="different lengths or heads"):
        kernels.attention(q, k, k, jnp.zeros((1, 8), jnp.int32))


@needed
@pytest.mark.parametrize("shape", [(5,), (3, 37), (4, 5000)])
def test_a_gated_unit_and_its_gradients(shape):
    rng = np.random.default_rng(0)
    gate, up, out = (jnp.asarray(3 * rng.standard_normal(shape), jnp.float32) for _ in range(3))
    made, back = jax.vjp(kernels.gated, gate.at[0].set(-200.0), up)  # where exp(200) would be no number
    expected, exact_back = jax.vjp(lambda a, b: jax.nn.silu(a) * b, gate.at[0].set(-200.0), up)
    near(made, expected)
    for got, wanted in zip(back(out.astype(jnp.bfloat16)), exact_back(out), strict=True):
        near(got, wanted)


@needed
@pytest.mark.parametrize("width", [8, 48, 64, 128])
def test_rotation_and_its_gradient(width):
    rng = np.random.default_rng(0)
    x, out = (jnp.asarray(rng.standard_normal((2, 40, 3, width)), jnp.float32) for _ in range(2))
    turn = arrays.rotation(jnp.tile(jnp.arange(40), (2, 1)), width, 1e4)
    made, back = jax.vjp(lambda x: kernels.rotated(x, *turn), x)
    expected, exact_back = jax.vjp(lambda x: arrays.rotate(x, turn, lambda x, w: (x @ w[0],)), x)
    near(made, expected)
    near(back(out.astype(jnp.bfloat16))[0], exact_back(out)[0])


@needed
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("vocabulary", [5, 100, 1024])
def test_the_loss_of_logits_is_that_of_a_softmax(vocabulary, z_loss):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(20 * rng.standard_normal((9, vocabulary)), jnp.float32)
    targets = jnp.asarray(rng.integers(vocabulary, size=9), jnp.int32)
    weights = jnp.asarray(rng.random(9), jnp.float32)

    def total(logits):
        log_z = jax.nn.logsumexp(logits, axis=-1)
        nll = log_z - logits[jnp.arange(9), targets]
        return (weights * (nll + z_loss * log_z**2)).sum(), (nll, log_z)

    gradient, (nll, log_z) = jax.grad(total, has_aux=True)(logits)
    for made in (kernels.logits_loss, _logits_loss):
        got = made(logits, targets, weights, z_loss)
        near(got[0], gradient)
        np.testing.assert_allclose(got[1], nll, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got[2], log_z, rtol=1e-5)


@needed
@pytest.mark.parametrize("shape", [(1, 7), (5, 3, 40), (200, 96)])
def test_the_gradients_of_a_norm(shape):
    rng = np.random.default_rng(0)
    x, out = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for _ in range(2))
    gain = jnp.asarray(rng.standard_normal(shape[-1]), jnp.float32)

    def norm(x, gain):
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * gain

    scale = jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    for got, wanted in zip(kernels.norm_gradients(x, scale, gain, out), jax.vjp(norm, x, gain)[1](out), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@needed
def test_a_network_has_the_same_loss_and_gradients_with_and_without_them(monkeypatch):
    config = ModelConfig(vocab_size=64, layers=2, width=32, heads=4, kv_heads=2, head_dim=8, hidden=48)
    rng, shape = np.random.default_rng(0), (2, 40)
    ones = np.ones(shape, np.int32)
    places = np.tile(np.arange(40, dtype=np.int32), (2, 1))
    batch = {
        "tokens": rng.integers(64, size=shape, dtype=np.int32), "targets": rng.integers(64, size=shape, dtype=np.int32),
        "positions": places, "segments": np.sort(rng.integers(1, 4, shape)).astype(np.int32), "modality": 0 * ones,
        "loss_index": places, "weights": ones.astype(np.float32),
    }  # fmt: skip
    params, loss = init(declare(config), jax.random.key(0)), language_loss_fn(config, Language(z_loss=1e-4))
    (with_them, _), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, None)
    monkeypatch.setenv("TONY_KERNELS", "0")
    jax.clear_caches()
    assert not kernels.available()
    (without, _), others = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, None)
    assert float(with_them) == pytest.approx(float(without), rel=1e-3)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True):
        near(a, b)


def test_without_a_compiler_or_with_one_that_fails_xla_does_it(monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "_features", lambda: kernels.NEEDED)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert kernels._registered.__wrapped__() is False
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'fatal error: no such thing' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(kernels, "CACHE", tmp_path)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: str(broken))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert kernels._registered.__wrapped__() is False
    assert "no such thing" in str(told[0].message)
    assert not list((tmp_path / "kernels").iterdir())  # nothing half done is left
