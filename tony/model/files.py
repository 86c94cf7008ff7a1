"""A network on disk: config.json and model.safetensors."""

import json
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np

from tony.errors import TonyError
from tony.files import check_readable, write_bytes
from tony.model.config import ModelConfig
from tony.model.params import declare, is_spec

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def leaf_names(tree) -> list[str]:
    """Dotted names of a tree's leaves, in their order."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_spec)
    return [".".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in path) for path, _ in paths]


def save_model(directory: Path, config: ModelConfig, params: dict) -> None:
    """Write both files, each atomically, the weights first."""
    from safetensors.numpy import save

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    arrays = dict(zip(leaf_names(params), map(np.asarray, jax.tree.leaves(params)), strict=True))
    for name, data in ((WEIGHTS, save(arrays)), (CONFIG, json.dumps(asdict(config), indent=1).encode())):
        write_bytes(directory / name, data)


def load_model(directory: Path) -> tuple[ModelConfig, dict]:
    """(config, float32 parameters) of a folder; TonyError if a file is missing, damaged, or of another shape."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    directory = Path(directory)
    try:
        config = ModelConfig(**json.loads((directory / CONFIG).read_text()))
        check_readable(directory / WEIGHTS)
        arrays = load_file(directory / WEIGHTS)
    except FileNotFoundError as error:
        raise TonyError(f"{error.filename} is missing; expected a model folder with {CONFIG} and {WEIGHTS}") from None
    except OSError as error:
        raise TonyError(f"{error.filename or directory} can't be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, TypeError) as error:
        raise TonyError(f"the model in {directory} is damaged ({error}); copy it again or train it again") from None
    specs = declare(config)
    leaves, tree = jax.tree.flatten(specs, is_leaf=is_spec)
    params = []
    for name, spec in zip(leaf_names(specs), leaves, strict=True):
        if name not in arrays or arrays[name].shape != spec.shape:
            found = arrays[name].shape if name in arrays else "missing"
            raise TonyError(
                f"{directory / WEIGHTS}: {name} is {found}, {CONFIG} expects {spec.shape}; they do not belong together"
            )
        params.append(arrays[name])
    return config, jax.tree.unflatten(tree, params)
