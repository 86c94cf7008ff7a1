"""Imported models against what `transformers` computed of the same files (scripts/build_exchange_fixtures.py)."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tony.errors import TonyError
from tony.exchange import importing
from tony.exchange.exporting import export_model
from tony.exchange.families import FAMILIES, read_config
from tony.exchange.gguf import open_gguf
from tony.exchange.importing import import_model, read_params
from tony.exchange.weights import Safetensors
from tony.model.config import ModelConfig
from tony.model.files import load_model
from tony.model.forward import decode, forward, init_cache, unembed

FIXTURES = Path(__file__).parent / "fixtures"
NAMES = ("llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")


def folder(name: str, out: Path) -> Path:
    """A fixture's model with the common tokenizer, as one downloads it."""
    shutil.copytree(FIXTURES / name, out)
    for path in (FIXTURES / "tokenizer").iterdir():
        shutil.copy(path, out)
    return out


@pytest.fixture(scope="module", params=NAMES)
def imported(request, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / request.param
    import_model(str(folder(request.param, out / "source")), out / "release")
    expected = np.load(FIXTURES / request.param / "expected.npz")
    return *load_model(out / "release"), expected["tokens"], expected["logits"]


def test_exact_forward_gives_the_logits_of_transformers(imported):
    config, params, tokens, expected = imported
    positions = jnp.arange(len(tokens))[None]
    hidden, *_ = forward(params, config, jnp.asarray(tokens)[None], positions, jnp.ones_like(positions), exact=True)
    np.testing.assert_allclose(unembed(params, config, hidden)[0], expected, atol=1e-4 * np.abs(expected).max())


def test_cached_decoding_gives_the_logits_of_transformers(imported):
    config, params, tokens, expected = imported
    cache, made = init_cache(config, 1, 16), []
    for start, stop in ((0, 9), (9, 10), (10, 14)):
        at = jnp.arange(start, stop)[None]
        hidden, cache = decode(params, config, cache, jnp.asarray(tokens[start:stop])[None], at)
        made.append(unembed(params, config, hidden)[0])
    np.testing.assert_allclose(np.concatenate(made), expected, atol=1e-4 * np.abs(expected).max())


def test_training_forward_is_near_and_its_gradients_are_finite(imported):
    config, params, tokens, expected = imported
    positions = jnp.arange(len(tokens))[None]

    def loss(params):
        hidden, *_ = forward(params, config, jnp.asarray(tokens)[None], positions, jnp.ones_like(positions))
        logits = unembed(params, config, hidden)[0]
        return jnp.abs(logits - expected).mean() / np.abs(expected).mean()

    error, gradients = jax.value_and_grad(loss)(params)
    assert error < 0.05  # products of bfloat16, and experts that are near a draw
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def change(path: Path, **values) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"architectures": ["FalconForCausalLM"]},
            "FalconForCausalLM, which Tony cannot compute; supported are Llama, M",
        ),
        ({"architectures": 3, "model_type": None}, "of no architecture"),
        ({"num_attention_heads": "four"}, "num_attention_heads is 'four'; expected a whole number"),
        ({"hidden_act": "relu2"}, "the activation 'relu2'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "scaled by 'yarn'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights"),
        ({"num_hidden_layers": 3}, "it lacks model.layers.2.input_layernorm.weight and"),
        ({"num_hidden_layers": 1}, "it has model.layers.1.input_layernorm.weight besides and"),
        ({"vocab_size": 281}, "model.embed_tokens.weight has the shape (280, 16)"),
        ({"attention_bias": True}, "biases in only some of its products"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000"),
    ],
)
def test_what_is_not_supported_is_one_sentence(tmp_path, values, said):
    change(folder("llama", tmp_path / "model"), **values)
    with pytest.raises(TonyError) as caught:
        import_model(str(tmp_path / "model"), tmp_path / "out")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


