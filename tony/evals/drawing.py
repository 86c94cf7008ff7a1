"""image_generation: what the model draws, seen by classifiers that were trained on real pictures only."""

from typing import Any

import numpy as np

from tony.evals.bench import Bench, kind_of, pixels_of, prompt_parts
from tony.evals.result import Result, binomial_stderr, derangement

JUDGED_SIZE = 32


def image_generation(bench: Bench) -> list[Result]:
    """Digits and scenes on request: right if the judge sees in the picture exactly what was asked for."""
    items = bench.items("draw", bench.n)
    answers = bench.ask(items, "image", max_tokens=96)
    kinds = [item.facts["kind"] for item in items]
    seen = _seen(bench.pictures_judge, kinds, [_picture(bench, answer) for answer in answers])
    seen_real = _seen(bench.pictures_judge, kinds, [item.facts["pixels"] for item in items])
    right = [what == item.answer for item, what in zip(items, seen, strict=True)]
    records = [
        {
            "index": index,
            "kind": item.facts["kind"],
            "prompt": bench.show("image_generation", index, "prompt", prompt_parts(item)),
            "answer": bench.show("image_generation", index, "answer", list(answer.content)),
            "expected": item.answer,
            "seen": what,
            "correct": ok,
            "score": float(ok),
        }
        for index, (item, answer, what, ok) in enumerate(zip(items, answers, seen, right, strict=True))
    ]
    facts = {}
    for kind in sorted(set(kinds)):
        facts[f"{kind}s"] = float(np.mean([ok for ok, its in zip(right, kinds, strict=True) if its == kind]))
    return [
        Result(
            name="image_generation",
            value=float(np.mean(right)),
            stderr=binomial_stderr(sum(right), len(right)),
            n=len(right),
            higher_is_better=True,
            records=records,
            facts=facts,
            controls={
                "positive": float(np.mean([s == item.answer for s, item in zip(seen_real, items, strict=True)])),
                "negative": _mismatched(items, kinds, seen, bench.seed),
            },
            notes="Positive control: real held-out pictures of the same things. Negative: each drawing judged for "
            "another request of its kind.",
        )
    ]


def _picture(bench: Bench, answer: Any) -> np.ndarray:
    """The first picture of an answer, uint8 [32, 32, 3]; black if it has none of that size."""
    for part in answer.content:
        if kind_of(part) == "image":
            pixels = pixels_of(bench.omni, part)
            if pixels.shape == (JUDGED_SIZE, JUDGED_SIZE, 3):
                return pixels
    return np.zeros((JUDGED_SIZE, JUDGED_SIZE, 3), np.uint8)


def _seen(judge: Any, kinds: list[str], pictures: list[np.ndarray]) -> list[str]:
    """What the judge of each picture's kind sees in it: a digit, or a caption."""
    stacked = np.stack(pictures)
    digits = [str(int(label)) for label in judge.digit(stacked)[0]]
    scenes = judge.scene(stacked)
    return [d if kind == "digit" else s for kind, d, s in zip(kinds, digits, scenes, strict=True)]


def _mismatched(items: list, kinds: list[str], seen: list[str], seed: int) -> float:
    """Share that would pass if every drawing had been asked for by another request of its own kind."""
    passed = 0
    for kind in set(kinds):
        members = [index for index, its in enumerate(kinds) if its == kind]
        other = derangement(len(members), seed)
        passed += sum(seen[a] == items[members[b]].answer for a, b in zip(members, other, strict=True))
    return passed / len(items)
