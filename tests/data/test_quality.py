"""The quality filter: what it learns to tell apart, what it keeps, and what it refuses."""

import random

import numpy as np
import pytest

from tony.data.quality import QualityClassifier, hashed, kept
from tony.errors import TonyError

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "house",
    "river",
    "walks",
    "sees",
    "in",
    "near",
    "old",
    "red",
    "evening",
    "morning",
    "with",
]
JUNK = ["buy", "cheap", "online", "price", "click", "sale", "now", "free", "shipping", "order"]


def texts(words, count, seed):
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=30)) for _ in range(count)]


def test_it_tells_curated_text_from_junk_it_has_not_seen():
    raw = texts(WORDS, 20, 0) + texts(JUNK, 60, 1)  # the raw side has good documents too
    classifier = QualityClassifier.train(texts(WORDS, 60, 2), raw, buckets=4096)
    good, bad = classifier.scores(texts(WORDS, 40, 3)), classifier.scores(texts(JUNK, 40, 4))
    assert good.min() > bad.max()
    assert ((good > 0) & (good < 1)).all()


def test_its_gradient_is_that_of_scikit_free_arithmetic():
    """Two documents of one word each: the optimum is where the mean loss and the penalty balance."""
    classifier = QualityClassifier.train(["good"], ["bad"], buckets=1024, penalty=0.1)
    x = hashed(["good", "bad"], 1024).toarray()
    margin = x @ classifier.weights + classifier.bias
    pull = 0.5 * (1 / (1 + np.exp(np.array([1, -1]) * margin))) * np.array([1, -1])
    np.testing.assert_allclose(x.T @ pull, 0.1 * classifier.weights, atol=1e-4)
    assert abs(pull.sum()) < 1e-4


def test_a_score_is_kept_as_often_as_the_pareto_distribution_says():
    names = [str(i) for i in range(20_000)]
    for score in (0.0, 0.5, 0.8, 1.0):
        share = kept(np.full(len(names), score), names).mean()
        expected = (2 - score) ** -9.0
        assert share == pytest.approx(expected, abs=4 * (expected * (1 - expected) / len(names)) ** 0.5 + 1e-9)


def test_a_document_stays_or_goes_whoever_else_is_there():
    names, scores = [f"document {i}" for i in range(200)], np.linspace(0.3, 1, 200)
    whole = kept(scores, names, seed=3)
    order = np.random.default_rng(0).permutation(200)[:50]
    assert (kept(scores[order], [names[i] for i in order], seed=3) == whole[order]).all()
    assert (kept(scores, names, seed=4) != whole).any()


def test_rows_have_unit_length_and_do_not_hang_on_case():
    rows = hashed(["One two two three", "one TWO two three", ""], 512)
    assert np.allclose(np.square(rows.toarray()).sum(1), [1, 1, 0], atol=0.2)  # features may share a bucket
    assert (rows[0] != rows[1]).nnz == 0


def test_saved_and_loaded_it_scores_the_same(tmp_path):
    classifier = QualityClassifier.train(texts(WORDS, 10, 0), texts(JUNK, 10, 1), buckets=512)
    classifier.save(tmp_path / "quality.json")
    some = texts(WORDS, 5, 9)
    np.testing.assert_array_equal(
        QualityClassifier.load(tmp_path / "quality.json").scores(some), classifier.scores(some)
    )


@pytest.mark.parametrize(
    "content", ["", "[]", '{"buckets": 4}', '{"buckets": 4, "used": [9], "weights": [1], "bias": 0}']
)
def test_a_damaged_file_is_one_sentence(tmp_path, content):
    path = tmp_path / "quality.json"
    path.write_text(content)
    with pytest.raises(TonyError, match="no quality classifier"):
        QualityClassifier.load(path)
    with pytest.raises(TonyError, match="there is no quality classifier"):
        QualityClassifier.load(tmp_path / "none.json")


def test_a_side_without_documents_is_refused():
    with pytest.raises(TonyError, match="given 0 curated and 1 raw"):
        QualityClassifier.train([], ["x"])
