"""A codec's files: config.json with its kind and shapes, weights.safetensors with its parameters by dotted name."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tony.errors import TonyError
from tony.files import check_readable, write_bytes

CONFIG, WEIGHTS = "config.json", "weights.safetensors"


def flatten(tree, prefix: str = "") -> dict[str, np.ndarray]:
    """Arrays of nested dicts and lists by dotted path: `{"a": [x]}` -> `{"a.0": x}`."""
    if isinstance(tree, dict):
        items: Iterable[tuple[str, Any]] = tree.items()
    elif isinstance(tree, list | tuple):
        items = ((str(index), value) for index, value in enumerate(tree))
    else:
        return {prefix: tree}
    return {name: array for key, value in items for name, array in flatten(value, f"{prefix}.{key}".strip(".")).items()}


def unflatten(arrays: dict[str, np.ndarray]):
    """The inverse of `flatten`; a level whose keys are all numbers becomes a list."""
    if set(arrays) == {""}:
        return arrays[""]
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = array
    built = {head: unflatten(group) for head, group in groups.items()}
    return [built[str(index)] for index in range(len(built))] if all(key.isdigit() for key in built) else built


def save(directory: Path, config: dict, params) -> None:
    """Write both files, each atomically, the weights first."""
    from safetensors.numpy import save as to_bytes

    directory.mkdir(parents=True, exist_ok=True)
    for name, data in (
        (WEIGHTS, to_bytes({k: np.ascontiguousarray(v) for k, v in flatten(params).items()})),
        (CONFIG, json.dumps(config, indent=1).encode()),
    ):
        write_bytes(directory / name, data)


def load(directory: Path) -> tuple[dict, dict]:
    """(config, parameters) of a codec's folder; TonyError if a file is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        config = json.loads((directory / CONFIG).read_text())
        check_readable(directory / WEIGHTS)
        return config, unflatten(load_file(directory / WEIGHTS))
    except FileNotFoundError as error:
        raise TonyError(f"{error.filename} is missing; a codec needs {CONFIG} and {WEIGHTS}; train it again") from None
    except OSError as error:
        raise TonyError(f"{error.filename or directory} can't be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError) as error:
        raise TonyError(f"the codec in {directory} is damaged ({error}); copy it again or train it again") from None
