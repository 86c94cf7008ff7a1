"""Three steps on one of eight simulated devices and on meshes of all, in a process of their own that has them.

`python -m tests.parallel.steps dense|experts`: JSON, of each mesh the losses, how far its state is from one device's,
and the collectives of its compiled program as [operation, shape, whether it crosses pods, what it is part of].
"""

import json
import os
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from tony.model.config import ModelConfig
from tony.model.params import declare, init, shardings
from tony.parallel.sharding import make_layout, place, place_rows
from tony.recipe import Language, Mesh
from tony.train.step import language_loss_fn, make_step

MESHES = {
    "dense": [Mesh(data=4, model=2), Mesh(pod=2, data=2, model=2, exchange="float32"), Mesh(pod=2, data=4)],
    "experts": [Mesh(expert=4, model=2), Mesh(pod=2, data=2, expert=2, exchange="float32")],
}
SHAPE = {"vocab_size": 64, "layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "hidden": 64}
EXPERTS = {"experts": 4, "expert_hidden": 48, "expert_group": 16, "expert_every": 2}
ROWS, LENGTH = 8, 32


def batch() -> dict:
    """Random tokens, of which not every one has a loss."""
    rng, shape = np.random.default_rng(0), (ROWS, LENGTH)
    places = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    ones = np.ones(shape, np.int32)
    return {
        "tokens": rng.integers(64, size=shape, dtype=np.int32), "targets": rng.integers(64, size=shape, dtype=np.int32),
        "positions": places, "segments": ones, "weights": rng.integers(2, size=shape).astype(np.float32),
        "modality": 0 * ones, "loss_index": places,
    }  # fmt: skip


def train(config: ModelConfig, section: Language, mesh: Mesh | None):
    """(losses, state, compiled program's text, lowered program's text)"""
    layout = make_layout(mesh) if mesh else None
    placed, params = layout and shardings(config, layout), init(declare(config), jax.random.key(0))
    step = make_step(language_loss_fn(config, section), section, params, batch(), layout, placed)
    state = {"params": place(params, placed) if layout else params}
    state["optimizer"] = step.init(state["params"])
    rows, key = place_rows(batch(), layout) if layout else batch(), jax.random.key(0)
    lowered = step.run.lower(*step.abstract)
    run, losses = lowered.compile(), []
    for _ in range(3):
        state, measured = run(state, rows, jax.device_put(key, layout.sharding()) if layout else key)
        losses.append(float(measured["loss"]))
    return losses, state, run.as_text(), lowered.as_text()


def collectives(text: str, pods: int) -> list:
    """The collectives of a compiled program over eight devices in pods of consecutive ones."""
    found = []
    for line in text.splitlines():
        made = re.search(r" = (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)\(", line)
        if made:
            of = re.search(r'op_name="([^"]*)"', line)
            crosses = any(len({device * pods // 8 for device in group}) > 1 for group in groups(line))
            found.append([made[2], re.sub(r"\{[\d,]*\}|/\*.*?\*/", "", made[1]), crosses, of[1] if of else ""])
    return found


def groups(line: str) -> list[list[int]]:
    """Devices that talk to each other, in any of the ways that XLA writes it: lists, an array, axes of an array."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}", line):
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    if made := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return _ordered(made[2], made[3]).reshape(_numbers(made[1])).tolist()
    mesh = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}", line
    )
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    devices = _ordered(mesh[2] or "8", mesh[3]).reshape([int(size) for size in sizes.values()])
    together = [list(sizes).index(axis) for axis in re.findall(r"'(\w+)'", mesh[4])]
    apart = [axis for axis in range(len(sizes)) if axis not in together]
    return devices.transpose(*apart, *together).reshape(-1, int(np.prod([devices.shape[a] for a in together]))).tolist()


def _ordered(shape: str, order: str | None) -> np.ndarray:
    devices = np.arange(8).reshape(_numbers(shape))
    return devices.transpose(_numbers(order)) if order else devices


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main(kind: str) -> None:
    """Print what each mesh makes of the same three steps."""
    jnp.bfloat16 = jnp.float32  # rounding would hide what sharding does
    os.environ["TONY_KERNELS"] = "0"  # they know no other type
    config = ModelConfig(**SHAPE, stacked=True, **(EXPERTS if kind == "experts" else {}))
    section = Language(rows=ROWS, length=LENGTH, warmup=0, optimizer="muon" if kind == "dense" else "adafactor")
    losses, state, *_ = train(config, section, None)
    made = [{"losses": losses}]
    for mesh in MESHES[kind]:
        losses, other, compiled, lowered = train(config, section, mesh)
        far = {
            jax.tree_util.keystr(path): float(np.abs(np.asarray(a) - np.asarray(b)).max() / (np.abs(b).max() + 1e-9))
            for (path, a), b in zip(
                jax.tree_util.tree_leaves_with_path(other), map(np.asarray, jax.tree.leaves(state)), strict=True
            )
        }
        made.append({
            "losses": losses, "far": far, "collectives": collectives(compiled, mesh.pod),
            "shards": [list(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(other["params"])],
            "rounded": sum("sharding_constraint" in line and "xbf16>" in line for line in lowered.splitlines()),
        })  # fmt: skip
    print(json.dumps(made))


if __name__ == "__main__":
    main(sys.argv[1])
