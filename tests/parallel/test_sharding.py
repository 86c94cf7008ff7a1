"""The same loss and gradients on eight simulated devices as on one; run in a process that has them."""

import subprocess
import sys

CODE = """
import jax, numpy as np
from tony.model.config import ModelConfig
from tony.model.params import declare, init, shardings
from tony.parallel.sharding import make_layout, place, place_rows
from tony.recipe import Mesh
from tony.train.loss import language_loss

config = ModelConfig(vocab_size=64, layers=2, width=32, heads=4, kv_heads=2, head_dim=8, hidden=64)
specs = declare(config)
params = init(specs, jax.random.key(0))
rng = np.random.default_rng(0)
shape = (8, 16)
batch = {"tokens": rng.integers(64, size=shape), "targets": rng.integers(64, size=shape),
         "positions": np.tile(np.arange(16), (8, 1)), "segments": np.ones(shape, int),
         "weights": np.ones(shape, np.float32), "modality": np.zeros(shape, int),
         "loss_index": np.tile(np.arange(16), (8, 1))}
loss = jax.jit(jax.value_and_grad(lambda p, b: language_loss(p, config, b, modality_weights={}, z_loss=1e-4)[0]))
one, gradient_one = loss(params, batch)
layout = make_layout(Mesh(data=4, model=2))
placed = place(params, shardings(config, layout))
spread = placed["blocks"][0]["feed_forward"]["up"]["weight"].sharding
assert spread.shard_shape((32, 64)) == (8, 32), spread
rows = place_rows(batch, layout)
many, gradient_many = loss(placed, rows)
assert abs(float(one) - float(many)) < 2e-3 * float(one), (one, many)
for a, b in zip(jax.tree.leaves(gradient_one), jax.tree.leaves(gradient_many)):
    assert np.abs(np.asarray(a) - np.asarray(b)).max() < 3e-2 * np.abs(np.asarray(a)).max() + 1e-7
print("same")
"""


def test_data_and_model_parallel_equal_one_device():
    import os

    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "same", done.stderr[-2000:]
