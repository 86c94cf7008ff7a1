"""Pictures of experiments: means with 95 % intervals over seeds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from experiments.lab import Mean

COLOURS = ("#1b4965", "#c1121f", "#e09f3e", "#5f9654", "#7b5ea7", "#7f7f7f")


@contextmanager
def figure(path: Path, count: int = 1) -> Iterator:
    """`count` axes side by side, saved at the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown, axes = plt.subplots(1, count, figsize=(5.2 * count, 3.8), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_prop_cycle(color=COLOURS)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    yield axes[0]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    shown.savefig(path, dpi=120)
    plt.close(shown)


def interval(axis, x: Sequence[float], records: Sequence[list[dict]], what: str, name: str, line: bool = True) -> None:
    """The mean of `what` at each x with its interval."""
    means = [Mean.of([record[what] for record in some]) for some in records]
    axis.errorbar(
        x, [mean.value for mean in means], [mean.half if np.isfinite(mean.half) else 0 for mean in means],
        fmt="o-" if line else "o", markersize=4, linewidth=1.4, capsize=3, label=name,
    )  # fmt: skip


def curves(axis, several: Sequence[Sequence[Sequence[float]]], name: str) -> None:
    """The mean of curves of the same x, and their interval as a band."""
    x = [point[0] for point in several[0]]
    means = [Mean.of([curve[i][1] for curve in several]) for i in range(len(x))]
    (line,) = axis.plot(x, [mean.value for mean in means], "o-", markersize=3, linewidth=1.4, label=name)
    if len(several) > 1:
        axis.fill_between(
            x, [mean.low for mean in means], [mean.high for mean in means], color=line.get_color(), alpha=0.2
        )


def groups(axis, found: dict[str, list[dict]], kinds: Sequence[str]) -> None:
    """Bars of the loss by kind, a colour for each setting."""
    width = 0.8 / len(found)
    for number, (name, records) in enumerate(found.items()):
        means = [Mean.of([record["by_kind"][kind] for record in records]) for kind in kinds]
        axis.bar(
            np.arange(len(kinds)) + (number - (len(found) - 1) / 2) * width, [mean.value for mean in means], width,
            yerr=[mean.half if np.isfinite(mean.half) else 0 for mean in means], capsize=3, label=name,
            color=COLOURS[number],
        )  # fmt: skip
    axis.set_xticks(range(len(kinds)), kinds)


def label(axis, x: str, y: str, title: str, legend: bool = True) -> None:
    """Names of axes, a title, a legend."""
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=10)
    if legend:
        axis.legend(frameon=False, fontsize=8)
