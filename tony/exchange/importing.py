"""`tony import`: a model of another family -> a folder for `tony serve`, `tony chat` and a recipe's `model.base`."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tony.errors import TonyError, require
from tony.exchange.bpe import from_gguf
from tony.exchange.families import FAMILIES, Family, Raw, Tensor, family_named, read_config, tensors
from tony.exchange.gguf import GgufFile, open_gguf
from tony.exchange.target import check_target, writing
from tony.exchange.text import ChatTemplate, ImportedText, ImportedTokenizer, read_tokenizer
from tony.exchange.weights import Safetensors, Weights
from tony.files import write_json
from tony.model.config import ModelConfig

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
WANTED = ("*.json", "*.safetensors", "*.jinja")
IGNORED = re.compile(r".*rotary_emb\.inv_freq|rope_freqs\.weight")
MOST_JSON = 2**28  # bytes


def import_model(
    source: str,
    out: Path,
    chat_template: Path | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> dict:
    """Read a folder of safetensors, a GGUF file, or a model of the Hugging Face Hub by its name, and write a release.

    Returns what is told of it. TonyError if there is nothing, it is damaged, or of a family that Tony has not got; if
    `out` lies in what is read or in a run, or, unless `overwrite`, if there is something already.
    """
    from tony.model.count import parameter_count
    from tony.model.files import save_model

    local = Path(source).expanduser()
    check_target(out, local if local.exists() else None, overwrite)
    template = _template(chat_template)
    path = _local(source, revision)
    read = _read_gguf if path.is_file() else _read_folder
    family, config, params, tokenizer, facts = read(path)
    if template is not None:
        tokenizer = ImportedTokenizer(tokenizer.text, tokenizer.vocabulary.ends, template, tokenizer.begin)
    elif tokenizer.source:
        tokenizer.template  # noqa: B018  # one that cannot be read is told now
    told = {
        "source": source,
        "family": family.architecture.removesuffix("ForCausalLM"),
        "parameters": parameter_count(config),
        "layers": config.layers,
        "width": config.width,
        "context": config.max_length,
        "tokens": config.vocab_size,
        "chat_template": tokenizer.source is not None,
        **facts,
    }
    with writing(out):
        save_model(out, config, params)
        tokenizer.save(out / "tokenizer")
        write_json(out / "origin.json", told)
    return told


def _template(path: Path | None) -> str | None:
    """The text of a chat template; TonyError if it is not valid Jinja."""
    if path is None:
        return None
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise TonyError(f"--chat-template {path} is not text in UTF-8; expected a Jinja template") from None
    if not source.strip():
        raise TonyError(f"--chat-template {path} is empty; expected a Jinja template")
    try:
        ChatTemplate(source, {})
    except TonyError as error:
        raise TonyError(f"--chat-template {path}: {error}") from None
    return source


def _local(source: str, revision: str | None) -> Path:
    """Where a source lies, downloaded if it is a name on the hub."""
    path = Path(source).expanduser()
    if path.is_dir() or path.is_file():
        if revision is not None:
            raise TonyError(f"--revision {revision} is of a model on the Hub; {source} is here: leave it out")
        return path
    if not HUB_NAME.fullmatch(source) or source.startswith((".", "/")):
        raise TonyError(
            f"there is no {source}; expected a folder, a .gguf file, or a name on the Hub such as org/model"
        )
    hub = require("huggingface_hub", "exchange")
    try:
        return Path(hub.snapshot_download(source, revision=revision, allow_patterns=list(WANTED)))
    except Exception as error:  # of the network, the hub, or the file system
        raise TonyError(
            f"{source} is no folder here, and the Hub did not give it ({type(error).__name__}); "
            "check the name and the network, or give a local folder"
        ) from None


# ------------------------------------------------------------------------------------------- safetensors


def _read_folder(directory: Path):
    values = _json_file(directory / "config.json")
    if _is_own(values or _json_file(directory / "model" / "config.json")):
        raise TonyError(f"{directory} is a model in Tony's own form already; serve it: tony serve {directory}")
    if values is None:
        raise TonyError(
            f"there is no config.json in {directory}; expected a model's folder, or the path of a .gguf file"
        )
    weights = Safetensors(directory)
    where = str(directory / "config.json")
    family, config = read_config(values, where, tied="lm_head.weight" not in weights.names)
    params = read_params(weights, family, config, str(directory), packed=False)
    tokenizer = _folder_tokenizer(directory, values, config.vocab_size)
    return family, config, params, tokenizer, {"format": "safetensors"}


def _is_own(values: dict[str, Any] | None) -> bool:
    """Whether a config.json is of a release of Tony's, which names no architecture but the fields of its network."""
    return values is not None and "architectures" not in values and {"width", "layers", "kv_heads"} <= values.keys()


