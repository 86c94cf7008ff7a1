"""FSQ against the paper's formulas written out for one number at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tony.tokens.codec import codes_to_values, fsq_quantize, values_to_codes

LEVELS = [(8, 5, 5, 5), (7, 5, 5, 5, 5), (2, 3, 4)]


def slow_quantize(z: float, level: int) -> float:
    half = (level - 1) * 1.001 / 2
    offset = 0.5 if level % 2 == 0 else 0.0
    return round(math.tanh(z + math.atanh(offset / half)) * half - offset) / (level // 2)


@pytest.mark.parametrize("levels", LEVELS)
def test_quantized_values_are_those_of_the_formula(levels):
    z = np.random.default_rng(0).normal(0, 2, (200, len(levels))).astype(np.float32)
    expected = [[slow_quantize(float(x), level) for x, level in zip(row, levels, strict=True)] for row in z]
    np.testing.assert_allclose(fsq_quantize(jnp.asarray(z), levels), expected, atol=1e-6)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_is_reached_and_comes_back(levels):
    z = jax.random.normal(jax.random.key(0), (100_000, len(levels))) * 1.5
    codes = values_to_codes(np.asarray(fsq_quantize(z, levels)), levels)
    everything = np.arange(np.prod(levels))
    assert np.array_equal(np.unique(codes), everything)
    values = codes_to_values(everything, levels)
    assert values.dtype == np.float32 and np.abs(values).max() <= 1
    assert np.array_equal(values_to_codes(values, levels), everything)


def test_first_dimension_is_least_significant():
    assert values_to_codes(codes_to_values(np.array([1, 8]), (8, 5)), (8, 5)).tolist() == [1, 8]
    first, second = codes_to_values(np.array([0, 1]), (8, 5))
    assert first[0] < second[0] and first[1] == second[1]


def test_quantized_values_stay_where_they_are_under_jit_as_in_numpy():
    levels = LEVELS[0]
    codes = np.arange(1000)
    jitted = jax.jit(lambda c: values_to_codes(codes_to_values(c, levels), levels))(codes)
    assert jitted.dtype == jnp.int32 and np.array_equal(jitted, codes)


def test_gradient_passes_straight_through_the_rounding():
    z = jnp.array([[0.3, -0.2]])
    levels = (8, 5)
    slope = jax.grad(lambda z: fsq_quantize(z, levels).sum())(z)
    half = np.array([3.5, 2.0]) * 1.001
    shift = np.arctanh(np.array([0.5, 0.0]) / half)
    expected = half * (1 - np.tanh(np.asarray(z[0]) + shift) ** 2) / np.array([4, 2])
    np.testing.assert_allclose(slope[0], expected, rtol=1e-5)


def test_levels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="FSQ levels"):
        fsq_quantize(jnp.zeros((1, 3)), (8, 5))
    with pytest.raises(ValueError, match="FSQ levels"):
        codes_to_values(np.arange(2), (1, 5))
