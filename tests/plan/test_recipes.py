"""Every model of both papers is a recipe that loads, with the parameters that the paper prints."""

from pathlib import Path

import pytest

from tony.model.config import ModelConfig
from tony.model.count import active_parameter_count, parameter_count
from tony.recipe import load

RECIPES = Path(__file__).parents[2] / "recipes"
# Total and active parameters. What a recipe says of a row that the paper prints otherwise is what it computes to.
PAPERS = {
    "palm-8b": (8.632e9, 8.632e9),
    "palm-62b": (62.495e9, 62.495e9),
    "palm-540b": (540.354e9, 540.354e9),
    "glam-0.1b": (0.138e9, 0.138e9),
    "glam-0.1b-64e": (1.9e9, 0.152e9),
    "glam-1.7b": (1.7e9, 1.700e9),
    "glam-1.7b-32e": (14.0e9, 1.878e9),
    "glam-1.7b-64e": (27e9, 1.879e9),
    "glam-1.7b-128e": (53e9, 1.881e9),
    "glam-1.7b-256e": (105e9, 1.886e9),
    "glam-8b": (8.7e9, 8.7e9),
    "glam-8b-64e": (143e9, 9.8e9),
    "glam-137b": (137e9, 137e9),
    "glam-64b-64e": (1161.8e9, 96.60e9),
}


def test_there_is_one_for_each():
    assert {path.stem for path in RECIPES.glob("*lm-*.toml")} | {p.stem for p in RECIPES.glob("glam-*.toml")} == set(
        PAPERS
    )


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_has_the_papers_parameters(name):
    config = ModelConfig(**load(RECIPES / f"{name}.toml").model_fields())
    total, active = PAPERS[name]
    close = 0.0005 if name.startswith("palm") or name == "glam-64b-64e" else 0.02
    assert parameter_count(config) == pytest.approx(total, rel=close)
    assert active_parameter_count(config) == pytest.approx(active, rel=close)
