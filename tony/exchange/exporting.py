"""`tony export`: a model of Tony's -> a folder for `transformers`, or a GGUF file for llama.cpp and its kin.

Tony multiplies embeddings by a scale, as PaLM does; others do not, so it is worked into the table, and where the same
table makes the logits, out of the last norm's gain.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tony.errors import TonyError
from tony.exchange.bpe import begin_with, to_gguf
from tony.exchange.families import Family, Tensor, family_of, tensors, write_config
from tony.exchange.gguf import write_gguf
from tony.exchange.importing import pairs_from_halves
from tony.exchange.target import check_target, writing
from tony.exchange.text import ImportedTokenizer
from tony.files import write_bytes, write_json
from tony.generate.release import find_release, is_imported
from tony.model.config import ModelConfig
from tony.tokens.tokenizer import Tokenizer

DTYPES = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
TORCH = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
# Tony's own stream (tony.tokens.chat) of words and thoughts, as a chat template.
TEMPLATE = """<bos>{% for message in messages %}<{{ message['role'] }}>\
{% if message.get('reasoning_content') %}<think>{{ message['reasoning_content'] }}<think_end>{% endif %}\
{{ message['content'] }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"""


def export_model(directory: Path, out: Path, precision: str = "f32", overwrite: bool = False) -> dict:
    """Write a run's model: a GGUF file if `out` ends so, else a folder. Returns what is told of it.

    TonyError if `out` lies in what is read or in a run, or, unless `overwrite`, if there is something already.
    """
    from tony.model.files import load_model
    from tony.model.forward import unstacked

    release, gguf = find_release(directory), out.suffix.lower() == ".gguf"
    if not gguf and precision not in DTYPES:
        raise TonyError(f"--precision {precision} is for GGUF; a folder takes one of {', '.join(DTYPES)}")
    check_target(out, directory, overwrite, gguf)
    config, params = load_model(release)
    params = {**params, "blocks": unstacked(params["blocks"], config)}
    config = replace(config, stacked=False)
    family = family_of(config)
    model, ends, begin, template = _tokenizer(release, config.vocab_size)
    with writing(out):
        if gguf:
            metadata = to_gguf(model, config.vocab_size, ends, begin, template)
            _write_gguf(out, family, config, params, metadata, precision)
            size = out.stat().st_size
        else:
            _write_folder(out, family, config, params, precision)
            _write_tokenizer(out, model, ends, begin, template, config.max_length)
            size = sum(path.stat().st_size for path in out.iterdir())
    name = family.architecture
    return {"path": str(out), "architecture": name, "precision": precision, "megabytes": round(size / 1e6, 1)}


def _arrays(family: Family, config: ModelConfig, params: dict) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Each parameter with its values as others mean them, [outputs, inputs] where they have it so."""
    import jax

    scale = config.embedding_scale or math.sqrt(config.width)
    for tensor, value in zip(tensors(family, config), jax.tree.leaves(params), strict=True):
        array = np.asarray(value, np.float32)
        if tensor.leaf == "embedding":
            array = array * np.float32(scale)
        if tensor.leaf == "norm.gain" and config.tied:
            array = array / np.float32(scale)
        yield tensor, array.swapaxes(-1, -2) if tensor.turned and array.ndim > 1 else array


# ------------------------------------------------------------------------------------------- safetensors


def _write_folder(out: Path, family: Family, config: ModelConfig, params: dict, precision: str) -> None:
    from safetensors.numpy import save

    out.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for tensor, array in _arrays(family, config, params):
        parts = array if tensor.spec.axes[0] == "expert" else [array]
        for name, part in zip(tensor.names, parts, strict=True):
            arrays[name] = np.ascontiguousarray(part.astype(DTYPES[precision]))
    write_bytes(out / "model.safetensors", save(arrays, metadata={"format": "pt"}))
    write_json(out / "config.json", {**write_config(family, config), "torch_dtype": TORCH[precision]})


def _write_tokenizer(out: Path, model, ends: list[int], begin: int | None, template: str | None, length: int) -> None:
    spelled = {index: token for token, index in model.get_vocab(with_added_tokens=True).items()}
    facts: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": spelled.get(ends[0]),
        "pad_token": spelled.get(ends[0]),
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
    }
    generation: dict[str, Any] = {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": ends[0]}
    if begin is not None:
        facts["bos_token"], generation["bos_token_id"] = spelled.get(begin), begin
    if template:
        facts["chat_template"] = template
        write_bytes(out / "chat_template.jinja", template.encode())
    else:  # of another model that was here
        (out / "chat_template.jinja").unlink(missing_ok=True)
    write_bytes(out / "tokenizer.json", model.to_str(pretty=True).encode())
    write_json(out / "tokenizer_config.json", facts)
    write_json(out / "generation_config.json", generation)
    config = json.loads((out / "config.json").read_text())
    write_json(out / "config.json", {**config, **generation})


def _tokenizer(release: Path, rows: int):
    """(tokenizers.Tokenizer, ends, begin, chat template) of a release."""
    if is_imported(release):
        imported = ImportedTokenizer.load(release / "tokenizer")
        return imported.text._model, list(imported.vocabulary.ends), imported.begin, imported.source
    own = Tokenizer.load(release / "tokenizer")
    vocabulary = own.vocabulary
    return omni_tokenizer(own), [vocabulary.special("end")], vocabulary.special("bos"), TEMPLATE


def omni_tokenizer(own: Tokenizer):
    """Tony's whole vocabulary as one `tokenizers.Tokenizer`: control tokens and codes are its special tokens."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Model
    from tokenizers.models import BPE

    vocabulary = own.vocabulary
    inner = json.loads(own.text._model.to_str())["model"]
    start = vocabulary.text.start
    others = [index for index in range(vocabulary.size) if index not in vocabulary.text]
    named = {f"<{vocabulary.name(index).strip('<>')}>": index for index in others}
    taken = sorted(set(named) & set(inner["vocab"]))
    if taken:
        raise TonyError(
            f"the text tokenizer has a token {taken[0]}, which is also a control token's name; it cannot go out"
        )
    vocab = {**named, **{token: start + index for token, index in inner["vocab"].items()}}
    made = Model(BPE(vocab, [tuple(merge) for merge in inner["merges"]]))
    made.pre_tokenizer, made.decoder = own.text._model.pre_tokenizer, own.text._model.decoder
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in named])
    begin_with(made, "<bos>", named["<bos>"])
    return made


# -------------------------------------------------------------------------------------------------- GGUF


def _write_gguf(out: Path, family: Family, config: ModelConfig, params: dict, metadata: dict, precision: str) -> None:
    if config.activation != "swiglu" or config.biases:
        raise TonyError("llama.cpp has this family with SwiGLU and without biases only; export it as safetensors")
    if config.experts and config.expert_every != 1:
        raise TonyError("llama.cpp wants experts in every block or none; export it as safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for tensor, array in _arrays(family, config, params):
        if family.gguf == "llama" and tensor.rotary:
            array = pairs_from_halves(array, config.head_dim)
        arrays[tensor.gguf] = array
    if config.rope_original:
        from tony.model.forward import slowing

        arrays["rope_freqs.weight"] = np.asarray(slowing(config), np.float32)
    write_gguf(out, family.gguf, {**_gguf_facts(family, config), **metadata}, arrays, precision)


def _gguf_facts(family: Family, config: ModelConfig) -> dict[str, Any]:
    """The network's shape in GGUF's words."""
    facts: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_length,
        "embedding_length": config.width,
        "block_count": config.layers,
        "feed_forward_length": config.expert_hidden if family.model_type == "mixtral" else config.hidden,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": config.rope_base,
    }
    if config.rope_factor != 1 and not config.rope_original:
        facts |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_factor}
    if config.rope_original:
        facts["rope.scaling.original_context_length"] = config.rope_original
    if config.window:
        facts["attention.sliding_window"] = config.window
    if config.experts:
        facts |= {"expert_count": config.experts, "expert_used_count": config.experts_per_token}
    if family.model_type == "qwen3_moe":
        facts["expert_feed_forward_length"] = config.expert_hidden
    return {f"{family.gguf}.{key}": value for key, value in facts.items()}
