"""Every array of every recipe of the papers lies on its mesh as recorded."""

import json

import pytest

from tests.parallel.shardings import CASES, GOLDEN, described, golden_file, meshes


@pytest.mark.parametrize(("name", "mesh"), CASES, ids=[golden_file(*case).stem for case in CASES])
def test_shardings_are_the_recorded_ones(name, mesh):
    recorded = json.loads(golden_file(name, mesh).read_text())
    assert described(name, mesh) == recorded, "see tests/parallel/shardings.py"


def test_there_are_no_others():
    assert {golden_file(name, mesh) for name, mesh in CASES} == set(GOLDEN.glob("*.json"))


def test_palm_is_fully_sharded_inside_a_pod_and_whole_in_each():
    recorded = json.loads(golden_file("palm-540b", meshes("palm-540b")[0]).read_text())
    assert recorded["mesh"] == {"pod": 2, "data": 256, "expert": 1, "model": 12}
    assert not any("pod" in line for kind in ("params", "optimizer") for line in recorded[kind].values())
    # Parameters, momentum and second moments in float32; the one head of keys and values is whole on every chip.
    assert recorded["bytes_per_chip"] == pytest.approx(3 * 4 * 540.354e9 / 3072, rel=0.04)


def test_glam_has_one_expert_of_each_layer_on_sixteen_chips():
    recorded = json.loads(golden_file("glam-64b-64e", meshes("glam-64b-64e")[0]).read_text())
    assert recorded["params"]["['blocks'][0]['feed_forward']['up']"].endswith("is [32, 1, 8192, 2048]")
