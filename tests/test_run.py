"""`tony run` with stages that only write down that they ran."""

import dataclasses
import io
import json
import time

import pytest
from rich.console import Console

from tony.errors import TonyError
from tony.recipe import load
from tony.run import Stage, code_version, read_manifest, run

HASHES = {"corpus": "c0", "sources": {"mine": "m0"}}


class Life:
    """A recipe's file and its stages: text and image come first, pretrain needs both, tune and card follow."""

    def __init__(self, folder):
        self.out, self.ran, self.dying = folder / "runs", [], {}
        self.path = folder / "mine.toml"
        self.path.write_text("size = 1")
        self.said = ""
        self.stages = [
            Stage("text", self.does("text"), ("text", "data.corpus", "data.sources"), ()),
            Stage("image", self.does("image"), ("image_codec", "data.corpus"), ()),
            Stage("pretrain", self.does("pretrain"), ("size", "pretrain"), ("text", "image")),
            Stage("tune", self.does("tune"), ("tune",), ("pretrain",)),
            Stage("card", self.does("card"), ("card",), ("tune",)),
        ]

    @property
    def folder(self):
        return self.out / "mine"

    def does(self, name):
        def stage(context):
            assert context.recipe.name == "mine" and context.directory == self.folder
            self.ran.append(name)
            folder = context.stage_directory(name)
            steps = sorted(int(path.name) for path in folder.iterdir())
            (folder / str(len(steps))).touch()
            if name in self.dying:
                time.sleep(0.12)
                raise self.dying.pop(name)
            return {"steps": len(steps) + 1}

        return stage

    def live(self, *overrides, hashes=HASHES):
        """Run, and tell which stages did."""
        self.ran.clear()
        console = Console(file=io.StringIO(), width=200)
        try:
            self.manifest = run(load(self.path, overrides), self.stages, self.out, console, hashes)
        finally:
            self.said = console.file.getvalue()
        return self.ran[:]


@pytest.fixture
def life(tmp_path):
    return Life(tmp_path)


ALL = ["text", "image", "pretrain", "tune", "card"]


def test_stages_run_in_order_once(life):
    assert life.live() == ALL
    assert all(life.manifest["stages"][name]["complete"] for name in ALL)
    assert json.loads(json.dumps(life.manifest)) == read_manifest(life.folder)
    assert life.live() == []
    assert life.said.count("unchanged") == 5


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("text.vocab_size=400", ["text", "pretrain", "tune", "card"]),
        ("image_codec.steps=3", ["image", "pretrain", "tune", "card"]),
        ("size=2", ["pretrain", "tune", "card"]),
        ("tune.steps=3", ["tune", "card"]),
        ("tune.weights.audio=0.5", ["tune", "card"]),
        ("card.title=Other", ["card"]),
        ("eval.n.default=7", []),  # no stage here reads it
        ("seed=5", ALL),
    ],
)
def test_a_change_runs_what_depends_on_it_and_nothing_else(life, override, again):
    life.live()
    assert life.live(override) == again
    assert life.live(override) == []
    assert life.live() == again  # and back


def test_other_data_or_a_newer_stage_run_again(life):
    life.live()
    assert life.live(hashes={**HASHES, "sources": {"mine": "m1"}}) == ["text", "pretrain", "tune", "card"]
    assert life.live(hashes={**HASHES, "corpus": "c1"}) == ALL
    assert life.live(hashes={"corpus": "c0"}) == ALL
    life.stages[3] = dataclasses.replace(life.stages[3], version=2)
    assert life.live(hashes={"corpus": "c0"}) == ["tune", "card"]


