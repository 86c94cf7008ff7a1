import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tony.data.mixture import BLOCK, Mixture, block_counts, key, permute
from tony.errors import TonyError


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_permute_is_a_permutation(size, seed):
    assert np.array_equal(np.sort(permute(np.arange(size), size, seed)), np.arange(size))


def test_permute_works_on_parts_of_huge_ranges():
    size = 10**12 + 7
    out = permute(np.arange(10_000), size, 1)
    assert len(np.unique(out)) == 10_000 and out.min() >= 0 and out.max() < size
    assert abs(out.mean() / size - 0.5) < 0.02


def test_permute_looks_random_and_depends_on_the_key():
    size, seeds = 200, 2000
    firsts = np.array([permute(np.arange(2), size, seed) for seed in range(seeds)])
    counts = np.bincount(firsts[:, 0], minlength=size)
    assert ((counts - seeds / size) ** 2 / (seeds / size)).sum() < 280  # chi-square, 199 degrees: p < 1e-4
    assert abs(np.corrcoef(firsts.T)[0, 1]) < 0.08
    steps = np.diff(permute(np.arange(1000), 1000, 5))
    assert len(np.unique(steps)) > 500


@example([5e-324, 1e6])
@example([1.0] * 19 + [1e-9])
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20).filter(lambda w: sum(w) > 1e-3))
def test_counts_are_shares_rounded(weights):
    counts = block_counts(weights, BLOCK)
    exact = np.array(weights) / sum(weights) * BLOCK
    assert counts.sum() == BLOCK
    assert ((counts > 0) == (np.array(weights) > 0)).all()
    # Each source that is raised to one takes it from another.
    raised = int(((exact < 1) & (np.array(weights) > 0)).sum())
    assert (np.abs(counts - exact) <= 1 + raised).all()


def test_every_block_holds_each_source_exactly_in_its_share():
    mixture = Mixture(["a", "b", "c"], [10, 1000, 7], [1, 5, 2], seed=3)
    orders = []
    for block in (0, 1, 7):
        picks = mixture.picks(np.arange(block * BLOCK, (block + 1) * BLOCK))
        assert np.bincount(picks.source).tolist() == [256, 1280, 512]
        orders.append(picks.source.tolist())
    assert orders[0] != orders[1] != orders[2]


def test_each_epoch_holds_every_example_once_in_an_order_of_its_own():
    mixture = Mixture(["a", "b"], [300, 1], [1, 1], seed=0)
    picks = mixture.picks(np.arange(4 * BLOCK))
    here = picks.source == 0
    index, epoch = picks.item[here], picks.epoch[here]
    orders = [index[epoch == number] for number in range(5)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(300))
    assert not any(np.array_equal(a, b) for a in orders for b in orders if a is not b)


def test_places_do_not_depend_on_what_else_is_asked():
    places = np.random.default_rng(0).integers(0, 5 * BLOCK, 500)
    make = lambda: Mixture(["a", "b"], [300, 40], [3, 1], seed=9)  # noqa: E731
    together = make().picks(places)
    single = make()
    alone = [single.picks(places[i : i + 1]) for i in range(len(places))]
    for field in together._fields:
        assert np.array_equal(getattr(together, field), np.concatenate([getattr(each, field) for each in alone]))


def test_order_depends_on_seed_but_a_source_keeps_its_own_when_others_join():
    few = Mixture(["a", "b"], [300, 40], [1, 1], seed=1)
    more = Mixture(["b", "a", "c"], [40, 300, 9], [1, 1, 1], seed=1)
    other = Mixture(["a", "b"], [300, 40], [1, 1], seed=2)

    def order(mixture, name):
        picks = mixture.picks(np.arange(BLOCK))
        return picks.item[picks.source == mixture.names.index(name)][:300].tolist()

    assert order(few, "a") == order(more, "a") != order(other, "a")


def test_keys_are_the_same_everywhere():
    assert key("a", 1) == key("a", 1) != key("a", "1")
    assert 0 <= key("x") < 2**63
    # Frozen: another value would change the order of every recorded run.
    assert key(0, "block", 0) == 1903988481561409457
    assert permute(np.arange(6), 6, 1).tolist() == [2, 0, 4, 1, 3, 5]


@pytest.mark.parametrize(
    ("names", "lengths", "weights", "told"),
    [
        ([], [], [], "0 sources"),
        (["a"], [1], [1, 2], "2 weights"),
        (["a", "a"], [1, 1], [1, 1], "named 'a'"),
        (["a"], [0], [1], "'a' is empty"),
        (["a"], [1], [-1], "-1"),
        (["a"], [1], [float("nan")], "nan"),
        (["a", "b"], [1, 1], [0, 0], "all weights"),
    ],
)
def test_impossible_mixtures_are_refused(names, lengths, weights, told):
    with pytest.raises(TonyError, match=told):
        Mixture(names, lengths, weights, seed=0)


def test_a_source_of_weight_zero_may_be_empty_and_is_never_picked():
    picks = Mixture(["a", "b"], [5, 0], [1, 0], seed=0).picks(np.arange(3000))
    assert (picks.source == 0).all()
