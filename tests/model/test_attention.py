"""Packed attention and its written-out backward pass against softmax attention differentiated by JAX."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tony.arrays import rotate, rotation
from tony.model import attention
from tony.model.attention import bias_of, packed_attention

B, L, H, G, K = 2, 40, 4, 2, 8


def plain_attention(q, k, v, positions, segments, table):
    k, v = (jnp.repeat(x, H // G, axis=2) for x in (k, v))
    scores = jnp.einsum("bqhk,bshk->bhqs", q, k) / math.sqrt(K)
    if table is not None:
        scores += bias_of(table, positions, positions, H)[:, :, 0]
    allowed = np.tril(np.ones((L, L), bool)) & (segments[:, :, None] == segments[:, None, :])
    return jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(jnp.where(allowed[:, None], scores, -1e30)), v)


@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients(monkeypatch, biased):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)  # three blocks, the last one short
    rng = np.random.default_rng(0)
    q, out = (rng.standard_normal((B, L, H, K)).astype(np.float32) for _ in range(2))
    k, v = (rng.standard_normal((B, L, G, K)).astype(np.float32) for _ in range(2))
    segments = np.sort(rng.integers(0, 4, (B, L)), axis=1)
    positions = np.arange(L) - np.array([[np.argmax(row == s) for s in row] for row in segments])
    table = rng.standard_normal((32, H)).astype(np.float32) if biased else None

    def loss(function, q, k, v, table):
        return (function(q, k, v, positions, segments, table) * out).sum()

    which = (0, 1, 2, 3) if biased else (0, 1, 2)
    ours, theirs = (
        jax.value_and_grad(lambda *a, f=f: loss(f, *a), which)(q, k, v, table)
        for f in (packed_attention, plain_attention)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-2 * np.abs(b).max())


@pytest.mark.parametrize("length", [None, 12])
def test_rotation_turns_each_pair_by_its_own_angle(length):
    x = np.random.default_rng(0).standard_normal((1, 3, 1, 6)).astype(np.float32)
    positions = np.array([[0, 5, 11]])

    def exact(x, weights):
        return tuple(x @ weight for weight in weights)

    turned = np.asarray(rotate(jnp.asarray(x), rotation(positions, 6, 100.0, length=length), exact))[0, :, 0]
    as_complex = x[0, :, 0, :3] + 1j * x[0, :, 0, 3:]
    expected = as_complex * np.exp(1j * positions[0][:, None] * 100.0 ** (-np.arange(3) / 3))
    np.testing.assert_allclose(turned[:, :3] + 1j * turned[:, 3:], expected, atol=1e-5)
