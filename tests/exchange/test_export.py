"""Exports, read back by the importer, which is tested against `transformers`; bench/exchange asks the others."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.exchange.test_import import NAMES, folder
from tony.errors import TonyError
from tony.exchange.exporting import export_model, omni_tokenizer
from tony.exchange.importing import import_model
from tony.exchange.text import ImportedTokenizer
from tony.model.config import ModelConfig
from tony.model.files import load_model, save_model
from tony.model.forward import decode, init_cache, unembed
from tony.model.params import declare, init
from tony.tokens.chat import Message, Text, encode_messages
from tony.tokens.text import TextTokenizer
from tony.tokens.tokenizer import Tokenizer
from tony.tokens.vocabulary import Vocabulary

SHAPE = {"layers": 2, "width": 32, "heads": 2, "kv_heads": 1, "head_dim": 16, "hidden": 32, "max_length": 64}
EXPERTS = {"experts": 3, "expert_hidden": 32, "dispatch": "sorted"}
TALK = [
    Message("user", (Text("27 + 48?"),)),
    Message("assistant", (Text("75"),), "27 + 48"),
    Message("user", (Text("why"),)),
]


def make(directory, **more) -> Tokenizer:
    """Write a release of Tony's with a random network."""
    text = TextTokenizer.train(["the number is 75", "hello"] * 5, 280)
    tokenizer = Tokenizer(Vocabulary(text.size, 5, 7), text)
    config = ModelConfig(tokenizer.vocabulary.padded_size, **{**SHAPE, **more})
    params = init(declare(config), jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    save_model(directory, config, params)
    tokenizer.save(directory / "tokenizer")
    return tokenizer


def logits(directory, tokens) -> np.ndarray:
    config, params = load_model(directory)
    at = jnp.arange(len(tokens))[None]
    return np.asarray(
        unembed(params, config, decode(params, config, init_cache(config, 1, 16), jnp.asarray([tokens]), at)[0])[0]
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_was_imported_goes_out_as_it_came(name, tmp_path):
    import_model(str(folder(name, tmp_path / "source")), tmp_path / "first")
    export_model(tmp_path / "first", tmp_path / "out", "bf16")
    import_model(str(tmp_path / "out"), tmp_path / "second")
    config, params = load_model(tmp_path / "first")
    again, params_again = load_model(tmp_path / "second")
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, params, params_again)
    assert (tmp_path / "second/tokenizer/text.json").read_text() == (tmp_path / "first/tokenizer/text.json").read_text()
    if name != "qwen3_moe":  # its second block is dense, which llama.cpp has not got
        export_model(tmp_path / "first", tmp_path / "model.gguf", "bf16")
        import_model(str(tmp_path / "model.gguf"), tmp_path / "third")
        third, params_third = load_model(tmp_path / "third")
        assert replace(third, norm_epsilon=0, balance_weight=0) == replace(config, norm_epsilon=0, balance_weight=0)
        jax.tree.map(np.testing.assert_array_equal, params, params_third)


@pytest.mark.parametrize(
    ("more", "architecture"),
    [
        ({}, "Qwen3ForCausalLM"),
        ({"qk_norm": False, "tied": False, "activation": "geglu"}, "LlamaForCausalLM"),
        ({"qk_norm": False, "biases": True}, "LlamaForCausalLM"),
        ({"qk_norm": False, "window": 5}, "MistralForCausalLM"),
        ({**EXPERTS, "expert_every": 2, "stacked": True}, "Qwen3MoeForCausalLM"),
        ({**EXPERTS, "experts_per_token": 1}, "Qwen3MoeForCausalLM"),
        ({**EXPERTS, "qk_norm": False}, "MixtralForCausalLM"),
    ],
)
def test_tonys_own_models_compute_the_same_after_export(more, architecture, tmp_path):
    make(tmp_path / "own", **more)
    assert export_model(tmp_path / "own", tmp_path / "out")["architecture"] == architecture
    import_model(str(tmp_path / "out"), tmp_path / "again")
    tokens = np.random.default_rng(0).integers(300, size=12)
    np.testing.assert_allclose(logits(tmp_path / "again", tokens), logits(tmp_path / "own", tokens), atol=2e-4)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"norm": "layernorm"}, "norm = 'layernorm'"),
        ({"position": "t5"}, "position = 't5'"),
        ({"parallel_block": True}, "parallel blocks"),
        ({"activation": "gelu"}, "without a gate"),
        ({**EXPERTS, "shared_hidden": 8}, "experts beside a shared one"),
        ({**EXPERTS, "balance": "bias"}, "a bias on the choice of experts"),
    ],
)
def test_a_network_that_nobody_else_has_is_refused(more, said, tmp_path):
    make(tmp_path / "own", **more)
    with pytest.raises(TonyError, match=f"{said}; no family"):
        export_model(tmp_path / "own", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_llama_cpp_is_not_given_what_it_has_not_got(tmp_path):
    make(tmp_path / "own", **EXPERTS, expert_every=2)
    with pytest.raises(TonyError, match="experts in every block or none"):
        export_model(tmp_path / "own", tmp_path / "model.gguf")


def test_the_exported_tokenizer_writes_tonys_streams(tmp_path):
    own = make(tmp_path / "own")
    export_model(tmp_path / "own", tmp_path / "out")
    import_model(str(tmp_path / "out"), tmp_path / "again")
    tokenizer = ImportedTokenizer.load(tmp_path / "again" / "tokenizer")
    assert tokenizer.prompt(TALK) == encode_messages(TALK, own.vocabulary, own.text, open_reply=True)
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] == own.vocabulary.special("end")
    names = {index: token for token, index in omni_tokenizer(own).get_vocab().items()}
    assert names[own.vocabulary.image.start] == "<image:0>"
    assert len(names) == own.vocabulary.size
