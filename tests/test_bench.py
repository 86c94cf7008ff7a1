"""The measurements' own machinery; the peers are not needed."""

import json

import pytest

from bench.train.__main__ import Contender, tony
from bench.train.work import LENGTH, ROWS

SHAPE = {
    "vocab_size": 64, "layers": 1, "width": 32, "heads": 2, "head_dim": 16, "hidden": 32, "experts": 0,
    "experts_per_token": 2, "rows": 2,
}  # fmt: skip


def test_tony_takes_as_many_steps_as_it_is_asked_for():
    contender = tony(SHAPE)
    assert isinstance(contender, Contender)
    for steps in (2, 3):
        contender.take(steps)
    contender.close()
    assert contender.process.returncode == 0
    assert [turn["steps"] for turn in contender.turns] == [2, 3]
    assert contender.turns[1]["loss"] < contender.facts["losses"][0]  # it learns its one batch
    assert contender.facts["parameters"] == 2 * 64 * 32 + 3 * 32 + 7 * 32 * 32
    each = [turn["steps"] / turn["seconds"] for turn in contender.turns]
    assert contender.tokens_per_second() == pytest.approx(ROWS * LENGTH * sum(each) / 2)
    whole = [(turn["steps"] + 1) / (turn["seconds"] + turn["first_seconds"]) for turn in contender.turns]
    assert contender.speeds(first=True) == pytest.approx([ROWS * LENGTH * speed for speed in whole])
    json.dumps(contender.facts)
