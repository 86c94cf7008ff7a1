"""How every recipe of the papers lies on its mesh: `python -m tests.parallel.shardings` writes golden/*.json again.

Renew them only when a sharding is meant to change, and say why in the commit.
"""

import json
import math
from pathlib import Path

import jax

from tony.model.config import ModelConfig
from tony.parallel.sharding import abstract_layout
from tony.recipe import load
from tony.train.step import language_step

RECIPES = Path(__file__).parents[2] / "recipes"
GOLDEN = Path(__file__).with_name("golden")
NAMES = sorted(path.stem for pattern in ("palm-*.toml", "glam-*.toml") for path in RECIPES.glob(pattern))


def golden_file(name: str) -> Path:
    """The file of a recipe, called by it and its pods and chips in each."""
    mesh = load(RECIPES / f"{name}.toml").mesh
    return GOLDEN / f"{name}-{mesh.pod}x{mesh.data * mesh.expert * mesh.model}.json"


def described(name: str) -> dict:
    """{"mesh", "bytes_per_chip", "params", "optimizer"}: of each array its shape, its mesh axes, and its shape on one
    chip."""
    recipe = load(RECIPES / f"{name}.toml")
    layout = abstract_layout(recipe.mesh)
    state, _, _ = language_step(ModelConfig(**recipe.model_fields()), recipe.pretrain, layout).abstract
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
    for name in NAMES:
        golden_file(name).write_text(json.dumps(described(name), indent=1) + "\n")
