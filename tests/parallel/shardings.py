"""How every recipe of the papers lies on its mesh: `python -m tests.parallel.shardings` writes golden/*.json again.

Renew them only when a sharding is meant to change, and say why in the commit.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import jax

from tony.model.config import ModelConfig
from tony.parallel.sharding import abstract_layout
from tony.plan.report import largest_batch
from tony.recipe import Mesh, load
from tony.train.step import language_step

RECIPES = Path(__file__).parents[2] / "recipes"
GOLDEN = Path(__file__).with_name("golden")
NAMES = sorted(path.stem for pattern in ("palm-*.toml", "glam-*.toml") for path in RECIPES.glob(pattern))


def meshes(name: str) -> list[Mesh]:
    """The meshes that are recorded of a recipe: its own, twice as many pods of it, and 256 chips (v5e:16x16)."""
    recipe = load(RECIPES / f"{name}.toml")
    own, experts = recipe.mesh, recipe.model.experts
    expert = min(experts, 256) or 1
    model = min(4, 256 // expert)
    small = replace(own, pod=1, data=256 // expert // model, expert=expert, model=model)
    found = [own, replace(own, pod=2 * own.pod), small]
    return [mesh for number, mesh in enumerate(found) if mesh not in found[:number]]


CASES = [(name, mesh) for name in NAMES for mesh in meshes(name)]


def golden_file(name: str, mesh: Mesh) -> Path:
    """The file of a recipe on a mesh, called by its pods and chips in each, and its `model` axis."""
    return GOLDEN / f"{name}-{mesh.pod}x{mesh.data * mesh.expert * mesh.model}-model{mesh.model}.json"


def described(name: str, mesh: Mesh) -> dict:
    """{"mesh", "bytes_per_chip", "params", "optimizer"}: of each array its shape, its mesh axes, and its shape on one
    chip."""
    recipe, layout = load(RECIPES / f"{name}.toml"), abstract_layout(mesh)
    section = replace(recipe.pretrain, rows=largest_batch(recipe.pretrain))
    state, _, _ = language_step(ModelConfig(**recipe.model_fields()), section, layout).abstract
    held = sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(state))
    return {"mesh": dict(layout.mesh.shape), "bytes_per_chip": held, **{kind: _arrays(state[kind]) for kind in state}}


def _arrays(tree) -> dict[str, str]:
    def line(x) -> str:
        axes = ["+".join([names] if isinstance(names, str) else names or ("-",)) for names in x.sharding.spec]
        return f"{list(x.shape)} by {' '.join(axes) or '-'} is {list(x.sharding.shard_shape(x.shape))}"

    return {jax.tree_util.keystr(path): line(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


if __name__ == "__main__":
    for old in GOLDEN.glob("*.json"):
        old.unlink()
    for name, mesh in CASES:
        golden_file(name, mesh).write_text(json.dumps(described(name, mesh), indent=1) + "\n")
