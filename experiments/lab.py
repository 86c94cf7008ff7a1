"""One small training and its measurement; the records of an experiment; means with intervals over seeds."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tony.model.config import ModelConfig
from tony.model.count import active_parameter_count, flops_per_token, parameter_count
from tony.model.params import declare, init
from tony.recipe import Language
from tony.train.loss import language_loss
from tony.train.step import language_step

CONFIDENCE = 0.95
POINTS = 8  # of a curve of held-out losses
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Setting:
    """One thing to train, by name; all its seeds share one compiled program."""

    name: str
    model: ModelConfig
    steps: int
    rows: int = 16
    length: int = 128
    learning_rate: float = 4e-3

    @property
    def section(self) -> Language:
        """The training as a recipe's section."""
        return Language(
            optimizer="adamw", learning_rate=self.learning_rate, steps=self.steps, rows=self.rows, length=self.length,
            warmup=max(1, self.steps // 20), weight_decay=0.05,
        )  # fmt: skip

    @property
    def mark(self) -> str:
        """What a record must agree in to be this setting's."""
        return json.dumps(asdict(self), sort_keys=True)


def decoder(width: int, layers: int, vocabulary: int, head_dim: int = 64, **more: Any) -> ModelConfig:
    """A decoder as recipes derive it: heads of `head_dim`, a SwiGLU of 8/3 of the width."""
    heads = max(1, width // head_dim)
    hidden = -(-width * 8 // 3 // 16) * 16
    return ModelConfig(
        vocab_size=vocabulary, layers=layers, width=width, heads=heads, kv_heads=heads, head_dim=width // heads,
        **{"hidden": hidden, "expert_hidden": hidden, **more},
    )  # fmt: skip


def with_experts(width: int, layers: int, vocabulary: int, count: int) -> ModelConfig:
    """A `decoder` of as many operations a token: every other feed-forward is `count` experts of half the hidden width,
    two of which see a token."""
    half = decoder(width, layers, vocabulary).hidden // 2
    return decoder(width, layers, vocabulary, experts=count, experts_per_token=2, expert_every=2, expert_hidden=half)


def in_blocks(record: dict, setting: Setting) -> int:
    """Parameters without the embedding."""
    return record["parameters"] - setting.model.vocab_size * setting.model.width


@cache
def _program(setting: Setting):
    model, section = setting.model, setting.section
    return language_step(model, section)


def by_kind_of(model: ModelConfig, params: Any, held_out: dict[str, list[Batch]]) -> dict[str, float]:
    """The mean loss of a token of each kind of held-out text."""
    measured = _measure(model)
    return {kind: float(np.mean([measured(params, batch) for batch in batches])) for kind, batches in held_out.items()}


@cache
def _measure(model: ModelConfig) -> Callable:
    """`measured(params, batch)`: the mean loss of a batch's tokens."""
    whole = replace(model, dispatch="sorted")  # no token is dropped, as in use: batches of one kind overfill experts

    @jax.jit
    def measured(params, batch):
        _, metrics = language_loss(params, whole, batch, modality_weights={}, z_loss=0.0)
        return metrics["text"]

    return measured


def train(
    setting: Setting,
    seed: int,
    batch_at: Callable[[int], Batch],
    held_out: dict[str, list[Batch]],
    watch: Callable[[int, float], None] = lambda step, loss: None,
) -> tuple[dict, Any]:
    """(record, parameters) of a training from `seed`; the record has the held-out loss, also by kind and as it fell."""
    step = _program(setting)
    params = init(declare(setting.model), jax.random.key(seed))
    state = {"params": params, "optimizer": step.init(params)}
    curve, tokens = [], setting.rows * setting.length

    began, waited = time.perf_counter(), 0.0
    for index in range(setting.steps):
        state, metrics = step.run(state, batch_at(index), jax.random.key(index))
        if index + 1 == setting.steps or (index + 1) % max(1, setting.steps // POINTS) == 0:
            paused = time.perf_counter()
            by_kind = by_kind_of(setting.model, state["params"], held_out)
            curve.append([(index + 1) * tokens, float(np.mean(list(by_kind.values())))])
            waited += time.perf_counter() - paused
        if index % 10 == 0:
            watch(index, float(metrics["loss"]))
    record = {
        "loss": curve[-1][1], "by_kind": by_kind, "curve": curve,
        "dropped": {name: float(metrics[name]) for name in metrics if name.startswith("dropped")},
        "tokens": setting.steps * tokens, "seconds": time.perf_counter() - began - waited,
        "parameters": parameter_count(setting.model), "active_parameters": active_parameter_count(setting.model),
        "flops_per_token": flops_per_token(setting.model, setting.length),
    }  # fmt: skip
    return record, state["params"]


# ---------------------------------------------------------------------------------------------------------- records


class Records:
    """What was measured, a line of JSON for each training; a training that is there is not done again."""

    def __init__(self, path: Path):
        self.path, self.lines = Path(path), []
        if self.path.exists():
            told = self.path.read_text()
            whole = told[: told.rfind("\n") + 1]  # a process that was killed may leave half a line
            if whole != told:
                self.path.write_text(whole)
            self.lines = [json.loads(line) for line in whole.splitlines()]

    def find(self, setting: Setting, seed: int) -> dict | None:
        """The record of this very setting and seed."""
        return next((r for r in self.lines if r["mark"] == setting.mark and r["seed"] == seed), None)

    def add(self, setting: Setting, seed: int, record: dict) -> dict:
        """Keep a record."""
        told = {"name": setting.name, "seed": seed, **record, "mark": setting.mark}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(told) + "\n")
        self.lines.append(told)
        return told

    def of(self, settings: Sequence[Setting], seeds: int) -> dict[str, list[dict]]:
        """Records by setting, in the order of seeds."""
        found = {setting.name: [self.find(setting, seed) for seed in range(seeds)] for setting in settings}
        return {name: [record for record in records if record] for name, records in found.items()}


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and half the width of its 95 % interval (Student's t)."""

    value: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Of at least two values; of one the interval is infinite."""
        from scipy.stats import t

        n = len(values)
        if n < 2:
            return cls(float(np.mean(values)), float("inf"))
        half = t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) / np.sqrt(n)
        return cls(float(np.mean(values)), float(half))

    @property
    def low(self) -> float:
        """The lower end."""
        return self.value - self.half

    @property
    def high(self) -> float:
        """The upper end."""
        return self.value + self.half

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.half:.3f}"


def gain(better: Sequence[dict], worse: Sequence[dict], what: str = "loss") -> Mean:
    """How much lower `what` is in one list of records than in the other, paired by seed."""
    return Mean.of([b[what] - a[what] for a, b in zip(better, worse, strict=True)])


def of_kind(records: Sequence[dict], kind: str) -> list[dict]:
    """Records whose loss is that on one kind of text alone."""
    return [{"loss": record["by_kind"][kind]} for record in records]


def verdict(difference: Mean) -> str:
    """Whether a claimed difference (above zero) is there."""
    if difference.low > 0:
        return "holds"
    return "is reversed" if difference.high < 0 else "is not shown: the interval has zero in it"


def shortened(setting: Setting, steps: int | None) -> Setting:
    """The setting with another number of steps."""
    return replace(setting, steps=steps) if steps else setting
