"""Tony's own train step: `python -m bench.train.tony_contender WORK [DISPATCH]`.

WORK is dense, experts, or a shape as JSON; DISPATCH is that of experts, "capacity" as recipes have it, or "sorted".
"""

import json
import sys

import jax
import numpy as np

from bench.train.work import LEARNING_RATE, LENGTH, ROWS, WEIGHT_DECAY, WORKS, serve
from tony.data.packing import whole_rows
from tony.model.config import ModelConfig
from tony.model.count import flops_per_token
from tony.model.params import declare, init
from tony.recipe import Language
from tony.train.step import language_step

PARTS = 2  # of a batch, one after the other: what each makes stays nearer in the caches


def main(work: str, dispatch: str = "capacity") -> None:
    """The step that `tony run` takes, with AdamW."""
    shape = dict(WORKS[work] if work in WORKS else json.loads(work))
    rows = shape.pop("rows", ROWS)
    config = ModelConfig(
        **shape, kv_heads=shape["heads"], expert_hidden=shape["hidden"], expert_every=1, dispatch=dispatch,
        qk_norm=False, tied=False,
    )  # fmt: skip
    section = Language(
        optimizer="adamw", learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, warmup=1, schedule="constant",
        rows=rows, length=LENGTH, z_loss=0.0, accumulation=PARTS if rows % PARTS == 0 else 1,
    )  # fmt: skip
    step = language_step(config, section)
    params = init(declare(config), jax.random.key(0))
    parameters = sum(x.size for x in jax.tree.leaves(params))
    held = {"state": {"params": params, "optimizer": step.init(params)}}
    params = None  # the step takes the state's buffers
    batch, key = jax.device_put(random_batch(config.vocab_size, rows)), jax.random.key(0)

    def one() -> float:
        held["state"], measured = step.run(held["state"], batch, key)
        jax.block_until_ready(held["state"])
        return float(measured["loss"])

    serve(one, parameters, {"jax": jax.__version__}, flops_per_token=flops_per_token(config, LENGTH))


def random_batch(vocabulary: int, rows: int) -> dict[str, np.ndarray]:
    """Whole rows of one document, a loss at every position."""
    tokens = np.random.default_rng(0).integers(vocabulary, size=(rows, LENGTH + 1), dtype=np.int32)
    return whole_rows(tokens)


if __name__ == "__main__":
    main(*sys.argv[1:])
