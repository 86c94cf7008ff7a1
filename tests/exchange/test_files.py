"""Files of weights: what others wrote is read, and whatever is done to a file ends in numbers or in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tony.errors import TonyError
from tony.exchange.gguf import GgufFile, write_gguf
from tony.exchange.weights import Safetensors, read_header

gguf = pytest.importorskip("gguf")
FIXTURES = Path(__file__).parent / "fixtures"
RNG = np.random.default_rng(0)
ARRAYS = {"a.weight": RNG.normal(size=(6, 64)).astype(np.float32), "b": RNG.normal(size=8).astype(np.float32)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a small file of each format."""
    folder = tmp_path_factory.mktemp("files")
    path = folder / "model.gguf"
    metadata = {"llama.block_count": 2, "flag": True, "number": 1.5, "words": ["a", "bé"], "numbers": [1, 2, 3]}
    write_gguf(path, "llama", metadata, ARRAYS, "f32")
    return {"gguf": path.read_bytes(), "safetensors": (FIXTURES / "llama" / "model.safetensors").read_bytes()}


def read_all(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file, as the importer reads them."""
    file = GgufFile(path) if path.suffix == ".gguf" else Safetensors(path.parent)
    return {name: file.read(name) for name in file.names}


def place(folder: Path, kind: str, data: bytes) -> Path:
    path = folder / f"model.{kind}"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("precision", "most"), [("f32", 0), ("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 3e-2)])
def test_gguf_holds_what_was_written(tmp_path, precision, most):
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", {"words": ["a", "bé"], "llama.x": 7}, ARRAYS, precision)
    made = read_all(path)
    np.testing.assert_allclose(made["a.weight"], ARRAYS["a.weight"], atol=most)
    np.testing.assert_array_equal(made["b"], ARRAYS["b"])  # vectors stay float32
    told = GgufFile(path).metadata
    assert (told["words"], told["llama.x"], told["general.architecture"]) == (["a", "bé"], 7, "llama")
    reference = gguf.GGUFReader(path)
    assert {tensor.name for tensor in reference.tensors} == set(ARRAYS)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "BF16", "F64"])
def test_quantised_tensors_are_unpacked(tmp_path, kind):
    quantised = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    if kind == "F64":
        writer.add_tensor("a", ARRAYS["a.weight"].astype(np.float64))
    else:
        writer.add_tensor("a", gguf.quants.quantize(ARRAYS["a.weight"], quantised), raw_dtype=quantised)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    made = read_all(tmp_path / "model.gguf")["a"]
    assert np.abs(made - ARRAYS["a.weight"]).mean() < 0.12
    tensor = gguf.GGUFReader(tmp_path / "model.gguf").tensors[0]
    if kind != "F64":
        np.testing.assert_array_equal(made, gguf.quants.dequantize(tensor.data, tensor.tensor_type))


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, whole, kind):
    data = whole[kind]
    for stop in {*range(0, len(data), max(1, len(data) // 150)), *range(len(data) - 40, len(data)), *range(60)}:
        with pytest.raises(TonyError) as caught:
            read_all(place(tmp_path, kind, data[:stop]))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_changed_bytes_end_in_numbers_or_in_one_sentence(tmp_path_factory, whole, kind):
    folder = tmp_path_factory.mktemp("changed")
    header = 700 if kind == "gguf" else 2600

    @settings(max_examples=250, deadline=None, derandomize=True)
    @given(st.lists(st.tuples(st.integers(0, header), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4))
    def check(changes):
        data = bytearray(whole[kind])
        for at, new in changes:
            data[at : at + len(new)] = new
        try:
            for array in read_all(place(folder, kind, bytes(data))).values():
                assert array.dtype == np.float32 and np.isfinite(array).all()
        except TonyError as error:
            assert "\n" not in str(error)

    check()


@pytest.mark.parametrize("count", [2**40, 2**62, 2**64 - 1])
def test_counts_that_cannot_be_are_refused_before_memory_is_taken(tmp_path, whole, count):
    for at in (8, 16):  # tensors, keys
        data = bytearray(whole["gguf"])
        data[at : at + 8] = count.to_bytes(8, "little")
        with pytest.raises(TonyError, match="not a whole GGUF file"):
            GgufFile(place(tmp_path, "gguf", bytes(data)))


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
        {"a": {"dtype": "pickle", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}},
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}},
        {"a": 3},
        [],
    ],
)  # fmt: skip
def test_headers_that_lie_are_refused(tmp_path, header):
    text = json.dumps(header).encode()
    path = place(tmp_path, "safetensors", len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(TonyError, match="not a whole safetensors file"):
        read_header(path)


def test_numbers_that_are_none_are_refused(tmp_path):
    for bad in (np.nan, np.inf):
        write_gguf(tmp_path / "model.gguf", "llama", {}, {"a": np.array([1, bad], np.float32)}, "f32")
        with pytest.raises(TonyError, match="not finite"):
            read_all(tmp_path / "model.gguf")


def test_other_files_are_told_apart(tmp_path):
    with pytest.raises(TonyError, match="is not a GGUF file"):
        GgufFile(place(tmp_path, "gguf", b"PK" + bytes(100)))
    with pytest.raises(TonyError, match="GGUF version 1"):
        GgufFile(place(tmp_path, "gguf", b"GGUF\x01\0\0\0" + bytes(100)))
