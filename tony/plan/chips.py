"""Accelerators: what makers publish of them, and how they are wired."""

import difflib
import math
import re
from dataclasses import dataclass

from tony.errors import TonyError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One accelerator. Bandwidths are bytes a second; a link's is of one direction.

    `usable` are the bytes of memory that a program of one device can have: of TPUs, what libtpu 0.0.52 says where one
    does not fit. `torus` is the number of dimensions of its network (two `link`s each), 0 for GPUs, whose `link` is to
    a switch that joins a `host`. `host_network` is what a host has towards other slices. `product` and `stream` are the
    shares of peak and of memory bandwidth that the TPU compiler (libtpu 0.0.52) reckons with for a bfloat16 product of
    8192 x 8192 matrices and for an elementwise function of 1 GiB; for GPUs an assumption. `clock` turns the compiler's
    cycles into seconds (0: it tells none). `devices` is how many JAX sees of a chip. `watts` are of a chip with its
    share of the host, from `power`; an assumption where no measurement is published.
    """

    name: str
    peak: float
    usable: float
    hbm_bandwidth: float
    torus: int
    link: float
    host: int
    host_network: float
    pod: int
    product: float
    stream: float
    watts: float
    power: str
    source: str
    clock: float = 0
    devices: int = 1
    config: str | None = None

    @property
    def gpu(self) -> bool:
        """Whether libtpu knows nothing of it."""
        return self.torus == 0


CLOUD = "Google Cloud TPU documentation, page of the chip"
ASSUMED = "assumed: no measurement is published"
SHEET = "NVIDIA's data sheet, dense bfloat16"
DGX = "an eighth of the most that a DGX draws, from its data sheet"
# v4's links: Jouppi et al. 2023, "TPU v4", table 4; its hosts' network: 81 Tb/s of 768 hosts (PaLM, section 4).
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            "v4", 275e12, 30.75 * GIB, 1.2e12, 3, 50e9, 4, 81e12 / 8 / 768, 4096, 0.93, 0.79, 378.5,
            "PaLM, appendix B", CLOUD, 1.05e9, config="megacore",
        ),
        Chip(
            "v5p", 459e12, 95.73 * GIB, 2.765e12, 3, 100e9, 4, 25e9, 8960, 0.90, 0.72, 500, ASSUMED, CLOUD,
            1.75e9,
        ),
        Chip(
            "v5e", 197e12, 15.75 * GIB, 0.819e12, 2, 50e9, 8, 25e9, 256, 0.88, 0.81, 220, ASSUMED, CLOUD,
            1.5e9,
        ),
        Chip(
            "v6e", 918e12, 31.24 * GIB, 1.638e12, 2, 100e9, 8, 100e9, 256, 0.70, 0.81, 380, ASSUMED, CLOUD,
            1.75e9,
        ),
        Chip(
            "tpu7x", 2307e12, 94.74 * GIB, 7.38e12, 3, 100e9, 4, 50e9, 9216, 0.81, 0.75, 1000, ASSUMED,
            CLOUD, 2.2e9, devices=2,
        ),
        Chip("a100", 312e12, 80e9, 2.039e12, 0, 300e9, 8, 200e9, 0, 0.8, 0.8, 6500 / 8, DGX, SHEET),
        Chip("h100", 989e12, 80e9, 3.35e12, 0, 450e9, 8, 400e9, 0, 0.7, 0.8, 10_200 / 8, DGX, SHEET),
        Chip("b200", 2250e12, 180e9, 8e12, 0, 900e9, 8, 400e9, 0, 0.7, 0.8, 14_300 / 8, DGX, SHEET),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Topology:
    """`slices` equal parts of a machine: a torus of `shape`, or for GPUs so many of them."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """As libtpu writes it."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        """That JAX sees of all slices."""
        return self.chips * self.chip.devices

    def wraps(self, dimension: int) -> bool:
        """Whether a dimension of the torus is closed to a ring: of v5e and v6e the whole pod's 16, of others every
        multiple of 4 if all dimensions are (cubes of 64 chips are joined by optical switches)."""
        if self.chip.torus == 2:
            return self.shape[dimension] == 16
        return all(size % 4 == 0 for size in self.shape)


def read_topology(text: str, slices: int = 1) -> Topology:
    """The topology that a text such as "v4:16x16x12" or "h100:64" describes; TonyError if there is none such."""
    name, _, size = text.lower().partition(":")
    if name not in CHIPS:
        near = difflib.get_close_matches(name, CHIPS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise TonyError(f"--topology {text}: {hint}known chips are {', '.join(CHIPS)}, as in v4:4x4x4 or h100:64")
    chip = CHIPS[name]
    if slices < 1:
        raise TonyError(f"--slices {slices}: expected at least one")
    shape = tuple(map(int, size.split("x"))) if re.fullmatch(r"[1-9][0-9]{0,5}(x[1-9][0-9]{0,5})*", size) else ()
    if not shape or not _exists(chip, shape):
        raise TonyError(f"--topology {text} does not exist; of {name} there are {describe_topologies(chip)}")
    return Topology(chip, shape, slices)


def _exists(chip: Chip, shape: tuple[int, ...]) -> bool:
    if min(shape) < 1:
        return False
    if chip.gpu:
        return len(shape) == 1 and (shape[0] in (1, 2, 4) or shape[0] % chip.host == 0)
    if len(shape) != chip.torus or math.prod(shape) > chip.pod:
        return False
    # From a cube of 64 on slices of v4, v5p and tpu7x are made of cubes.
    cubes = chip.torus == 3 and all(size % 4 == 0 for size in shape)
    return cubes or "x".join(map(str, shape)) in SMALL[chip.torus]


# Slices smaller than a cube, and all of v5e and v6e, by the number of dimensions.
SMALL = {2: ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"), 3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4")}


def most_even(chip: Chip, count: int) -> tuple[int, ...] | None:
    """The shape of `count` chips whose sides differ least; None if there is none."""
    if chip.gpu:
        return (count,) if _exists(chip, (count,)) else None
    sides = [n for n in range(4, 65, 4) if count % n == 0]
    cubes = {tuple(sorted((a, b, count // a // b), reverse=True)) for a in sides for b in sides if count % (a * b) == 0}
    small = (tuple(map(int, text.split("x"))) for text in SMALL[chip.torus])
    return min((s for s in (*small, *cubes) if math.prod(s) == count and _exists(chip, s)), default=None)


def describe_topologies(chip: Chip) -> str:
    """Those that exist, in words."""
    if chip.gpu:
        return f"{chip.name}:1, :2, :4 and every multiple of {chip.host}"
    small = ", ".join(SMALL[chip.torus])
    if chip.torus == 2:
        return small
    return f"{small}, and AxBxC of multiples of 4 with at most {chip.pod} chips, such as 4x4x8"
