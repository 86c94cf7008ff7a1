"""The shape of the network, with the switches that PaLM, GLaM and common open models need."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the parameters' shapes and what is computed with them.

    `activation`: "swiglu" (Shazeer 2020; PaLM), "geglu" (GLaM's gated GELU) or "gelu". `parallel_block`: attention and
    feed-forward read the same normalised input (PaLM, section 2). `kv_heads` below `heads` is grouped-query attention,
    1 is multi-query (PaLM). `position`: "rope" (Su et al. 2021) or "t5", a learned bias by bucketed distance (Raffel et
    al. 2020, section 2.1), one for each layer (GLaM). `qk_norm`: queries and keys are normalised by head (Dehghani et
    al. 2023).

    For models of others: `norm_epsilon` is added to a mean square; `embedding_scale` multiplies the embeddings (0: the
    square root of the width, as PaLM); `qkv_biases` gives queries, keys and values alone a bias (Qwen 2); a token sees
    `window` tokens, itself included (0: all before it; Mistral). `rope_factor` divides the rotary frequencies: all of
    them, or with `rope_original`, the length of the first training, only those that turn less than `rope_low` times
    within it, none that turn more than `rope_high` times, and those between in part (Llama 3.1).

    `stacked` keeps blocks of a kind as one array and runs them in a loop, so that the time to compile does not grow
    with the depth. `remat` says what of a block is stored for the backward pass: everything ("none"), its products, or
    its input alone ("blocks").

    All products start normal with a variance of one over their inputs; those that are added to the residual stream
    smaller by the number of them with `residual_init` "depth" (Radford et al. 2019, section 2.3), the same with
    "fan_in" (PaLM, section 5).

    With `experts`, the feed-forward of every `expert_every`-th block, the first included, is `experts` of width
    `expert_hidden`, of which a token goes to `experts_per_token`, beside one of width `shared_hidden` that all share;
    `tony.model.experts` says what `dispatch`, `capacity_factor`, `expert_group` (tokens, 0 for all) and `balance` mean.
    """

    vocab_size: int
    layers: int = 4
    width: int = 256
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 64
    hidden: int = 704
    activation: Literal["swiglu", "geglu", "gelu"] = "swiglu"
    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    position: Literal["rope", "t5"] = "rope"
    parallel_block: bool = False
    qk_norm: bool = True
    tied: bool = True
    biases: bool = False
    qkv_biases: bool = False
    norm_epsilon: float = 1e-6
    embedding_scale: float = 0.0
    window: int = 0
    rope_base: float = 10_000.0
    rope_factor: float = 1.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_original: int = 0
    max_length: int = 1024
    experts: int = 0
    experts_per_token: int = 2
    expert_every: int = 1
    expert_hidden: int = 0
    expert_activation: Literal["swiglu", "geglu", "gelu"] = "swiglu"
    shared_hidden: int = 0
    dispatch: Literal["dense", "sorted", "capacity"] = "capacity"
    capacity_factor: float = 2.0
    expert_group: int = 0
    balance: Literal["loss", "bias"] = "loss"
    balance_weight: float = 0.01
    router_z_weight: float = 0.001
    stacked: bool = False
    remat: Literal["none", "products", "blocks"] = "none"
    residual_init: Literal["depth", "fan_in"] = "depth"

    @property
    def period(self) -> int:
        """Blocks after which the kinds of block repeat."""
        return self.expert_every if self.experts else 1

    def sparse(self, block: int) -> bool:
        """Whether the feed-forward of a block, counted from 0, is of experts."""
        return self.experts > 0 and block % self.expert_every == 0

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a gate beside its input product."""
        return self.activation != "gelu"


T5_BUCKETS, T5_DISTANCE = 32, 128
