"""Compiling a recipe's own programs for machines that are not here.

TPUs: the real compiler, which libtpu brings, for a described topology. GPUs: the partitioner alone, on simulated
devices of the CPU, so what it says of memory and traffic is an estimate.
"""

import os
import re
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tony.errors import TonyError, first_line, require
from tony.plan.chips import GIB, Topology, describe_topologies

SIMULATED = 1024  # devices of the CPU at most


class DoesNotFit(Exception):
    """A program needs more memory than a device has: bytes of it and of the device."""

    def __init__(self, needed: float, available: float):
        super().__init__(needed, available)
        self.needed, self.available = needed, available


@dataclass(frozen=True)
class Program:
    """A compiled program: its text, the bytes of HBM that a device needs by use, and the seconds it took to compile."""

    text: str
    memory: dict[str, int]
    seconds: float

    @property
    def hbm_bytes(self) -> int:
        """Of a device."""
        return sum(self.memory.values())


def settle() -> None:
    """What JAX and libtpu have to know before they are imported: there is no TPU here, and nobody to ask for one."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # plans may be made beside each other: no device is used


def devices_of(topology: Topology) -> list[Any]:
    """The devices of a topology, of which none has to exist; TonyError if it has none."""
    import jax

    if topology.chip.gpu:
        if topology.chips > SIMULATED:
            raise TonyError(f"{topology.name}: at most {SIMULATED} GPUs can be simulated here; give fewer")
        with suppress(RuntimeError):  # where JAX has begun, it has as many as it has
            jax.config.update("jax_num_cpu_devices", topology.chips)
        if len(jax.devices("cpu")) < topology.chips:
            raise TonyError(
                f"{topology.name}: this process has {len(jax.devices('cpu'))} simulated devices; plan GPUs in one of "
                "their own"
            )
        return jax.devices("cpu")[: topology.chips]
    require("libtpu", "tpu")
    from jax.experimental import topologies

    more = {"chip_config_name": topology.chip.config} if topology.chip.config else {}
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, num_slices=topology.slices, **more
        ).devices
    except Exception as error:  # libtpu's own, of no common class
        raise TonyError(
            f"--topology {topology.name}: libtpu does not make it ({first_line(error, 120)}); of "
            f"{topology.chip.name} there are {describe_topologies(topology.chip)}"
        ) from None


def layout_on(topology: Topology, recipe: Any) -> Any:
    """The layout (`tony.parallel.sharding.Layout`) of a recipe's mesh on the devices of a topology."""
    from tony.parallel.sharding import make_layout

    layout = make_layout(recipe.mesh, devices_of(topology))
    assert layout is not None  # devices were given
    return layout


def compile_program(function: Any, arguments: Sequence[Any], topology: Topology) -> Program:
    """Compile a jitted function for the devices that its abstract arguments are placed on.

    Raises DoesNotFit if the compiler finds no way to stay within the memory of a device, TonyError if it does not take
    the program at all.
    """
    import jax

    # A program from the cache would say nothing of how long it takes to compile.
    cached = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tony-plan-") as folder:
        try:
            traced = function.trace(*arguments)
            lowered = traced.lower(lowering_platforms=("cuda",)) if topology.chip.gpu else traced.lower()
            told = {} if topology.chip.gpu else {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
            compiled = lowered.compile(compiler_options=told)
        except jax.errors.JaxRuntimeError as error:
            raise _too_much(str(error)) or _not_taken(str(error), topology) or error from None
        finally:
            jax.config.update("jax_enable_compilation_cache", cached)
        seconds = time.perf_counter() - begun
        text = _text_of(compiled, Path(folder))
    found = compiled.memory_analysis()
    memory = {
        "state": found.argument_size_in_bytes,
        "new": max(0, found.output_size_in_bytes - found.alias_size_in_bytes),
        "temporary": found.temp_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
    return Program(text, memory, seconds)


def _text_of(compiled: Any, folder: Path) -> str:
    """The text of a compiled program, as libtpu has written it where there is such a file: this jaxlib can't read every
    program of this libtpu, those that have the SparseCores of v5p and later gather among them. What is written before
    the last pass has no cycles."""
    written = list(folder.glob("*.after_codegen.txt"))
    return max(written, key=lambda path: path.stat().st_size).read_text() if written else compiled.as_text()


def _too_much(message: str) -> DoesNotFit | None:
    """What the compiler says of memory that it ran out of."""
    units = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40, "": 1}
    found = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)", message)
    return DoesNotFit(float(found[1]) * units[found[2]], float(found[3]) * units[found[4]]) if found else None


def _not_taken(message: str, topology: Topology) -> TonyError | None:
    """What the compiler says that it cannot do: groups of three devices, for one."""
    if not message.startswith(("UNIMPLEMENTED", "INVALID_ARGUMENT")):
        return None
    return TonyError(
        f"the compiler for {topology.name} does not take this program ({first_line(message)}); try another mesh"
    )
