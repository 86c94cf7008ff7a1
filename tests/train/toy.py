"""A small training in a process of its own, to be killed: `python toy.py DIRECTORY STEPS DELAY`."""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tony.recipe import Training
from tony.train.loop import fit


def batch_at(step, skipped=0):
    time.sleep(DELAY)
    rng = np.random.default_rng(step + skipped)
    x = rng.standard_normal((8, 4)).astype(np.float32)
    return {"x": x, "y": x @ np.arange(12, dtype=np.float32).reshape(4, 3)}


def loss_fn(params, batch, key):
    noise = 0.01 * jax.random.normal(key, batch["y"].shape)
    hidden = jnp.tanh(batch["x"] @ params["blocks"]["in"])
    return jnp.mean((hidden @ params["blocks"]["out"] - batch["y"] + noise) ** 2), {
        "size": jnp.abs(params["bias"]).sum()
    }


def train(directory, steps, **options):
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 8), (8, 3)))
    params = {"blocks": {"in": first, "out": second}, "bias": np.ones(3, np.float32)}
    config = Training(steps=steps, optimizer="muon", checkpoint_every=10, warmup=5, **options)
    return fit(name="toy", loss_fn=loss_fn, params=params, batch_at=batch_at, config=config, directory=Path(directory))


DELAY = 0.0
if __name__ == "__main__":
    DELAY = float(sys.argv[3])
    train(sys.argv[1], int(sys.argv[2]))
