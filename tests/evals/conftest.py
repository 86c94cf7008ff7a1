"""Fixtures of the evaluations' tests."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # so that tests find eval_fakes under any import mode of pytest

from eval_fakes import FakeOmni, make


@pytest.fixture(scope="session")
def fake_run_made_once(tmp_path_factory):
    """A whole fake run's folder, to be read only."""
    return make(tmp_path_factory.mktemp("runs") / "laptop", rounds=6)


@pytest.fixture
def fake_run(tmp_path, fake_run_made_once):
    """A whole fake run's folder of the test's own."""
    return Path(shutil.copytree(fake_run_made_once, tmp_path / "laptop"))


@pytest.fixture
def bench_of(tmp_path):
    """bench_of(items, replies): a Bench whose every task has these items and whose model gives these replies."""
    from tony.evals.bench import Bench

    def build(items, replies=(), damage=0.0):
        return Bench(FakeOmni(replies, damage), lambda task, n: list(items)[:n], tmp_path, n=len(items))

    return build
