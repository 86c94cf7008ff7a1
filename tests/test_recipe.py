"""Recipes: what is left out is derived, and every mistake is one sentence that says where and what instead."""

import dataclasses
import json
from pathlib import Path

import pytest

from tony.errors import TonyError
from tony.recipe import MIXTURE, Language, load

# What only imported models have.
OF_OTHERS = {
    *("norm_epsilon", "embedding_scale", "qkv_biases", "window"),
    *("rope_factor", "rope_low", "rope_high", "rope_original"),
}

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))


@pytest.fixture
def read(tmp_path):
    """Load a recipe's text, with overrides."""

    def read(text="", *overrides):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return load(path, overrides)

    return read


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    recipe = load(path)
    assert recipe.name == path.stem
    assert json.loads(json.dumps(recipe.to_dict()))["tune"]["steps"] == recipe.tune.steps
    assert recipe.pretrain.mixture and recipe.tune.mixture


def test_there_are_shipped_recipes():
    assert "demo" in [path.stem for path in RECIPES]


def test_what_is_left_out_has_its_default(read):
    recipe = read("[tune]\nsteps = 7")
    assert recipe.name == "mine"
    assert (recipe.tune.steps, recipe.tune.clip, recipe.tune.length) == (7, Language.clip, Language.length)
    assert set(recipe.tune.mixture) == set(recipe.data.items)
    assert recipe.image_codec.levels == (8, 5, 5, 5)


def test_the_size_sets_horizon_batch_and_learning_rate(read):
    small, large = read("size = 4"), read("size = 16")
    # 7.5 tokens for each of 4 * (4 * 256 * 256 + 3 * 256 * 704) parameters, in steps of 16 rows of 256
    assert small.pretrain.steps == pytest.approx(7.5 * 4 * (4 * 256**2 + 3 * 256 * 704) / (16 * 256), rel=0.02)
    assert (small.pretrain.rows, large.pretrain.rows) == (16, 64)
    assert large.pretrain.learning_rate == pytest.approx(small.pretrain.learning_rate / 2)
    assert large.pretrain.steps > 10 * small.pretrain.steps and small.tune.steps == small.pretrain.steps // 8
    assert read("size = 16\n[pretrain]\nsteps = 5").pretrain.steps == 5


def test_the_mixture_is_of_what_there_is(read):
    assert read("[data]\nitems = {logic = 5}\n[data.sources.mine]\npath = 'x'").tune.mixture == {
        "logic": MIXTURE["logic"],
        "mine": 1,
    }
    usual = read("size = 4").pretrain.mixture
    assert read("size = 4", "pretrain.mixture.logic=9").pretrain.mixture == {**usual, "logic": 9}
    assert read("[pretrain.mixture]\nlogic = 9").pretrain.mixture == {"logic": 9}
    with pytest.raises(TonyError, match=r"pretrain.mixture has nothing in it"):
        read("[data]\nitems = {}")


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("size = 4", {"layers": 4, "width": 256, "heads": 4, "kv_heads": 4, "head_dim": 64, "hidden": 704}),
        ("size = 12", {"layers": 12, "width": 768, "heads": 12, "kv_heads": 12, "head_dim": 64, "hidden": 2048}),
        ("size = 4\nmodel.activation = 'gelu'", {"width": 256, "hidden": 1024}),
        ("size = 4\nmodel = {width = 512, kv_heads = 2}", {"layers": 4, "heads": 8, "kv_heads": 2, "hidden": 1408}),
        ("size = 4\nmodel = {layers = 2, head_dim = 32, hidden = 100}", {"layers": 2, "heads": 8, "hidden": 100}),
    ],
)
def test_the_shape_follows_from_size(read, text, shape):
    from tony.model.config import ModelConfig

    fields = read(text).model_fields()
    assert fields | shape == fields
    config = ModelConfig(**fields | {"vocab_size": 512})
    assert set(fields) == {field.name for field in dataclasses.fields(config)} - OF_OTHERS


