"""How long the operations of a compiled program take on a machine, from its published speeds.

Nothing here is fitted to a measurement. Products and memory: the TPU compiler's own estimate in cycles where it gives
one, otherwise the slower of products at the chip's peak and traffic at the memory's. Transfers within a slice: ring
algorithms over every dimension of the torus that a group of devices spans. Between slices: what a host sends, over its
network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from tony.plan.chips import Topology
from tony.plan.hlo import Groups, Operation


@dataclass(frozen=True)
class Place:
    """Where the devices of a mesh stand, in the mesh's order: coordinates [devices, dimensions], slice [devices]."""

    coordinates: np.ndarray
    slices: np.ndarray

    @classmethod
    def of(cls, devices: Sequence) -> "Place":
        """From JAX's devices of a TPU topology."""
        coordinates = np.array([device.coords for device in devices])
        return cls(coordinates, np.array([getattr(device, "slice_index", None) or 0 for device in devices]))

    @classmethod
    def in_order(cls, topology: Topology) -> "Place":
        """Devices numbered through host by host, as those of GPU clusters."""
        number = np.arange(topology.chips)
        return cls(number[:, None] % topology.chip.host, number // topology.chip.host)


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step by what they go to, and the bytes that a chip sends.

    `compute` are all products at peak, `memory` all traffic at full bandwidth: lower bounds. `program` is the estimate
    of both together, operation by operation. `overlapped` is as if every transfer ran beside the program, `serial` as
    if none did; `step` is in between, as the compiled schedule has it: transfers that it starts ahead of their use run
    beside the program, the others do not.
    """

    compute: float
    memory: float
    ici: float
    dcn: float
    program: float
    alone: float
    flops: float
    hbm_bytes: float
    ici_bytes: float
    dcn_bytes: float

    @property
    def overlapped(self) -> float:
        """Seconds if every transfer ran beside the program."""
        return max(self.program, self.ici, self.dcn)

    @property
    def serial(self) -> float:
        """Seconds if nothing ran beside anything."""
        return self.program + self.ici + self.dcn

    @property
    def step(self) -> float:
        """Seconds as the compiled schedule has it."""
        return max(self.program + self.alone, self.ici, self.dcn)

    def seconds(self) -> dict[str, float]:
        """All of it by name."""
        names = ("compute", "memory", "ici", "dcn", "program", "overlapped", "serial", "step")
        return {name: getattr(self, name) for name in names}


def roofline(operations: Sequence[Operation], topology: Topology, place: Place) -> Roofline:
    """Time of the operations of one device."""
    chip, share = topology.chip, 1 / topology.chip.devices
    peak, bandwidth = chip.peak * share, chip.hbm_bandwidth * share
    per_device = chip.host_network / min(chip.host, topology.chips) * share
    total = dict.fromkeys(Roofline.__dataclass_fields__, 0.0)
    shifts = {True: 0.0, False: 0.0}  # up and down a ring, which go at once
    for made in operations:
        between = made.host or crosses(made.groups, place)
        total["flops"] += made.times * made.flops
        total["hbm_bytes"] += made.times * made.bytes
        total["compute"] += made.times * made.flops / peak
        total["memory"] += made.times * made.bytes / bandwidth
        if made.sent:
            # GPUs on one host are a slice of their own; between hosts each has its share of the network.
            shift = (
                0.0 if between or made.kind != "collective-permute" or chip.gpu else hops(made.groups, topology, place)
            )
            speed = per_device if between else share * link_bandwidth(made.groups, topology, place, made.kind)
            seconds = made.times * made.sent / (share * chip.link / abs(shift) if shift else speed)
            network = "dcn" if between else "ici"
            total[f"{network}_bytes"] += made.times * made.sent / share
            total["alone"] += seconds if made.alone else 0
            if shift:
                shifts[shift > 0] += seconds
            else:
                total[network] += seconds
        if not made.sent or made.flops:
            cycles = made.cycles / chip.clock if chip.clock else 0
            total["program"] += made.times * (cycles or max(made.flops / peak, made.bytes / bandwidth))
    return Roofline(**{**total, "ici": total["ici"] + max(shifts.values())})


def crosses(groups: Groups, place: Place) -> bool:
    """Whether a group has devices of more than one slice."""
    return bool(groups) and len(set(place.slices[list(groups[0])].tolist())) > 1


def link_bandwidth(groups: Groups, topology: Topology, place: Place, kind: str = "") -> float:
    """Bytes a second that a chip can send to the others of its group.

    Each dimension of the torus that the group spans adds both directions of its ring; one direction if the ring is not
    closed, or the group is a piece of it; and every s-th device shares its links with s - 1 other groups. An all-to-all
    is as fast as the middle of the longest dimension lets it pass: what a chip sends to the far side takes up as many
    links as it crosses.
    """
    chip = topology.chip
    if chip.gpu or not groups:
        return chip.link
    sides = _sides(groups[0], topology, _Key(place))
    if not sides:  # the cores of one chip
        return chip.link
    if kind.endswith("all-to-all"):
        return chip.link / max(side.stride * side.places / (8 if side.closed else 4) for side in sides)
    return chip.link * sum((2 if side.closed else 1) / side.stride for side in sides)


def hops(pairs: Groups, topology: Topology, place: Place) -> float:
    """Links of the torus between source and target of most pairs, below zero downwards; 0 on one chip."""
    ends = np.array(pairs[:64])
    steps = place.coordinates[ends[:, 1]] - place.coordinates[ends[:, 0]]
    for dimension, size in enumerate(topology.shape):
        if topology.wraps(dimension):
            steps[:, dimension] = (steps[:, dimension] + size // 2) % size - size // 2
    lengths = np.abs(steps).sum(1)
    typical = steps[np.argsort(lengths, kind="stable")[len(lengths) // 2]]
    return float(np.abs(typical).sum() * np.sign(typical[np.flatnonzero(typical)[0]])) if typical.any() else 0.0


class _Key:
    """A place as a key of a cache."""

    def __init__(self, place: Place):
        self.place = place

    def __hash__(self) -> int:
        return id(self.place)

    def __eq__(self, other) -> bool:
        return self.place is other.place


class _Side(NamedTuple):
    """How a group lies along a dimension of the torus: in `places`, every `stride`-th, the whole ring or a piece."""

    places: int
    stride: int
    closed: bool


@lru_cache(maxsize=4096)
def _sides(group: tuple[int, ...], topology: Topology, key: _Key) -> tuple[_Side, ...]:
    at = key.place.coordinates[list(group)]
    sides = []
    for dimension, size in enumerate(topology.shape):
        values = np.unique(at[:, dimension])
        if len(values) == 1:
            continue
        stride = int(np.diff(values).min())
        sides.append(_Side(len(values), stride, len(values) * stride == size and topology.wraps(dimension)))
    return tuple(sides)
