"""Batches: *the batch at step k is a pure function of (sources, weights, shape, seed, k)*, at any number of hosts.

So there is no state to save: resuming is asking for the next step, and skipping is not asking.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tony.data.mixture import Mixture, key
from tony.data.packing import SPARE, Item, longest_prefix, pack
from tony.data.source import Source, is_sized
from tony.errors import TonyError
from tony.tokens.tokenizer import Example

GROUP = 16  # rows that are packed together at most: more waste less, fewer can be shared out to more hosts
PROBES = 64  # examples that are made to learn the usual length of a source that doesn't know it
ROUND_CAPACITY = 32


class _Shape(NamedTuple):
    """What is known of a source's examples before packing them."""

    mean: float  # places in a row
    square: float
    losses: float
    most_losses: int
    exact: bool


class Loader:
    """Packed batches of a weighted mixture of sources.

    rows, length: shape of the global batch; ramp: (step, rows), as many rows from that step on. loss_capacity: places
    with a loss that a row may have, so that the vocabulary is only computed there; by default what the data calls for,
    or all of the row if that isn't known.
    too_long: what happens to an example of more than `length` tokens: "error" at once, or "skip"; `skipped` counts
    them for sources that know their lengths. Weights are shares of examples: a source of long ones has more tokens.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        rows: int,
        length: int,
        seed: int,
        loss_capacity: int | None = None,
        too_long: str = "error",
        ramp: Sequence[tuple[int, int]] = (),
    ):
        if rows < 1 or length < 8:
            raise TonyError(f"batches of {rows} rows of {length} tokens; expected at least 1 row of at least 8")
        if too_long not in ("error", "skip"):
            raise TonyError(f"too_long is {too_long!r}; expected 'error' or 'skip'")
        self.sources, self.length, self.seed = list(sources), length, seed
        self.ramp = [(0, rows), *ramp]
        self.mixture = Mixture([s.name for s in sources], [len(s) for s in sources], weights, seed)
        used = [source for source, count in zip(self.sources, self.mixture.counts, strict=True) if count]
        self._skips = too_long == "skip"
        self.skipped = {source.name: count for source in used if (count := self._too_long(source))}
        shapes = {source.name: _shape_of(source, length, seed) for source in used}
        self.capacity = self._capacity(shapes, loss_capacity)
        common = math.gcd(*(rows for _, rows in self.ramp))
        self._group = max(size for size in range(1, min(common, GROUP) + 1) if common % size == 0)
        self._slots = self._slots_of(shapes)

    def batch(self, step: int, host: int = 0, hosts: int = 1, skipped: int = 0) -> dict[str, np.ndarray]:
        """The rows of the batch at a step that one of the hosts holds; all of them together are the same batch.

        With `skipped` batches left out before it, it is that of so many steps later; as large as this step's all the
        same.

        tokens, targets, positions, segments, modality int32 and weights float32 [rows / hosts, length];
        loss_index int32 [rows / hosts, capacity].
        """
        rows = self.rows_at(step)
        before = rows_before(self.ramp, step) + skipped * rows
        if hosts < 1 or not 0 <= host < hosts or rows % hosts:
            raise TonyError(f"host {host} of {hosts} for {rows} rows; the rows must divide by the hosts")
        count = rows // hosts
        first, stop = host * count, (host + 1) * count
        groups = range(first // self._group, -(-stop // self._group))
        parts = [self._packed(before // self._group + group) for group in groups]
        cut = slice(first - groups.start * self._group, stop - groups.start * self._group)
        return {name: np.concatenate([part[name] for part in parts])[cut] for name in parts[0]}

    def rows_at(self, step: int) -> int:
        """Rows of the batch at a step."""
        return next(rows for start, rows in reversed(self.ramp) if start <= step)

    def facts(self, steps: int = 4) -> dict:
        """What a reader of the run wants to know: shares, padding, and what was left out, over the first steps."""
        batches = [self.batch(step) for step in range(steps)]
        tokens = sum(batch["segments"].size for batch in batches)
        return {
            "shares": self.mixture.shares,
            "padding": 1 - sum(int((batch["segments"] > 0).sum()) for batch in batches) / tokens,
            "supervised": sum(int((batch["weights"] > 0).sum()) for batch in batches) / tokens,
            "loss_capacity": self.capacity,
            "skipped": self.skipped,
        }

    def _packed(self, group: int) -> dict[str, np.ndarray]:
        picks = self.mixture.picks(np.arange(group * self._slots, (group + 1) * self._slots))
        items, makers = [], []
        for number, index, epoch in zip(*(column.tolist() for column in picks), strict=True):
            source = self.sources[number]
            made = None
            if is_sized(source):
                item = Item(int(source.lengths[index]) - 1, int(source.losses[index]))
            else:
                made = self._made(source, index, epoch)
                item = Item(len(made.tokens) - 1, int(np.count_nonzero(made.weights[1:])))
            if self._fits(item):
                items.append(item)
                makers.append((source, index, epoch, made))
            elif not self._skips:
                raise self._too_large(source.name, item)
        placed = longest_prefix(items, self._group, self.length, self.capacity)
        chosen = [number for row in placed for number in row]
        examples = {
            number: made if made is not None else self._made(source, index, epoch)
            for number in chosen
            for source, index, epoch, made in [makers[number]]
        }
        return pack(placed, examples, self.length, self.capacity)

    def _fits(self, item: Item) -> bool:
        return 0 < item.length <= self.length - SPARE and item.losses <= self.capacity

    def _made(self, source: Source, index: int, epoch: int) -> Example:
        return source.example(index, key(self.seed, source.name, index, epoch))

    def _too_large(self, name: str, item: Item) -> TonyError:
        if item.length <= self.length - SPARE:
            return TonyError(
                f"an example of source {name!r} has {item.losses} places with a loss; raise loss_capacity "
                f"({self.capacity}) or leave it out"
            )
        return _too_long_error(name, 1, item.length + 1, self.length)

    def _too_long(self, source: Source) -> int:
        """How many examples of a source can't be in a row, as far as the source knows."""
        if not is_sized(source):
            return 0
        over = int((source.lengths - 1 > self.length - SPARE).sum())
        if over and not self._skips:
            raise _too_long_error(source.name, over, int(source.lengths.max()), self.length)
        if over == len(source):
            raise TonyError(f"every example of source {source.name!r} is longer than a row of {self.length} tokens")
        return over

    def _capacity(self, shapes: dict[str, _Shape], asked: int | None) -> int:
        most = max(shape.most_losses for shape in shapes.values())
        if asked is not None:
            if not most <= asked <= self.length:
                raise TonyError(
                    f"loss_capacity is {asked}, but an example has {most} places with a loss and a row {self.length} "
                    "places; give a number between the two"
                )
            return asked
        if not all(shape.exact for shape in shapes.values()):
            return self.length
        shares = self.mixture.shares
        mean = sum(shares[name] * shape.mean for name, shape in shapes.items())
        losses = sum(shares[name] * shape.losses for name, shape in shapes.items())
        # Less slack than this over the mean share keeps rows from filling up: padding doubles at 1.25.
        wanted = max(1.4 * losses / mean * self.length, most)
        return min(-(-int(wanted) // ROUND_CAPACITY) * ROUND_CAPACITY, self.length)

    def _slots_of(self, shapes: dict[str, _Shape]) -> int:
        """Places of the stream that a group of rows is packed from: two standard deviations more than should fit."""
        shares = self.mixture.shares
        mean = sum(shares[name] * shape.mean for name, shape in shapes.items())
        deviation = max(sum(shares[name] * shape.square for name, shape in shapes.items()) - mean**2, 0) ** 0.5
        fitting = self._group * (self.length - SPARE) / mean
        return int(np.ceil(fitting + 2 * fitting**0.5 * deviation / mean)) + 1


def rows_before(ramp: Sequence[tuple[int, int]], step: int) -> int:
    """Rows of all batches before a step, where a ramp [(step, rows), ...] begins at step 0."""
    ends = [*(start for start, _ in ramp[1:]), step]
    return sum(rows * max(0, min(end, step) - start) for (start, rows), end in zip(ramp, ends, strict=True))


def _shape_of(source: Source, length: int, seed: int) -> _Shape:
    if is_sized(source):
        lengths, losses, exact = np.asarray(source.lengths) - 1, np.asarray(source.losses), True
    else:
        seeds = [key(seed, "probe", source.name, number) for number in range(PROBES)]
        made = [source.example(each % len(source), each) for each in seeds]
        lengths = np.array([len(each.tokens) - 1 for each in made])
        losses, exact = np.array([np.count_nonzero(each.weights[1:]) for each in made]), False
    short = (lengths <= length - SPARE) & (lengths > 0)
    if not short.any():
        raise _too_long_error(source.name, len(lengths), int(lengths.max()) + 1, length)
    lengths, losses = lengths[short].astype(np.float64), losses[short]
    return _Shape(lengths.mean(), np.square(lengths).mean(), losses.mean(), int(losses.max()), exact)


def _too_long_error(name: str, count: int, longest: int, length: int) -> TonyError:
    return TonyError(
        f"source {name!r} has {count} examples longer than a row (the longest has {longest} tokens, a row holds "
        f"{length - SPARE + 1}); raise `length` of the training, or shorten them or leave them out"
    )
