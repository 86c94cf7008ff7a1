"""Tensors of safetensors files, by name: every offset is checked against the file before anything is read.

The format: eight bytes with the length of a JSON header, the header, and the numbers it gives offsets into
(https://github.com/huggingface/safetensors). A tensor's bytes are mapped, not copied, until it is asked for.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from tony.errors import TonyError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER = 100_000_000  # bytes, as the format's own library has it
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
         "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip


class Weights(Protocol):
    """Tensors of a model: their names, each as float32, and the bytes of the files that hold them."""

    @property
    def names(self) -> set[str]: ...

    @property
    def size(self) -> int: ...

    def read(self, name: str) -> np.ndarray: ...


class _Entry(NamedTuple):
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # in the file


class Safetensors:
    """The tensors of a folder's model.safetensors, or of the shards that its index names."""

    def __init__(self, directory: Path):
        self._entries: dict[str, _Entry] = {}
        for path in _files(directory):
            for name, entry in read_header(path).items():
                if name in self._entries:
                    raise TonyError(
                        f"{path}: tensor {name[:80]} is also in {self._entries[name].path.name}; copy it again"
                    )
                self._entries[name] = entry

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._entries)

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(path.stat().st_size for path in {entry.path for entry in self._entries.values()})

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32; TonyError if it holds other things than finite real numbers."""
        entry = self._entries[name]
        if entry.dtype not in DTYPES:
            raise TonyError(
                f"{entry.path}: {name} is of {entry.dtype}; expected one of {', '.join(DTYPES)}: not quantised"
            )
        dtype = np.dtype(DTYPES[entry.dtype])
        count = math.prod(entry.shape)
        data = (
            np.memmap(entry.path, np.uint8, "r", entry.start, (count * dtype.itemsize,))
            if count
            else np.zeros(0, np.uint8)
        )
        return finite(data.view(dtype).reshape(entry.shape), f"{entry.path}: {name}")


def finite(array: np.ndarray, what: str) -> np.ndarray:
    """An array as float32; TonyError if a number in it is infinite or none."""
    with np.errstate(over="ignore"):
        made = np.asarray(array, np.float32)
    if not np.isfinite(made).all():
        raise TonyError(f"{what} holds numbers that are not finite; the file is damaged: copy it again")
    return made


def _files(directory: Path) -> list[Path]:
    """The safetensors files of a folder, in the order of their names."""
    index = directory / INDEX
    if index.is_file() and not (directory / WEIGHTS).is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TonyError(f"{index} is damaged ({type(error).__name__}); copy it again") from None
        for name in names:
            if not isinstance(name, str) or "/" in name or "\\" in name or not name.endswith(".safetensors"):
                raise TonyError(f"{index} names the file {str(name)[:80]!r}; expected safetensors files beside it")
            if not (directory / name).is_file():
                raise TonyError(f"{directory / name} is missing, which {INDEX} names; copy the whole folder")
        return [directory / name for name in names]
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    pickled = next((path for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(directory.glob(pattern))), None)
    if pickled:
        raise TonyError(
            f"{pickled} is a pickle, which can run code and is not read; get the model as safetensors or GGUF"
        )
    raise TonyError(f"there is no {WEIGHTS} in {directory}; expected a folder with config.json and {WEIGHTS}")


def read_header(path: Path) -> dict[str, _Entry]:
    """What a safetensors file says it holds; TonyError unless the tensors lie end to end and fill the file exactly."""

    def damaged(why: str) -> TonyError:
        return TonyError(f"{path} is not a whole safetensors file ({why}); copy it again")

    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > min(MAX_HEADER, size - 8):
            raise damaged(f"it has {size} bytes, a header of {length}")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise damaged("its header is not JSON") from None
    if not isinstance(header, dict):
        raise damaged("its header is not an object")
    header.pop("__metadata__", None)
    entries, spans = {}, []
    for name, facts in header.items():
        entry = _entry(path, facts, 8 + length)
        if entry is None:
            raise damaged(f"tensor {name[:80]!r} has a wrong type, shape or place")
        entries[name] = entry
        spans.append((entry.start, entry.start + math.prod(entry.shape) * SIZES[entry.dtype]))
    end = 8 + length
    for start, stop in sorted(spans):
        if start != end:
            raise damaged("its tensors overlap or leave gaps")
        end = stop
    if end != size:
        raise damaged(f"its tensors end at {end} of {size} bytes")
    return entries


def _entry(path: Path, facts, base: int) -> _Entry | None:
    """A tensor's entry if it makes sense by itself."""
    if not isinstance(facts, dict):
        return None
    values: list[Any] = [facts.get(key) for key in ("dtype", "shape", "data_offsets")]
    dtype, shape, offsets = values
    if not isinstance(dtype, str) or dtype not in SIZES or not _counts(shape) or not _counts(offsets):
        return None
    if len(shape) > 8 or len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * SIZES[dtype]:
        return None
    return _Entry(path, dtype, tuple(shape), base + offsets[0])


def _counts(values) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 for value in values
    )
