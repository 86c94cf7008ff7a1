"""The numbers that PaLM and GLaM print, from what they say of their runs."""

import pytest

from tony.plan.arithmetic import (
    discontinuity,
    grouped_average,
    megawatt_hours,
    recomputed_flops_per_token,
    tonnes_co2e,
    training_flops_per_token,
    utilization,
)

PALM = {"parameters": 540.35e9, "layers": 118, "heads": 48, "head_dim": 256, "length": 2048}
PALM_CHIPS = {"chips": 6144, "peak": 275e12}
PALM_TOKENS_PER_SECOND = 238.3e3


def test_utilization_of_palm():
    own, alone = training_flops_per_token(**PALM), training_flops_per_token(PALM["parameters"])
    again = recomputed_flops_per_token(**PALM, share=0.75)
    assert own / 1e12 == pytest.approx(3.28, abs=0.005) and (own + again) / 1e12 == pytest.approx(4.10, abs=0.005)
    for flops, printed in ((alone, 0.457), (own, 0.462), (own + again, 0.578)):
        assert utilization(PALM_TOKENS_PER_SECOND, flops, **PALM_CHIPS) == pytest.approx(printed, abs=0.0006)


def test_utilization_of_megatron_turing():
    # PaLM, table 3: 530B on 2,240 A100 (312 TFLOP/s), 65.43K tokens/s (Smith et al. 2022, section 2.4).
    shape = {"parameters": 529.6e9, "layers": 105, "heads": 128, "head_dim": 160, "length": 2048}
    for flops, printed in ((training_flops_per_token(**shape), 0.302), (training_flops_per_token(529.6e9), 0.297)):
        assert utilization(65.43e3, flops, 2240, 312e12) == pytest.approx(printed, abs=0.001)


def test_operations_of_palms_training():
    for shape, tokens, printed in (
        (PALM, 780e9, 2.56e24),
        ({**PALM, "parameters": 62.50e9, "layers": 64, "heads": 32}, 795e9, 3.08e23),
        ({**PALM, "parameters": 8.63e9, "layers": 32, "heads": 16}, 780e9, 4.29e22),
    ):
        assert training_flops_per_token(**shape) * tokens == pytest.approx(printed, rel=0.005)


def test_energy_and_emissions():
    chip_hours = 6144 * 1200 + 3072 * 336
    energy = megawatt_hours(chip_hours, 378.5, pue=1.08)
    assert chip_hours == pytest.approx(8.405e6, rel=1e-4) and energy == pytest.approx(3436, abs=1)
    assert tonnes_co2e(energy, 0.079) == pytest.approx(271.43, abs=0.1)
    glam = megawatt_hours(574 * 1024, 326, pue=1.11)
    assert glam == pytest.approx(212.7, abs=0.1) and glam * 600 / 280 == pytest.approx(455.8, abs=0.1)


def test_averages_of_glam_from_its_groups():
    # Nine generative and twenty-one understanding scores: SQuADv2 counts twice.
    for generation, understanding, printed in ((54.6, 66.2, 62.7), (58.4, 68.6, 65.5)):
        groups = {"generation": [generation] * 9, "understanding": [understanding] * 21}
        assert grouped_average(groups) == pytest.approx(printed, abs=0.05)


def test_averages_of_palm_from_its_tasks():
    # PaLM 540B, one shot (table 4): TriviaQA, NQ, WebQ, LAMBADA, DROP, CoQA, QuAC, SQuADv2 F1 and EM.
    generation = [81.4, 29.3, 22.6, 81.8, 70.8, 79.9, 47.7, 82.9, 78.7]
    # HellaSwag, StoryCloze, Winograd, WinoGrande, RACE-m, -h, PIQA, ARC-e, -c, OpenBookQA, BoolQ, COPA, RTE, WiC,
    # MultiRC, WSC, ReCoRD, CB, ANLI R1, R2, R3.
    understanding = [
        83.6, 86.1, 87.5, 83.7, 69.3, 52.1, 83.9, 85.0, 60.1, 53.6, 88.7, 91.0, 78.7, 63.2, 84.9, 86.3, 92.8, 83.9,
        52.6, 48.7, 52.3,
    ]  # fmt: skip
    assert grouped_average({"": generation}) == pytest.approx(63.9, abs=0.05)
    assert grouped_average({"": understanding}) == pytest.approx(74.7, abs=0.05)


def test_discontinuity_of_logical_sequence():
    assert discontinuity(13, 25, 87) == 50
