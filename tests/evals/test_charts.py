"""Charts put values where they belong."""

import re

import pytest

from tony.evals import charts


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.037), (-3, 912), (4.1, 4.2), (0, 12_345_678)])
def test_ticks_are_round_and_cover_the_values(low, high):
    ticks = charts.nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 8
    assert all(len(f"{tick:g}") <= 8 for tick in ticks)


def test_running_mean_of_a_constant_is_the_constant():
    points = [(x, 2.0) for x in range(100)]
    assert [y for _, y in charts.running_mean(points)] == pytest.approx([2.0] * 100)


def test_running_mean_is_over_the_last_window():
    points = [(x, float(x)) for x in range(100)]
    assert charts.running_mean(points)[50][1] == pytest.approx((46 + 47 + 48 + 49 + 50) / 5)


def test_thinning_keeps_both_ends():
    points = [(x, 0.0) for x in range(10_001)]
    kept = charts.thin(points)
    assert len(kept) <= charts.POINTS + 1
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def dots(value, **more):
    svg = charts.scale(value, 0.01, **more)
    return float(re.search(r'circle class="dot" cx="([\d.]+)"', svg)[1])


def test_better_is_to_the_right_either_way():
    controls = {"positive": 1.0, "negative": 0.0}
    assert dots(0.9, controls=controls, target=None, reverse=False) > dots(
        0.1, controls=controls, target=None, reverse=False
    )
    controls = {"positive": 0.0, "negative": 1.0}
    assert dots(0.1, controls=controls, target=None, reverse=True) > dots(
        0.9, controls=controls, target=None, reverse=True
    )


def test_lines_survive_spikes_single_points_and_not_numbers():
    nan = float("nan")
    assert charts.lines({"a": []}, {}, "x", "t") == ""
    assert charts.lines({"a": [(0, nan)]}, {}, "x", "t") == ""
    assert "<svg" in charts.lines({"a": [(5, 1.0)]}, {}, "x", "t")
    svg = charts.lines({"a": [(0, 1e9), *((x, 1.0) for x in range(1, 90))], "<b>": [(0, 2.0), (9, nan)]}, {}, "x", "t")
    assert "nan" not in svg
    assert "<b>&lt;" not in svg
    assert "&lt;b&gt;" in svg


def test_counts_are_short():
    assert [charts.count(n) for n in (7, 1500, 17_300_000, 2e9)] == ["7", "1.5k", "17.3M", "2B"]
