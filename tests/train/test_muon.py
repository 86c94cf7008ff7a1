import jax
import numpy as np
import pytest
from optax import contrib

from tony.train.muon import orthogonalize, scale_by_muon


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