@pytest.mark.parametrize("death", [RuntimeError("no memory"), TonyError("no such file"), KeyboardInterrupt()])
def test_a_stage_that_died_is_gone_on_with(life, death):
    life.dying["pretrain"] = death
    with pytest.raises(type(death)):
        life.live()
    assert life.ran == ["text", "image", "pretrain"]
    told = read_manifest(life.folder)["stages"]
    assert told["text"]["complete"] and not told["pretrain"]["complete"] and "tune" not in told
    life.dying["pretrain"] = death
    with pytest.raises(type(death)):
        life.live()
    assert life.live() == ["pretrain", "tune", "card"]
    assert life.manifest["stages"]["pretrain"]["facts"] == {"steps": 3}  # its files of both times were still there
    assert life.manifest["stages"]["pretrain"]["seconds"] >= 0.2  # the time of all three


def test_a_half_done_stage_of_another_recipe_is_begun_anew(life):
    life.dying["pretrain"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        life.live()
    assert life.live("pretrain.steps=3") == ["pretrain", "tune", "card"]
    assert life.manifest["stages"]["pretrain"]["facts"] == {"steps": 1}
    assert life.manifest["stages"]["pretrain"]["seconds"] < 0.1
    assert sorted(path.name for path in (life.folder / "text").iterdir()) == ["0"]  # what did not change is kept


@pytest.mark.parametrize("content", [b"", b'{"stages": {', b"\xff\xfe", b"[]"])
def test_a_damaged_manifest_is_told_and_kept(life, content):
    life.live()
    (life.folder / "manifest.json").write_bytes(content)
    with pytest.raises(TonyError, match=r"manifest.json is damaged .*; remove it"):
        life.live()
    assert life.ran == [] and (life.folder / "manifest.json").read_bytes() == content
    (life.folder / "manifest.json").unlink()
    assert life.live() == ALL


def test_two_runs_cannot_share_a_folder(life):
    met = []

    def meanwhile(context):
        with pytest.raises(TonyError, match=r"mine is in use by another `tony run`") as raised:
            run(context.recipe, life.stages, life.out, context.console, HASHES)
        met.append(raised.value)
        run(load(life.path, ["name=other"]), [], life.out, context.console, HASHES)  # another folder is free
        return {}

    life.stages.insert(0, Stage("meanwhile", meanwhile, (), ()))
    assert life.live() == ALL  # the first one is not disturbed
    assert len(met) == 1 and (life.out / "other").is_dir()
    assert life.live() == []  # and the folder is free again


def test_the_manifest_says_what_made_the_model(life):
    life.live("tune.steps=3", "seed=11")
    manifest = read_manifest(life.folder)
    assert manifest["recipe"] == json.loads(json.dumps(load(life.path, ["tune.steps=3", "seed=11"]).to_dict()))
    assert manifest["seed"] == 11
    assert manifest["data_hashes"] == HASHES
    assert manifest["code_version"] == code_version()
    import jax
    import numpy

    assert manifest["packages"]["jax"] == jax.__version__
    assert manifest["packages"]["numpy"] == numpy.__version__
    assert manifest["hardware"]["cores"] >= 1
    summary = json.loads((life.folder / "summary.json").read_text())
    assert summary["wall_seconds"] == pytest.approx(sum(s["seconds"] for s in manifest["stages"].values()), abs=0.1)
    assert summary["peak_memory_bytes"] > 2**20
    joules = sum(stage["joules"] for stage in manifest["stages"].values())
    assert summary["kwh"] == pytest.approx(joules / 3.6e6)
    assert summary["tco2e"] == pytest.approx(summary["kwh"] * 0.4 / 1000)
    assert summary["energy"] in ("measured", "estimated") and summary["energy_from"]


def test_the_summary_keeps_what_evaluations_wrote(life):
    def evaluate(context):
        (context.directory / "summary.json").write_text(json.dumps({"results": [{"name": "x", "value": 1}]}))
        return {}

    life.stages.insert(2, Stage("eval", evaluate, (), ("text",)))
    life.live()
    assert json.loads((life.folder / "summary.json").read_text())["results"] == [{"name": "x", "value": 1}]
