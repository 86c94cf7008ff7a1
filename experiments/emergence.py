"""Tasks that appear suddenly with scale (PaLM, section 6.2; Wei et al. 2022, "Emergent abilities").

Claim: on some tasks a larger network is far better than the line through the two smaller ones foretells, while its
loss falls smoothly. Networks, each four times the one before it, learn six small tasks on letters and numbers at once;
a task counts when the whole answer is right, so a long answer needs many right letters together. The first two networks
have one layer, the third has two: depth may be what a jump between them is about.
"""

import random
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import plots
from experiments.lab import Mean, Setting, decoder, in_blocks
from tony.data.mixture import key
from tony.data.world.sentences import is_held_out
from tony.model.forward import forward
from tony.plan.arithmetic import discontinuity

LETTERS = "abcdefghijklmnop"
ALPHABET = " " + LETTERS + "0123456789+=:,;crsmn>"
ROWS, LENGTH, STEPS = 32, 96, 2000
SHAPES = ((16, 1), (32, 1), (48, 2), (96, 2), (160, 3))  # width and layers
SUDDEN = 0.25  # of the discontinuity


def _word(rng: random.Random, length: int) -> str:
    return "".join(rng.choices(LETTERS, k=length))


def _copy(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 6)
    return f"c:{word}", word


def _reverse(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 6)
    return f"r:{word}", word[::-1]


def _sort(rng: random.Random) -> tuple[str, str]:
    word = _word(rng, 6)
    return f"s:{word}", "".join(sorted(word))


def _largest(rng: random.Random) -> tuple[str, str]:
    numbers = [rng.randrange(100) for _ in range(4)]
    return "m:" + ",".join(map(str, numbers)), str(max(numbers))


def _sum(rng: random.Random, digits: int) -> tuple[str, str]:
    a, b = (rng.randrange(10 ** (digits - 1), 10**digits) for _ in range(2))
    return f"{a}+{b}", str(a + b)


TASKS = {
    "copy": _copy, "reverse": _reverse, "sort": _sort, "largest": _largest, "sum of 2 digits": partial(_sum, digits=2),
    "sum of 3 digits": partial(_sum, digits=3),
}  # fmt: skip
SETTINGS = [
    Setting(f"{width} wide, {layers} layers", decoder(width, layers, len(ALPHABET), head_dim=16), STEPS, rows=ROWS,
            length=LENGTH, learning_rate=min(6e-3, 4e-3 * (96 / width) ** 0.5))
    for width, layers in SHAPES
]  # fmt: skip


def problem(rng: random.Random, task: str, held_out: bool) -> tuple[str, str]:
    """A question and its answer from one side of the split."""
    while True:
        question, answer = TASKS[task](rng)
        if is_held_out(question) == held_out:
            return question, answer


def batch(seed: int, step: int, held_out: bool = False, task: str | None = None) -> dict[str, np.ndarray]:
    """Rows of problems one after another, each a document of its own; only answers and their ends have a loss."""
    rng = random.Random(key(seed, "emergence", step, held_out, task or ""))
    names = list(TASKS)
    shape = (ROWS, LENGTH)
    made = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "positions", "segments", "modality")}
    weights = np.zeros(shape, np.float32)
    for row in range(ROWS):
        at, segment = 0, 0
        while True:
            question, answer = problem(rng, task or rng.choice(names), held_out)
            codes = [ALPHABET.index(letter) for letter in f"{question}={answer};"]
            if at + len(codes) - 1 > LENGTH:
                break
            segment += 1
            here = slice(at, at + len(codes) - 1)
            made["tokens"][row, here], made["targets"][row, here] = codes[:-1], codes[1:]
            made["positions"][row, here], made["segments"][row, here] = np.arange(len(codes) - 1), segment
            weights[row, at + len(question) : at + len(codes) - 1] = 1
            at += len(codes) - 1
    places = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    return {**made, "loss_index": places, "weights": weights}


def batches(setting: Setting, seed: int):
    """The batches of a setting."""
    del setting
    return lambda step: batch(seed, step)


@cache
def _held_out() -> dict[str, list]:
    return {task: [batch(0, number, held_out=True, task=task) for number in range(2)] for task in TASKS}


def held_out(setting: Setting) -> dict:
    """Problems that nobody has seen, by task."""
    del setting
    return _held_out()


@partial(jax.jit, static_argnames="model")
def _top(params, batch, model):
    hidden, _, _ = forward(params, model, batch["tokens"], batch["positions"], batch["segments"])
    return jnp.argmax(hidden @ params["embedding"].T, -1)


def measure(setting: Setting, params) -> dict:
    """Share of whole answers that are right, by task: greedy decoding, which is right where every letter's top choice
    given the right ones before it is."""
    exact = {}
    for task, some in _held_out().items():
        right = total = 0
        for one in some:
            wrong = (np.asarray(_top(params, one, setting.model)) != one["targets"]) & (one["weights"] > 0)
            for row in range(ROWS):
                failed = set(one["segments"][row][wrong[row]])
                total += one["segments"][row].max()
                right += one["segments"][row].max() - len(failed)
        exact[task] = float(right / total)
    return {"exact": exact}


def report(found: dict[str, list[dict]]) -> dict:
    """Scores by task and size, and the greatest discontinuity of each task."""
    rows, jumps = [], {}
    for task in TASKS:
        scores = [[r["exact"][task] for r in found[s.name]] for s in SETTINGS]
        means = [Mean.of(some) for some in scores]
        seeds = range(len(scores[0]))
        at, jump = max(
            (
                (index, Mean.of([discontinuity(*(scores[index + i][seed] for i in range(3))) for seed in seeds]))
                for index in range(len(SETTINGS) - 2)
            ),
            key=lambda pair: pair[1].value,
        )
        jumps[task] = {"value": jump.value, "half": jump.half, "at": SETTINGS[at + 2].name}
        losses = " ".join(f"{np.mean([r['by_kind'][task] for r in found[s.name]]):.2f}" for s in SETTINGS)
        rows.append([task, *(f"{mean.value:.2f} ± {mean.half:.2f}" for mean in means), str(jump), losses])
    sudden = [task for task, jump in jumps.items() if jump["value"] - jump["half"] > SUDDEN]
    return {
        "head": ["task, whole answer right", *(f"{in_blocks(found[s.name][0], s):,}" for s in SETTINGS),
                 "greatest discontinuity", "loss of a letter by size"],
        "rows": rows,
        "verdict": f"Discontinuity above {SUDDEN:.0%} with 95 % confidence, the papers' mark of a sudden task, on "
        f"{len(sudden)} of {len(TASKS)} tasks" + (f": {', '.join(sudden)}." if sudden else "."),
        "discontinuity": jumps,
    }  # fmt: skip


def draw(found: dict[str, list[dict]], path) -> None:
    """Whole answers right against size, and the loss of the same."""
    sizes = [in_blocks(found[s.name][0], s) for s in SETTINGS]
    with plots.figure(path, 2) as (left, right):
        for task in TASKS:
            for axis, what in ((left, "exact"), (right, "by_kind")):
                records = [[{"y": r[what][task]} for r in found[s.name]] for s in SETTINGS]
                plots.interval(axis, sizes, records, "y", task)
        for axis in (left, right):
            axis.set_xscale("log")
        plots.label(left, "parameters in blocks", "whole answers right", "")
        plots.label(right, "parameters in blocks", "loss, nats a letter", "", legend=False)
