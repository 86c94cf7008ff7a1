"""Eight simulated devices train as one does, and only what may goes between them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parallel.steps import MESHES

EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}


def steps(kind: str):
    done = subprocess.run(
        [sys.executable, "-m", "tests.parallel.steps", kind],
        env={**os.environ, **EIGHT}, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    one, *spread = json.loads(done.stdout.splitlines()[-1])
    return one["losses"], dict(zip(map(_named, MESHES[kind]), spread, strict=True))


def _named(mesh) -> str:
    sizes = {axis: getattr(mesh, axis) for axis in ("pod", "data", "expert", "model")}
    return " ".join([f"{axis}{size}" for axis, size in sizes.items() if size > 1] + [mesh.exchange])


@pytest.fixture(scope="module")
def dense():
    return steps("dense")


@pytest.fixture(scope="module")
def sparse():
    return steps("experts")


EXACT = [
    (kind, _named(mesh)) for kind in MESHES for mesh in MESHES[kind] if mesh.pod == 1 or mesh.exchange == "float32"
]


@pytest.mark.parametrize(("kind", "mesh"), EXACT)
def test_three_steps_are_one_devices(kind, mesh, dense, sparse):
    # Losses are of the forward pass, moments in the optimiser's state are of gradients.
    losses, spread = dense if kind == "dense" else sparse
    assert spread[mesh]["losses"] == pytest.approx(losses, rel=1e-5)
    assert max(spread[mesh]["far"].values()) < 1e-5


def test_gradients_rounded_between_pods_change_little(dense):
    losses, spread = dense
    rounded = spread["pod2 data4 bfloat16"]
    assert rounded["losses"] == pytest.approx(losses, rel=1e-4)
    assert 1e-4 < max(rounded["far"].values()) < 1e-2  # 8 bits of mantissa


@pytest.mark.parametrize(("kind", "mesh"), [(k, _named(m)) for k in MESHES for m in MESHES[k] if m.pod > 1])
def test_only_gradients_cross_pods(kind, mesh, dense, sparse):
    made = (dense if kind == "dense" else sparse)[1][mesh]
    crossing = [(operation, shape) for operation, shape, crosses, _ in made["collectives"] if crosses]
    exchanged = sorted(shape for operation, shape in crossing if operation == "all-gather")
    # Each parameter's gradient once, from each pod the shard that a device holds. The CPU's compiler writes float32 for
    # what the program says is bfloat16, so that is looked up in the program.
    assert exchanged == sorted(f"f32[{','.join(map(str, [2, *shard]))}]" for shard in made["shards"])
    assert (made["rounded"] == 2 * len(made["shards"])) == mesh.endswith("bfloat16")
    others = [shape for operation, shape in crossing if operation != "all-gather"]
    # Losses, counts of tokens and, of experts, their loads.
    assert all(size in ("", "4") for shape in others for size in re.findall(r"\w+\[([\d,]*)\]", shape))


def test_nothing_crosses_where_there_is_one_pod(dense, sparse):
    for spread in (dense[1], sparse[1]):
        for mesh, made in spread.items():
            assert any(crosses for *_, crosses, _ in made["collectives"]) == mesh.startswith("pod")


@pytest.mark.parametrize("mesh", [_named(mesh) for mesh in MESHES["experts"]])
def test_tokens_go_to_experts_and_back_by_all_to_all(mesh, sparse):
    made = sparse[1][mesh]["collectives"]
    inside = [operation for operation, _, _, of in made if operation == "all-to-all" and "while" in of]
    assert len(inside) == 4  # there and back, forward and backward
    # Buffers [e, g, c, d] have four axes, and more within an all-to-all; nothing gathers one whole over "expert".
    whole = [s for operation, s, _, _ in made if operation == "all-gather" and re.match(r"f32\[(1,)?4,\d+,8,", s)]
    assert not whole
