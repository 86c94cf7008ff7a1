"""Evaluations whose answer is text that is right or wrong: sums, digits, captions, motion."""

from collections.abc import Callable

import numpy as np

from tony.evals.bench import Bench, prompt_parts, same_number, same_text, text_of
from tony.evals.result import Result, binomial_stderr, derangement

Grade = Callable[[str, str], bool]


def text_arithmetic(bench: Bench) -> list[Result]:
    """Sums and differences in text; the written-out reasoning is shown but only the answer counts."""
    return [_exact(bench, "text_arithmetic", "arithmetic", same_number, max_tokens=200)]


def image_digits(bench: Bench) -> list[Result]:
    """Digits in the handwriting of people that no training picture comes from."""
    return [_exact(bench, "image_digits", "digits", same_number, max_tokens=48)]


def image_caption(bench: Bench) -> list[Result]:
    """The whole caption of an unseen scene, word for word."""
    return [_exact(bench, "image_caption", "captions", same_text, max_tokens=96)]


def video_motion(bench: Bench) -> list[Result]:
    """What moved, which way and how often; all three must be right."""
    return [_exact(bench, "video_motion", "video", same_text, max_tokens=96)]


def _exact(bench: Bench, name: str, task: str, grade: Grade, max_tokens: int) -> Result:
    items = bench.items(task, bench.n)
    answers = bench.ask(items, "text", max_tokens)
    texts = [text_of(answer) for answer in answers]
    right = [grade(item.answer, text) for item, text in zip(items, texts, strict=True)]
    records = [
        {
            "index": index,
            "prompt": bench.show(name, index, "prompt", prompt_parts(item)),
            "answer": [{"kind": "text", "text": text}],
            "thinking": answer.thinking,
            "expected": item.answer,
            "correct": ok,
            "score": float(ok),
        }
        for index, (item, answer, text, ok) in enumerate(zip(items, answers, texts, right, strict=True))
    ]
    other = derangement(len(items), bench.seed)
    facts = {}
    if any(answer.thinking for answer in answers):
        facts["with reasoning"] = float(np.mean([bool(answer.thinking) for answer in answers]))
    return Result(
        name=name,
        value=float(np.mean(right)),
        stderr=binomial_stderr(sum(right), len(right)),
        n=len(right),
        higher_is_better=True,
        records=records,
        facts=facts,
        controls={
            "positive": float(np.mean([grade(item.answer, item.answer) for item in items])),
            "negative": float(np.mean([grade(items[other[i]].answer, text) for i, text in enumerate(texts)])),
        },
        notes="Positive control: the reference answers. Negative: each answer graded against another item.",
    )
