"""Recipes: one TOML file describes a model's whole life. Typed, frozen, and strict about every key.

`load` reads a file, lays `key=value` overrides over it, and checks it all; a mistake is one sentence that names the
key, the value and the nearest valid choice. What is left out has a default, or is derived from `size`, the newcomer's
dial: layers and widths, learning rates, rows of a batch, and how many steps are taken.
"""

import dataclasses
import difflib
import math
import tomllib
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from tony.errors import TonyError

# Conversations of each task, and how often each is drawn.
ITEMS = {
    "arithmetic": 50_000, "logic": 6_000, "digits": 75_000, "captions": 40_000, "questions": 15_000, "draw": 50_000,
    "emoji": 3_000, "video": 30_000, "transcribe": 38_000, "speak": 16_000, "spoken_question": 18_000,
    "spoken_sum": 4_000, "converse": 6_000,
}  # fmt: skip
MIXTURE = {
    "arithmetic": 2.7, "logic": 0.3, "digits": 4.9, "captions": 1.9, "questions": 0.8, "draw": 5.1, "emoji": 0.2,
    "video": 2.2, "transcribe": 4.4, "speak": 3.1, "spoken_question": 2.9, "spoken_sum": 0.5, "converse": 0.3,
}  # fmt: skip
Optimizer = Literal["adamw", "muon", "adafactor"]
TRAININGS = ("pretrain", "tune")  # of the network
CODECS = ("image_codec", "audio_codec")
BASE_TUNING = {"steps": 200, "learning_rate": 5e-5, "warmup": 20, "optimizer": "adamw"}  # of somebody else's model
TOKENS_PER_PARAMETER = 7.5  # of pre-training; 20 would be the best use of the same computation (Hoffmann et al. 2022)


@dataclass(frozen=True)
class Text:
    """The byte-level BPE."""

    vocab_size: int = 1024


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training by `tony.train.loop.fit`."""

    steps: int = 1000
    optimizer: Optimizer = "adamw"
    learning_rate: float = 2e-3
    matrix_learning_rate: float = 0.02  # of Muon, for hidden matrices
    warmup: int = 50
    schedule: Literal["cosine", "linear", "constant", "rsqrt"] = "cosine"
    hold: int = 10_000  # steps before "rsqrt" begins to fall
    final_fraction: float = 0.05  # of the learning rate at the last step
    weight_decay: float = 0.01
    decay_squared: bool = False  # Adafactor's parameters decay by the square of the learning rate instead (PaLM)
    factored: bool = True  # Adafactor's second moments: rows and columns, or every number
    momentum: float = 0.0  # of Adafactor
    update_clip: float = 1.0  # greatest root mean square of a matrix' update by Adafactor, 0 for none
    clip: float = 1.0
    update_norm: float = 0.0  # greatest norm of all that a step changes, over that of the parameters; 0 for none
    accumulation: int = 1
    checkpoint_every: int = 500
    keep: int = 2
    rewind: int = 0  # steps to go back before a spike of the loss; 0 takes spikes as they come
    skip: int = 300  # batches that are left out then


@dataclass(frozen=True, kw_only=True)
class ImageCodec(Training):
    """The picture codec: FSQ levels, transformer, training; `batch` pictures a step.

    `trained` is the folder of a codec of any registered kind, which is then used instead of training one.
    """

    trained: str = ""
    steps: int = 3000
    levels: tuple[int, ...] = (8, 5, 5, 5)
    width: int = 96
    layers: int = 2
    batch: int = 96
    optimizer: Optimizer = "muon"


@dataclass(frozen=True, kw_only=True)
class AudioCodec(Training):
    """The speech codec: FSQ levels, transformer, training; a step sees `batch` rows of `length` 40 ms tokens.

    Before the `steps` of the whole codec come `phoneme_steps` of the encoder alone, which learns to tell sounds apart.
    `trained` is the folder of a codec of any registered kind, which is then used instead of training one.
    """

    trained: str = ""
    steps: int = 4500
    phoneme_steps: int = 3500
    levels: tuple[int, ...] = (3, 3, 3, 3, 3, 3, 3, 2)
    width: int = 192
    layers: int = 4
    batch: int = 4
    length: int = 128
    optimizer: Optimizer = "muon"


@dataclass(frozen=True, kw_only=True)
class Language(Training):
    """A training of the network: rows of packed tokens, the mixture of tasks, loss weights by modality.

    `steps`, `rows` and `learning_rate` follow from `size` (see `derived`), the mixture from what there is.
    """

    length: int = 256
    rows: int = 16
    ramp: tuple[tuple[int, int], ...] = ()  # (step, rows): as many rows from that step on; `rows` before the first
    mixture: dict[str, float] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=lambda: {"text": 1.0, "think": 1.0, "audio": 1.0, "image": 1.0})
    z_loss: float = 1e-5
    optimizer: Optimizer = "muon"

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows of a step, before and on the ramp."""
        return self.rows, *(rows for _, rows in self.ramp)


