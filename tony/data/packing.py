"""Packing: several examples in one row, each with its own segment and positions, so that none attends to another.

The rows of a batch are packed in groups, each from its own stretch of the mixture's stream. The longest beginning of
the stretch that fits is packed, longest example first (first-fit decreasing, Johnson 1973); the rest is left out, so
that what is left out depends on its place and hardly on its length.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tony.tokens.tokenizer import Example

SPARE = 1  # places at the end of a row that stay empty, for `loss_index` to point at


class Item(NamedTuple):
    """What a place in the stream takes of a row: inputs, and positions with a loss."""

    length: int
    losses: int


def place(items: Sequence[Item], rows: int, length: int, capacity: int) -> list[list[int]] | None:
    """Rows of item numbers, first-fit decreasing, or None if they don't all fit."""
    free, losses = [length - SPARE] * rows, [capacity] * rows
    placed: list[list[int]] = [[] for _ in range(rows)]
    for number in sorted(range(len(items)), key=lambda number: -items[number].length):
        item = items[number]
        for row in range(rows):
            if item.length <= free[row] and item.losses <= losses[row]:
                free[row] -= item.length
                losses[row] -= item.losses
                placed[row].append(number)
                break
        else:
            return None
    return placed


def longest_prefix(items: Sequence[Item], rows: int, length: int, capacity: int) -> list[list[int]]:
    """`place` for as many of the first items as it finds to fit."""
    totals = np.cumsum([item.length for item in items])
    most = int(np.searchsorted(totals, rows * (length - SPARE), side="right"))
    fewest = 0
    best: list[list[int]] = [[] for _ in range(rows)]
    while fewest < most:
        middle = (fewest + most + 1) // 2
        placed = place(items[:middle], rows, length, capacity)
        if placed is None:
            most = middle - 1
        else:
            fewest, best = middle, placed
    return best


def pack(placed: Sequence[Sequence[int]], examples: Mapping[int, Example], length: int, capacity: int) -> dict:
    """Batch arrays [rows, length] of examples, by their numbers, in their rows; `loss_index` is [rows, capacity].

    A document of n tokens takes n - 1 places: its last token is a target only. Segments count from 1, 0 is padding;
    positions start at 0 in each document. `loss_index` lists the places with a loss, filled up with the last place of
    the row, which is always left empty and so has weight 0.
    """
    shape = (len(placed), length)
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "positions", "segments", "modality")}
    batch["weights"] = np.zeros(shape, np.float32)
    for row, numbers in enumerate(placed):
        at = 0
        for segment, number in enumerate(numbers, start=1):
            item = examples[number]
            here = slice(at, at + len(item.tokens) - 1)
            batch["tokens"][row, here] = item.tokens[:-1]
            batch["targets"][row, here] = item.tokens[1:]
            batch["weights"][row, here] = item.weights[1:]
            batch["modality"][row, here] = item.modality[1:]
            batch["positions"][row, here] = np.arange(len(item.tokens) - 1)
            batch["segments"][row, here] = segment
            at = here.stop
    batch["loss_index"] = loss_index(batch["weights"], capacity)
    return batch


def loss_index(weights: np.ndarray, capacity: int) -> np.ndarray:
    """Places with a weight in each row, in order, filled up: int32 [rows, capacity]."""
    index = np.full((len(weights), capacity), weights.shape[1] - 1, np.int32)
    for row, each in enumerate(weights):
        places = np.flatnonzero(each)
        index[row, : len(places)] = places
    return index


def whole_rows(windows: np.ndarray) -> dict[str, np.ndarray]:
    """Windows [rows, length + 1] as a batch with a loss at every position."""
    rows, length = windows.shape[0], windows.shape[1] - 1
    ones, places = np.ones((rows, length), np.int32), np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    return {
        "tokens": windows[:, :-1], "targets": windows[:, 1:], "positions": places, "segments": ones,
        "modality": 0 * ones, "loss_index": places, "weights": ones.astype(np.float32),
    }  # fmt: skip
