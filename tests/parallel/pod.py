"""One process of a small training on several: `python -m tests.parallel.pod DIRECTORY STEPS SECONDS [MESH]`.

Each process makes a pod unless MESH (such as data=2) says otherwise; a step takes SECONDS more. Writes to
DIRECTORY/params-PROCESS.jsonl a digest of this process' copy of the parameters after every step, and to
batches-PROCESS.jsonl what it was given.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from tests.parallel.steps import SHAPE
from tony.model.config import ModelConfig
from tony.model.params import declare, init, shardings
from tony.parallel import hosts
from tony.parallel.sharding import make_layout
from tony.recipe import Language, Mesh
from tony.train.loop import fit
from tony.train.step import language_loss_fn

ROWS, LENGTH = 8, 16


def batch_at(step: int, host: int = 0, hosts: int = 1) -> dict:
    """Rows of the batch of a step, which are the same however many hosts share them."""
    rng, shape = np.random.default_rng(step), (ROWS, LENGTH)
    places = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    ones = np.ones(shape, np.int32)
    rows = slice(host * ROWS // hosts, (host + 1) * ROWS // hosts)
    whole = {
        "tokens": rng.integers(64, size=shape, dtype=np.int32), "targets": rng.integers(64, size=shape, dtype=np.int32),
        "positions": places, "segments": ones, "weights": ones.astype(np.float32), "modality": 0 * ones,
        "loss_index": places,
    }  # fmt: skip
    return {name: value[rows] for name, value in whole.items()}


def main(directory: Path, steps: int, seconds: float, mesh: dict[str, int]) -> None:
    """Train, and write down what this process sees."""
    config = ModelConfig(**SHAPE, stacked=True)
    section = Language(rows=ROWS, length=LENGTH, steps=steps, checkpoint_every=2, warmup=0, optimizer="adamw")
    layout = make_layout(Mesh(**(mesh or {"pod": jax.process_count()})))
    log = directory / f"params-{jax.process_index()}.jsonl"
    compiled = hosts.compiled_together

    def watched(function):
        step = compiled(function)

        def run(state, batch, key):
            state, measured = step(state, batch, key)
            held = b"".join(np.asarray(x.addressable_data(0)).tobytes() for x in jax.tree.leaves(state["params"]))
            tokens = [np.asarray(shard.data) for shard in batch["tokens"].addressable_shards]
            seen = {"params": hashlib.md5(held).hexdigest(), "rows": np.concatenate(tokens)[:, 0].tolist()}
            with open(log, "a") as file:
                file.write(json.dumps(seen) + "\n")
            time.sleep(seconds)
            return state, measured

        return run

    hosts.compiled_together = watched
    fit(
        name="pods", loss_fn=language_loss_fn(config, section), params=init(declare(config), jax.random.key(0)),
        batch_at=batch_at, config=section, directory=directory, layout=layout, shardings=shardings(config, layout),
    )  # fmt: skip


if __name__ == "__main__":
    with hosts.joined():
        sizes = dict(part.split("=") for part in sys.argv[4:])
        main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), {axis: int(n) for axis, n in sizes.items()})
