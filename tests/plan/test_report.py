"""Plans of tiny recipes with the real TPU compiler, where it is installed, and what needs no compiler at all."""

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from tony.cli import main
from tony.errors import TonyError
from tony.model.config import ModelConfig
from tony.model.count import expert_parameter_count, parameter_count
from tony.model.params import declare, is_spec, shardings
from tony.parallel.sharding import abstract_layout
from tony.plan import report, show
from tony.plan.aot import DoesNotFit, Program, _text_of, compile_program
from tony.plan.chips import CHIPS, GIB, read_topology
from tony.plan.estimate import Choice, _hidden, choices, cost
from tony.plan.published import ROWS, errors, markdown, predicted
from tony.plan.report import Asked, _advice, plan_training, topology_of
from tony.recipe import load
from tony.stages.language import network

RECIPES = Path(__file__).parents[2] / "recipes"
TPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
SMALL = """HloModule small

ENTRY %main (p: f32[4096]) -> f32[4096] {
  %p = f32[4096]{0} parameter(0)
  ROOT %m = f32[4096]{0} multiply(%p, %p)
}
"""
TINY = """
[model]
vocab_size = 512
layers = 3
width = 64
heads = 4
head_dim = 16
hidden = 128
stacked = true
remat = "blocks"

[data]
items = {}
[data.sources.corpus]
path = "corpus"

[mesh]
pod = 2
data = 4

[pretrain]
steps = 100
length = 64
rows = 16
optimizer = "adamw"
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def plan(*arguments, **environment):
    """The command in a process of its own, as users run it."""
    return subprocess.run(
        [sys.executable, "-m", "tony", "plan", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )


# ------------------------------------------------------------------------------------------------- without a compiler


def test_a_recipe_says_its_own_topology(tiny):
    assert topology_of(Asked(tiny), load(tiny)) == read_topology("v4:2x2x1", 2)
    palm = load(RECIPES / "palm-540b.toml")
    assert topology_of(Asked(RECIPES / "palm-540b.toml"), palm) == read_topology("v4:16x16x12", 2)
    assert topology_of(Asked(tiny, topology="v5e"), load(tiny)) == read_topology("v5e:2x2", 2)
    wider = ("mesh.data=8",)
    assert topology_of(Asked(tiny, wider, "v5e"), load(tiny, wider)) == read_topology("v5e:2x4", 2)
    with pytest.raises(TonyError, match="its mesh has 8 devices, and no 3 slices of v4 have just so many"):
        topology_of(Asked(tiny, slices=3), load(tiny))
    assert topology_of(Asked(tiny, topology="v5e:4x4", slices=3), load(tiny)) == read_topology("v5e:4x4", 3)
    assert topology_of(Asked(tiny, topology="tpu7x:2x2x1"), load(tiny)).slices == 2


def test_a_recipe_too_large_for_any_layout_says_by_how_much():
    with pytest.raises(
        TonyError, match=r"does not fit v4:4x4x4.*GiB too little; what saves most is --set \w+.*more chips"
    ):
        plan_training(Asked(RECIPES / "palm-540b.toml", topology="v4:4x4x4", slices=1))


def test_advice_names_the_change_that_saves_most():
    recipe = load(RECIPES / "palm-8b.toml", ['model.remat="none"', "mesh.data=64", "pretrain.rows=512"])
    text = _advice(DoesNotFit(50 * GIB, 30 * GIB), recipe, network(recipe), read_topology("v4:4x4x4"))
    assert "needs 50.0 GiB and has 30.00, 20.0 GiB too little" in text
    assert "what saves most is --set " in text
    whole = load(RECIPES / "palm-8b.toml", ['model.remat="none"', "mesh.data=-1", "pretrain.rows=512"])
    assert _advice(DoesNotFit(50 * GIB, 30 * GIB), whole, network(whole), read_topology("v4:4x4x4")) == text
    only = _advice(DoesNotFit(31 * GIB, 30 * GIB), recipe, network(recipe), read_topology("v4:4x4x4"))
    assert "together" not in only and only.count("--set") == 1


def test_experts_stay_where_they_are_and_all_else_is_gathered():
    sparse = replace(CONFIG, experts=64, expert_hidden=2048, expert_every=2, capacity_factor=2.0)
    topology = read_topology("v4:4x4x4")
    spread = cost(sparse, 256, 1024, 16, topology, Choice(1, 1, 64, 1, "blocks", 1))
    whole = cost(sparse, 256, 1024, 16, topology, Choice(1, 64, 1, 1, "blocks", 1))
    dense = parameter_count(sparse) - expert_parameter_count(sparse)
    assert spread.weights / whole.weights == pytest.approx(dense / parameter_count(sparse), rel=0.01)


def test_without_libtpu_one_sentence_says_what_to_install(tiny):
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed")
    with pytest.raises(TonyError, match=r"libtpu, which is not installed: pip install -e .\.\[tpu\]"):
        plan_training(Asked(tiny, topology="v4:2x2x1"))


def test_predictions_stand_beside_what_was_published():
    assert statistics.median(map(abs, errors())) <= 0.15
    assert all(0 < predicted(row)[0] < 100 for row in ROWS)
    assert markdown().count("\n| ") >= len(ROWS)


def test_published_models_have_the_parameters_in_their_names():
    from tony.model.count import parameter_count

    for row in ROWS:
        billions = float(row.name.split()[-1].rstrip("B"))
        count = parameter_count(ModelConfig(max_length=row.length, **row.model)) / 1e9
        assert count == pytest.approx(billions, rel=0.06), row.name


CONFIG = ModelConfig(1024, layers=8, width=512, heads=8, kv_heads=8, head_dim=64, hidden=2048, stacked=True)


def test_estimates_go_the_way_they_must():
    topology = read_topology("v4:4x4x4")

    def of(remat="blocks", accumulation=1, data=64, model=1, rows=256):
        choice = Choice(1, data, 1, model, remat, accumulation)
        return cost(CONFIG, rows, 1024, 16, topology, choice)

    assert of("none").hbm_bytes > of("products").hbm_bytes > of("blocks").hbm_bytes
    assert of("none").products < of("blocks").products
    assert of(accumulation=4).hbm_bytes < of().hbm_bytes and of(accumulation=4).weights > of().weights
    assert of(data=16, model=4).weights < of().weights and of(data=16, model=4).activations > of().activations
    assert of(rows=512).seconds > of().seconds


def test_every_choice_divides_the_network_and_the_batch():
    found = list(choices(CONFIG, 256, read_topology("v4:4x4x4", 2)))
    assert {choice.model for choice in found} == {1, 2, 4, 8}
    for choice in found:
        assert choice.pod == 2 and choice.data * choice.expert * choice.model == 64
        assert 256 % (choice.ways * choice.accumulation) == 0
    of_twelve = replace(CONFIG, heads=12, kv_heads=12, width=768, hidden=3072, vocab_size=1536)
    found = choices(of_twelve, 384, read_topology("v4:4x4x12"))
    assert {choice.model for choice in found} == {1, 2, 4, 6, 12}  # in threes its compiler reduces nothing


# ---------------------------------------------------------------------------------------------------- with a compiler

KEYS = {
    "parameters", "active_parameters", "chips", "slices", "mesh", "hbm_bytes_per_chip", "fits", "flops_per_token",
    "ici_bytes_per_step", "dcn_bytes_per_step", "step_seconds", "mfu", "hfu", "tokens_per_second", "train_hours",
    "energy_mwh", "tco2e", "compile_seconds",
}  # fmt: skip


def exchanged(recipe):
    """Bytes of the gradients in bfloat16, of each what a device has of it."""
    config = network(recipe)
    parts = jax.tree.leaves(shardings(config, abstract_layout(recipe.mesh)))
    specs = jax.tree.leaves(declare(config), is_leaf=is_spec)
    return sum(2 * math.prod(part.shard_shape(spec.shape)) for spec, part in zip(specs, parts, strict=True))


@TPU
def test_a_plan_for_two_slices(tiny, tmp_path):
    done = plan(tiny, "--topology", "v4:2x2x1", "--json", "--picture", tmp_path / "plan.svg")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert set(planned) >= KEYS and planned["chips"] == 8 and planned["fits"] and not planned["unread_loops"]
    config = network(load(tiny))
    # What crosses between the slices: the gradients in bfloat16, of each what a chip has of it, and scalars.
    assert 0 <= planned["dcn_bytes_per_step"] - exchanged(load(tiny)) <= 1024  # metrics
    # Products of a step: 8 a parameter in blocks with rematerialisation, 6 of the table, and attention's.
    blocks = planned["parameters"] - config.vocab_size * config.width
    products = (8 * blocks + 6 * config.vocab_size * config.width) * 16 * 64
    assert products < 8 * planned["product_flops_per_step"] < 1.7 * products
    seconds = planned["step_seconds"]
    assert seconds["overlapped"] <= seconds["step"] <= seconds["serial"]
    assert (tmp_path / "plan.svg").read_text().lstrip().startswith("<?xml")


@TPU
def test_a_plan_for_serving(tiny):
    done = plan(tiny, "--topology", "v5e:2x2", "--slices", "1", "--serve", "--json")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert planned["decode"]["mesh"] == {"pod": 1, "data": 1, "expert": 1, "model": 4}
    assert "accumulation" not in planned["decode"]
    assert planned["decode"]["tokens_per_second"] < planned["prefill"]["tokens_per_second"]
    assert planned["decode"]["product_flops_per_step"] < planned["prefill"]["product_flops_per_step"]


@TPU
def test_a_plan_that_does_not_fit_names_what_saves_most(tiny):
    large = ("model.width=4096", "model.hidden=65536", "model.layers=32", 'model.remat="none"', "pretrain.rows=512")
    done = plan(tiny, "--topology", "v4:2x2x1", *(part for override in large for part in ("--set", override)))
    assert done.returncode == 2
    assert "GiB too little; what saves most is --set" in done.stderr and done.stderr.count("\n") == 1


def test_the_text_that_libtpu_wrote_last_is_read_where_there_is_one(tmp_path):
    compiled = SimpleNamespace(as_text=lambda: "of jaxlib")
    assert _text_of(compiled, tmp_path) == "of jaxlib"
    for name, text in (("module_0001.small.after_codegen", "x"), ("module_0002.step.after_codegen", "of libtpu"),
                       ("module_0002.step.after_optimizations", "without cycles, and longer")):  # fmt: skip
        (tmp_path / f"{name}.txt").write_text(text)
    assert _text_of(compiled, tmp_path) == "of libtpu"


def test_a_program_that_the_compiler_does_not_take_is_one_sentence():
    class Refused:
        def trace(self, *arguments):
            raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: groups of three\nand much more")

    with pytest.raises(TonyError, match=r"v4:2x2x1 does not take this program \(UNIMPLEMENTED: groups of three\)"):
        compile_program(Refused(), (), read_topology("v4:2x2x1", 1))


def test_a_search_is_never_slower_than_the_recipe(tiny, monkeypatch):
    def compiled(asked, more):  # as if larger model axes were slower, and no layout with remat "none" fitted
        recipe = asked.load(more)
        if recipe.model.remat == "none":
            raise TonyError("does not fit")
        seconds = {"step": recipe.mesh.model * recipe.pretrain.accumulation}
        return {"mesh": recipe.mesh.model, "fits": True, "step_seconds": seconds, "mfu": 0.4}

    monkeypatch.setattr(report, "plan_training", compiled)
    found = report.search(Asked(tiny, topology="v4:2x2x1", slices=2))
    assert found["step_seconds"]["step"] == min(t["step_seconds"] for t in found["searched"] if t["fits"])
    own = found["searched"][0]
    assert (own["data"], own["model"], own["remat"]) == (4, 1, "blocks") and own["fits"]
    assert any(not tried["fits"] for tried in found["searched"])
    meshes = [(t["data"], t["model"]) for t in found["searched"][1:] if t["fits"]]
    assert 1 < len(set(meshes)) <= report.MESHES and max(map(meshes.count, meshes)) == report.LAYOUTS


@pytest.mark.slow
@TPU
def test_palm_for_two_pods_compiles_and_fits():
    done = plan(RECIPES / "palm-540b.toml", "--json")
    planned = json.loads(done.stdout)
    assert planned["chips"] == 6144 and planned["fits"] and planned["compile_seconds"] < 180
    assert planned["mfu"] == pytest.approx(0.462, rel=0.15)
    # 1.3 GB a host pair (PaLM, section 4), of four chips a host
    assert 4 * planned["dcn_bytes_per_step"] == pytest.approx(1.31 * 2**30, rel=0.1)
    # Gradients alone, of each what a chip has of it: a parameter that was gathered would come on top.
    share = exchanged(load(RECIPES / "palm-540b.toml"))
    assert planned["dcn_bytes_per_step"] == pytest.approx(share, rel=0.001)


@pytest.mark.slow
@TPU
def test_glam_compiles_and_fits():
    planned = json.loads(plan(RECIPES / "glam-64b-64e.toml", "--json").stdout)
    assert planned["chips"] == 1024 and planned["fits"]


def test_what_does_not_fit_gpus_is_told_with_what_saves_most(tiny, monkeypatch):
    chip = replace(CHIPS["h100"], usable=2**20)
    monkeypatch.setitem(CHIPS, "h100", chip)
    monkeypatch.setattr(report, "compile_program", lambda *_: Program(SMALL, {"state": 2**30}, 1.0))
    monkeypatch.setattr(report, "layout_on", lambda topology, recipe: abstract_layout(recipe.mesh))
    made = plan_training(Asked(tiny, ("mesh.pod=1", "mesh.data=8"), "h100:8", 1))
    assert not made["fits"] and "1.0 GiB too little; what saves most is --set" in made["advice"]
    assert made["advice"] in dict(show.rows(made))["advice"]
    assert "too good" in dict(show.rows({**made, "unread_loops": ["%while.3"]}))


def test_places_of_experts_are_counted_as_the_dispatch_makes_them():
    sparse = ModelConfig(64, experts=8, expert_hidden=100, experts_per_token=2, capacity_factor=2.0)
    assert _hidden(sparse) == 2 * 2 * 100  # two places a token, gate and up
    assert _hidden(replace(sparse, capacity_factor=1.25, expert_activation="gelu")) == 1.25 * 100
    assert _hidden(replace(sparse, dispatch="sorted", capacity_factor=1.25)) == 2 * 2 * 100


@pytest.mark.parametrize(
    ("recipe", "arguments", "said"),
    [
        ("palm-8b", ["--slices", "0"], "--slices 0: expected at least one"),
        ("palm-8b", ["--set", "mesh.data=-1"], "takes all devices that are left"),
        ("palm-8b", ["--pue", "-3"], "--pue -3 --grid 0.079: expected at least 1"),
        ("palm-8b", ["--topology", "v4:²x2x2"], "--topology v4:²x2x2 does not exist"),
        ("demo", [], "its mesh has 1 devices, and no 1 slices of v4 have just so many"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(recipe, arguments, said, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(RECIPES / f"{recipe}.toml"), *arguments])
    told = capsys.readouterr()
    assert ended.value.code == 2 and told.out == "" and said in told.err and told.err.count("\n") == 1


def test_a_recipe_that_tunes_another_model_is_not_planned(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('model = {base = "models/mine"}\n[data.sources.x]\npath = "y"')
    with pytest.raises(TonyError, match="mine tunes 'models/mine', and plans are of pre-training"):
        plan_training(Asked(path))


def test_gpus_are_estimated_on_simulated_devices(tiny):
    done = plan(tiny, "--topology", "h100:8", "--slices", "1", "--set", "mesh.pod=1", "--set", "mesh.data=8", "--json")
    assert done.returncode == 0, done.stderr
    planned = json.loads(done.stdout)
    assert planned["estimate"] and planned["chips"] == 8 and planned["ici_bytes_per_step"] > 0
