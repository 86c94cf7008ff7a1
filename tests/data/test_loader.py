import time

import numpy as np
import pytest

from tony.data.loader import Loader
from tony.data.source import ArraySource, GeneratorSource, collect
from tony.errors import TonyError
from tony.tokens.tokenizer import Example


def source(name, count, low, high, seed=0, share=0.5):
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(count):
        length = rng.integers(low, high)
        # The first token tells the example, so that a test can see which one it is.
        tokens = np.r_[number, rng.integers(0, 500, length - 1)].astype(np.int32)
        weights = (np.arange(length) >= (1 - share) * length).astype(np.float32)
        examples.append(Example(tokens, weights, np.zeros(length, np.int8)))
    return ArraySource(name, collect(examples))


SHORT, LONG = source("short", 900, 8, 40), source("long", 300, 40, 100, seed=1)


def loader(**changed):
    given = {"sources": [SHORT, LONG], "weights": [3, 1], "rows": 24, "length": 128, "seed": 5} | changed
    return Loader(**given)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 6, 8, 12, 24])
def test_the_hosts_together_hold_the_same_batch_whatever_their_number(hosts):
    whole = loader()
    parts = [loader().batch(7, host, hosts) for host in range(hosts)]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    assert same(joined, whole.batch(7))


def test_a_batch_depends_on_the_step_and_the_seed_alone():
    first = loader()
    before = [first.batch(step) for step in range(6)]
    resumed = loader()
    assert same(resumed.batch(4), before[4]) and same(resumed.batch(1), before[1])
    assert not same(before[0], before[1]) and not same(loader(seed=6).batch(0), before[0])


def test_shapes_and_types():
    batch = loader(loss_capacity=100).batch(0)
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
        **dict.fromkeys(("tokens", "targets", "positions", "segments", "modality"), ((24, 128), np.int32)),
        "weights": ((24, 128), np.float32),
        "loss_index": ((24, 100), np.int32),
    }


def test_a_ramp_goes_through_the_same_stream_in_larger_batches():
    plain, ramped = loader(rows=4), loader(rows=4, ramp=((3, 8), (5, 4)))
    assert [ramped.rows_at(step) for step in range(7)] == [4, 4, 4, 8, 8, 4, 4]
    rows = np.concatenate([ramped.batch(step)["tokens"] for step in range(7)])
    np.testing.assert_array_equal(rows, np.concatenate([plain.batch(step)["tokens"] for step in range(9)]))
    halves = [ramped.batch(4, host, 2)["tokens"] for host in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), ramped.batch(4)["tokens"])


def documents(batch):
    for row in range(len(batch["tokens"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            here = batch["segments"][row] == segment
            yield np.r_[batch["tokens"][row, here], batch["targets"][row, here][-1]]


def test_every_document_is_a_whole_example_and_none_comes_twice_in_an_epoch():
    made = loader(sources=[SHORT], weights=[1])
    seen = []
    for step in range(3):  # three steps are less than an epoch of 900 examples
        for tokens in documents(made.batch(step)):
            number = int(tokens[0])
            assert np.array_equal(tokens, SHORT.example(number).tokens)
            seen.append(number)
    assert len(seen) == len(set(seen)) > 300


def test_the_mixture_is_kept_and_padding_is_low():
    made = loader()
    long = short = 0
    for step in range(20):
        for tokens in documents(made.batch(step)):
            is_long = len(tokens) >= 40
            long, short = long + is_long, short + (not is_long)
    assert abs(long / (long + short) - 0.25) < 0.03
    facts = made.facts()
    assert facts["padding"] < 0.06 and facts["shares"] == {"short": 0.75, "long": 0.25}


def test_the_loss_capacity_holds_every_weighted_place():
    made = loader()
    assert 64 <= made.capacity < 128
    for step in range(10):
        batch = made.batch(step)
        gathered = np.take_along_axis(batch["weights"], batch["loss_index"], axis=1)
        assert np.array_equal(gathered.sum(1), batch["weights"].sum(1))
    with pytest.raises(TonyError, match="loss_capacity is 10"):
        loader(loss_capacity=10)


def test_a_longer_example_is_an_error_at_once_or_is_skipped_and_counted():
    with pytest.raises(TonyError, match=r"'long' has \d+ examples longer than a row"):
        loader(length=64)
    made = loader(length=64, too_long="skip")
    over = int((LONG.lengths > 64).sum())
    assert made.skipped == {"long": over} and made.facts()["skipped"] == {"long": over}
    assert all(len(tokens) <= 64 for tokens in documents(made.batch(0)))
    with pytest.raises(TonyError, match="every example of source 'long'"):
        loader(sources=[LONG], weights=[1], length=32, too_long="skip")


def generated(index, seed):
    rng = np.random.default_rng(seed)
    length = int(rng.integers(5, 30))
    tokens = np.r_[index % 1000, rng.integers(0, 500, length - 1)].astype(np.int32)
    return Example(tokens, np.ones(length, np.float32), np.zeros(length, np.int8))


def test_generators_are_pure_too_and_draw_anew_in_each_epoch():
    make = lambda: loader(sources=[GeneratorSource("made", generated, 100), LONG], weights=[1, 1])  # noqa: E731
    whole, parts = make().batch(3), [make().batch(3, host, 4) for host in range(4)]
    assert same(whole, {name: np.concatenate([part[name] for part in parts]) for name in whole})
    assert make().capacity == 128  # what isn't known is given room for
    drawn = {}
    made = loader(sources=[GeneratorSource("made", generated, 50)], weights=[1])
    for step in range(4):
        for tokens in documents(made.batch(step)):
            drawn.setdefault(int(tokens[0]), set()).add(tuple(tokens))
    assert max(map(len, drawn.values())) > 1


def test_a_generator_that_makes_something_too_long_is_told():
    def huge(index, seed):
        return (
            generated(index, seed)
            if index != 3
            else Example(*[np.ones(500, t) for t in (np.int32, np.float32, np.int8)])
        )

    made = GeneratorSource("huge", huge, 10)
    with pytest.raises(TonyError, match="'huge' has 1 examples longer"):
        loader(sources=[made], weights=[1]).batch(0)
    skipping = loader(sources=[made], weights=[1], too_long="skip").batch(0)
    assert all(len(tokens) < 128 for tokens in documents(skipping))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rows": 0}, "0 rows"),
        ({"length": 4}, "4 tokens"),
        ({"too_long": "cut"}, "cut"),
        ({"weights": [1]}, "1 weights"),
    ],
)
def test_impossible_shapes_are_refused(changed, told):
    with pytest.raises(TonyError, match=told):
        loader(**changed)


def test_hosts_that_do_not_divide_the_rows_are_refused():
    with pytest.raises(TonyError, match="host 0 of 5 for 24 rows"):
        loader().batch(0, 0, 5)


def test_it_is_fast():
    made = loader(rows=16, length=512)
    made.batch(0)
    begin = time.process_time()
    for step in range(10):
        made.batch(step)
    assert 10 * 16 * 512 / (time.process_time() - begin) > 50_000
