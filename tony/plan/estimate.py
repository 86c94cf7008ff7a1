"""What a training step costs, by arithmetic alone: for choosing among layouts before any of them is compiled.

Coarser than the compiled program: a matrix product at peak, everything else by its traffic. `tony plan --search` ranks
by it and compiles the best few.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tony.model.config import ModelConfig
from tony.model.count import active_parameter_count, parameter_count
from tony.plan.chips import Topology

BF16, FLOAT = 2, 4
SIZES = ("pod", "data", "expert", "model")


@dataclass(frozen=True)
class Choice:
    """What `--search` varies: sizes of the mesh's axes, `remat` of the network, microbatches of a step."""

    pod: int
    data: int
    expert: int
    model: int
    remat: str
    accumulation: int

    @property
    def ways(self) -> int:
        """Parts of the batch."""
        return self.pod * self.data * self.expert

    def overrides(self) -> list[str]:
        """As `--set` takes them."""
        sizes = [f"mesh.{name}={getattr(self, name)}" for name in SIZES]
        return [*sizes, f'model.remat="{self.remat}"', f"pretrain.accumulation={self.accumulation}"]


@dataclass(frozen=True)
class Cost:
    """Bytes of HBM that a chip needs, and seconds of a step, all of it in turn."""

    hbm_bytes: float
    seconds: float


def cost(config: ModelConfig, rows: int, length: int, state_bytes: float, topology: Topology, choice: Choice) -> Cost:
    """Of one step of `rows` rows; `state_bytes` a parameter are kept: itself, the optimiser's, gradients."""
    chip, d = topology.chip, config.width
    devices = choice.data * choice.expert * choice.model
    tokens = rows * length / choice.ways / choice.accumulation  # of a microbatch on one device
    parameters, active = parameter_count(config), active_parameter_count(config)
    heads, keys = config.heads * config.head_dim, 2 * config.kv_heads * config.head_dim
    hidden = active / config.layers / d if config.experts else config.hidden * (2 if config.gated else 1)
    inner = (heads + keys + hidden) / choice.model  # numbers of a token inside of a block, on one device
    outer = d / choice.model
    passes = {"none": 3, "products": 3, "blocks": 4}[choice.remat]

    kept = {"none": 4 * inner + 6 * outer, "products": inner + 2 * outer, "blocks": outer}[choice.remat]
    layer = parameters / config.layers / choice.expert / choice.model
    buffers = FLOAT * tokens * (3 * inner + 4 * d) + 2 * BF16 * layer
    vocabulary = FLOAT * min(tokens, 512) * config.vocab_size / choice.model
    extra = FLOAT if choice.accumulation > 1 else 0
    memory = parameters * (state_bytes + extra) / devices + FLOAT * tokens * config.layers * kept + buffers + vocabulary

    attention = 4 * config.layers * heads * length / 2
    flops = passes * (2 * active + attention) * tokens / choice.model
    # Every product reads and writes its tokens, and weights once; elementwise work between them about as much again.
    traffic = passes * config.layers * (2 * FLOAT * tokens * (inner + 2 * outer) + BF16 * layer)
    gathers = (passes - 1) * BF16 * parameters / choice.expert / choice.model + FLOAT * parameters / devices
    spread = gathers * (1 - 1 / (choice.data * choice.expert)) if devices > choice.model else 0
    tensor = passes * 2 * config.layers * BF16 * tokens * d * (choice.model - 1) / choice.model
    tensor *= 1 if config.parallel_block else 2
    experts = 2 * passes * config.layers / config.expert_every * BF16 * tokens * config.experts_per_token * d
    experts *= (choice.expert - 1) / choice.expert if config.experts else 0
    links = chip.link * (2 * max(1, chip.torus) if not chip.gpu else 1)
    # A mesh axis has the links of one or two dimensions of the torus, not of all.
    ici = (spread + tensor + experts) / (links / 2)
    dcn = 2 * BF16 * parameters / devices * (choice.pod - 1) / choice.pod / (chip.host_network / chip.host)
    once = choice.accumulation * (max(flops / chip.peak, traffic / chip.hbm_bandwidth) + ici)
    return Cost(memory, once + dcn + 3 * parameters * state_bytes / devices / chip.hbm_bandwidth)


def choices(config: ModelConfig, rows: int, topology: Topology) -> Iterator[Choice]:
    """Every mesh that divides the batch and the network, with each way of rematerialising and splitting the batch."""
    chips = topology.chips * topology.chip.devices // topology.slices
    for expert in _divisors(config.experts or 1):
        for model in _divisors(config.heads):
            if chips % (expert * model) or not _splits(config, model):
                continue
            data = chips // expert // model
            choice = Choice(topology.slices, data, expert, model, "blocks", 1)
            if rows % choice.ways or config.width % (data * expert):
                continue
            for remat in ("none", "products", "blocks"):
                for accumulation in (1, 2, 4, 8, 16):
                    if rows // choice.ways % accumulation == 0:
                        yield replace(choice, remat=remat, accumulation=accumulation)


def _splits(config: ModelConfig, model: int) -> bool:
    sizes = [config.heads, config.hidden, config.vocab_size, config.width]
    sizes += [config.kv_heads] if config.kv_heads > 1 else []
    return all(size % model == 0 for size in sizes)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
