"""What every network here is made of, written for how XLA compiles it: products, norms, rotation, attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from tony import kernels
from tony.parallel.sharding import is_spread

HIDDEN = -1e30  # score of what may not be seen


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x [..., n] @ weight [n, m]` with bfloat16 operands and float32 sums, forward and backward.

    Twice as fast as float32 on CPUs with AVX-512 bfloat16 instructions, and the native product of TPUs.
    """
    return products(x, (weight,))[0]


@jax.custom_vjp
def products(x: jax.Array, weights: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """`matmul` of one x with each weight; x is rounded, and in the backward pass transposed, once for all of them."""
    return _forward(x, weights)[0]


def _forward(x, weights):
    rounded = settled(x.astype(jnp.bfloat16))
    dimensions = (((x.ndim - 1,), (0,)), ((), ()))
    return tuple(bf16_product(rounded, weight, dimensions) for weight in weights), (rounded, weights)


def _backward(residuals, gradients):
    x, weights = residuals
    gradients = [settled(gradient.astype(jnp.bfloat16)) for gradient in gradients]
    to_x = sum(
        bf16_product(gradient, weight, (((gradient.ndim - 1,), (1,)), ((), ())))
        for gradient, weight in zip(gradients, weights, strict=True)
    )
    return to_x, _outer(x.reshape(-1, x.shape[-1]), [g.reshape(-1, g.shape[-1]) for g in gradients])


products.defvjp(_forward, _backward)


def _outer(x: jax.Array, gradients: list[jax.Array]) -> tuple[jax.Array, ...]:
    """x.T @ gradient [n, m] of x [t, n] and each gradient [t, m].

    A contraction over the leading axis of both operands is slow on CPUs, so the narrower one is transposed first.
    """
    rows = (((1,), (0,)), ((), ()))
    if x.shape[1] > sum(gradient.shape[1] for gradient in gradients):
        return tuple(settled(bf16_product(transposed(gradient), x, rows)).T for gradient in gradients)
    turned = transposed(x)
    return tuple(bf16_product(turned, gradient, rows) for gradient in gradients)


def bf16_product(left: jax.Array, right: jax.Array, dimensions) -> jax.Array:
    """`jax.lax.dot_general` of bfloat16 operands, summed in float32."""
    return jax.lax.dot_general(
        left.astype(jnp.bfloat16), right.astype(jnp.bfloat16), dimensions, preferred_element_type=jnp.float32
    )


def settled(x: jax.Array) -> jax.Array:
    """x, computed once and stored: XLA's CPU back end would compute it again inside each of its consumers.

    In programs for others, wherever they are compiled, it is x.
    """
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def transposed(x: jax.Array) -> jax.Array:
    """x with its last two axes exchanged, and laid out in memory so.

    Told nothing, XLA's CPU back end hands a product the matrix as it lies, which is slow when it is summed over the
    outer axis. Over a mesh nothing is told, since it would be gathered for it.
    """
    turned = jnp.swapaxes(x, -1, -2)
    if is_spread():
        return turned
    by_rows = Layout(tuple(range(x.ndim)))
    return jax.lax.platform_dependent(turned, cpu=lambda x: with_layout_constraint(x, by_rows), default=lambda x: x)


def gated(gate: jax.Array, up: jax.Array, activation: str, exact: bool = False) -> jax.Array:
    """silu(gate) * up of "swiglu", or gelu(gate) * up of "geglu" (Shazeer 2020); unless `exact`, for a product that
    rounds it."""
    if activation != "swiglu":
        return jax.nn.gelu(gate) * up
    if not exact and kernels.available():
        return kernels.gated(gate, up).astype(jnp.float32)
    return jax.nn.silu(gate) * up


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, gain: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """x [..., k] over its root mean square along the last axis, times gain [k] (Zhang and Sennrich 2019).

    The gradients are written out to say what is stored: left to itself XLA's CPU back end stores broadcast gains.
    """
    return _rms_norm(x, gain, epsilon)[0]


def _rms_norm(x, gain, epsilon):
    scale = settled(jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon))
    return x * scale * gain, (x, scale, gain)


def _rms_norm_backward(epsilon, residuals, gradient):
    x, scale, gain = residuals
    if kernels.available():
        return kernels.norm_gradients(x, scale, gain, gradient)
    scaled = settled(gradient * gain)
    along = settled((scaled * x).mean(-1, keepdims=True) * scale**3)
    to_gain = (settled(gradient * x * scale)).sum(tuple(range(x.ndim - 1)))
    return scaled * scale - x * along, to_gain


