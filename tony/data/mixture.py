"""Which example of which source comes at place i of a mixture: a pure function of (seed, i), with no state to save.

The stream is cut into blocks; in each, every source has exactly its share, in an order of that block's own. A source
is walked in a new order each epoch, without replacement, by a Feistel permutation. (The design follows Levanter's
`data/mixture.py` and `data/_prp.py`; cycle walking: Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains".)
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from tony.errors import TonyError

BLOCK = 2048  # examples in which every source has exactly its share
ROUNDS = 8
KEY = 2**63 - 1


class Picks(NamedTuple):
    """For each place in the stream: the source's number, the item of it, and how often it was walked before."""

    source: np.ndarray  # int32 [n]
    item: np.ndarray  # int64 [n]
    epoch: np.ndarray  # int64 [n]


class Mixture:
    """Sources of known names and lengths, mixed by weight, as a share of examples."""

    def __init__(self, names: Sequence[str], lengths: Sequence[int], weights: Sequence[float], seed: int):
        _check(names, lengths, weights)
        self.names, self.lengths, self.seed = tuple(names), np.asarray(lengths, np.int64), seed
        self.counts = block_counts(weights, BLOCK)
        self._block = lru_cache(maxsize=16)(self._make_block)

    def _make_block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and rank among the block's picks of it, for each place of a block."""
        order = np.random.default_rng(key(self.seed, "block", number)).permutation(BLOCK)
        source = np.repeat(np.arange(len(self.counts), dtype=np.int32), self.counts)[order]
        rank = np.empty(BLOCK, np.int64)
        for each, count in enumerate(self.counts):
            rank[source == each] = np.arange(count)
        return source, rank

    def picks(self, places: np.ndarray) -> Picks:
        """What is at these places, int64 [n], of the stream."""
        places = np.asarray(places, np.int64)
        numbers, within = np.divmod(places, BLOCK)
        source, nth = np.empty(len(places), np.int32), np.empty(len(places), np.int64)
        for number in np.unique(numbers):
            here = numbers == number
            block_source, rank = self._block(int(number))
            source[here] = block_source[within[here]]
            nth[here] = number * self.counts[source[here]] + rank[within[here]]
        epoch, at = np.divmod(nth, self.lengths[source])
        index = np.empty(len(places), np.int64)
        for each, walk in {*zip(source.tolist(), epoch.tolist(), strict=True)}:
            here = (source == each) & (epoch == walk)
            walk_key = key(self.seed, self.names[each], walk)
            index[here] = permute(at[here], int(self.lengths[each]), walk_key)
        return Picks(source, index, epoch)

    @cached_property
    def shares(self) -> dict[str, float]:
        """The share of examples that each source has."""
        return {name: count / BLOCK for name, count in zip(self.names, self.counts.tolist(), strict=True)}


def block_counts(weights: Sequence[float], block: int) -> np.ndarray:
    """Weights -> whole numbers that sum to `block`, by largest remainder; a positive weight gets at least one."""
    exact = np.asarray(weights, np.float64) / sum(weights) * block
    positive = np.asarray(weights) > 0
    counts = np.maximum(np.floor(exact), positive).astype(np.int64)
    while counts.sum() != block:
        short = counts.sum() < block
        # Never the last example of a source: a small weight must not turn into none.
        owed = np.where(positive & (short | (counts > 1)), exact - counts, -np.inf if short else np.inf)
        counts[np.argmax(owed) if short else np.argmin(owed)] += 1 if short else -1
    return counts


def permute(values: np.ndarray, size: int, permutation_key: int) -> np.ndarray:
    """The places of 0 <= values < size in a pseudorandom permutation of range(size) that the key picks."""
    values = np.asarray(values, np.uint64)
    bits = max((size - 1).bit_length() + 1 >> 1, 1)  # half of a domain of at least `size` and less than 8 * size
    mask, shift = np.uint64((1 << bits) - 1), np.uint64(bits)
    round_keys = [np.uint64(key(permutation_key, "round", number)) for number in range(ROUNDS)]
    out, outside = values.copy(), np.ones(len(values), bool)
    while outside.any():  # cycle walking: what falls outside is sent on until it falls inside
        left, right = out[outside] >> shift, out[outside] & mask
        for round_key in round_keys:
            left, right = right, left ^ (_scramble(right ^ round_key) & mask)
        out[outside] = (left << shift) | right
        outside = out >= size
    return out.astype(np.int64)


def _scramble(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014), a good mixer of 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key(*parts: int | str) -> int:
    """A seed of 63 bits that depends on all parts, the same on every machine and in every version of Python."""
    digest = blake2b("\0".join(f"{type(part).__name__}:{part}" for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & KEY


def _check(names: Sequence[str], lengths: Sequence[int], weights: Sequence[float]) -> None:
    if not names or not len(names) == len(lengths) == len(weights):
        raise TonyError(f"a mixture of {len(names)} sources and {len(weights)} weights; expected one weight for each")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise TonyError(f"two sources of a mixture are named {twice!r}; give each its own name")
    for name, length, weight in zip(names, lengths, weights, strict=True):
        if not (weight >= 0 and np.isfinite(weight)):
            raise TonyError(f"the weight of source {name!r} is {weight}; expected a number of at least 0")
        if weight > 0 and length < 1:
            raise TonyError(f"source {name!r} is empty; remove it from the mixture or give it data")
    if not sum(weights) > 0:
        raise TonyError("all weights of the mixture are 0; give at least one source a positive one")
    if len(names) > BLOCK // 2:
        raise TonyError(f"a mixture of {len(names)} sources; at most {BLOCK // 2} can each have a share: join some")
