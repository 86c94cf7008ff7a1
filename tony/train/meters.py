"""What a training shows and keeps: live progress, metrics.jsonl, curves.png."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tony.errors import TonyError
from tony.files import read_jsonl, write_jsonl
from tony.parallel import hosts

PLAIN_EVERY = 15.0  # seconds between lines where there is no terminal
STOP_AFTER = 3
AVERAGE = 0.98  # of the running means that are shown


class Meters:
    """Metrics of one training; they are read from the device one step late, so that it is never waited for."""

    def __init__(
        self,
        name: str,
        directory: Path,
        config: Any,
        console: Any,
        tokens_per_step: Callable[[int], int] | None,
        flops_per_token: int,
    ):
        from rich.console import Console

        self.name, self.directory, self.config = name, directory, config
        self.console = console or Console(stderr=True, quiet=not hosts.first())
        self.tokens_per_step, self.flops_per_token = tokens_per_step, flops_per_token
        self.last, self._bad, self._tokens = -1, 0, 0
        self._waiting: tuple[int, dict] | None = None
        self._means: dict[str, float] = {}
        self._progress: Any = None
        self._file: Any = None
        self._peak: float | None = None

    def say(self, text: str) -> None:
        """One line, above the progress bar."""
        self.console.print(text, highlight=False, style="dim")

    def begin(self, start: int) -> None:
        """Forget what was logged at or after `start`: those steps are done again."""
        self.last, self._bad, self._tokens, self._waiting = start - 1, 0, 0, None
        self._start, self._started, self._shown = start, time.perf_counter(), time.perf_counter()
        if not hosts.first():
            return
        path = self.directory / "metrics.jsonl"
        write_jsonl(path, [row for row in read_jsonl(path) if row.get("step", math.inf) <= start])

    def __enter__(self) -> "Meters":
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._file = open(self.directory / "metrics.jsonl" if hosts.first() else os.devnull, "a")
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
                TimeRemainingColumn(compact=True), TextColumn("{task.fields[facts]}"), console=self.console,
            )  # fmt: skip
            self._progress.start()
            self._task = self._progress.add_task(self.name, total=self.config.steps, completed=self._start, facts="")
        return self

    def __exit__(self, *_) -> None:
        try:
            self.flush(check=False)
        finally:  # metrics of an exchange that broke can't be read
            self._file.close()
            if self._progress:
                self._progress.stop()

    def rows(self) -> list[dict]:
        """What has been logged so far."""
        return read_jsonl(self.directory / "metrics.jsonl")

    def add(self, step: int, measured: dict) -> tuple[int, float] | None:
        """Take a step's metrics, still on the device; write and show those of the step before, and return that step and
        its loss."""
        waiting, self._waiting = self._waiting, (step, measured)
        return (waiting[0], self._take(*waiting)) if waiting else None

    def flush(self, check: bool = True) -> tuple[int, float] | None:
        """Write what is waiting; returns its step and loss."""
        waiting, self._waiting = self._waiting, None
        taken = (waiting[0], self._take(*waiting, check=check)) if waiting else None
        if self._file and not self._file.closed:
            self._file.flush()
            if hosts.first():
                os.fsync(self._file.fileno())
        return taken

    def _take(self, step: int, measured: dict, check: bool = True) -> float:
        values = {key: float(value) for key, value in jax.device_get(measured).items()}
        self.last = step
        self._tokens += self.tokens_per_step(step) if self.tokens_per_step else 0
        now = time.perf_counter()
        if step == self._start:  # which was compiled first, and says nothing of the others' time
            self._started, self._tokens = now, 0
        finite = math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])
        self._bad = 0 if finite else self._bad + 1
        for key, value in values.items():
            if math.isfinite(value):
                self._means[key] = AVERAGE * self._means.get(key, value) + (1 - AVERAGE) * value
        self._write({"step": step + 1, **{k: v for k, v in values.items() if math.isfinite(v)},
                     **({} if finite else {"skipped": True})})  # fmt: skip
        # Where spikes are gone back from, losses that are not finite are one, if it is known what is usual.
        if check and self._bad >= STOP_AFTER + bool(self.config.rewind):
            raise TonyError(
                f"{self.name}: the loss was not finite at {self._bad} steps in a row, the last of them {step + 1}; "
                f"lower {self.name}.learning_rate (now {self.config.learning_rate:g}) and run again"
            )
        if self._progress:
            if now - self._shown > 0.2:
                self._shown = now
                self._progress.update(self._task, completed=step + 1, facts=self._facts(now))
        elif now - self._shown > PLAIN_EVERY or step + 1 == self.config.steps:
            self._shown = now
            taken = step - self._start
            left = _duration((self.config.steps - step - 1) * (now - self._started) / taken) + " left" if taken else ""
            shown = filter(None, (f"{self.name}: step {step + 1}/{self.config.steps}", self._facts(now), left))
            self.say(", ".join(shown))
        return values["loss"]

    def _facts(self, now: float) -> str:
        shown = [f"{k} {v:.3f}" for k, v in self._means.items() if k != "gradient_norm"]
        if self._tokens:
            tokens = self._tokens / max(1e-9, now - self._started)
            shown.append(f"{tokens:,.0f} tokens/s")
            if self.flops_per_token:
                shown.append(f"{100 * tokens * self.flops_per_token / self.peak:.0f} % of peak")
        return "  ".join(shown)

    @property
    def peak(self) -> float:
        """Measured floating-point operations a second of all devices that train; a CPU's share its cores."""
        if self._peak is None:
            from tony.hardware import peak_flops

            devices = jax.process_count() if jax.default_backend() == "cpu" else jax.device_count()
            self._peak = peak_flops() * (1 if hosts.left_out() else devices)
        return self._peak

    def _write(self, row: dict) -> None:
        if self._file and not self._file.closed:
            self._file.write(json.dumps(row) + "\n")

    def draw(self) -> None:
        """curves.png: every metric against the step."""
        if hosts.first() and (rows := self.rows()):
            draw_curves(rows, self.name, self.directory / "curves.png")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def draw_curves(rows: list[dict], title: str, path: Path) -> None:
    """A small panel for each metric of rows {"step", ...}, its running mean over the raw values."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("step", "skipped")]
    if not keys:  # no step was taken
        return
    columns = min(3, len(keys))
    lines = -(-len(keys) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 2.6 * lines), squeeze=False, layout="constrained")
    for axis in axes.flat[len(keys) :]:
        axis.set_axis_off()
    for axis, key in zip(axes.flat, keys, strict=False):
        points = [(row["step"], row[key]) for row in rows if key in row]
        steps, values = np.array(points, float).T
        axis.plot(steps, values, color="#9db4d6", linewidth=0.6)
        width = max(1, len(values) // 40)
        smooth = np.convolve(
            np.pad(values, (width // 2, width - 1 - width // 2), mode="edge"), np.ones(width) / width, "valid"
        )
        axis.plot(steps, smooth, color="#1f4e9c", linewidth=1.6)
        axis.set_title(key.replace("_", " "), fontsize=9)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=7)
        axis.set_ylim(max(0, values.min() * 0.9), np.quantile(values, 0.98) * 1.1 + 1e-9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)
