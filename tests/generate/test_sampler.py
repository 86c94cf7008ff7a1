"""Draws against the distributions that they are said to come from."""

import jax
import numpy as np
import pytest

from tony.generate.sampler import TOP, Sampling, sample, words_apart

VOCAB = 300
DRAWS = 4000
draw = jax.jit(sample)


def settings(rows, temperature=1.0, top_k=0, top_p=1.0, seed=None, drawn=0) -> Sampling:
    """One setting for all rows; each row has a seed of its own unless one is given."""
    seeds = np.arange(rows) if seed is None else np.broadcast_to(seed, rows)
    full = [np.broadcast_to(value, rows) for value in (temperature, top_k, top_p)]
    return Sampling(
        full[0].astype(np.float32), full[1].astype(np.int32), full[2].astype(np.float32), seeds.astype(np.uint32),
        np.broadcast_to(drawn, rows).astype(np.int32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def logits():
    """Random ones; a dozen tokens matter."""
    logits = np.random.default_rng(0).normal(size=VOCAB)
    logits[::25] += 6
    return logits.astype(np.float32)


@pytest.fixture(scope="module")
def allowed():
    allowed = np.random.default_rng(1).random(VOCAB) < 0.8
    allowed[:60:25] = [True, False, True]
    return allowed


def probabilities(logits, allowed, temperature=1.0):
    scaled = np.where(allowed, logits.astype(np.float64) / temperature, -np.inf)
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def test_greedy_takes_the_likeliest_that_is_allowed_and_tells_the_models_own_probabilities():
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(50, VOCAB)).astype(np.float32)
    allowed = rng.random((50, VOCAB)) < rng.random((50, 1))
    allowed[:, 7] = True
    allowed[0] = np.arange(VOCAB) == 7
    out = draw(logits, allowed, settings(50, temperature=0.0, top_k=3, top_p=0.5))
    for row in range(50):
        expected = probabilities(logits[row], allowed[row])
        assert out.token[row] == expected.argmax()
        assert np.exp(out.logprob[row]) == pytest.approx(expected.max(), rel=1e-4)
        assert out.top_tokens[row, 0] == out.token[row]
        np.testing.assert_allclose(np.exp(out.top_logprobs[row]), np.sort(expected)[::-1][:TOP], rtol=1e-4)
    assert out.token[0] == 7 and out.logprob[0] == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["all", "top_k", "top_p"])
def test_draws_have_the_asked_distribution(logits, allowed, temperature, kind):
    own = probabilities(logits, allowed)
    expected = probabilities(logits, allowed, temperature)
    order = np.argsort(-expected)
    restricted = {}
    if kind == "top_k":
        restricted = {"top_k": 4}
        expected[order[4:]] = 0
    elif kind == "top_p":  # the fewest likeliest tokens that have 0.6 between them (Holtzman et al. 2020)
        restricted = {"top_p": 0.6}
        count = int(np.searchsorted(np.cumsum(expected[order]), 0.6)) + 1
        expected[order[count:]] = 0
    expected /= expected.sum()
    rows = np.broadcast_to(logits, (DRAWS, VOCAB)), np.broadcast_to(allowed, (DRAWS, VOCAB))
    out = draw(*rows, settings(DRAWS, temperature, **restricted))
    counts = np.bincount(out.token, minlength=VOCAB)
    assert not counts[expected == 0].any()
    assert (np.abs(counts - DRAWS * expected) < 1 + 5 * np.sqrt(DRAWS * expected)).all()
    np.testing.assert_allclose(np.exp(out.logprob), own[np.asarray(out.token)], rtol=1e-4)


def test_a_row_draws_the_same_whatever_its_neighbours():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(6, VOCAB)).astype(np.float32)
    allowed = rng.random((6, VOCAB)) < 0.7
    mixed = Sampling(
        np.array([0, 1, 2, 1, 0.5, 5], np.float32), np.array([0, 0, 3, 0, 9, 0], np.int32),
        np.array([1, 1, 1, 0.5, 0.9, 1], np.float32), np.array([5, 5, 6, 7, 8, 2**32 - 1], np.uint32),
        np.array([0, 1, 2, 3, 50, 1000], np.int32),
    )  # fmt: skip
    together = draw(logits, allowed, mixed).token
    order = np.array([3, 5, 0, 4, 1, 2])
    shuffled = draw(logits[order], allowed[order], Sampling(*(field[order] for field in mixed))).token
    assert np.array_equal(shuffled, together[order])
    for row in range(6):
        one = draw(logits[[row]], allowed[[row]], Sampling(*(field[[row]] for field in mixed))).token
        assert one[0] == together[row]


def test_every_draw_of_a_request_is_a_new_one(logits, allowed):
    rows = np.broadcast_to(logits, (DRAWS, VOCAB)), np.broadcast_to(allowed, (DRAWS, VOCAB))
    tokens = draw(*rows, settings(DRAWS, seed=9, drawn=np.arange(DRAWS))).token
    expected = probabilities(logits, allowed)
    counts = np.bincount(tokens, minlength=VOCAB)
    assert (np.abs(counts - DRAWS * expected) < 1 + 5 * np.sqrt(DRAWS * expected)).all()


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}])
def test_the_narrowest_choice_is_the_greedy_one(logits, allowed, narrow):
    rows = np.broadcast_to(logits, (50, VOCAB)), np.broadcast_to(allowed, (50, VOCAB))
    tokens = draw(*rows, settings(50, temperature=5.0, **narrow)).token
    assert set(np.asarray(tokens).tolist()) == {int(probabilities(logits, allowed).argmax())}


@pytest.mark.parametrize("own, other", [(0.0, 0.7), (0.5, 1.5), (2.0, 2.0), (1.0, 0.0)])
def test_words_apart_are_drawn_at_their_own_temperature(logits, allowed, own, other):
    words = allowed & (np.arange(VOCAB) < 120)
    rows = [np.broadcast_to(array, (DRAWS, VOCAB)) for array in (logits, allowed)]
    own_of, other_of = (np.full(DRAWS, value, np.float32) for value in (own, other))
    apart = words_apart(rows[0], np.broadcast_to(words, (DRAWS, VOCAB)), own_of, other_of)
    out = draw(*rows, settings(DRAWS, other), apart)
    at_other = probabilities(logits, allowed, other or 1e-4)
    expected = np.where(words, probabilities(logits, words, own or 1e-4) * at_other[words].sum(), at_other)
    counts = np.bincount(out.token, minlength=VOCAB)
    assert not counts[expected < 1e-12].any()
    assert (np.abs(counts - DRAWS * expected) < 1 + 5 * np.sqrt(DRAWS * expected)).all()
    model = probabilities(logits, allowed)
    np.testing.assert_allclose(np.exp(out.logprob), model[np.asarray(out.token)], rtol=1e-4)
    np.testing.assert_allclose(np.exp(out.top_logprobs[0]), np.sort(model)[::-1][:TOP], rtol=1e-4)
