"""The matrix product that every network here uses."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x [..., n] @ weight [n, m]` with bfloat16 operands and float32 sums, forward and backward.

    Twice as fast as float32 on CPUs with AVX-512 bfloat16 instructions, and the native product of TPUs.
    """
    return bf16_product(x, weight, (((x.ndim - 1,), (0,)), ((), ())))


def bf16_product(left: jax.Array, right: jax.Array, dimensions) -> jax.Array:
    """`jax.lax.dot_general` of bfloat16 operands, summed in float32."""
    return jax.lax.dot_general(
        left.astype(jnp.bfloat16), right.astype(jnp.bfloat16), dimensions, preferred_element_type=jnp.float32
    )


def _forward(x, weight):
    return matmul(x, weight), (x.astype(jnp.bfloat16), weight)


def _backward(residuals, gradient):
    x, weight = residuals
    flat_x = x.reshape(-1, x.shape[-1])
    flat_gradient = gradient.reshape(-1, gradient.shape[-1])
    to_x = bf16_product(gradient, weight, (((gradient.ndim - 1,), (1,)), ((), ())))
    # A contraction over the leading axis of both operands is slow on CPUs: transpose one of them first.
    to_weight = bf16_product(flat_x.T, flat_gradient, (((1,), (0,)), ((), ())))
    return to_x, to_weight


matmul.defvjp(_forward, _backward)
