"""The shape of the network, with the switches that PaLM, GLaM and common open models need."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelConfig:
    """Everything that fixes the parameters' shapes and what is computed with them.

    `activation`: "swiglu" (Shazeer 2020; PaLM), "geglu" (GLaM's gated GELU) or "gelu". `parallel_block`: attention and
    feed-forward read the same normalised input (PaLM, section 2). `kv_heads` below `heads` is grouped-query attention,
    1 is multi-query (PaLM). `position`: "rope" (Su et al. 2021) or "t5", a learned bias by bucketed distance (Raffel et
    al. 2020, section 2.1; GLaM). `qk_norm`: queries and keys are normalised by head (Dehghani et al. 2023).
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
    rope_base: float = 10_000.0
    max_length: int = 1024

    @property
    def gated(self) -> bool:
        """Whether the feed-forward has a gate beside its input product."""
        return self.activation != "gelu"


T5_BUCKETS, T5_DISTANCE = 32, 128
