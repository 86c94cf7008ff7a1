"""What an evaluation returns, and the standard errors that go with it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

RESAMPLES = 2_000


@dataclass(frozen=True)
class Result:
    """One measured number with everything that is needed to believe it.

    `records` are the graded samples, one JSON-ready dict each (see `tony.evals.bench`). `controls` holds the same
    measurement on answers known to be right ("positive") and known to be wrong ("negative"): an evaluation whose
    controls lie close together cannot tell a good model from a bad one. `facts` are further numbers, e.g. per group.
    """

    name: str
    value: float
    stderr: float
    n: int
    higher_is_better: bool
    records: list[dict] = field(default_factory=list)
    controls: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    notes: str = ""
    seconds: float = 0.0

    def to_dict(self) -> dict:
        """JSON-ready, without the records (they have a file of their own)."""
        return {key: value for key, value in asdict(self).items() if key != "records"}


def binomial_stderr(successes: int, n: int) -> float:
    """Standard error of a proportion, with the Agresti-Coull adjustment (Agresti and Coull 1998).

    Two successes and two failures are added, so that 20 right of 20 does not claim to be exact.
    """
    if n < 1:
        raise ValueError(f"binomial_stderr needs at least one sample; got n={n}")
    proportion = (successes + 2) / (n + 4)
    return float(np.sqrt(proportion * (1 - proportion) / (n + 4)))


def mean_stderr(values: Sequence[float]) -> float:
    """Standard error of a mean; 0 for a single value, whose spread is unknown."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def ratio_stderr(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> float:
    """Bootstrapped standard error of sum(numerators) / sum(denominators) over independent units.

    The units are utterances when the ratio is a word error rate: errors within an utterance come together, so words
    must not be resampled on their own (Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR").
    """
    top, bottom = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if len(top) < 2:
        return 0.0
    picks = np.random.default_rng(seed).integers(0, len(top), (RESAMPLES, len(top)))
    return float(np.std(top[picks].sum(1) / np.maximum(bottom[picks].sum(1), 1e-12), ddof=1))


def jackknife_stderr(items: Sequence, statistic: Callable[[list], float], groups: int = 20) -> float:
    """Delete-a-group jackknife standard error, for statistics that a bootstrap would bias (distinct counts)."""
    groups = min(groups, len(items))
    if groups < 2:
        return 0.0
    left_out = [statistic([item for index, item in enumerate(items) if index % groups != g]) for g in range(groups)]
    return float(np.sqrt((groups - 1) / groups * np.sum(np.square(np.asarray(left_out) - np.mean(left_out)))))


def derangement(n: int, seed: int = 0) -> list[int]:
    """A permutation of range(n) that leaves nothing in its place: whose answer the negative control uses."""
    if n < 2:
        return list(range(n))
    order = [int(index) for index in np.random.default_rng(seed).permutation(n)]
    shifted = order[1:] + order[:1]
    other = [0] * n
    for own, given in zip(order, shifted, strict=True):
        other[own] = given
    return other
