"""Experts against a dense decoder, at equal operations a token and at equal tokens (GLaM, section 6).

Claims: of two networks that spend as many operations on a token, the one with experts is the better; and to be as good
as the dense one it needs fewer tokens. Three widths; every other feed-forward is 16 experts of half the hidden width,
two of which see a token.
"""

import numpy as np

from experiments import lab, plots, text
from experiments.lab import Mean, Setting, decoder, with_experts

EXPERTS = 16
SIZES = {"32": (32, 2), "64": (64, 2), "96": (96, 3)}  # width and layers
STEPS = 2800  # of small networks: after a quarter of it those with experts are not ahead yet


def _setting(name: str, sparse: bool) -> Setting:
    width, layers = SIZES[name]
    dense = decoder(width, layers, text.VOCABULARY)
    model = with_experts(width, layers, text.VOCABULARY, EXPERTS) if sparse else dense
    rate = 4e-3 * (128 / width) ** 0.5
    return Setting(f"{'experts' if sparse else 'dense'} {name}", model, STEPS, learning_rate=rate)


SETTINGS = [_setting(name, sparse) for name in SIZES for sparse in (False, True)]


def report(found: dict[str, list[dict]]) -> dict:
    """Losses by size, and how many tokens the network with experts took to the dense one's last loss."""
    rows, sizes = [], {}
    for name in SIZES:
        dense, sparse = found[f"dense {name}"], found[f"experts {name}"]
        gained = lab.gain(sparse, dense)
        share = Mean.of([_tokens_to(s["curve"], d["loss"]) / d["tokens"] for s, d in zip(sparse, dense, strict=True)])
        sizes[name] = {
            "gain": gained.value,
            "half": gained.half,
            "share_of_tokens": share.value,
            "share_half": share.half,
        }
        rows.append([
            f"width {name}", f"{dense[0]['parameters']:,}", f"{sparse[0]['parameters']:,}",
            f"{dense[0]['flops_per_token'] / 1e6:.2f} / {sparse[0]['flops_per_token'] / 1e6:.2f}",
            str(Mean.of([r["loss"] for r in dense])), str(Mean.of([r["loss"] for r in sparse])), str(gained),
            str(lab.gain(*(lab.of_kind(some, text.NATURAL) for some in (sparse, dense)))), str(share),
            f"{np.mean([r['dropped'].get('dropped_2', 0) for r in sparse]):.1%}",
        ])  # fmt: skip
    every = [Mean(size["gain"], size["half"]) for size in sizes.values()]
    holding = sum(lab.verdict(gained) == "holds" for gained in every)
    sides = [[r for name in SIZES for r in found[f"{kind} {name}"]] for kind in ("experts", "dense")]
    together, natural = lab.gain(*sides), lab.gain(*(lab.of_kind(side, text.NATURAL) for side in sides))
    shares = [size["share_of_tokens"] for size in sizes.values()]
    sooner = sum(size["share_of_tokens"] + size["share_half"] < 1 for size in sizes.values())
    return {
        "head": ["network", "parameters: dense", "with experts", "MFLOP a token: dense / experts",
                 "held-out loss: dense", "with experts", "gain", f"gain on {text.NATURAL}",
                 "tokens to the dense loss, share", "second choices dropped at the end"],
        "rows": rows,
        "verdict": f"That experts are better at equal operations a token {lab.verdict(together)} (gain {together}, all "
        f"sizes together; by itself it is shown at {holding} of {len(SIZES)} sizes). On {text.NATURAL} alone it "
        f"{lab.verdict(natural)} (gain {natural}). On average they reach the dense network's loss after "
        f"{min(shares):.0%} to {max(shares):.0%} of its tokens; that it takes fewer is shown at {sooner} of "
        f"{len(SIZES)} sizes.",
        "sizes": sizes,
    }  # fmt: skip


def _tokens_to(curve: list[list[float]], loss: float) -> float:
    """Tokens after which a curve first is at `loss`, between its points by a line; its whole length if it never is."""
    tokens, losses = (np.array(column) for column in zip(*curve, strict=True))
    below = np.flatnonzero(losses <= loss)
    if not len(below):
        return float(tokens[-1])
    at = below[0]
    if at == 0:
        return float(tokens[0])
    share = (losses[at - 1] - loss) / (losses[at - 1] - losses[at])
    return float(tokens[at - 1] + share * (tokens[at] - tokens[at - 1]))


def draw(found: dict[str, list[dict]], path) -> None:
    """Loss against operations a token, of all kinds and of the natural one, and against tokens for the middle size."""
    middle = list(SIZES)[1]
    with plots.figure(path, 3) as (left, centre, right):
        for kind in ("dense", "experts"):
            records = [found[f"{kind} {name}"] for name in SIZES]
            costs = [r[0]["flops_per_token"] / 1e6 for r in records]
            plots.interval(left, costs, records, "loss", kind)
            plots.interval(centre, costs, [lab.of_kind(some, text.NATURAL) for some in records], "loss", kind)
            plots.curves(right, [record["curve"] for record in found[f"{kind} {middle}"]], kind)
        for axis, title in ((left, "all kinds"), (centre, text.NATURAL)):
            axis.set_xscale("log")
            axis.set_xticks(costs, [f"{cost:.1f}" for cost in costs])
            axis.minorticks_off()
            plots.label(axis, "million operations a token", "held-out loss, nats a token", f"equal operations, {title}")
        plots.label(right, "tokens", "", f"equal tokens, width {middle}")
