import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tony.arrays import matmul, products, transposed


@pytest.mark.parametrize(("n", "m"), [(12, 20), (40, 8)])
def test_products_and_their_gradients_are_matrix_products_but_for_rounding(n, m):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 16, n)).astype(np.float32)
    first, second = (rng.standard_normal((n, m)).astype(np.float32) for _ in range(2))
    out = rng.standard_normal((3, 16, m)).astype(np.float32)

    def ours(x, first, second):
        a, b = products(x, (first, second))
        return (jnp.sin(a) * b * out).sum()

    def plain(x, first, second):
        return (jnp.sin(x @ first) * (x @ second) * out).sum()

    got = jax.value_and_grad(ours, (0, 1, 2))(x, first, second)
    expected = jax.value_and_grad(plain, (0, 1, 2))(x, first, second)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-2 * np.abs(b).max())
    np.testing.assert_allclose(matmul(x, first), x @ first, atol=0.1)


def test_transposed_is_exact():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((33, 7)), jnp.bfloat16)
    np.testing.assert_array_equal(transposed(x), x.T)