@dataclass(frozen=True)
class DataSource:
    """Data of the user's own: a file, a folder, or for "huggingface" a dataset's name (see `tony.data.records`)."""

    path: str = ""
    kind: Literal["jsonl", "parquet", "webdataset", "huggingface"] = "jsonl"
    split: str = "train"
    subset: str | None = None


@dataclass(frozen=True)
class Data:
    """The corpus (builtin, or a folder), how many conversations of each task are encoded, and the user's own data."""

    corpus: str = "builtin"
    items: dict[str, int] = field(default_factory=lambda: dict(ITEMS))
    sources: dict[str, DataSource] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """The network; None is derived from `size`. With `base`, a folder that `tony import` wrote, it is that one, tuned
    on `data.sources` alone, and of the rest only `remat` counts."""

    base: str | None = None
    vocab_size: int | None = None  # as many as the tokenisers have
    layers: int | None = None
    width: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    hidden: int | None = None
    activation: Literal["swiglu", "geglu", "gelu"] = "swiglu"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    position: Literal["rope", "t5"] = "rope"
    parallel_block: bool = False
    qk_norm: bool = True
    tied: bool = True
    biases: bool = False
    rope_base: float = 10_000.0
    max_length: int = 1024
    experts: int = 0
    experts_per_token: int = 2
    expert_every: int = 2
    expert_hidden: int | None = None  # as `hidden`
    expert_activation: Literal["swiglu", "geglu", "gelu"] | None = None  # as `activation`
    shared_hidden: int = 0
    dispatch: Literal["dense", "sorted", "capacity"] = "capacity"
    capacity_factor: float = 2.0
    expert_group: int = 0
    balance: Literal["loss", "bias"] = "loss"
    balance_weight: float = 0.01
    router_z_weight: float = 0.001
    stacked: bool = False
    remat: Literal["none", "products", "blocks"] = "none"
    residual_init: Literal["depth", "fan_in"] = "depth"


@dataclass(frozen=True)
class Mesh:
    """How a training of the network is spread over devices: sizes of the mesh's axes (-1: all devices that are left).

    `exchange`: what gradients are rounded to between pods. `rules` lay over `tony.parallel.rules.RULES`: the mesh axes
    that a logical axis is split over.
    """

    pod: int = 1
    data: int = 1
    expert: int = 1
    model: int = 1
    exchange: Literal["bfloat16", "float32"] = "bfloat16"
    rules: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Eval:
    """Items of each evaluation by name, "default" for the rest."""

    n: dict[str, int] = field(default_factory=lambda: {"default": 200})


