"""Families of open models: what their config.json says as a `ModelConfig`, and their tensors' names.

Llama (Touvron et al. 2023), Mistral and Mixtral (Jiang et al. 2023, 2024), Qwen 2 and 3 (Yang et al. 2024, 2025). All
are pre-norm decoders with RMSNorm, rotary positions, grouped queries and gated feed-forwards; they differ in biases,
norms of queries and keys, the window, experts, and in what they call things.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from tony.errors import TonyError
from tony.model.config import ModelConfig
from tony.model.files import leaf_names
from tony.model.params import ParamSpec, declare, is_spec

MOST = {
    "num_hidden_layers": 1024, "hidden_size": 65_536, "vocab_size": 4_194_304, "max_position_embeddings": 2**27,
    "num_local_experts": 4096,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A `transformers` architecture, what it is called in config.json and in GGUF files, and its peculiarities.

    `experts` is the name of the sparse feed-forward within a block, `expert_parts` of its gate, up and down products.
    """

    architecture: str
    model_type: str
    gguf: str
    qk_norm: bool = False
    qkv_biases: bool = False
    window: bool = False
    experts: str = ""
    expert_parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")


FAMILIES = {
    family.architecture: family
    for family in (
        Family("LlamaForCausalLM", "llama", "llama"),
        Family("MistralForCausalLM", "mistral", "llama", window=True),
        Family("Qwen2ForCausalLM", "qwen2", "qwen2", qkv_biases=True, window=True),
        Family("Qwen3ForCausalLM", "qwen3", "qwen3", qk_norm=True, window=True),
        Family(
            "MixtralForCausalLM", "mixtral", "llama", window=True,
            experts="block_sparse_moe", expert_parts=("w1", "w3", "w2"),
        ),
        Family("Qwen3MoeForCausalLM", "qwen3_moe", "qwen3moe", qk_norm=True, window=True, experts="mlp"),
    )
}  # fmt: skip

# Activations of gates by their names in `transformers`; Tony's GELU is the tanh approximation.
ACTIVATIONS = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}


def family_named(architecture: Any, where: str) -> Family:
    """The family of an architecture's name, or of a model type's; TonyError that names those there are."""
    named = FAMILIES | {family.model_type: family for family in FAMILIES.values()}
    if not isinstance(architecture, str) or architecture not in named:
        shown = architecture if isinstance(architecture, str) else "of no architecture"
        known = ", ".join(name.removesuffix("ForCausalLM") for name in FAMILIES)
        raise TonyError(f"{where} is {shown[:80]}, which Tony cannot compute; supported are {known}")
    return named[architecture]


# ------------------------------------------------------------------------------------------------ config


