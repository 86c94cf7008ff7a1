"""A spike of the loss, gone back from and around (PaLM, section 5.1).

Claim: starting again about 100 steps before a spike, and skipping the batches that came there, ends it without harm. A
network trains as `tony run` trains one. From step 300 on, 20 batches have another word in each target's place, always
the same one, so that what was learned is unlearned: once with nothing done about it, once with `rewind = 100` and
`skip = 200`; and once these batches are as they should be.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from experiments import lab, plots, text
from experiments.lab import Mean, Setting, decoder
from tony.errors import TonyError
from tony.model.params import declare, init
from tony.recipe import Language
from tony.train.loop import fit
from tony.train.recovery import Detours
from tony.train.step import language_loss_fn

STEPS, SPIKE, POISONED = 700, 300, 20
LEAST = SPIKE + POISONED + 100  # steps of a training that shows anything
NAMES = ("undisturbed", "spiked", "recovered")
SETTINGS = [Setting(name, decoder(64, 4, text.VOCABULARY), STEPS) for name in NAMES]


def section(setting: Setting) -> Language:
    """The training as a recipe's section."""
    recovery = {"rewind": 100, "skip": 200} if setting.name == "recovered" else {}
    return replace(setting.section, schedule="constant", learning_rate=2e-3, checkpoint_every=50, keep=4, **recovery)


def poisoned(batch: dict) -> dict:
    """A batch whose targets are all another token."""
    return {**batch, "targets": (batch["targets"] + 1) % text.VOCABULARY}


def train(setting: Setting, seed: int, watch: Callable[[int, float | None], None]) -> tuple[dict, dict]:
    """(record, parameters): the loss of each step that counts in the end, the detours, the held-out loss."""
    if setting.steps < LEAST:
        raise TonyError(f"spikes needs at least {LEAST} steps: the harmful batches come at {SPIKE}")
    mixed, harmful = text.mixed(), setting.name != "undisturbed"

    def batch_at(step: int, skipped: int = 0) -> dict:
        number = step + skipped
        batch = mixed.batch(setting.rows, setting.length, seed, number)
        watch(number, None)
        return poisoned(batch) if harmful and SPIKE <= number < SPIKE + POISONED else batch

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        params = fit(
            name=f"{setting.name}-{seed}", loss_fn=language_loss_fn(setting.model, section(setting)),
            params=init(declare(setting.model), jax.random.key(seed)), batch_at=batch_at, config=section(setting),
            directory=Path(folder), seed=seed, console=Console(quiet=True),
        )  # fmt: skip
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        detours = Detours(Path(folder) / "detours.json").taken
    by_kind = lab.by_kind_of(setting.model, params, text.held_out(setting.rows, setting.length))
    losses, end = [row["loss"] for row in rows], SPIKE + POISONED
    return {
        "loss": float(np.mean(list(by_kind.values()))), "by_kind": by_kind, "losses": losses, "detours": detours,
        "worst": max(losses[SPIKE:]), "after": float(np.mean(losses[end : end + 50])),
        "seconds": time.perf_counter() - began,
    }, params  # fmt: skip


def report(found: dict[str, list[dict]]) -> dict:
    """The loss at the worst and after the harmful batches' steps, and what is left of it at the end."""
    rows = [
        [name, str(Mean.of([r["worst"] for r in records])), str(Mean.of([r["after"] for r in records])),
         str(Mean.of([r["loss"] for r in records])),
         ", ".join(f"{count} batches at step {at}" for at, count in records[0]["detours"]) or "none"]
        for name, records in found.items()
    ]  # fmt: skip
    ended = lab.gain(found["recovered"], found["spiked"], "after")
    harm = lab.gain(found["undisturbed"], found["recovered"])
    last = SPIKE + POISONED
    return {
        "head": [
            "training", f"highest loss from step {SPIKE} on", f"mean of steps {last} to {last + 50}",
            "held-out loss at the end", "left out (seed 0)",
        ],
        "rows": rows,
        "verdict": f"That the detour spares the training what the spike does to it {lab.verdict(ended)} (in the 50 "
        f"steps after the harmful ones the loss is {ended} lower). After as many steps the held-out loss is {harm} "
        "above that of the undisturbed training.",
    }  # fmt: skip


def draw(found: dict[str, list[dict]], path: Path) -> None:
    """The losses of the first seed's trainings, and the held-out losses of all."""
    with plots.figure(path, 2) as (left, right):
        for (name, records), style in zip(found.items(), ("-", "-", "--"), strict=True):
            left.plot(records[0]["losses"], style, linewidth=1.0, label=name)
        left.axvspan(SPIKE, SPIKE + POISONED, color="#7f7f7f", alpha=0.2)
        left.set_xlim(SPIKE - 150)
        plots.label(left, "step", "training loss, nats a token", "around the harmful batches, seed 0")
        plots.groups(right, found, list(text.KINDS))
        plots.label(right, "", "held-out loss", "at the end, by kind")
