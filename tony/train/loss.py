"""The language-model loss: cross-entropy at the weighted positions only, in one fused pass."""

from functools import partial

import jax
import jax.numpy as jnp

from tony import kernels
from tony.arrays import bf16_product, settled, transposed
from tony.model.config import ModelConfig
from tony.model.forward import STREAM, WHOLE, forward
from tony.parallel.sharding import by_rows, gathered, mean_over_pods, moved

MODALITIES = ("text", "audio", "image", "think")
CHUNK = 512  # positions whose logits exist at once


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array, z_loss: float):
    """(sum of weights * (nll + z_loss * log Z ** 2), nll [n]) for hidden [n, d], table [vocabulary, d], targets [n].

    The gradients are made in the same pass over chunks of positions as the loss, so no logits are ever stored and none
    is computed twice. z-loss: PaLM, section 5. `nll` is for meters and has no gradient.
    """
    return _fused(hidden, table, targets, weights, z_loss)[0]


def _fused(hidden, table, targets, weights, z_loss):
    half = gathered(table.astype(jnp.bfloat16), "vocab", "vocab_embed")
    apart = by_rows(partial(_in_chunks, z_loss=z_loss), in_axes=(0, None, 0, 0))
    loss, nll, to_hidden, to_table = apart(hidden, half, targets, weights)
    if to_table.ndim > 2:
        to_table = to_table.sum(0)
    loss, nll, to_hidden = loss.sum(), nll.reshape(-1), to_hidden.reshape(hidden.shape)
    return (loss, nll), (to_hidden, settled(to_table).T)


def _in_chunks(hidden, half, targets, weights, z_loss):
    """(loss, nll [n], gradients [n, d] of hidden and [d, vocabulary] of the table, which is given in bfloat16)."""
    n, d = hidden.shape
    chunk = min(CHUNK, n)
    padding = -n % chunk
    hidden, targets, weights = (
        jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))) for x in (hidden, targets, weights)
    )

    def step(to_table, part):
        h, target, weight = part
        logits = gathered(bf16_product(h, half, (((1,), (1,)), ((), ()))), None, "vocab")
        gradient, nll, log_z = (kernels.logits_loss if kernels.available() else _logits_loss)(
            logits, target, weight, z_loss
        )
        loss = (weight * (nll + z_loss * jnp.square(log_z))).sum()
        to_hidden = bf16_product(gradient, half, (((1,), (0,)), ((), ())))
        turned = transposed(h.astype(jnp.bfloat16))
        to_table += bf16_product(turned, gradient, (((1,), (0,)), ((), ())))  # [d, vocabulary]
        return gathered(to_table, "vocab_embed", "vocab"), (loss, nll, to_hidden)

    parts = (hidden.reshape(-1, chunk, d), targets.reshape(-1, chunk), weights.reshape(-1, chunk))
    to_table, (losses, nll, to_hidden) = jax.lax.scan(step, jnp.zeros(half.shape[::-1], jnp.float32), parts)
    return losses.sum(), nll.reshape(-1)[:n], to_hidden.reshape(-1, d)[:n], to_table


def _logits_loss(logits, targets, weights, z_loss):
    """`tony.kernels.logits_loss`, its gradient in float32."""
    top = logits.max(-1, keepdims=True)
    exponential = jnp.exp(logits - top)
    total = exponential.sum(-1, keepdims=True)
    log_z = (top + jnp.log(total))[:, 0]
    nll = log_z - jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]
    gradient = exponential * (weights * (1 + 2 * z_loss * log_z) / total[:, 0])[:, None]
    return gradient.at[jnp.arange(len(targets)), targets].add(-weights), nll, log_z


def _fused_backward(z_loss, residuals, gradients):
    to_hidden, to_table = residuals
    return to_hidden * gradients[0], to_table * gradients[0], None, None


cross_entropy.defvjp(_fused, _fused_backward)


def language_loss(
    params: dict, config: ModelConfig, batch: dict, *, modality_weights: dict[str, float], z_loss: float
) -> tuple[jax.Array, dict]:
    """(loss, metrics) of a packed batch of `tony.data.loader`; metrics hold the mean loss of each modality, and as
    "targets" the sum of weights that the loss is a mean over.

    The loss is the mean over weighted targets, each scaled by its modality's weight, so a modality counts by its share
    of the tokens and its weight.
    """
    hidden, losses, measures = forward(params, config, batch["tokens"], batch["positions"], batch["segments"])
    index = batch["loss_index"]

    def pick(x):
        return jnp.take_along_axis(x, index, axis=1).reshape(-1)

    picked = jnp.take_along_axis(hidden, index[..., None], axis=1)
    picked = moved(picked, STREAM, WHOLE).reshape(-1, config.width)
    own = pick(batch["weights"])
    modality = pick(batch["modality"])
    scale = jnp.asarray([modality_weights.get(name, 1.0) for name in MODALITIES])[modality]
    table = params["embedding" if config.tied else "unembedding"]
    normaliser = jnp.maximum(1e-6, mean_over_pods(own.sum()))
    total, nll = cross_entropy(picked, table, pick(batch["targets"]), own * scale / normaliser, z_loss)
    metrics = {**losses, **measures, "targets": normaliser}
    for number, name in enumerate(MODALITIES):
        here = own * (modality == number)
        count, summed = mean_over_pods(here.sum()), mean_over_pods((here * nll).sum())
        metrics[name] = jnp.where(count > 0, summed / jnp.maximum(1e-6, count), jnp.nan)
    return total + sum(losses.values()), metrics
