"""What a training step costs, by arithmetic alone: for choosing among layouts before any of them is compiled, and for
machines and programs of others.

A step of a network with bfloat16 activations and fused attention: products at the speed that the TPU compiler gives a
large one, what lies between them at the memory's, weights gathered beside the work, activations in between, gradients
between slices at the end. Nothing is fitted to a measurement of a training.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tony.model.config import ModelConfig
from tony.model.count import active_parameter_count, expert_parameter_count, parameter_count
from tony.model.params import network_extents
from tony.parallel.rules import AXES, RULES
from tony.parallel.sharding import Layout, Rules, abstract_mesh, divisors
from tony.plan.chips import Topology

BF16, FLOAT = 2, 4
# Numbers of the residual stream's and of the inner width that a token's block reads and writes between products in the
# forward pass: norms, sums, activations. The backward pass does twice as much.
OUTER_PASSES, INNER_PASSES = 8, 3


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
        sizes = [f"mesh.{name}={getattr(self, name)}" for name in AXES]
        return [*sizes, f'model.remat="{self.remat}"', f"pretrain.accumulation={self.accumulation}"]


@dataclass(frozen=True)
class Cost:
    """Bytes of HBM that a device needs, and the seconds of a step by what they go to."""

    hbm_bytes: float
    products: float
    between: float  # what lies between products
    activations: float  # exchanged among the devices that share a network's widths, or its experts
    weights: float  # gathered, and their gradients scattered
    update: float
    slices: float  # gradients between slices

    @property
    def seconds(self) -> float:
        """Of a step: weights are gathered beside the rest."""
        beside = max(self.products + self.between + self.activations, self.weights)
        return beside + self.update + self.slices


def cost(config: ModelConfig, rows: int, length: int, state_bytes: float, topology: Topology, choice: Choice) -> Cost:
    """Of one step of `rows` rows; `state_bytes` of a parameter are kept: itself, the optimiser's, its gradient."""
    chip, share = topology.chip, 1 / topology.chip.devices
    devices = choice.data * choice.expert * choice.model  # of a pod
    parameters, active = parameter_count(config), active_parameter_count(config)
    tokens = rows * length / choice.ways / choice.accumulation  # of a microbatch, on the devices that share widths
    heads = config.heads * config.head_dim
    inner = (heads + 2 * config.kv_heads * config.head_dim + _hidden(config)) / choice.model
    outer = config.width / choice.model
    memory = _memory(config, choice, tokens, inner, outer, state_bytes)

    # Forward, twice as much backward, and what is made again.
    passes = {"none": 3, "products": 3, "blocks": 4}[choice.remat]
    attention = 2 * config.layers * heads * length  # of the causal half
    flops = passes * (2 * active + attention) * tokens / choice.model
    bytes_between = passes * config.layers * BF16 * tokens * (OUTER_PASSES * outer + INNER_PASSES * inner)
    products = choice.accumulation * flops / (chip.peak * chip.product * share)
    between = choice.accumulation * bytes_between / (chip.hbm_bandwidth * chip.stream * share)

    # Gathered and scattered sums of activations: one of each around every part of a block, in bfloat16.
    sums = passes * config.layers * (1 if config.parallel_block else 2) * 2
    tensor = sums * BF16 * tokens * config.width * (choice.model - 1) / choice.model
    sparse = sum(map(config.sparse, range(config.layers)))
    routed = 2 * passes * sparse * config.experts_per_token * BF16 * tokens * outer
    routed *= (choice.expert - 1) / choice.expert
    # Weights are split over data and expert; in use they are whole, but for experts, which stay where they are.
    split, own = choice.data * choice.expert, expert_parameter_count(config)
    everyone, apart = (parameters - own) * (1 - 1 / split), own / choice.expert * (1 - 1 / choice.data)
    gathered = passes * BF16 * (everyone + apart) / choice.model
    exchanged = 2 * BF16 * parameters / devices * (choice.pod - 1) / choice.pod
    return Cost(
        memory,
        products,
        between,
        choice.accumulation
        * (tensor / _speed(choice.model, topology) + routed / _speed(choice.expert, topology))
        / share,
        choice.accumulation * gathered / _speed(split, topology) / share,
        3 * parameters * state_bytes / devices / (chip.hbm_bandwidth * chip.stream * share),
        exchanged / (chip.host_network / chip.host * share),
    )


def _hidden(config: ModelConfig) -> float:
    """Numbers between the products of a feed-forward, the mean of all blocks."""
    dense = config.hidden * (2 if config.gated else 1)
    places = config.capacity_factor if config.dispatch == "capacity" else config.experts_per_token  # of a token
    routed = config.expert_hidden * (1 if config.expert_activation == "gelu" else 2) * places
    sparse = sum(map(config.sparse, range(config.layers))) / config.layers
    return (1 - sparse) * dense + sparse * routed


def _memory(
    config: ModelConfig, choice: Choice, tokens: float, inner: float, outer: float, state_bytes: float
) -> float:
    parameters, devices = parameter_count(config), choice.data * choice.expert * choice.model
    kept = {"none": 3 * inner + 6 * outer, "products": inner + 2 * outer, "blocks": outer}[choice.remat]
    layer = parameters / config.layers / choice.expert / choice.model
    working = FLOAT * tokens * (2 * inner + 2 * config.width) + 2 * BF16 * layer
    vocabulary = FLOAT * config.vocab_size / choice.model * (2 * min(tokens, 512) + config.width)
    accumulated = FLOAT * parameters / devices if choice.accumulation > 1 else 0
    return (
        parameters * state_bytes / devices + accumulated + FLOAT * tokens * config.layers * kept + working + vocabulary
    )


def _speed(size: int, topology: Topology) -> float:
    """Bytes a second that a chip sends to `size` others: of a torus as many dimensions as they fill, both ways."""
    chip = topology.chip
    if chip.gpu:
        return chip.link if size <= chip.host else chip.host_network / chip.host
    dimensions, reached = 0, 1
    for extent in sorted(topology.shape, reverse=True):
        if reached < size:
            dimensions, reached = dimensions + 1, reached * extent
    return chip.link * 2 * max(1, dimensions)


def choices(config: ModelConfig, rows: int, topology: Topology, rules: Rules = RULES) -> Iterator[Choice]:
    """Every mesh that divides the batch and the network, split by `rules`, with each way of rematerialising and
    splitting the batch."""
    devices = topology.devices // topology.slices
    needed = network_extents(config)
    for expert in divisors(config.experts or 1):
        for model in divisors(config.heads):
            if devices % (expert * model):
                continue
            if model > 1 and model % 2 and not topology.chip.gpu:  # libtpu 0.0.52 reduces no groups of three
                continue
            sizes = (topology.slices, devices // expert // model, expert, model)
            choice = Choice(*sizes, "blocks", 1)
            if rows % choice.ways or not Layout(abstract_mesh(sizes), rules).divides(needed):
                continue
            for remat in ("none", "products", "blocks"):
                for accumulation in (1, 2, 4, 8, 16):
                    if rows // choice.ways % accumulation == 0:
                        yield replace(choice, remat=remat, accumulation=accumulation)