rms_norm.defvjp(_rms_norm, _rms_norm_backward)


def rotation(
    positions: jax.Array, head_dim: int, base: float, slower: np.ndarray | float = 1.0, length: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """(cosines, sines) [b, l, 1, k] of the rotary embedding (Su et al. 2021) at positions [b, l].

    `slower` divides the frequencies, or each of them [k / 2]. Positions known to be below a `length` are looked up in a
    table: XLA's CPU back end would compute cosines again wherever they are used.
    """
    half = head_dim // 2
    frequencies = np.tile(base ** (-np.arange(half) / half) / slower, 2).astype(np.float32)
    if length is None:
        angles = positions[..., None].astype(jnp.float32) * frequencies
        return jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    table = np.arange(length, dtype=np.float32)[:, None] * frequencies
    return jnp.asarray(np.cos(table))[positions][:, :, None], jnp.asarray(np.sin(table))[positions][:, :, None]


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array], multiply) -> jax.Array:
    """x [b, l, h, k] turned by a `rotation`; halves are paired, as in GPT-NeoX and Llama.

    (first, second) -> (-second, first) is a product with a constant matrix: XLA's CPU back end concatenates slowly.
    """
    if multiply is products and kernels.available():
        return kernels.rotated(x, *turn).astype(jnp.float32)
    half = x.shape[-1] // 2
    quarter_turn = np.kron([[0, 1], [-1, 0]], np.eye(half)).astype(np.float32)
    return x * turn[0] + multiply(x, (jnp.asarray(quarter_turn),))[0] * turn[1]


def bf16_einsum(equation: str, *operands: jax.Array) -> jax.Array:
    """`jnp.einsum` of bfloat16 operands, summed in float32."""
    return jnp.einsum(equation, *operands, preferred_element_type=jnp.float32)


@jax.custom_vjp
def masked_attention(q, k, v, allowed):
    """Softmax attention of bfloat16 queries [b, g, r, q, k], already scaled, to keys and values [b, g, s, k].

    allowed [b, q, s]: who may see whom; everybody must see somebody. The result is float32 [b, g, r, q, k]; the
    backward pass makes the probabilities again rather than store them.
    """
    return _masked_attention(q, k, v, allowed)[0]


def _masked_attention(q, k, v, allowed):
    scores = settled(jnp.where(allowed[:, None, None], bf16_einsum("bgrqk,bgsk->bgrqs", q, k), HIDDEN))
    top = settled(scores.max(-1, keepdims=True))
    weights = settled(jnp.exp(scores - top))
    total = settled(weights.sum(-1, keepdims=True))
    out = settled(bf16_einsum("bgrqs,bgsk->bgrqk", weights.astype(jnp.bfloat16), v) / total)
    return out, (q, k, v, allowed, out, (top + jnp.log(total))[..., 0])


def _masked_attention_backward(residuals, gradient):
    """Dao et al. 2022, "FlashAttention", appendix B.2; scores are made again as [s, q], which two products need."""
    q, k, v, allowed, out, log_total = residuals
    b, g, r, n, dim = q.shape
    delta = settled((gradient * out).sum(-1))  # [b, g, r, q]
    gradient = settled(gradient.astype(jnp.bfloat16))
    seen = jnp.swapaxes(allowed, 1, 2)[:, None, :, None]  # [b, 1, s, 1, q]
    q, gradient = (x.reshape(b, g, r * n, dim) for x in (q, gradient))
    turned = bf16_einsum("bgsk,bgqk->bgsq", k, q).reshape(b, g, -1, r, n)
    weights = settled(jnp.where(seen, jnp.exp(turned - log_total[:, :, None]), 0))
    to_weights = bf16_einsum("bgsk,bgqk->bgsq", v, gradient).reshape(weights.shape)
    to_scores = settled((weights * (to_weights - delta[:, :, None])).astype(jnp.bfloat16)).reshape(b, g, -1, r * n)
    weights = weights.astype(jnp.bfloat16).reshape(b, g, -1, r * n)
    to_v = bf16_einsum("bgsq,bgqk->bgsk", weights, gradient)
    to_k = bf16_einsum("bgsq,bgqk->bgsk", to_scores, q)
    to_q = bf16_einsum("bgqs,bgsk->bgqk", transposed(to_scores), k).reshape(b, g, r, n, dim)
    return *(x.astype(jnp.bfloat16) for x in (to_q, to_k, to_v)), None


masked_attention.defvjp(_masked_attention, _masked_attention_backward)