BAD = (-1, 0, 2**31, 2**40, 10**400, 1.5, float("nan"), float("inf"), "x", [1], {"a": 1}, True, [], None)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_whatever_config_json_says_ends_in_a_model_or_in_one_sentence(tmp_path, name):
    path = folder(name, tmp_path / "model")
    whole = json.loads((path / "config.json").read_text())
    keys = {*whole, "quantization_config", "partial_rotary_factor", "mlp_only_layers", "layer_types", "rope_scaling"}
    weights = Safetensors(path)
    for key in sorted(keys):
        for bad in BAD:
            try:
                family, config = read_config({**whole, key: bad}, "config.json", tied=False)
                read_params(weights, family, config, "here", packed=False)
            except TonyError as error:
                assert "\n" not in str(error) and len(str(error)) < 300


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_whatever_the_metadata_of_a_gguf_file_says_ends_in_a_model_or_in_one_sentence(tmp_path, name, monkeypatch):
    import_model(str(folder(name, tmp_path / "source")), tmp_path / "release")
    export_model(tmp_path / "release", tmp_path / "model.gguf", "f32")
    for key in sorted(open_gguf(tmp_path / "model.gguf").metadata):
        for bad in BAD:
            file = open_gguf(tmp_path / "model.gguf")
            file.metadata[key] = bad
            monkeypatch.setattr(importing, "open_gguf", lambda path, file=file: file)
            try:
                importing._read_gguf(tmp_path / "model.gguf")
            except TonyError as error:
                assert "\n" not in str(error) and len(str(error)) < 300


def test_experts_that_no_file_can_hold_are_refused_before_memory_is_taken(tmp_path):
    path = folder("qwen3_moe", tmp_path / "model")
    change(path, num_local_experts=2**31)
    with pytest.raises(TonyError, match="num_local_experts is 2147483648; expected a whole number from 1 to 4096"):
        import_model(str(path), tmp_path / "out")
    change(path, num_local_experts=4096)
    with pytest.raises(TonyError, match=r"says that it is of [\d,]+ parameters, which [\d,]+ bytes can't hold"):
        import_model(str(path), tmp_path / "out")


def test_windows_of_some_blocks_are_refused_and_of_none_ignored(tmp_path):
    path = folder("qwen3", tmp_path / "model")
    change(path, use_sliding_window=True, sliding_window=8, layer_types=None, max_window_layers=1)
    with pytest.raises(TonyError, match="a sliding window in 1 of its 2 blocks"):
        import_model(str(path), tmp_path / "out")
    change(path, max_window_layers=2)
    import_model(str(path), tmp_path / "out")
    assert load_model(tmp_path / "out")[0].window == 0


def test_a_window_of_qwens_counts_only_where_it_is_switched_on(tmp_path):
    path = folder("qwen3", tmp_path / "model")
    change(path, sliding_window=8, layer_types=None)
    config = json.loads((path / "config.json").read_text())
    config.pop("use_sliding_window", None)
    (path / "config.json").write_text(json.dumps(config))
    import_model(str(path), tmp_path / "out")
    assert load_model(tmp_path / "out")[0].window == 0


def test_a_model_type_names_the_family_where_no_architecture_does(tmp_path):
    path = folder("llama", tmp_path / "model")
    change(path, architectures=None)
    import_model(str(path), tmp_path / "out")
    assert load_model(tmp_path / "out")[0].layers == 2


def test_a_pickle_is_not_opened(tmp_path):
    path = folder("llama", tmp_path / "model")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(TonyError, match="a pickle, which can run code and is not read"):
        import_model(str(path), tmp_path / "out")


def test_shards_are_read_and_stay_in_their_folder(tmp_path):
    from safetensors.numpy import load_file, save_file

    path = folder("llama", tmp_path / "model")
    arrays = load_file(path / "model.safetensors")
    names = sorted(arrays)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: arrays[name] for name in held}, path / file)
    (path / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    import_model(str(path), tmp_path / "out")
    import_model(str(folder("llama", tmp_path / "whole")), tmp_path / "other")
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "out")[1], load_model(tmp_path / "other")[1])
    index["weight_map"][names[0]] = "../b.safetensors"
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(TonyError, match="expected safetensors files beside it"):
        import_model(str(path), tmp_path / "again")


def test_a_name_that_is_nothing_is_told_without_a_look_at_the_hub(tmp_path):
    with pytest.raises(TonyError, match=r"expected a folder, a \.gguf file, or a name on the Hub"):
        import_model(str(tmp_path / "nothing"), tmp_path / "out")


def test_every_family_has_a_fixture():
    told = {json.loads((FIXTURES / name / "config.json").read_text())["architectures"][0] for name in NAMES}
    assert told == set(FAMILIES)


def test_tonys_own_models_are_what_they_were():
    assert ModelConfig(8).embedding_scale == 0  # the square root of the width
    assert (ModelConfig(8).window, ModelConfig(8).rope_factor, ModelConfig(8).norm_epsilon) == (0, 1.0, 1e-6)
