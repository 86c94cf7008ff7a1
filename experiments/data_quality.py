"""Raw against filtered text (GLaM, section 3 and figure 3c).

Claim: at equal tokens a network that learns from filtered text is better than one that learns from all of it. The raw
text is a third good documents and two thirds spoilt ones (shop keywords, navigation, markup, shuffled, repeated and
garbled words); the filter (`tony.data.quality`) has seen other good documents as its curated side and the raw text as
its other. "Clean" is the good third alone, the best that a filter could do.
"""

from functools import cache

import numpy as np

from experiments import lab, plots, text
from experiments.lab import Mean, Setting, decoder
from tony.data.packing import whole_rows
from tony.data.quality import QualityClassifier, kept

STEPS = 400
SETTINGS = [Setting(name, decoder(128, 4, text.VOCABULARY), STEPS) for name in ("raw", "filtered", "clean")]
SIZES = {"chat": 10_000, "sums": 20_000, "logic": 10_000}  # documents of a kind, at most
SEEN = 10_000  # raw documents that the classifier learns from


@cache
def pool() -> tuple[list[str], list[str], list[str], np.ndarray]:
    """(curated, good, raw documents, which of the raw are kept); the good come first among the raw."""
    curated, good = [], []
    for kind, count in SIZES.items():
        documents = text.documents(kind, "train", count, seed=1)
        fifth = len(documents) // 5
        curated += documents[:fifth]
        good += documents[fifth:]
    raw = text.raw(good, seed=0)
    seen = np.random.default_rng(0).permutation(len(raw))[:SEEN]
    classifier = QualityClassifier.train(curated, [raw[i] for i in seen])
    return curated, good, raw, kept(classifier.scores(raw), raw)


@cache
def stream(name: str) -> text.Stream:
    """What a setting learns from."""
    _, good, raw, stays = pool()
    return text.Stream.of(
        {"raw": raw, "clean": good, "filtered": [t for t, k in zip(raw, stays, strict=True) if k]}[name]
    )


def batches(setting: Setting, seed: int):
    """The batches of a setting."""
    source = stream(setting.name)
    return lambda step: whole_rows(source.windows(setting.rows, setting.length, seed, step))


def held_out(setting: Setting) -> dict:
    """Good documents that nobody has seen."""
    return {kind: some for kind, some in text.held_out(setting.rows, setting.length).items() if kind in SIZES}


def report(found: dict[str, list[dict]]) -> dict:
    """Losses, and what the filter kept."""
    _, good, raw, stays = pool()
    share = {"good": float(stays[: len(good)].mean()), "spoilt": float(stays[len(good) :].mean())}
    purity = float(stays[: len(good)].sum() / stays.sum())
    gained = lab.gain(found["filtered"], found["raw"])
    rows = [
        [name, f"{len(stream(name).tokens):,}", str(Mean.of([r["loss"] for r in records])),
         *(str(Mean.of([r["by_kind"][kind] for r in records])) for kind in SIZES)]
        for name, records in found.items()
    ]  # fmt: skip
    best = lab.gain(found["clean"], found["raw"])
    return {
        "head": ["learnt from", "tokens there are", "held-out loss", *SIZES],
        "rows": rows,
        "verdict": f"That filtered text is better at equal tokens {lab.verdict(gained)} (gain {gained}; clean text: "
        f"{best}). Of the good documents {share['good']:.0%} were kept, of the spoilt {share['spoilt']:.1%}; of what "
        f"was kept {purity:.0%} is good, of the raw {len(good) / len(raw):.0%}.",
        "kept": share,
    }


def draw(found: dict[str, list[dict]], path) -> None:
    """Loss against tokens, and at the end by kind."""
    with plots.figure(path, 2) as (left, right):
        for name, records in found.items():
            plots.curves(left, [record["curve"] for record in records], name)
        plots.groups(right, found, list(SIZES))
        plots.label(left, "tokens", "held-out loss, nats a token", "on good documents")
        plots.label(right, "", "", "at the end, by kind")
