"""Choosing the next token: grammar, temperature, top-k, top-p, and a random stream of each request's own.

All rows of a batch are sampled at once; what a row draws depends on its own seed and on how many tokens it has drawn,
never on its neighbours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

TOP = 20  # alternatives whose log-probabilities can be reported
NUCLEUS = 256  # candidates that top-p looks at
COLDEST = 1e-4  # temperature; 0 itself takes the likeliest


class Sampling(NamedTuple):
    """Per-row settings, each [rows]: temperature 0 is greedy, top_k 0 and top_p 1 leave everything in."""

    temperature: jax.Array | np.ndarray  # float32
    top_k: jax.Array | np.ndarray  # int32
    top_p: jax.Array | np.ndarray  # float32
    seed: jax.Array | np.ndarray  # uint32
    drawn: jax.Array | np.ndarray  # int32: tokens drawn so far


class Drawn(NamedTuple):
    """What was drawn: token and its log-probability [rows], the TOP likeliest and theirs [rows, TOP]."""

    token: jax.Array
    logprob: jax.Array
    top_tokens: jax.Array
    top_logprobs: jax.Array


def sample(logits: jax.Array, allowed: jax.Array, sampling: Sampling, instead: jax.Array | None = None) -> Drawn:
    """Draw from logits [rows, vocabulary] among the tokens allowed [rows, vocabulary], or from logits `instead`.

    Log-probabilities are the model's own (of `logits`) under the grammar, at temperature 1 and before top-k and top-p.
    """
    logprobs = jax.nn.log_softmax(jnp.where(allowed, logits, -jnp.inf))
    top_logprobs, top_tokens = jax.lax.top_k(logprobs, NUCLEUS)
    if instead is None:
        token = jax.vmap(_draw)(top_logprobs, top_tokens, logprobs, sampling)
    else:
        instead = jax.nn.log_softmax(jnp.where(allowed, instead, -jnp.inf))
        candidates, order = jax.lax.top_k(jnp.take_along_axis(instead, top_tokens, 1), NUCLEUS)
        token = jax.vmap(_draw)(candidates, jnp.take_along_axis(top_tokens, order, 1), instead, sampling)
    logprob = jnp.take_along_axis(logprobs, token[:, None], 1)[:, 0]
    return Drawn(token, logprob, top_tokens[:, :TOP], top_logprobs[:, :TOP])


def words_apart(logits: jax.Array, words: jax.Array, temperature: jax.Array, other: jax.Array) -> jax.Array:
    """Logits that, drawn from at temperature `other`, choose among `words` at a `temperature` of their own.

    Logits and `words` are [rows, vocabulary], temperatures [rows]. Whether it is a word at all is chosen at `other`:
    when the next word comes is free, but which one it is stays as sure as in writing.
    """
    own, other = (jnp.maximum(x, COLDEST)[:, None] for x in (temperature, other))
    masked = jnp.where(words, logits, -jnp.inf)
    together = jax.nn.logsumexp(masked / other, axis=1, keepdims=True)
    return jnp.where(words, other * (jax.nn.log_softmax(masked / own) + together), logits)


def _draw(top_logprobs, top_tokens, logprobs, sampling: Sampling):
    key = jax.random.fold_in(jax.random.key(sampling.seed), sampling.drawn)
    temperature = jnp.maximum(sampling.temperature, COLDEST)
    ranked = jax.nn.log_softmax(top_logprobs / temperature)
    rank = jnp.arange(NUCLEUS)
    before = jnp.cumsum(jnp.exp(ranked)) - jnp.exp(ranked)
    kept = (before < sampling.top_p) & ((sampling.top_k <= 0) | (rank < sampling.top_k))
    narrow = top_tokens[jax.random.categorical(key, jnp.where(kept, ranked, -jnp.inf))]
    wide = jax.random.categorical(key, logprobs / temperature)
    restricted = (sampling.top_k > 0) | (sampling.top_p < 1)
    return jnp.where(sampling.temperature <= 0, top_tokens[0], jnp.where(restricted, narrow, wide))
