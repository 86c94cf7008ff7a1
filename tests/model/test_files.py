"""A network on disk survives the trip, and whatever is wrong with it is said."""

import json

import jax
import numpy as np
import pytest

from tony.errors import TonyError
from tony.model.config import ModelConfig
from tony.model.files import load_model, save_model
from tony.model.params import declare, init
from tony.tokens.weights import load as load_codec

CONFIG = ModelConfig(vocab_size=16, layers=1, width=8, heads=1, kv_heads=1, head_dim=8, hidden=8)


@pytest.fixture
def folder(tmp_path):
    save_model(tmp_path, CONFIG, init(declare(CONFIG), jax.random.key(0)))
    return tmp_path


def test_round_trip(folder):
    config, params = load_model(folder)
    assert config == CONFIG
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(init(declare(CONFIG), jax.random.key(0))), strict=True):
        np.testing.assert_array_equal(a, b)


def test_truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TonyError, match="damaged"):
        load_model(folder)


def test_of_another_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden": 24}))
    with pytest.raises(TonyError, match="do not belong together"):
        load_model(folder)


def test_missing(tmp_path):
    with pytest.raises(TonyError, match="is missing"):
        load_model(tmp_path)


def test_unreadable(folder, monkeypatch):
    import builtins

    opened = open

    def refuse(path, *more, **options):
        if str(path).endswith("model.safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *more, **options)

    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(TonyError, match=r"/model\.safetensors can't be read \(Permission denied\)"):
        load_model(folder)
    monkeypatch.setattr("tony.tokens.weights.WEIGHTS", "model.safetensors")
    with pytest.raises(TonyError, match=r"/model\.safetensors can't be read \(Permission denied\)"):
        load_codec(folder)
