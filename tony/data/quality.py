"""A filter for raw text, as GLaM has one: how much a document is like curated text, and which documents are kept.

A linear classifier over hashed words and pairs of words tells curated documents from raw ones; a raw document is kept
with a probability that grows with its score, so that some of the lower quality remain and the filter's taste does not
become the corpus's (Du et al. 2022, "GLaM", section 3, after Brown et al. 2020, appendix A).
"""

import json
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import numpy as np

from tony.data.mixture import key
from tony.errors import TonyError
from tony.files import write_bytes

BUCKETS = 2**16
ALPHA = 9.0  # of the Pareto distribution; larger keeps less of what scores low
_WORDS = re.compile(r"\w+|[^\w\s]")


class QualityClassifier:
    """Logistic regression over hashed features; make one with `train` or `load`."""

    def __init__(self, weights: np.ndarray, bias: float):
        self.weights, self.bias = np.asarray(weights, np.float32), float(bias)

    @classmethod
    def train(
        cls, curated: Iterable[str], raw: Iterable[str], buckets: int = BUCKETS, penalty: float = 1e-5
    ) -> "QualityClassifier":
        """Learn to tell curated documents from raw ones, each side counting half; TonyError if a side is empty.

        `penalty` is on half the squared weights, the loss being a mean.
        """
        from scipy.optimize import minimize

        good, bad = list(curated), list(raw)
        if not good or not bad:
            raise TonyError(
                f"a quality classifier needs both sides; given {len(good)} curated and {len(bad)} raw documents"
            )
        x = hashed(good + bad, buckets)
        sign = np.repeat([1.0, -1.0], [len(good), len(bad)])
        share = np.repeat([0.5 / len(good), 0.5 / len(bad)], [len(good), len(bad)])

        def objective(solution):
            weights, bias = solution[:-1], solution[-1]
            margin = sign * (x @ weights + bias)
            pull = -sign * share / (1 + np.exp(np.minimum(margin, 700)))
            loss = (share * np.logaddexp(0, -margin)).sum() + penalty / 2 * weights @ weights
            return loss, np.append(x.T @ pull + penalty * weights, pull.sum())

        found = minimize(objective, np.zeros(buckets + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200})
        return cls(found.x[:-1], found.x[-1])

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """How likely each text is curated, float64 [n] in 0..1."""
        margin = hashed(texts, len(self.weights)) @ self.weights + self.bias
        return 1 / (1 + np.exp(-np.clip(margin, -700, 700)))

    def save(self, path: Path) -> None:
        """Write one JSON file of the weights that are not zero."""
        used = np.flatnonzero(self.weights)
        told = {
            "buckets": len(self.weights), "bias": self.bias, "used": used.tolist(),
            "weights": [float(weight) for weight in self.weights[used]],
        }  # fmt: skip
        write_bytes(Path(path), json.dumps(told).encode())

    @classmethod
    def load(cls, path: Path) -> "QualityClassifier":
        """Read what `save` wrote; TonyError if it is missing or damaged."""
        try:
            told = json.loads(Path(path).read_text())
            weights = np.zeros(told["buckets"], np.float32)
            weights[told["used"]] = told["weights"]
            return cls(weights, told["bias"])
        except FileNotFoundError:
            raise TonyError(f"there is no quality classifier {path}; train it again or copy it") from None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise TonyError(f"{path} is no quality classifier ({error}); train it again or copy it again") from None


def hashed(texts: Sequence[str], buckets: int):
    """Words and pairs of neighbours as rows of unit length, a SciPy sparse matrix [n, buckets].

    The hashing trick of Weinberger et al. (2009): a feature counts by the square root of its occurrences, and the
    highest bit of its hash is its sign, so that features which share a bucket cancel on average.
    """
    from scipy.sparse import csr_matrix

    rows, columns, values = [], [], []
    for row, text in enumerate(texts):
        words = _WORDS.findall(text.lower())
        counts: dict[int, int] = {}
        for feature in (*words, *map(" ".join, pairwise(words))):
            code = crc32(feature.encode("utf-8", "replace"))
            counts[code] = counts.get(code, 0) + 1
        length = max(1, sum(counts.values())) ** 0.5
        for code, count in counts.items():
            rows.append(row)
            columns.append((code & 0x7FFFFFFF) % buckets)
            values.append((1 if code >> 31 else -1) * count**0.5 / length)
    return csr_matrix((values, (rows, columns)), shape=(len(texts), buckets))


def kept(scores: np.ndarray, names: Sequence[str], seed: int = 0, alpha: float = ALPHA) -> np.ndarray:
    """Whether each document stays, bool [n]: its score is above one less a draw from a Pareto distribution.

    The draw is a hash of the document's name (or text), so that the choice does not hang on who else is there. Of
    documents that score s a share of (2 - s) ** -alpha stays: all at 1, one in 38 at 0.5, next to none at 0.
    """
    draws = np.array([(key(seed, "quality", name) + 0.5) / 2**63 for name in names])
    return draws ** (-1 / alpha) - 1 > 1 - np.asarray(scores)