class Raw:
    """A config.json whose values are checked when they are read; `where` begins the errors."""

    def __init__(self, values: dict[str, Any], where: str):
        self.values, self.where = values, where

    def number(self, name: str, default: Any = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST.get(name, 2**31):
            shown = f"{value!r}"[:40]
            raise TonyError(
                f"{self.where}: {name} is {shown}; expected a whole number from {least} to {MOST.get(name, 2**31)}"
            )
        return value

    def listed(self, name: str) -> list[Any]:
        """A list, empty if there is none."""
        value = self.values.get(name)
        value = [] if value is None else value
        if not isinstance(value, list):
            raise TonyError(f"{self.where}: {name} is {f'{value!r}'[:40]}; expected a list")
        return value

    def real(self, name: str, default: float, values: dict[str, Any] | None = None) -> float:
        """A number above zero."""
        found = (self.values if values is None else values).get(name)
        found = default if found is None else found
        if not isinstance(found, int | float) or isinstance(found, bool) or not 0 < found < 1e30:
            raise TonyError(f"{self.where}: {name} is {f'{found!r}'[:40]}; expected a number above zero")
        return float(found)

    def refuse(self, what: str, instead: str) -> TonyError:
        """The error for what a network of Tony's cannot be."""
        return TonyError(f"{self.where}: it has {what}, which Tony cannot compute; {instead}")


def read_config(values: dict[str, Any], where: str, tied: bool) -> tuple[Family, ModelConfig]:
    """The family and the network that a config.json describes; `tied` where it does not say.

    TonyError, one sentence, for an architecture or a setting that Tony has not got.
    """
    names = values.get("architectures")
    family = family_named(names[0] if isinstance(names, list) and names else values.get("model_type"), where)
    raw = Raw(values, where)
    heads, width = raw.number("num_attention_heads"), raw.number("hidden_size")
    kv_heads = raw.number("num_key_value_heads", heads)
    head_dim = raw.number("head_dim", max(1, width // heads))
    if heads % kv_heads or head_dim % 2:
        raise TonyError(f"{where}: {heads} heads, {kv_heads} key-value heads of {head_dim}; they don't fit each other")
    _refuse_settings(raw, family)
    tied = values["tie_word_embeddings"] if isinstance(values.get("tie_word_embeddings"), bool) else tied
    config = ModelConfig(
        vocab_size=raw.number("vocab_size"),
        layers=raw.number("num_hidden_layers"),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=raw.number("intermediate_size"),
        activation=_activation(raw),
        qk_norm=family.qk_norm,
        qkv_biases=family.qkv_biases,
        biases=bool(values.get("attention_bias")) and not family.qkv_biases,
        tied=tied,
        norm_epsilon=raw.real("rms_norm_eps", 1e-6),
        embedding_scale=1.0,
        max_length=raw.number("max_position_embeddings"),
        window=_window(raw, family),
        **_rope(raw),
        **(_experts(raw, family) if family.experts else {}),
    )
    return family, config


def _refuse_settings(raw: Raw, family: Family) -> None:
    values = raw.values
    if values.get("quantization_config"):
        raise raw.refuse("quantised weights", "import its unquantised safetensors, or a GGUF file")
    if values.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise raw.refuse("rotary positions on a part of each head", "only whole heads are turned here")
    attention, feed_forward = bool(values.get("attention_bias")), bool(values.get("mlp_bias"))
    if family.model_type == "llama" and attention != feed_forward:
        raise raw.refuse("biases in only some of its products", "expected attention_bias and mlp_bias to be the same")
    if family.model_type in ("qwen3", "qwen3_moe", "mixtral") and attention:
        raise raw.refuse("biases in its attention", "expected attention_bias = false")


def _activation(raw: Raw) -> Any:
    name = raw.values.get("hidden_act") or raw.values.get("hidden_activation") or "silu"
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise raw.refuse(f"the activation {str(name)[:40]!r}", f"expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _window(raw: Raw, family: Family) -> int:
    """The window that every block has; 0 for none."""
    values, layers = raw.values, raw.number("num_hidden_layers")
    window = values.get("sliding_window")
    used = values.get("use_sliding_window", not family.model_type.startswith("qwen"))
    if not family.window or window is None or not used:
        return 0
    window = raw.number("sliding_window")
    kinds = raw.listed("layer_types") or ["sliding_attention"] * layers
    if "use_sliding_window" in values and not values.get("layer_types"):  # Qwen: full in the first blocks
        full = raw.number("max_window_layers", 28, least=0)
        kinds = ["full_attention" if index < full else "sliding_attention" for index in range(layers)]
    sliding = sum(kind == "sliding_attention" for kind in kinds)
    if sliding == 0 or window >= raw.number("max_position_embeddings"):
        return 0
    if sliding < layers:
        raise raw.refuse(f"a sliding window in {sliding} of its {layers} blocks", "all blocks or none may have one")
    return window


def _rope(raw: Raw) -> dict[str, Any]:
    """Fields of rotary positions; `rope_parameters` is what `transformers` 5 writes, the others are older."""
    found = raw.values.get("rope_parameters") or raw.values.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise TonyError(f"{raw.where}: rope_parameters is {f'{found!r}'[:40]}; expected an object")
    base = raw.real("rope_theta", raw.real("rope_theta", 10_000.0), found)
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return {"rope_base": base}
    factor = raw.real("factor", 1.0, found)
    if kind == "linear":
        return {"rope_base": base, "rope_factor": factor}
    if kind == "llama3":
        return {
            "rope_base": base,
            "rope_factor": factor,
            "rope_low": raw.real("low_freq_factor", 1.0, found),
            "rope_high": raw.real("high_freq_factor", 4.0, found),
            "rope_original": int(raw.real("original_max_position_embeddings", 8192, found)),
        }
    raise raw.refuse(f"rotary positions scaled by {str(kind)[:40]!r}", "expected default, linear or llama3")


def _experts(raw: Raw, family: Family) -> dict[str, Any]:
    values = raw.values
    count = raw.number("num_local_experts", values.get("num_experts"))  # either name is in use
    chosen = raw.number("num_experts_per_tok", 2)
    if chosen > count:
        raise TonyError(f"{raw.where}: a token goes to {chosen} of {count} experts; expected at most all of them")
    if family.model_type == "mixtral":
        normalised, every, hidden = True, 1, raw.number("intermediate_size")
    else:
        normalised, hidden = bool(values.get("norm_topk_prob")), raw.number("moe_intermediate_size")
        every = _every(raw)
    if normalised != (chosen > 1):
        raise raw.refuse(
            f"norm_topk_prob = {str(normalised).lower()} with {chosen} experts of a token",
            "weights of several experts must sum to one, that of a single one must be its probability",
        )
    return {
        "experts": count,
        "experts_per_token": chosen,
        "expert_every": every,
        "expert_hidden": hidden,
        "expert_activation": _activation(raw),
        "dispatch": "sorted",
        "balance_weight": raw.real("router_aux_loss_coef", 0.0) if values.get("router_aux_loss_coef") else 0.0,
    }


def _every(raw: Raw) -> int:
    """Which blocks are sparse, as Tony's `expert_every`: the first, and each so many after it."""
    layers, step = raw.number("num_hidden_layers"), raw.number("decoder_sparse_step", 1)
    dense = raw.listed("mlp_only_layers")
    sparse = [(index + 1) % step == 0 and index not in dense for index in range(layers)]
    for every in range(1, layers + 1):
        if sparse == [index % every == 0 for index in range(layers)]:
            return every
    at = [index for index, is_sparse in enumerate(sparse) if is_sparse]
    raise raw.refuse(f"experts in blocks {at}", "the first block must have them, and each n-th after it")


# ---------------------------------------------------------------------------------------- the other way


def family_of(config: ModelConfig) -> Family:
    """The family that a network of Tony's belongs to; TonyError that says which setting no family has."""

    def refuse(what: str) -> TonyError:
        return TonyError(f"this network has {what}; no family of models that others can load has that")

    if config.norm != "rmsnorm":
        raise refuse(f"norm = {config.norm!r}")
    if config.position != "rope":
        raise refuse(f"position = {config.position!r}")
    if config.parallel_block:
        raise refuse("parallel blocks")
    if not config.gated:
        raise refuse("a feed-forward without a gate")
    if config.biases and (config.qk_norm or config.experts):
        raise refuse("biases beside norms of queries or experts")
    if config.experts:
        return _sparse_family(config, refuse)
    if config.qk_norm and config.qkv_biases:
        raise refuse("both norms and biases of queries")
    if config.qk_norm:
        return FAMILIES["Qwen3ForCausalLM"]
    if config.qkv_biases:
        return FAMILIES["Qwen2ForCausalLM"]
    return FAMILIES["MistralForCausalLM" if config.window else "LlamaForCausalLM"]


def _sparse_family(config: ModelConfig, refuse) -> Family:
    if config.shared_hidden:
        raise refuse("experts beside a shared one")
    if config.balance == "bias":
        raise refuse("a bias on the choice of experts")
    if config.expert_activation != config.activation or config.qkv_biases:
        raise refuse("another activation in its experts than in its other blocks, or biases of queries")
    if config.qk_norm:
        return FAMILIES["Qwen3MoeForCausalLM"]
    if config.expert_every != 1 or config.experts_per_token == 1:
        raise refuse("experts in only some blocks, or one expert for a token, without norms of queries")
    return FAMILIES["MixtralForCausalLM"]


def write_config(family: Family, config: ModelConfig) -> dict[str, Any]:
    """The config.json of a network for `transformers`."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_base}
    if config.rope_original:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_factor,
            "low_freq_factor": config.rope_low,
            "high_freq_factor": config.rope_high,
            "original_max_position_embeddings": config.rope_original,
        }
    elif config.rope_factor != 1:
        rope |= {"rope_type": "linear", "factor": config.rope_factor}
    values: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.expert_hidden if family.model_type == "mixtral" else config.hidden,
        "hidden_act": "silu" if config.activation == "swiglu" else "gelu_pytorch_tanh",
        "rms_norm_eps": config.norm_epsilon,
        "max_position_embeddings": config.max_length,
        "tie_word_embeddings": config.tied,
        "rope_theta": config.rope_base,
        "rope_parameters": rope,
    }
    if family.model_type == "llama":
        values |= {"attention_bias": config.biases, "mlp_bias": config.biases}
    if family.window:
        values["sliding_window"] = config.window or None
    if family.model_type.startswith("qwen"):
        values |= {
            "use_sliding_window": bool(config.window),
            "max_window_layers": 0 if config.window else config.layers,
        }
    if family.experts:
        values |= {"num_experts_per_tok": config.experts_per_token, "router_aux_loss_coef": config.balance_weight}
    if family.model_type == "mixtral":
        values["num_local_experts"] = config.experts
    if family.model_type == "qwen3_moe":
        values |= {
            "num_experts": config.experts,
            "moe_intermediate_size": config.expert_hidden,
            "norm_topk_prob": config.experts_per_token > 1,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [index for index in range(config.layers) if not config.sparse(index)],
        }
    return values


# ----------------------------------------------------------------------------------------------- tensors


class Tensor(NamedTuple):
    """A parameter of Tony's and where others keep it.

    `names`: its tensors in safetensors, one for each expert or just one; `gguf`: its tensor in GGUF, of all experts
    together. `turned`: others keep [outputs, inputs].
    """

    leaf: str
    spec: ParamSpec
    names: tuple[str, ...]
    gguf: str
    turned: bool

    @property
    def rotary(self) -> bool:
        """Whether it makes queries or keys, whose order within a head depends on how rotary positions pair them."""
        return self.leaf.endswith(("query.weight", "key.weight", "query.bias", "key.bias"))


WHOLE = {
    "embedding": ("model.embed_tokens.weight", "token_embd.weight"),
    "unembedding": ("lm_head.weight", "output.weight"),
    "norm.gain": ("model.norm.weight", "output_norm.weight"),
}
PARTS = {  # of a block
    "norm": ("input_layernorm", "attn_norm"),
    "feed_forward_norm": ("post_attention_layernorm", "ffn_norm"),
    "attention.query": ("self_attn.q_proj", "attn_q"),
    "attention.key": ("self_attn.k_proj", "attn_k"),
    "attention.value": ("self_attn.v_proj", "attn_v"),
    "attention.out": ("self_attn.o_proj", "attn_output"),
    "attention.query_norm": ("self_attn.q_norm", "attn_q_norm"),
    "attention.key_norm": ("self_attn.k_norm", "attn_k_norm"),
    "feed_forward.gate": ("mlp.gate_proj", "ffn_gate"),
    "feed_forward.up": ("mlp.up_proj", "ffn_up"),
    "feed_forward.down": ("mlp.down_proj", "ffn_down"),
}


def tensors(family: Family, config: ModelConfig) -> list[Tensor]:
    """All parameters of a network that is not stacked, in the order of its tree's leaves."""
    import jax

    specs = declare(config)
    leaves = jax.tree.leaves(specs, is_leaf=is_spec)
    return [_tensor(family, name, spec) for name, spec in zip(leaf_names(specs), leaves, strict=True)]


def _tensor(family: Family, leaf: str, spec: ParamSpec) -> Tensor:
    if leaf in WHOLE:
        name, gguf = WHOLE[leaf]
        return Tensor(leaf, spec, (name,), gguf, False)
    _, block, part = leaf.split(".", 2)
    if part == "feed_forward.router.weight":
        name = f"model.layers.{block}.{family.experts}.gate.weight"
        return Tensor(leaf, spec, (name,), f"blk.{block}.ffn_gate_inp.weight", True)
    if spec.axes[0] == "expert":
        kind = part.removeprefix("feed_forward.")
        own = family.expert_parts[("gate", "up", "down").index(kind)]
        names = tuple(
            f"model.layers.{block}.{family.experts}.experts.{expert}.{own}.weight" for expert in range(spec.shape[0])
        )
        return Tensor(leaf, spec, names, f"blk.{block}.ffn_{kind}_exps.weight", True)
    stem, _, kind = part.rpartition(".")
    if part in PARTS:  # norms of queries and keys are an array without a name of its own
        stem, kind = part, "weight"
    name, gguf = PARTS[stem]
    kind = "bias" if kind == "bias" else "weight"
    return Tensor(
        leaf, spec, (f"model.layers.{block}.{name}.{kind}",), f"blk.{block}.{gguf}.{kind}", len(spec.shape) == 2
    )
