import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tony.data.packing import SPARE, Item, longest_prefix, pack, place
from tony.tokens.tokenizer import Example


def make(rng, count):
    tokens = rng.integers(1, 500, count).astype(np.int32)
    weights = (rng.random(count) < 0.5).astype(np.float32)
    return Example(tokens, weights, rng.integers(0, 4, count).astype(np.int8))


items = st.lists(st.builds(Item, st.integers(1, 31), st.integers(0, 20)), max_size=40)


@given(items, st.integers(1, 4), st.integers(20, 32))
def test_what_is_placed_fits_and_is_the_beginning(items, rows, capacity):
    placed = longest_prefix(items, rows, 32, capacity)
    chosen = sorted(number for row in placed for number in row)
    assert len(placed) == rows and chosen == list(range(len(chosen)))
    for row in placed:
        assert sum(items[number].length for number in row) <= 32 - SPARE
        assert sum(items[number].losses for number in row) <= capacity
    if len(chosen) < len(items):
        assert place(items[: len(chosen) + 1], rows, 32, capacity) is None


def test_an_exact_fit_is_found():
    assert place([Item(n, 0) for n in (10, 21, 15, 16)], 2, 32, 32) == [[1, 0], [3, 2]]
    assert place([Item(n, 0) for n in (10, 21, 15, 17)], 2, 32, 32) is None


@given(st.lists(st.integers(2, 20), min_size=1, max_size=10), st.integers(0, 1000))
@settings(deadline=None)
def test_rows_hold_each_document_shifted_by_one_and_apart(lengths, seed):
    rng = np.random.default_rng(seed)
    examples = [make(rng, count) for count in lengths]
    kinds = [Item(count - 1, int((each.weights[1:] > 0).sum())) for count, each in zip(lengths, examples, strict=True)]
    placed = longest_prefix(kinds, 2, 48, 48)
    batch = pack(placed, dict(enumerate(examples)), 48, 48)
    for row, numbers in enumerate(placed):
        for segment, number in enumerate(numbers, start=1):
            here = batch["segments"][row] == segment
            each = examples[number]
            assert np.array_equal(batch["tokens"][row, here], each.tokens[:-1])
            assert np.array_equal(batch["targets"][row, here], each.tokens[1:])
            assert np.array_equal(batch["weights"][row, here], each.weights[1:])
            assert np.array_equal(batch["modality"][row, here], each.modality[1:])
            assert np.array_equal(batch["positions"][row, here], np.arange(len(each.tokens) - 1))
            assert (np.diff(np.flatnonzero(here)) == 1).all()
        padding = batch["segments"][row] == 0
        for name in ("tokens", "targets", "weights", "positions", "modality"):
            assert not batch[name][row, padding].any()
    assert not batch["segments"][:, -1].any() and not batch["weights"][:, -1].any()
    # Summing over loss_index counts each weight once: the filling points at the empty last place.
    gathered = np.take_along_axis(batch["weights"], batch["loss_index"], axis=1)
    assert np.allclose(gathered.sum(1), batch["weights"].sum(1))
    for name in ("tokens", "targets", "positions", "segments", "modality", "loss_index"):
        assert batch[name].dtype == np.int32
    assert batch["weights"].dtype == np.float32
