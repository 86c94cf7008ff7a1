"""How large a network is and what a token costs."""

import math
from functools import cache

import jax

from tony.model.config import ModelConfig
from tony.model.params import declare, is_spec


@cache
def parameter_count(config: ModelConfig) -> int:
    """Number of parameters."""
    return sum(math.prod(spec.shape) for spec in jax.tree.leaves(declare(config), is_leaf=is_spec))


@cache
def expert_parameter_count(config: ModelConfig) -> int:
    """Number of parameters of all experts, a shared one left out."""
    specs = jax.tree.leaves(declare(config), is_leaf=is_spec)
    return sum(math.prod(spec.shape) for spec in specs if "expert" in spec.axes)


def active_parameter_count(config: ModelConfig) -> int:
    """Number of parameters that one token meets: of the experts only those that it goes to."""
    idle = max(0, config.experts - config.experts_per_token)
    return parameter_count(config) - expert_parameter_count(config) // max(1, config.experts) * idle


def flops_per_token(config: ModelConfig, length: int) -> int:
    """Floating-point operations of training on one token of a row: 6 a weight and 12 L H Q T (PaLM, appendix B).

    The embedding look-up costs nothing; the product with the (tied) output matrix is counted, and the whole square of
    attention, as the paper has it.
    """
    embeddings = config.vocab_size * config.width * (1 if config.tied else 2)
    products = active_parameter_count(config) - embeddings + config.vocab_size * config.width
    attention = 12 * config.layers * config.heads * config.head_dim * length
    return 6 * products + attention
