"""More experts at the same operations a token (GLaM, section 6; Lepikhin et al. 2020, section 4).

Claim: held-out loss falls as experts are added though a token's cost does not grow, with less gained by each doubling.
Every other feed-forward is experts of half the hidden width, two of which see a token; two experts are as many
parameters as none.
"""

from itertools import pairwise

from experiments import lab, plots, text
from experiments.lab import Mean, Setting, with_experts

WIDTH, LAYERS, STEPS = 64, 2, 2000
COUNTS = (2, 4, 8, 16, 32)


SETTINGS = [Setting(f"{count} experts", with_experts(WIDTH, LAYERS, text.VOCABULARY, count), STEPS) for count in COUNTS]


def report(found: dict[str, list[dict]]) -> dict:
    """Loss by number of experts."""
    first = found[SETTINGS[0].name]
    rows, gains = [], []
    for setting in SETTINGS:
        records = found[setting.name]
        gains.append(lab.gain(records, first))
        rows.append([
            setting.name, f"{records[0]['parameters']:,}", f"{records[0]['flops_per_token'] / 1e6:.2f}",
            str(Mean.of([r["loss"] for r in records])), str(gains[-1]) if setting != SETTINGS[0] else "",
            f"{records[0]['seconds']:.0f} s",
        ])  # fmt: skip
    steps = [lab.gain(found[later.name], found[earlier.name]) for earlier, later in pairwise(SETTINGS)]
    doublings = ", ".join(f"{step.value:+.3f}" for step in steps)
    return {
        "head": ["experts", "parameters", "MFLOP a token", "held-out loss", "gain over two", "a training"],
        "rows": rows,
        "verdict": f"That more experts lower the loss ({COUNTS[-1]} against {COUNTS[0]}) {lab.verdict(gains[-1])}; "
        f"gains of the doublings: {doublings}.",
        "gains": [gained.value for gained in gains],
    }


def draw(found: dict[str, list[dict]], path) -> None:
    """Loss against the number of experts."""
    with plots.figure(path) as (axis,):
        plots.interval(axis, COUNTS, [found[setting.name] for setting in SETTINGS], "loss", "two see a token")
        axis.set_xscale("log", base=2)
        axis.set_xticks(COUNTS, [str(count) for count in COUNTS])
        plots.label(axis, "experts in every other layer", "held-out loss, nats a token", "same operations a token")
