"""The papers' own arithmetic: operations, utilisation, energy, emissions, averages, discontinuities.

Units are in the names; a chip's peak is in floating-point operations a second.
"""

from collections.abc import Mapping, Sequence

HOURS = 3600.0
PUE, GRID = 1.08, 0.079  # PaLM, appendix B; tonnes of CO2e a megawatt hour


def training_flops_per_token(
    parameters: float, layers: int = 0, heads: int = 0, head_dim: int = 0, length: float = 0
) -> float:
    """6 a parameter, and 12 L H Q T of attention, the whole square (PaLM, appendix B). Of experts count the active."""
    return 6 * parameters + 12 * layers * heads * head_dim * length


def recomputed_flops_per_token(
    parameters: float, layers: int, heads: int, head_dim: int, length: int, share: float = 1.0
) -> float:
    """What rematerialisation adds: a `share` of the forward pass without attention (2 a parameter), and attention
    whole (4 L H Q T). PaLM recomputed 0.75 (section 4.1)."""
    return share * 2 * parameters + 4 * layers * heads * head_dim * length


def utilization(tokens_per_second: float, flops_per_token: float, chips: int, peak: float) -> float:
    """Share of the chips' peak that a throughput amounts to: MFU if only the model's own operations are counted, HFU if
    the recomputed ones are too (PaLM, section 4.1)."""
    return tokens_per_second * flops_per_token / (chips * peak)


def megawatt_hours(chip_hours: float, watts_per_chip: float, pue: float = 1.0) -> float:
    """Energy of a training, that of cooling and conversion in `pue` (Patterson et al. 2021, section 2.1)."""
    return chip_hours * watts_per_chip * pue / 1e6


def tonnes_co2e(megawatt_hours: float, tonnes_per_megawatt_hour: float) -> float:
    """Emissions of an energy from a grid."""
    return megawatt_hours * tonnes_per_megawatt_hour


def discontinuity(small: float, middle: float, large: float) -> float:
    """How far the largest of three models, evenly apart in log size, is above the line through the smaller two (PaLM,
    section 6.2)."""
    return large - (middle + (middle - small))


def grouped_average(groups: Mapping[str, Sequence[float]]) -> float:
    """Mean over all scores of all groups: a group counts by its number of tasks."""
    scores = [score for group in groups.values() for score in group]
    return sum(scores) / len(scores)
