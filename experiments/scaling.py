"""Loss against size: a power law, fitted to the smaller networks, and what it foretells of the larger ones.

Claim: at equal tokens the held-out loss is E + (C / N) ** a of the parameters N in blocks, closely enough that a fit to
small networks foretells larger ones (Kaplan et al. 2020, section 3.2; Hoffmann et al. 2022, section 3.3; PaLM and GLaM
rest their sizes on it). The two largest networks are kept from the fit.
"""

import numpy as np

from experiments import plots, text
from experiments.lab import Mean, Setting, decoder, in_blocks

SHAPES = ((32, 2), (48, 3), (64, 3), (96, 4), (128, 5), (192, 6), (256, 7))  # width and layers
HELD_OUT = 2
STEPS = 600
SETTINGS = [
    Setting(f"{width} wide, {layers} layers", decoder(width, layers, text.VOCABULARY, head_dim=32), STEPS,
            learning_rate=4e-3 * (128 / width) ** 0.5)
    for width, layers in SHAPES
]  # fmt: skip


def fit(sizes: np.ndarray, losses: np.ndarray) -> tuple[float, float, float]:
    """(E, C, a) of E + (C / N) ** a by least squares of the logarithm of the loss, the exponent from 0.05 to 2."""
    from scipy.optimize import least_squares

    def residual(solution):
        floor, scale, power = solution
        return np.log(floor + np.exp(power * (scale - np.log(sizes)))) - np.log(losses)

    low = min(losses)
    tries = [
        least_squares(residual, (start * low, np.log(min(sizes)), power), bounds=([0, -20, 0.05], [low, 40, 2]))
        for start in (0.1, 0.5, 0.9)
        for power in (0.2, 0.5)
    ]
    floor, scale, power = min(tries, key=lambda found: found.cost).x
    return float(floor), float(np.exp(scale)), float(power)


def foretold(solution: tuple[float, float, float], size: float) -> float:
    """The loss at a size."""
    floor, scale, power = solution
    return floor + (scale / size) ** power


def report(found: dict[str, list[dict]]) -> dict:
    """The fit and its errors on the networks it has not seen."""
    sizes = np.array([in_blocks(found[s.name][0], s) for s in SETTINGS])
    losses = np.array([[r["loss"] for r in found[s.name]] for s in SETTINGS])  # [sizes, seeds]
    seen = slice(None, -HELD_OUT)
    solution = fit(sizes[seen], losses[seen].mean(1))
    each = [fit(sizes[seen], losses[seen, seed]) for seed in range(losses.shape[1])]
    rows, errors, inside = [], [], []
    for index, (setting, size) in enumerate(zip(SETTINGS, sizes, strict=True)):
        measured, told = Mean.of(losses[index]), foretold(solution, size)
        spread = Mean.of([foretold(one, size) for one in each])
        new = index >= len(SETTINGS) - HELD_OUT
        if new:
            errors.append(told / measured.value - 1)
            inside.append(abs(told - measured.value) <= spread.half + measured.half)
        rows.append([setting.name, f"{size:,}", str(measured), f"{told:.3f} ± {spread.half:.3f}",
                     f"{told / measured.value - 1:+.1%}", "foretold" if new else "fitted"])  # fmt: skip
    floor, scale, power = solution
    return {
        "head": ["network", "parameters in blocks", "held-out loss", "power law", "error", ""],
        "rows": rows,
        "verdict": f"loss = {floor:.3f} + ({scale:,.0f} / N) ** {power:.3f}; on the {HELD_OUT} larger networks, up to "
        f"{sizes[-1] / sizes[-HELD_OUT - 1]:.1f} times the largest fitted, it is off by "
        f"{', '.join(f'{error:+.1%}' for error in errors)}"
        + (", within the intervals over seeds." if all(inside) else ", more than the intervals over seeds allow."),
        "fit": {"floor": floor, "scale": scale, "power": power},
        "errors": errors,
    }


def draw(found: dict[str, list[dict]], path) -> None:
    """Loss against size, with the law."""
    sizes = [in_blocks(found[s.name][0], s) for s in SETTINGS]
    told = report(found)["fit"]
    solution = (told["floor"], told["scale"], told["power"])
    with plots.figure(path) as (axis,):
        records = [found[s.name] for s in SETTINGS]
        plots.interval(axis, sizes[:-HELD_OUT], records[:-HELD_OUT], "loss", "fitted", line=False)
        plots.interval(axis, sizes[-HELD_OUT:], records[-HELD_OUT:], "loss", "kept from the fit", line=False)
        grid = np.geomspace(sizes[0], sizes[-1], 60)
        axis.plot(grid, [foretold(solution, size) for size in grid], color="0.4", linewidth=1, label="power law")
        axis.set_xscale("log")
        plots.label(axis, "parameters in blocks", "held-out loss, nats a token", "")