def test_a_recipe_cannot_be_changed(read):
    recipe = read()
    for holder, name in ((recipe, "size"), (recipe.tune, "steps"), (recipe.data, "corpus")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(holder, name, 1)


def test_data_sources(read):
    text = """
    [data.sources.mine]
    path = "a.jsonl"
    [data.sources.their-own]
    path = "someone/something"
    kind = "huggingface"
    split = "validation"
    subset = "en"
    [tune.mixture]
    mine = 2
    their-own = 0.5
    """
    recipe = read(text)
    mine, theirs = recipe.data.sources["mine"], recipe.data.sources["their-own"]
    assert (mine.path, mine.kind, mine.split, mine.subset) == ("a.jsonl", "jsonl", "train", None)
    assert (theirs.path, theirs.kind, theirs.split, theirs.subset) == (
        "someone/something", "huggingface", "validation", "en",
    )  # fmt: skip
    assert recipe.tune.mixture == {"mine": 2.0, "their-own": 0.5}
    assert recipe.to_dict()["data"]["sources"]["mine"]["path"] == "a.jsonl"


# ------------------------------------------------------------------------------------------------ overrides


def test_overrides_lie_over_the_file(read):
    recipe = read(
        "size = 2\n[tune]\nsteps = 7\nrows = 4\n[data.items]\nlogic = 5",
        "tune.steps=9",
        "size=3",
        "name=other",  # a bare word is a text
        'card.title="Two words"',
        "card.authors=['A', 'B']",
        "card.title = Three more words",
        "model.qk_norm=false",
        "pretrain.learning_rate=1",
        "data.items.arithmetic=6",
        "data.sources.mine.path=/tmp/a.jsonl",
        "image_codec.levels=[4, 4]",
        "tune.steps=10",  # the last one counts
    )
    assert (recipe.size, recipe.name, recipe.tune.steps, recipe.tune.rows) == (3, "other", 10, 4)
    assert (recipe.card.title.strip(), recipe.card.authors) == ("Three more words", ("A", "B"))
    assert recipe.model.qk_norm is False
    assert isinstance(recipe.pretrain.learning_rate, float) and recipe.pretrain.learning_rate == 1
    assert recipe.data.items == {"logic": 5, "arithmetic": 6}
    assert recipe.data.sources["mine"].path == "/tmp/a.jsonl"
    assert recipe.image_codec.levels == (4, 4)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("tune.steps", r"--set 'tune.steps' has no value; expected key=value"),
        ("=5", r"has no value"),
        ("tune.steps=", r"tune.steps = '': expected a whole number"),
        ("tune.steps=many", r"tune.steps = 'many': expected a whole number"),
        ("tune.stpes=5", r"unknown key tune.stpes = 5; did you mean tune.steps\?"),
        ("size.steps=5", r"size is not a table"),
        ("tune=5", r"tune = 5: expected a table \[tune\]"),
    ],
)
def test_wrong_overrides(read, override, told):
    with pytest.raises(TonyError, match=told):
        read("size = 2", override)


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # keys
        ("sise = 3", r"unknown key sise = 3; did you mean size\?"),
        ("[pretrian]\nsteps = 3", r"unknown key pretrian = .*; did you mean pretrain\?"),
        ("[tune]\nlearning_rat = 0.1", r"unknown key tune.learning_rat = 0.1; did you mean tune.learning_rate\?"),
        ("[model]\nqqqqqq = 'x'", r"unknown key model.qqqqqq = 'x'; valid keys are activation, balance"),
        ("[data.sources.mine]\npaht = 'x'", r"data.sources.mine.paht = 'x'; did you mean data.sources.mine.path\?"),
        # types
        ("size = 'four'", r"size = 'four': expected a whole number"),
        ("size = 4.5", r"size = 4.5: expected a whole number"),
        ("size = true", r"size = True: expected a whole number"),
        ("name = 4", r"name = 4: expected a text in quotes"),
        ("[tune]\nclip = '1'", r"tune.clip = '1': expected a number"),
        ("[tune]\nclip = true", r"tune.clip = True: expected a number"),
        ("[model]\nbiases = 1", r"model.biases = 1: expected true or false"),
        ("[model]\nheads = 'x'", r"model.heads = 'x': expected a whole number"),
        ("[card]\nauthors = 'me'", r"card.authors = 'me': expected a list"),
        ("[card]\nauthors = ['me', 2]", r"card.authors\[1\] = 2: expected a text"),
        ("tune = 3", r"tune = 3: expected a table \[tune\]"),
        ("[data]\nitems = 3", r"data.items = 3: expected a table"),
        ("[data.items]\nlogic = 'x'", r"data.items.logic = 'x': expected a whole number"),
        ("[eval.n]\ndefault = 1.5", r"eval.n.default = 1.5: expected a whole number"),
        ("[data.sources]\nmine = 'a.jsonl'", r"data.sources.mine = 'a.jsonl': expected a table"),
        ("[tune]\noptimizer = 'adam'", r"tune.optimizer = 'adam': did you mean 'adamw'\? expected one of 'adamw', 'm"),
        ("[model]\nposition = 5", r"model.position = 5: .*expected one of 'rope', 't5'"),
        ("[data.sources.mine]\npath = 'x'\nkind = 'json'", r"kind = 'json': did you mean 'jsonl'\?"),
        # what cannot be
        ("size = 0", r"size = 0: expected a number above zero"),
        ("[tune]\nsteps = -1", r"tune.steps = -1: expected a number above zero"),
        ("[model]\nlayers = 0", r"model.layers = 0: expected a number above zero"),
        ("seed = -1", r"seed = -1: expected a number of at least zero"),
        ("[pretrain]\nlearning_rate = -0.1", r"pretrain.learning_rate = -0.1: expected a number above zero"),
        ("[model]\nexperts = 2\nexperts_per_token = 4", r"model.experts_per_token = 4: there are 2 experts; lower it"),
        ("[pretrain]\nramp = [[5, 8], [5, 16]]", r"pretrain.ramp = \[\[5, 8\], \[5, 16\]\]: expected \[step, rows\]"),
        ("[pretrain]\nramp = [[5]]", r"pretrain.ramp\[0\] = \[5\]: expected 2 values"),
        ("[pretrain]\nramp = [[5, 9]]\naccumulation = 8", r"pretrain.accumulation = 8: it must divide 9 rows"),
        ("[tune]\nrewind = 100\ncheckpoint_every = 50", r"tune.keep = 2: to go back 100 steps .* 4 must be kept"),
        ("[tune]\nclip = nan", r"tune.clip = nan: expected a number above zero"),
        ("[pretrain.weights]\npicture = 1", r"pretrain.weights.picture = 1.0; known are text, think, audio, image"),
        ("[eval.n]\nimage_digit = 9", r"unknown evaluation eval.n.image_digit = 9; did you mean image_digits\?"),
        ("name = 'a/b'", r"name = 'a/b': expected a plain folder name"),
        ("name = '..'", r"name = '\.\.': expected a plain folder name"),
        ("name = ''", r"name = '': expected a plain folder name"),
        ("model = {heads = 6, kv_heads = 4}", r"model.kv_heads = 4: it must divide the 6 heads"),
        ("model = {head_dim = 33}", r"model.head_dim = 33: .* even"),
        ("model = {width = 32}", r"model.width = 32: it has no room for a head of 64"),
        ("model = {width = 32, kv_heads = 1}", r"model.width = 32: it has no room for a head of 64"),
        ("[pretrain]\nlength = 2048", r"pretrain.length = 2048: model.max_length is 1024"),
        ("model = {max_length = 256}\n[tune]\nlength = 300\n[pretrain]\nlength = 256", r"tune.length = 300"),
        ("[tune]\nrows = 6\naccumulation = 4", r"tune.accumulation = 4: it must divide 6 rows"),
        ("[image_codec]\naccumulation = 5", r"image_codec.accumulation = 5: it must divide image_codec.batch = 96"),
        ("[text]\nvocab_size = 299", r"text.vocab_size = 299: expected at least 300"),
        ("[image_codec]\nlevels = [8, 1]", r"image_codec.levels has 1: expected numbers from 2 to 64"),
        ("[audio_codec]\nlevels = [65]", r"audio_codec.levels has 65"),
        ("[audio_codec]\nlevels = []", r"audio_codec.levels is empty"),
        ("[data.items]\narithmetik = 3", r"unknown task .*data.items.arithmetik = 3; did you mean arithmetic\?"),
        ("[data.items]\nlogic = -3", r"data.items.logic = -3: expected zero or more"),
        ("[tune.mixture]\nxyzzy = 3", r"unknown task or source tune.mixture.xyzzy = 3.0; known are arithmetic, logic"),
            ("data.items = {draw = 1}\n[tune.mixture]\nlogic = 1", r"tune.mixture.logic = 1.0: data.items makes no"),
        ("[data.items]\nlogic = 1\n[pretrain.mixture]\nlogic = -1", r"pretrain.mixture.logic = -1.0: expected zero"),
        ("[pretrain.mixture]\nmien = 1\n[data.sources.mine]\npath = 'x'", r"mixture.mien .*did you mean mine\?"),
        ("[data.items]\nmine = 1\n[data.sources.mine]\npath = 'x'", r"unknown task or source data.items.mine"),
        ("[data.sources.logic]\npath = 'x'", r"data.sources.logic: expected a plain name that is no task's"),
        ("[data.sources.'../x']\npath = 'x'", r"data.sources.\.\./x: expected a plain name"),
        ("[data.sources.mine]\nsplit = 'x'", r"data.sources.mine has no path"),
    ],
)  # fmt: skip
def test_mistakes_say_where_and_what_instead(read, text, told):
    with pytest.raises(TonyError, match=told) as raised:
        read(text)
    assert "\n" not in str(raised.value)


def test_files_that_are_no_recipes(tmp_path):
    (tmp_path / "demo.toml").write_text("size = 1")
    with pytest.raises(TonyError, match=r"there is no recipe .*dmeo.toml; did you mean .*demo.toml\?"):
        load(tmp_path / "dmeo.toml")
    with pytest.raises(TonyError, match=r"there is no recipe .*such as recipes/demo.toml"):
        load(tmp_path / "nowhere" / "x.toml")
    with pytest.raises(TonyError, match=r"can't be read \(Is a directory\)"):
        load(tmp_path)
    for content in (b"size = ", b"size = 1\nsize = 2", b"\xff\xfe"):
        (tmp_path / "broken.toml").write_bytes(content)
        with pytest.raises(TonyError, match=r"broken.toml is not TOML"):
            load(tmp_path / "broken.toml")
