"""More experts at the same operations a token (GLaM, section 6; Lepikhin et al. 2020, section 4).

Claim: held-out loss falls as experts are added though a token's cost does not grow, with less gained by each doubling.
Every other feed-forward is experts of half the hidden width, two of which see a token; two experts are as many
parameters as none.
"""

from itertools import pairwise

import numpy as np

from experiments import lab, plots, text
from experiments.lab import Mean, Setting, with_experts

WIDTH, LAYERS, STEPS = 64, 2, 2000
COUNTS = (2, 4, 8, 16, 32)


SETTINGS = [Setting(f"{count} experts", with_experts(WIDTH, LAYERS, text.VOCABULARY, count), STEPS) for count in COUNTS]


def report(found: dict[str, list[dict]]) -> dict:
    """Loss by number of experts, on all kinds of text and on the one that people wrote."""
    every = {"all kinds": found, text.NATURAL: {n: lab.of_kind(some, text.NATURAL) for n, some in found.items()}}
    first, last = SETTINGS[0].name, SETTINGS[-1].name
    rows = [
        [
            setting.name, f"{found[setting.name][0]['parameters']:,}",
            f"{found[setting.name][0]['flops_per_token'] / 1e6:.2f}",
            *(cell for some in every.values() for cell in (
                str(Mean.of([r["loss"] for r in some[setting.name]])),
                str(lab.gain(some[setting.name], some[first])) if setting.name != first else "",
            )),
            f"{np.mean([r['dropped'].get('dropped_2', 0) for r in found[setting.name]]):.0%}",
            f"{found[setting.name][0]['seconds']:.0f} s",
        ]
        for setting in SETTINGS
    ]  # fmt: skip
    gains = {kind: lab.gain(some[last], some[first]) for kind, some in every.items()}
    told = []
    for kind, some in every.items():
        steps = ", ".join(f"{lab.gain(some[b.name], some[a.name]).value:+.3f}" for a, b in pairwise(SETTINGS))
        told.append(
            f"On {kind} that more experts lower the loss ({COUNTS[-1]} against {COUNTS[0]}) "
            f"{lab.verdict(gains[kind])} (gain {gains[kind]}; of the doublings: {steps})."
        )
    return {
        "head": ["experts", "parameters", "MFLOP a token", "held-out loss", "gain over two",
                 f"on {text.NATURAL}", "gain over two", "second choices dropped at the end", "a training"],
        "rows": rows,
        "verdict": " ".join(told),
        "gains": {kind: gained.value for kind, gained in gains.items()},
    }  # fmt: skip


def draw(found: dict[str, list[dict]], path) -> None:
    """Loss against the number of experts."""
    with plots.figure(path, 2) as axes:
        for axis, kind in zip(axes, ("all kinds", text.NATURAL), strict=True):
            records = [found[s.name] if kind == "all kinds" else lab.of_kind(found[s.name], kind) for s in SETTINGS]
            plots.interval(axis, COUNTS, records, "loss", "two see a token")
            axis.set_xscale("log", base=2)
            axis.set_xticks(COUNTS, [str(count) for count in COUNTS])
            plots.label(axis, "experts in every other layer", "held-out loss, nats a token", kind)
