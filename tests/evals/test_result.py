"""Standard errors against what repeated sampling really gives."""

import numpy as np
import pytest

from tony.evals.result import (
    Result,
    binomial_stderr,
    derangement,
    jackknife_stderr,
    mean_stderr,
    ratio_stderr,
)


def test_binomial_stderr_matches_the_spread_of_repeated_samples():
    rng = np.random.default_rng(0)
    counts = rng.binomial(200, 0.8, 20_000)
    assert binomial_stderr(160, 200) == pytest.approx(np.std(counts / 200), rel=0.03)


def test_binomial_stderr_is_not_zero_when_all_are_right():
    assert 0.02 < binomial_stderr(50, 50) < 0.05
    assert binomial_stderr(50, 50) == pytest.approx(binomial_stderr(0, 50))


def test_binomial_stderr_refuses_no_samples():
    with pytest.raises(ValueError, match="at least one"):
        binomial_stderr(0, 0)


def test_mean_stderr_matches_scipy():
    from scipy.stats import sem

    values = np.random.default_rng(1).normal(size=57)
    assert mean_stderr(values) == pytest.approx(sem(values))
    assert mean_stderr([3.0]) == 0.0


def test_ratio_stderr_matches_the_spread_of_whole_test_sets():
    rng = np.random.default_rng(2)

    def test_set(n=100):
        words = rng.integers(4, 12, n)
        bad = rng.random(n) < 0.2  # errors come together: a clip is heard well or badly
        return rng.binomial(words, np.where(bad, 0.5, 0.02)), words

    rates = [errors.sum() / words.sum() for errors, words in (test_set() for _ in range(3000))]
    estimates = [ratio_stderr(*test_set(), seed=i) for i in range(20)]
    assert np.mean(estimates) == pytest.approx(np.std(rates), rel=0.12)


def test_ratio_stderr_is_reproducible():
    errors, words = [0, 1, 0, 2, 0], [5, 6, 7, 8, 9]
    assert ratio_stderr(errors, words) == ratio_stderr(errors, words) > 0


def test_jackknife_of_a_mean_is_its_standard_error():
    values = list(np.random.default_rng(3).normal(size=60))
    assert jackknife_stderr(values, np.mean, groups=60) == pytest.approx(mean_stderr(values))


@pytest.mark.parametrize("n", [2, 3, 17, 100])
def test_derangement_moves_everything(n):
    order = derangement(n, seed=n)
    assert sorted(order) == list(range(n))
    assert all(place != index for index, place in enumerate(order))


def test_result_as_a_dict_has_the_summary_keys_and_no_records():
    result = Result("speech_wer", 0.1, 0.01, 20, False, records=[{"index": 0}])
    facts = result.to_dict()
    assert {"name", "value", "stderr", "n", "higher_is_better"} <= facts.keys()
    assert "records" not in facts
