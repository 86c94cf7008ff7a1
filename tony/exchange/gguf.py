"""GGUF files (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): read with every length checked, and written.

Metadata and tensors' places are read by this module; blocks of quantised numbers are unpacked by the `gguf` package.
Shapes are given in NumPy's order, which is the reverse of the file's.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tony.errors import TonyError, require
from tony.exchange.weights import finite
from tony.files import whole

MAGIC = b"GGUF"
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
MAX_NAME = 65_535
PRECISIONS = ("f32", "f16", "bf16", "q8_0")  # that can be written


class _Entry(NamedTuple):
    kind: int  # of numbers, as ggml counts them
    shape: tuple[int, ...]
    start: int
    size: int  # bytes


class GgufFile:
    """A file's metadata, and its tensors by name; TonyError if anything in it points outside of it."""

    def __init__(self, path: Path):
        self.path = Path(path)
        with open(self.path, "rb") as file:
            if self.path.stat().st_size < 24:
                raise self._damaged("it is shorter than a header")
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self._entries: dict[str, _Entry] = {}
        self._read()

    def _read(self) -> None:
        if self._take(4) != MAGIC:
            raise TonyError(f"{self.path} is not a GGUF file; expected one that begins with GGUF")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise TonyError(f"{self.path} is of GGUF version {version}; expected 2 or 3, little-endian")
        tensors, pairs = self._scalar("<Q"), self._scalar("<Q")
        if pairs * 13 + tensors * 32 > len(self._bytes):
            raise self._damaged(f"{pairs} keys and {tensors} tensors do not fit in {len(self._bytes)} bytes")
        for _ in range(pairs):
            key = self._string(MAX_NAME)
            if key in self.metadata:
                raise self._damaged(f"key {key[:80]!r} is there twice")
            self.metadata[key] = self._value(self._scalar("<I"))
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r}")
        told = [self._tensor_info() for _ in range(tensors)]
        base = -(-self._at // alignment) * alignment
        end = base
        for name, kind, shape, offset in sorted(told, key=lambda one: one[3]):
            size = self._size(name, kind, shape)
            start = base + offset
            if offset % alignment or start < end or start + size > len(self._bytes):
                raise self._damaged(f"tensor {name[:80]!r} lies outside of the file or on another one")
            if name in self._entries:
                raise self._damaged(f"tensor {name[:80]!r} is there twice")
            self._entries[name] = _Entry(kind, shape, start, size)
            end = start + size

    def _damaged(self, why: str) -> TonyError:
        return TonyError(f"{self.path} is not a whole GGUF file ({why}); copy it again")

    def _take(self, count: int) -> bytes:
        if count > len(self._bytes) - self._at:
            raise self._damaged(f"it ends within its header, at byte {len(self._bytes)}")
        self._at += count
        return self._bytes[self._at - count : self._at]

    def _scalar(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _string(self, most: int = 2**32) -> str:
        length = self._scalar("<Q")
        if length > most:
            raise self._damaged(f"a name of {length} bytes")
        return self._take(length).decode("utf-8", "replace")

    def _value(self, kind: int, nested: bool = False) -> Any:
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind == STRING:
            return self._string()
        if kind != ARRAY or nested:
            raise self._damaged(f"a value of type {kind}")
        inner, count = self._scalar("<I"), self._scalar("<Q")
        if inner in SCALARS:
            form = np.dtype(SCALARS[inner])
            if count > len(self._bytes):
                raise self._damaged(f"a list of {count}")
            return np.frombuffer(self._take(count * form.itemsize), form).tolist()
        if count * 8 > len(self._bytes):  # a string takes eight bytes at least
            raise self._damaged(f"a list of {count}")
        return [self._value(inner, nested=True) for _ in range(count)]

    def _tensor_info(self) -> tuple[str, int, tuple[int, ...], int]:
        name, dimensions = self._string(MAX_NAME), self._scalar("<I")
        if not 1 <= dimensions <= 4:
            raise self._damaged(f"tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(self._scalar("<Q") for _ in range(dimensions))
        return name, self._scalar("<I"), shape[::-1], self._scalar("<Q")

    def _size(self, name: str, kind: int, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor; whole blocks along its last axis."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise self._damaged(f"tensor {name[:80]!r} is of the unknown type {kind}") from None
        if min(shape) < 1 or shape[-1] % block:
            raise self._damaged(f"tensor {name[:80]!r} has the shape {shape}")
        return math.prod(shape) // block * size

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._entries)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._bytes)

    @property
    def kinds(self) -> dict[str, int]:
        """How many tensors there are of each type of numbers."""
        from gguf import GGMLQuantizationType

        found = [GGMLQuantizationType(entry.kind).name for entry in self._entries.values()]
        return {kind: found.count(kind) for kind in sorted(set(found))}

    def read(self, name: str) -> np.ndarray:
        """A tensor as float32, unpacked if it is quantised."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        entry = self._entries[name]
        kind = GGMLQuantizationType(entry.kind)
        raw = np.frombuffer(self._bytes, np.uint8, entry.size, entry.start).reshape(*entry.shape[:-1], -1)
        if kind.name in ("I8", "I16", "I32", "I64"):
            raise TonyError(f"{self.path}: {name} is of {kind.name}; expected real numbers")
        if kind.name == "F64":
            made = raw.view(np.float64)
        else:
            try:
                made = dequantize(raw, kind)
            except (NotImplementedError, ValueError):
                raise TonyError(
                    f"{self.path}: {name} is of {kind.name}, which the gguf package does not unpack; "
                    "get the file in F16, Q8_0, Q6_K or Q4_K"
                ) from None
        return finite(made.reshape(entry.shape), f"{self.path}: {name}")


def open_gguf(path: Path) -> GgufFile:
    """A GGUF file, checked."""
    require("gguf", "exchange")
    return GgufFile(path)


def write_gguf(path: Path, arch: str, metadata: dict[str, Any], arrays: dict[str, np.ndarray], precision: str) -> None:
    """Write a file of float32 arrays in a precision of PRECISIONS; vectors stay float32, as llama.cpp wants them.

    The file appears when it is whole.
    """
    gguf = require("gguf", "exchange")
    wanted = gguf.GGMLQuantizationType[precision.upper()]
    with whole(path) as partial:
        writer = gguf.GGUFWriter(str(partial), arch)
        writer.add_file_type(gguf.LlamaFileType[{"f32": "ALL_F32"}.get(precision, f"MOSTLY_{precision.upper()}")])
        for key, value in metadata.items():
            _add(writer, gguf, key, value)
        for name, array in arrays.items():
            small = array.ndim == 1 or name.endswith("ffn_gate_inp.weight")
            kept = small or (precision == "q8_0" and array.shape[-1] % 32)
            kind = gguf.GGMLQuantizationType.F32 if kept else wanted
            data = gguf.quants.quantize(np.ascontiguousarray(array, np.float32), kind)
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add(writer, gguf, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