def _json_file(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no file."""
    if not path.is_file():
        return None
    if path.stat().st_size > MOST_JSON:
        raise TonyError(f"{path} has {path.stat().st_size} bytes; expected at most {MOST_JSON}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TonyError(f"{path} is not JSON ({type(error).__name__}); copy it again") from None
    if not isinstance(values, dict):
        raise TonyError(f"{path} holds a {type(values).__name__}; expected an object")
    return values


def _folder_tokenizer(directory: Path, config: Mapping[str, Any], rows: int) -> ImportedTokenizer:
    if not (directory / "tokenizer.json").is_file():
        raise TonyError(
            f"there is no tokenizer.json in {directory}; older tokenizers (tokenizer.model, vocab.txt) are not read: "
            "save the tokenizer again with a recent version of transformers"
        )
    text = ImportedText(read_tokenizer(directory / "tokenizer.json"), rows)
    facts = _json_file(directory / "tokenizer_config.json") or {}
    generation = _json_file(directory / "generation_config.json") or {}
    ids = [
        _token_id(text, facts.get("eos_token")),
        *_ids(generation.get("eos_token_id")),
        *_ids(config.get("eos_token_id")),
    ]
    ends = [end for end in dict.fromkeys(ids) if end is not None and 0 <= end < rows]
    if not ends:
        raise TonyError(
            f"{directory} does not say which token ends a text; expected eos_token in tokenizer_config.json"
        )
    template = facts.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    if (directory / "chat_template.jinja").is_file():
        template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    begin = _token_id(text, facts.get("bos_token"))
    return ImportedTokenizer(text, ends, template if isinstance(template, str) else None, begin)


def _token_id(text: ImportedText, token: Any) -> int | None:
    spelled = token.get("content") if isinstance(token, dict) else token
    return text.specials.get(spelled) if isinstance(spelled, str) else None


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, int) and not isinstance(one, bool)]


# -------------------------------------------------------------------------------------------------- GGUF

GGUF_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "intermediate_size": "feed_forward_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}


def _read_gguf(path: Path):
    file = open_gguf(path)
    values = _gguf_config(file)
    family, config = read_config(values, str(path), tied="output.weight" not in file.names)
    params = read_params(file, family, config, str(path), packed=True)
    model, begin, ends, template = from_gguf(file.metadata, str(path))
    tokenizer = ImportedTokenizer(ImportedText(model, config.vocab_size), ends, template, begin)
    return family, config, params, tokenizer, {"format": "GGUF", "numbers": file.kinds}


def _gguf_config(file: GgufFile) -> dict[str, Any]:
    """A GGUF file's metadata in the words of a config.json."""
    told, where = file.metadata, str(file.path)
    arch = told.get("general.architecture")
    sparse = bool(told.get(f"{arch}.expert_count"))
    known = [family for family in FAMILIES.values() if family.gguf == arch and bool(family.experts) == sparse]
    family = known[0] if known else family_named(arch, where)
    values = {name: told[f"{arch}.{key}"] for name, key in GGUF_KEYS.items() if f"{arch}.{key}" in told}
    values |= {"architectures": [family.architecture], "norm_topk_prob": True}
    raw = Raw(values, where)
    if "sliding_window" in values:
        layers = raw.number("num_hidden_layers")
        values |= {"use_sliding_window": True, "layer_types": ["sliding_attention"] * layers}
    values["vocab_size"] = len(Raw(told, where).listed("tokenizer.ggml.tokens"))
    if family.architecture == "LlamaForCausalLM" and values.get("sliding_window"):
        values["architectures"] = ["MistralForCausalLM"]
    width = raw.number("head_dim", max(1, raw.number("hidden_size") // raw.number("num_attention_heads")))
    turned = told.get(f"{arch}.rope.dimension_count", width)
    if turned != width:
        values["partial_rotary_factor"] = 0.5
    scaling = told.get(f"{arch}.rope.scaling.type", "none")
    if scaling != "none":
        values["rope_parameters"] = {"rope_type": scaling, "factor": told.get(f"{arch}.rope.scaling.factor")}
    if "rope_freqs.weight" in file.names:
        original = Raw(told, where).number(f"{arch}.rope.scaling.original_context_length", 8192)
        values["rope_parameters"] = _llama3(file.read("rope_freqs.weight"), values, original, where)
    return values


def _llama3(slower: np.ndarray, values: dict[str, Any], original: int, where: str) -> dict[str, Any]:
    """Llama 3.1's parameters from the factors that a GGUF file has in their place."""
    from tony.model.forward import slowing

    factor, base = float(slower.max()), Raw(values, where).real("rope_theta", 10_000.0)
    config = ModelConfig(1, head_dim=2 * slower.size, rope_base=base, rope_factor=factor, rope_original=original)
    if not np.allclose(slowing(config), slower.reshape(-1), rtol=1e-3):
        raise TonyError(f"{where}: its rotary frequencies are not scaled as in Llama 3.1; Tony cannot compute others")
    return {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original}


# ------------------------------------------------------------------------------------------------ arrays


def read_params(weights: Weights, family: Family, config: ModelConfig, where: str, packed: bool) -> dict:
    """The parameters of a network; `packed` as in GGUF, where the experts of a block are one tensor.

    TonyError if one is missing, has another shape, or if there are tensors that the network has no place for.
    """
    import jax

    from tony.model.count import parameter_count
    from tony.model.params import declare, is_spec

    if parameter_count(config) > 8 * weights.size:  # before a name is made for each of so many experts
        raise TonyError(
            f"{where} says that it is of {parameter_count(config):,} parameters, which {weights.size:,} bytes can't "
            "hold; copy it again"
        )
    wanted = tensors(family, config)
    names = {name for tensor in wanted for name in ((tensor.gguf,) if packed else tensor.names)}
    missing = sorted(names - weights.names)
    spare = {"lm_head.weight", "output.weight"} if config.tied else set()
    left = sorted(name for name in weights.names - names - spare if not IGNORED.fullmatch(name))
    if missing or left:
        said = f"it lacks {missing[0]}" if missing else f"it has {left[0][:80]} besides"
        others = len(missing or left) - 1
        more = f" and {others} more tensors" if others else ""
        raise TonyError(f"{where} is not a whole {family.architecture} of {config.layers} blocks: {said}{more}")
    arrays = [_array(weights, family, config, tensor, where, packed) for tensor in wanted]
    return jax.tree.unflatten(jax.tree.structure(declare(config), is_leaf=is_spec), arrays)


def _array(
    weights: Weights, family: Family, config: ModelConfig, tensor: Tensor, where: str, packed: bool
) -> np.ndarray:
    if packed:
        array = weights.read(tensor.gguf)
        if family.gguf == "llama" and tensor.rotary:
            array = halves_from_pairs(array, config.head_dim)
    else:
        parts = [weights.read(name) for name in tensor.names]
        if len({part.shape for part in parts}) > 1:
            raise TonyError(f"{where}: the experts of {tensor.names[0]} have different shapes; copy it again")
        array = np.stack(parts) if tensor.spec.axes[0] == "expert" else parts[0]
    array = array.swapaxes(-1, -2) if tensor.turned and array.ndim > 1 else array
    if array.shape != tensor.spec.shape:
        name = tensor.gguf if packed else tensor.names[0]
        raise TonyError(f"{where}: {name} has the shape {array.shape}, its configuration says {tensor.spec.shape}")
    return np.ascontiguousarray(array)


def halves_from_pairs(array: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of heads whose neighbours are turned together (llama.cpp), in the order in which halves are.

    A shape that is none of heads is left for the check of shapes.
    """
    if array.shape[0] % head_dim:
        return array
    return array.reshape(-1, head_dim // 2, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def pairs_from_halves(array: np.ndarray, head_dim: int) -> np.ndarray:
    """The inverse of `halves_from_pairs`."""
    return array.reshape(-1, 2, head_dim // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
