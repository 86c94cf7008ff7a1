"""What a recipe says of its mesh: rules, sizes, and one sentence for a mesh that can't be."""

import dataclasses

import jax
import pytest
from jax.sharding import PartitionSpec

from tony.errors import TonyError
from tony.model.config import ModelConfig
from tony.model.params import shardings
from tony.parallel.sharding import abstract_layout, make_layout, make_mesh
from tony.recipe import Language, Mesh, load
from tony.stages import language
from tony.train.step import language_step

CONFIG = ModelConfig(vocab_size=96, layers=2, width=48, heads=6, kv_heads=6, head_dim=8, hidden=144)
SPARSE = dataclasses.replace(CONFIG, experts=4, expert_hidden=64, expert_group=8, stacked=True)


@dataclasses.dataclass(frozen=True)
class Device:
    """All that a mesh asks of one."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "none"


def devices(count, slices=1):
    return [Device(n, n * slices // count) for n in range(count)]


def test_one_device_is_not_spread():
    assert make_layout(Mesh()) is None


def test_an_axis_takes_the_devices_that_are_left():
    assert dict(make_mesh(devices(12), data=-1, model=3).shape) == {"pod": 1, "data": 4, "expert": 1, "model": 3}


def test_a_pod_is_of_one_slice():
    mixed = sorted(devices(8, slices=2), key=lambda device: device.id % 4)
    mesh = make_mesh(mixed, pod=2, data=4)
    assert [{device.slice_index for device in pod.flat} for pod in mesh.devices] == [{0}, {1}]
    with pytest.raises(TonyError, match=r"mesh.pod = 1: the devices are in 2 slices.*set mesh.pod = 2"):
        make_mesh(mixed, data=8)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 5}, r"pod 1 x data 5 x expert 1 x model 1 needs 5 devices; there are 8, and the nearest.*data 8"),
        ({"data": -1, "model": 3}, r"needs a multiple of 3 devices; there are 8"),
        ({"data": -1, "model": -1}, r"mesh.data and mesh.model are both -1"),
        ({"modle": 2}, r"mesh axis 'modle' is unknown"),
    ],
)
def test_sizes_that_are_not_the_devices(sizes, message):
    with pytest.raises(TonyError, match=message):
        make_mesh(devices(8), **sizes)


@pytest.mark.parametrize(
    ("config", "mesh", "message"),
    [
        (
            CONFIG,
            Mesh(data=2, model=4),
            r"mesh.model = 4: model.heads \[6\] can't be split so along 'heads' = 6; the near",
        ),
        (CONFIG, Mesh(data=5), r"mesh.data = 5.*: .*\[\d+, \d+\] can't be split so along '\w*embed' = 48"),
        (CONFIG, Mesh(data=7, model=3), r"no mesh of as many devices fits; keep that axis whole with mesh.rules"),
        (SPARSE, Mesh(expert=8), r"mesh.expert = 8: blocks.0.feed_forward.\w+ \[2, 4, .*'expert' = 4; the nearest"),
        (dataclasses.replace(SPARSE, dispatch="sorted"), Mesh(expert=4), r"set dispatch to 'capacity'"),
    ],
)
def test_a_mesh_that_does_not_divide_the_network(config, mesh, message):
    with pytest.raises(TonyError, match=message):
        shardings(config, abstract_layout(mesh))


def test_the_nearest_mesh_does_divide_it():
    with pytest.raises(TonyError, match=r"the nearest mesh that fits is pod 1 x data 4 x expert 1 x model 2"):
        shardings(CONFIG, abstract_layout(Mesh(data=2, model=4)))
    shardings(CONFIG, abstract_layout(Mesh(data=4, model=2)))


def test_rows_that_the_mesh_does_not_divide():
    with pytest.raises(TonyError, match=r"a batch of 6 rows \(rows\) \[6\] can't be split so along 'batch' = 6"):
        language_step(CONFIG, Language(rows=6), abstract_layout(Mesh(data=4)))


def test_rows_of_a_pod_that_do_not_make_the_parts_of_a_batch():
    with pytest.raises(TonyError, match=r"accumulation = 4: it must divide the 2 rows that each of mesh.pod = 4 has"):
        language_step(CONFIG, Language(rows=8, accumulation=4), abstract_layout(Mesh(pod=4, data=2)))


def test_a_mesh_is_held_against_the_batches_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(language, "make_layout", abstract_layout)
    path = tmp_path / "r.toml"
    path.write_text("[mesh]\ndata = 8\n[pretrain]\nrows = 16\nramp = [[5, 24], [9, 36]]")
    with pytest.raises(TonyError, match=r"a batch of 36 rows \(pretrain.rows\) \[36\] can't be split so"):
        language.check_mesh(load(path))
    language.check_mesh(load(path, ["pretrain.ramp=[]"]))
    with pytest.raises(TonyError, match="can't be split so along"):
        language.check_mesh(load(path, ["pretrain.ramp=[]", "mesh.data=1", "mesh.model=7"]))


def test_the_nearest_mesh_suits_network_and_batches_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(language, "make_layout", abstract_layout)
    path = tmp_path / "r.toml"
    path.write_text(
        "[model]\nwidth = 48\nheads = 6\nhead_dim = 8\nhidden = 96\n[pretrain]\nrows = 6\n[tune]\nrows = 6\n"
    )
    for mesh in ((2, 4), (4, 2)):  # six heads, six rows, eight devices: none fits, and none is proposed
        with pytest.raises(TonyError, match="no mesh of as many devices fits") as told:
            language.check_mesh(load(path, [f"mesh.data={mesh[0]}", f"mesh.model={mesh[1]}"]))
        assert "rules.batch" not in str(told.value)


def test_rules_of_a_recipe(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[mesh]\nmodel = 2\nrules = { vocab = [], hidden = ["data", "model"] }')
    layout = abstract_layout(load(path).mesh)
    assert layout.spec(("vocab", "hidden")) == PartitionSpec((), ("data", "model"))
    for text, message in (
        ("rules = { vocap = [] }", "no logical axis 'vocap'; did you mean vocab"),
        ('rules = { vocab = ["modle"] }', "no mesh axis 'modle'; did you mean model"),
        ("data = 0", "mesh.data = 0: expected a number above zero, or -1"),
    ):
        path.write_text(f"[mesh]\n{text}")
        with pytest.raises(TonyError, match=message):
            load(path)


def test_factored_moments_lie_as_the_axes_that_are_left():
    section = Language(rows=8, length=8, optimizer="adafactor")
    config = dataclasses.replace(CONFIG, width=256, heads=32, kv_heads=32, hidden=256)
    state, batch, _ = language_step(config, section, abstract_layout(Mesh(data=2, model=2))).abstract
    leaves = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(state["optimizer"])}
    split = {"up": (("data", "expert"), ("model",)), "down": (("model",), ("data", "expert"))}
    for name, (first, last) in split.items():
        row, column = (
            next(x for path, x in leaves.items() if f".{kind}[" in path and path.endswith(f"['{name}']['weight']"))
            for kind in ("v_row", "v_col")
        )
        # Of a square matrix optax takes the last axis for the larger one, over which rows are summed.
        assert row.sharding.spec == PartitionSpec(first)
        assert column.sharding.spec == PartitionSpec(last)
    assert batch["tokens"].sharding.spec == PartitionSpec(("pod", "data", "expert"))


def test_groups_of_experts_tokens_are_whole_on_every_device():
    config = dataclasses.replace(SPARSE, expert_group=48)
    with pytest.raises(TonyError, match="expert_group = 48: it must divide the 64 tokens that a device has of"):
        language_step(config, Language(rows=4, length=64), abstract_layout(Mesh(data=4)))
