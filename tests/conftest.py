"""Settings of every test: the CPU, a compilation cache that outlives the run, no network."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "tony" / "jax-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """The folder of a tiny random model."""
    from tests.tiny import make_release

    return make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def omni(release):
    """The tiny model, running."""
    from tony.generate.omni import Omni

    loaded = Omni.load(release, slots=4)
    yield loaded
    loaded.close()
