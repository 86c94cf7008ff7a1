"""Small charts as inline SVG. Colours come from the page's CSS classes, so they follow light and dark."""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 12, 30
POINTS = 240  # more than a line of this width can show


def lines(series: dict[str, list[tuple[float, float]]], classes: dict[str, str], x_label: str, title: str) -> str:
    """Lines over a common x: {name: [(x, y), ...]}; a logarithmic y axis when the values span more than 1:20.

    The line is the running mean; the raw values stand behind it, pale.
    """
    finite = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)] for name, points in series.items()
    }
    finite = {name: points for name, points in finite.items() if points}
    if not finite:
        return ""
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    smooth = {name: thin(running_mean(points)) for name, points in finite.items()}
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > 20
    low, high = (min(ys), max(ys)) if logarithmic else (min(0.0, *ys), robust_top(ys))
    ticks = _log_ticks(low, high) if logarithmic else nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = min(xs), max(max(xs), min(xs) + 1)

    def across(x: float) -> float:
        return LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        y = min(max(y, low), high)
        if logarithmic:
            share = (math.log(y) - math.log(low)) / max(1e-9, math.log(high) - math.log(low))
        else:
            share = (y - low) / max(1e-9, high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for tick in ticks:
        y = down(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in nice_ticks(first, last, 6):
        if first <= tick and across(tick) < WIDTH - RIGHT - 50:  # the axis' name stands at its end
            parts.append(
                f'<text class="tick" x="{across(tick):.1f}" y="{HEIGHT - 10}" text-anchor="middle">{count(tick)}</text>'
            )
    parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">{escape(x_label)}</text>')
    for name, points in finite.items():
        path = _path([(across(x), down(y)) for x, y in thin(points)])
        parts.append(f'<path class="line raw {classes.get(name, "c0")}" d="{path}"/>')
    for name, points in smooth.items():
        path = _path([(across(x), down(y)) for x, y in points])
        parts.append(f'<path class="line {classes.get(name, "c0")}" d="{path}"><title>{escape(name)}</title></path>')
    parts.append("</svg>")
    keys = "".join(
        f'<li class="{classes.get(name, "c0")}"><i></i>{escape(name)} <b>{points[-1][1]:.3g}</b></li>'
        for name, points in smooth.items()
    )
    return f'{"".join(parts)}<ul class="keys">{keys}</ul>'


def scale(value: float, stderr: float, controls: dict[str, float], target: float | None, reverse: bool) -> str:
    """A result between its controls: dot with whiskers of two standard errors, ticks for the controls, a target mark.

    Better is always to the right; `reverse` is for measures where less is better.
    """
    known = [number for number in (value, target, *controls.values()) if number is not None and math.isfinite(number)]
    low, high = min(known), max(known)
    margin = 0.06 * ((high - low) or 1.0)
    low, high = low - margin, high + margin

    def across(number: float) -> float:
        share = (min(max(number, low), high) - low) / (high - low)
        return 4 + 152 * (1 - share if reverse else share)

    marks = [
        '<svg class="scale" viewBox="0 0 160 22" aria-hidden="true">'
        '<line class="axis" x1="4" x2="156" y1="11" y2="11"/>'
    ]
    for name, number in controls.items():
        if math.isfinite(number):
            marks.append(
                f'<line class="control" x1="{across(number):.1f}" x2="{across(number):.1f}" y1="6" y2="16">'
                f"<title>{escape(name)} control {number:.3g}</title></line>"
            )
    if target is not None:
        x = across(target)
        marks.append(f'<path class="target" d="M{x:.1f} 8l-3.5 -6h7z"><title>target {target:.3g}</title></path>')
    ends = sorted((across(value - 2 * stderr), across(value + 2 * stderr)))
    marks.append(f'<line class="whisker" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="11" y2="11"/>')
    marks.append(
        f'<circle class="dot" cx="{across(value):.1f}" cy="11" r="4"><title>{value:.4g}</title></circle></svg>'
    )
    return "".join(marks)


def wave(peaks: Sequence[float]) -> str:
    """The shape of a sound: one bar for each peak in 0..1."""
    halves = [max(0.6, 15 * peak) for peak in peaks]
    bars = "".join(
        f'<rect x="{3 * i}" y="{16 - half:.1f}" width="2" height="{2 * half:.1f}" rx="1"/>'
        for i, half in enumerate(halves)
    )
    box = f'viewBox="0 0 {3 * len(halves)} 32" preserveAspectRatio="none"'
    return f'<svg class="wave" {box} aria-hidden="true">{bars}</svg>'


def bars(rows: list[tuple[str, float, str]], whole: float | None = None) -> str:
    """Horizontal bars: (name, length, what to write behind it); the full width is `whole`, or the longest."""
    longest = whole or max((length for _, length, _ in rows), default=0) or 1
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td><span class="bar" style="width:{min(100, 100 * length / longest):.1f}%"></span></td>'
        f'<td class="num">{escape(text)}</td></tr>'
        for name, length, text in rows
    )
    return f'<table class="bars">{cells}</table>'


# ------------------------------------------------------------------------------------------------------------ numbers


def running_mean(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Mean over a window of a twentieth of the points, fewer at the start."""
    window = max(1, len(points) // 20)
    out, total = [], 0.0
    for index, (x, y) in enumerate(points):
        total += y - (points[index - window][1] if index >= window else 0.0)
        out.append((x, total / min(index + 1, window)))
    return out


def thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every k-th point and the last, so that at most about POINTS remain."""
    step = max(1, math.ceil(len(points) / POINTS))
    kept = points[::step]
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def robust_top(values: Sequence[float]) -> float:
    """The largest value, unless the first few tower over all the rest."""
    ordered = sorted(values)
    nearly = ordered[int(0.98 * (len(ordered) - 1))]
    return ordered[-1] if ordered[-1] < 1.6 * nearly else nearly * 1.15


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`."""
    span = max(high - low, 1e-9)
    step = 10 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    start = math.floor(low / step + 1e-9)
    stop = math.ceil(high / step - 1e-9)
    return [round(step * index, 12) for index in range(start, stop + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [round(factor * 10.0**exponent, 9) for exponent in exponents for factor in (1, 2, 5)]
    inside = [tick for tick in every if low <= tick <= high]
    return inside if 2 <= len(inside) <= 7 else [tick for tick in inside if f"{tick:e}"[0] == "1"] or [low, high]


def _path(points: list[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def count(number: float) -> str:
    """1234567 -> "1.2M"; small numbers as they are."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:g}"