@dataclass(frozen=True)
class Card:
    """What the card cannot know by itself."""

    title: str = ""
    authors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A model's whole life."""

    name: str
    size: int = 4
    seed: int = 0
    text: Text = field(default_factory=Text)
    image_codec: ImageCodec = field(default_factory=ImageCodec)
    audio_codec: AudioCodec = field(default_factory=AudioCodec)
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    pretrain: Language = field(default_factory=Language)
    tune: Language = field(default_factory=Language)
    mesh: Mesh = field(default_factory=Mesh)
    eval: Eval = field(default_factory=Eval)
    card: Card = field(default_factory=Card)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON and TOML can hold it."""
        return asdict(self)

    def model_fields(self) -> dict[str, Any]:
        """Every field of `tony.model.config.ModelConfig`, with `size` worked in; `vocab_size` may be None.

        The dial is the depth: `size` layers, 64 * size wide, a head for each 64, a SwiGLU of 8/3 of the width.
        """
        chosen = asdict(self.model)
        del chosen["base"]
        layers = chosen["layers"] or self.size
        width = chosen["width"] or 64 * self.size
        head_dim = chosen["head_dim"] or 64
        heads = chosen["heads"] or width // head_dim
        gated = chosen["activation"] != "gelu"
        hidden = chosen["hidden"] or -(-width * (8 if gated else 12) // 3 // 64) * 64
        derived = {"layers": layers, "width": width, "head_dim": head_dim, "heads": heads, "hidden": hidden}
        derived["expert_hidden"] = chosen["expert_hidden"] or hidden
        derived["expert_activation"] = chosen["expert_activation"] or chosen["activation"]
        return {**chosen, **derived, "kv_heads": chosen["kv_heads"] or heads}


def derived(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What follows from a recipe's `size` and data for `pretrain` and `tune`, where the file says nothing.

    Rows grow with the size, so that a step's noise shrinks as its cost grows; pre-training sees TOKENS_PER_PARAMETER
    tokens for each parameter inside the blocks; AdamW's learning rate falls with the square root of the width (Muon's
    need not, its updates are of one size), and tuning goes on at a quarter of both for an eighth of the steps.
    """
    shape = recipe.model_fields()
    attention = shape["width"] * shape["head_dim"] * 2 * (shape["heads"] + shape["kv_heads"])
    feed_forward = shape["width"] * shape["hidden"] * (2 if shape["activation"] == "gelu" else 3)
    parameters = shape["layers"] * (attention + feed_forward)
    rows = max(8, 4 * recipe.size)
    tokens = rows * recipe.pretrain.length
    steps = max(100, 100 * round(TOKENS_PER_PARAMETER * parameters / tokens / 100))
    rate = round(4e-3 * (256 / shape["width"]) ** 0.5, 5)
    mixture = {name: weight for name, weight in MIXTURE.items() if recipe.data.items.get(name)}
    if recipe.model.base:
        given = {"mixture": dict.fromkeys(recipe.data.sources, 1.0), "rows": 8}
        return {"pretrain": given, "tune": {**given, **BASE_TUNING}}
    mixture |= dict.fromkeys(recipe.data.sources, 1.0)
    pretrain = {"steps": steps, "rows": rows, "learning_rate": rate, "mixture": mixture}
    tune = {"steps": max(50, steps // 8), "learning_rate": rate / 4, "matrix_learning_rate": 0.005}
    return {"pretrain": pretrain, "tune": {**pretrain, **tune}}


# ---------------------------------------------------------------------------------------------- loading


def load(path: Path | str, overrides: typing.Sequence[str] = ()) -> Recipe:
    """The recipe in a TOML file with overrides such as "tune.steps=100" laid over it; TonyError for any mistake."""
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], n=1)
        hint = (
            f"; did you mean {path.parent / near[0]}?"
            if near
            else "; give the path of a recipe, such as recipes/demo.toml"
        )
        raise TonyError(f"there is no recipe {path}{hint}") from None
    except OSError as error:
        raise TonyError(f"{path} can't be read ({error.strerror}); give the path of a recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TonyError(f"{path} is not TOML: {error}") from None
    mixed = {name for name in TRAININGS if isinstance(table.get(name), dict) and "mixture" in table[name]}
    for override in overrides:
        _override(table, override)
    table.setdefault("name", path.stem)
    recipe = _build(Recipe, table, "")
    _check(recipe)
    for name, values in derived(recipe).items():
        given = table.get(name, {})
        # An override changes one weight of the usual mixture; a mixture in the file replaces it.
        mixture = given.get("mixture", {}) if name in mixed else {**values["mixture"], **given.get("mixture", {})}
        table[name] = {**values, **given, "mixture": mixture}
    recipe = _build(Recipe, table, "")
    _check(recipe)
    for name in TRAININGS:
        if not sum(getattr(recipe, name).mixture.values()):
            raise TonyError(f"{name}.mixture has nothing in it; give a task or source a weight above zero")
    return recipe


def _override(table: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise TonyError(f"--set {override!r} has no value; expected key=value, such as tune.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *parents, last = [part.strip() for part in key.split(".")]
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise TonyError(
                f"--set {override}: {parent} is not a table of the recipe; see docs/recipes.md for its keys"
            )
    table[last] = value


def _build(cls: type, table: dict, prefix: str) -> Any:
    """An instance of a dataclass from a TOML table, every key and type checked."""
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"valid keys are {', '.join(sorted(known))}"
            raise TonyError(f"unknown key {prefix}{key} = {value!r}; {hint}")
    values = {key: _convert(hints[key], value, f"{prefix}{key}") for key, value in table.items()}
    return cls(**values)


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise TonyError(f"{key} = {value!r}: expected a table [{key}]")
        return _build(typing.cast(type, hint), value, f"{key}.")
    if origin is Literal:
        if value not in arguments:
            near = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1, cutoff=0.4)
            hint_text = f"did you mean {near[0]!r}? " if near else ""
            raise TonyError(f"{key} = {value!r}: {hint_text}expected one of {', '.join(map(repr, arguments))}")
        return value
    if origin in (types.UnionType, typing.Union):
        return _convert(next(a for a in arguments if a is not type(None)), value, key)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TonyError(f"{key} = {value!r}: expected a list")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise TonyError(f"{key} = {value!r}: expected {len(arguments)} values")
        return tuple(_convert(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise TonyError(f"{key} = {value!r}: expected a table of {arguments[1].__name__} values")
        return {name: _convert(arguments[1], item, f"{key}.{name}") for name, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        names = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}
        raise TonyError(f"{key} = {value!r}: expected {names.get(hint, hint.__name__)}")
    return value


TASKS = (
    "arithmetic", "logic", "digits", "captions", "questions", "draw", "emoji", "video", "transcribe", "speak",
    "spoken_question", "spoken_sum", "converse",
)  # fmt: skip


def _check(recipe: Recipe) -> None:
    """Combinations that can't work."""
    from tony.evals.suite import NAMES

    _check_numbers(recipe, "")
    if not recipe.name or any(c in recipe.name for c in "/\\\0") or recipe.name.startswith("."):
        raise TonyError(f"name = {recipe.name!r}: expected a plain folder name, such as demo")
    _check_data(recipe)
    _check_mesh(recipe.mesh)
    for name in TRAININGS:
        section = getattr(recipe, name)
        _check_names(f"{name}.weights", section.weights, ("text", "think", "audio", "image"), "kind of token")
        if len(section.weights) == 4 and not any(section.weights.values()):
            raise TonyError(f"{name}.weights are all zero: nothing would be learnt; give some kind of token a weight")
        if section.final_fraction > 1:
            raise TonyError(f"{name}.final_fraction = {section.final_fraction}: expected at most 1")
    _check_names("eval.n", recipe.eval.n, ("default", *NAMES), "evaluation")
    for name, count in recipe.eval.n.items():
        if count < 2:
            raise TonyError(f"eval.n.{name} = {count}: an evaluation needs at least 2 items")
    shape = recipe.model_fields()
    if not shape["heads"]:
        raise TonyError(
            f"model.width = {shape['width']}: it has no room for a head of {shape['head_dim']}; "
            "raise it, or lower model.head_dim"
        )
    if shape["heads"] % shape["kv_heads"]:
        raise TonyError(f"model.kv_heads = {shape['kv_heads']}: it must divide the {shape['heads']} heads")
    if 0 < shape["experts"] < shape["experts_per_token"]:
        raise TonyError(
            f"model.experts_per_token = {shape['experts_per_token']}: there are {shape['experts']} experts; lower it"
        )
    period = shape["expert_every"] if shape["experts"] else 1
    if shape["stacked"] and shape["layers"] % period:
        raise TonyError(
            f"model.layers = {shape['layers']}: of stacked blocks there must be a multiple of "
            f"model.expert_every = {period}"
        )
    if shape["head_dim"] % 2:
        raise TonyError(f"model.head_dim = {shape['head_dim']}: rotary positions need an even number")
    for name in TRAININGS:
        section = getattr(recipe, name)
        if section.length > recipe.model.max_length and not recipe.model.base:
            raise TonyError(
                f"{name}.length = {section.length}: model.max_length is {recipe.model.max_length}; "
                "raise it or lower this"
            )
        needed = -(-(section.rewind + 4) // section.checkpoint_every) + 1  # a spike is told within four steps
        if section.rewind and section.keep < needed:
            raise TonyError(
                f"{name}.keep = {section.keep}: to go back {section.rewind} steps with a checkpoint every "
                f"{section.checkpoint_every}, {needed} must be kept"
            )
        steps = [step for step, _ in section.ramp]
        if steps != sorted(set(steps)) or any(step < 1 or rows < 1 for step, rows in section.ramp):
            raise TonyError(
                f"{name}.ramp = {[list(pair) for pair in section.ramp]}: expected [step, rows] pairs of numbers above "
                "zero, each step after the one before"
            )
        for rows in section.batch_sizes:
            if rows % section.accumulation:
                raise TonyError(f"{name}.accumulation = {section.accumulation}: it must divide {rows} rows")
    if recipe.text.vocab_size < 300:
        raise TonyError(
            f"text.vocab_size = {recipe.text.vocab_size}: expected at least 300, of which 256 are single bytes"
        )
    for name in CODECS:
        batch, parts = getattr(recipe, name).batch, getattr(recipe, name).accumulation
        if batch % parts:
            raise TonyError(f"{name}.accumulation = {parts}: it must divide {name}.batch = {batch}")
        trained, levels = getattr(recipe, name).trained, getattr(recipe, name).levels
        if trained and not (Path(trained) / "config.json").is_file():
            raise TonyError(
                f"{name}.trained = {trained!r}: expected a codec's folder, which has a config.json, such as "
                f"runs/laptop/{name}"
            )
        if not levels:
            raise TonyError(f"{name}.levels is empty; expected numbers from 2 to 64, such as [8, 5, 5, 5]")
        for level in levels:
            if not 2 <= level <= 64:
                raise TonyError(f"{name}.levels has {level}: expected numbers from 2 to 64")


MAY_BE_ZERO = (
    "seed", "warmup", "weight_decay", "final_fraction", "z_loss", "experts", "shared_hidden", "expert_group",
    "balance_weight", "router_z_weight", "momentum", "update_clip", "update_norm", "rewind",
)  # fmt: skip


def _check_numbers(section: Any, prefix: str) -> None:
    """Every number of a section, and of those in it, is above zero, or at least zero where that has a meaning."""
    for f in dataclasses.fields(section):
        value, zero = getattr(section, f.name), f.name in MAY_BE_ZERO
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and not ((value >= 0 if zero else value > 0) and value < math.inf):
            raise TonyError(f"{prefix}{f.name} = {value}: expected a number {'of at least' if zero else 'above'} zero")
        if is_dataclass(value) and not isinstance(value, Mesh):
            _check_numbers(value, f"{prefix}{f.name}.")


def _check_mesh(mesh: Mesh) -> None:
    """Sizes and rules of a mesh; whether it divides the network is only known with the network."""
    from tony.parallel.rules import AXES, RULES

    for axis in AXES:
        size = getattr(mesh, axis)
        if size < 1 and size != -1:
            raise TonyError(f"mesh.{axis} = {size}: expected a number above zero, or -1 for the devices that are left")
    for axis, names in mesh.rules.items():
        for name, known, what in ((axis, tuple(RULES), "logical"), *((name, AXES, "mesh") for name in names)):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
                raise TonyError(f"mesh.rules.{axis} = {list(names)}: there is no {what} axis {name!r}; {hint}")


def _check_names(where: str, table: dict[str, Any], known: typing.Sequence[str], what: str) -> None:
    """Every key of a table is known, and no value below zero."""
    for name, value in table.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise TonyError(f"unknown {what} {where}.{name} = {value}; {hint}")
        if value < 0:
            raise TonyError(f"{where}.{name} = {value}: expected zero or more")


def _check_data(recipe: Recipe) -> None:
    """Names of tasks and sources, and that every mixture is of what the recipe makes or reads."""
    for name, source in recipe.data.sources.items():
        if name in TASKS or not name.replace("-", "_").isidentifier():
            raise TonyError(f"data.sources.{name}: expected a plain name that is no task's, such as mine")
        if not source.path:
            raise TonyError(f"data.sources.{name} has no path; give it a file, a folder, or a dataset's name")
    if recipe.model.base and not recipe.data.sources:
        raise TonyError(f"model.base = {recipe.model.base!r}: it is tuned on data of your own; add [data.sources.NAME]")
    for where in ("data.items", "pretrain.mixture", "tune.mixture"):
        section, _, key = where.partition(".")
        tasks = () if recipe.model.base and key == "mixture" else TASKS
        known = (*tasks, *(recipe.data.sources if key == "mixture" else ()))
        _check_names(where, getattr(getattr(recipe, section), key), known, "task or source")
        for name, value in getattr(getattr(recipe, section), key).items():
            if key == "mixture" and value and not recipe.data.items.get(name) and name not in recipe.data.sources:
                raise TonyError(
                    f"{where}.{name} = {value}: data.items makes no {name}; give data.items.{name} a number"
                )
