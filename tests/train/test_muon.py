import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from tony.arrays import matmul
from tony.recipe import Training
from tony.train.muon import orthogonalize, scale_by_muon
from tony.train.optimizer import make_optimizer


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
def test_singular_values_come_near_one(shape):
    made = np.linalg.svd(orthogonalize(jax.random.normal(jax.random.key(0), shape)))[1]
    assert made.min() > 0.6 and made.max() < 1.3


def test_updates_are_those_of_optax_but_for_rounding():
    params = {"wide": np.zeros((24, 60), np.float32), "tall": np.zeros((60, 24), np.float32)}
    dimensions = dict.fromkeys(params, contrib.MuonDimensionNumbers())
    ours, theirs = scale_by_muon(), contrib.scale_by_muon(weight_dimension_numbers=dimensions)
    state, their_state = ours.init(params), theirs.init(params)
    for step in range(3):
        gradients = jax.tree.map(lambda x, s=step: 3.0**s * jax.random.normal(jax.random.key(s), x.shape), params)
        updates, state = ours.update(gradients, state)
        expected, their_state = theirs.update(gradients, their_state)
        for name in params:
            inputs, outputs = params[name].shape
            scaled = np.asarray(expected[name]) * max(1, outputs / inputs) ** 0.5
            assert np.corrcoef(np.ravel(updates[name]), np.ravel(scaled))[0, 1] > 0.99
            assert np.linalg.norm(updates[name]) == pytest.approx(np.linalg.norm(scaled), rel=0.05)


def test_of_stacked_matrices_each_is_its_own():
    stack = np.random.default_rng(1).standard_normal((3, 24, 60)).astype(np.float32)
    muon = scale_by_muon()
    together = muon.update({"w": stack}, muon.init({"w": stack}))[0]["w"]
    for one, alone in zip(together, stack, strict=True):
        np.testing.assert_allclose(one, muon.update({"w": alone}, muon.init({"w": alone}))[0]["w"], atol=2e-2)


def test_tall_matrices_train_in_one_compiled_step():
    # Compiled whole, the transposition of a tall matrix used to be folded into a product that XLA's CPU can't do.
    rng = np.random.default_rng(0)
    block = {"up": rng.standard_normal((96, 384)), "tall": rng.standard_normal((384, 96))}
    params, x = {"blocks": jax.tree.map(np.float32, block)}, rng.standard_normal((700, 96)).astype(np.float32)
    optimizer = make_optimizer(Training(optimizer="muon"))

    def loss(params):
        return jnp.square(matmul(matmul(x, params["blocks"]["up"]), params["blocks"]["tall"])).mean()

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, before = optimizer.init(params), loss(params)
    for _ in range(3):
        params, state = step(params, state)
    assert loss(params) < before
