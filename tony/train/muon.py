"""Muon (Jordan 2024): momentum whose update is made a nearly orthogonal matrix, so that all directions move alike.

As `optax.contrib.muon`, but its products take bfloat16 operands as the author's own code does: on a CPU they are most
of an optimiser step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from tony.arrays import bf16_product, transposed

# The quintic Newton-Schulz iteration of https://kellerjordan.github.io/posts/muon/: singular values go to 0.7..1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class MuonState(NamedTuple):
    """Momentum of every matrix."""

    momentum: optax.Updates


def scale_by_muon(beta: float = 0.95) -> optax.GradientTransformation:
    """Nesterov momentum made orthogonal, times sqrt(outputs / inputs) where a matrix [inputs, outputs] widens."""

    def init(params):
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(gradients, state, params=None):
        del params
        momentum = optax.tree.update_moment(gradients, state.momentum, beta, 1)
        ahead = optax.tree.update_moment(gradients, momentum, beta, 1)
        return jax.tree.map(_update, ahead), MuonState(momentum)

    return optax.GradientTransformation(init, update)


def _update(x: jax.Array) -> jax.Array:
    if x.ndim > 2:  # experts, or stacked blocks
        return jax.vmap(_update)(x)
    inputs, outputs = x.shape
    return max(1.0, outputs / inputs) ** 0.5 * orthogonalize(x)


def orthogonalize(x: jax.Array) -> jax.Array:
    """U V^T, nearly, of a matrix U S V^T [n, m]."""
    if x.shape[0] > x.shape[1]:
        return transposed(orthogonalize(transposed(x)))
    a, b, c = COEFFICIENTS
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(ITERATIONS):
        square = bf16_product(x, x, (((1,), (1,)), ((), ())))
        mixed = b * square + c * bf16_product(square, square, (((1,), (0,)), ((), ())))
        x = a * x + bf16_product(mixed, x, (((1,), (0,)), ((), ())))
    return x
