"""Logical axes -> mesh axes -> NamedSharding."""

from collections.abc import Mapping

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tony.errors import TonyError

AXES = ("pod", "data", "expert", "model")

# Parameters are split over "model" by heads, hidden width or vocabulary (Shoeybi et al. 2019), and over "data" by
# their other axis (fully sharded, Rajbhandari et al. 2020); the batch over pods and data.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("pod", "data"),
    "vocab": "model",
    "heads": "model",
    "kv_heads": "model",
    "hidden": "model",
    "embed": "data",
    "expert": "expert",
    "experts": None,  # the router's outputs
    "head_dim": None,
    "layers": None,
    "buckets": None,
}


def make_mesh(devices=None, **sizes: int) -> Mesh:
    """A mesh of AXES, such as `make_mesh(data=4, model=2)`; an axis left out has one device."""
    devices = jax.devices() if devices is None else devices
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise TonyError(f"mesh axis {unknown[0]!r} is unknown; axes are {', '.join(AXES)}")
    shape = [sizes.get(axis, 1) for axis in AXES]
    needed = 1
    for size in shape:
        needed *= size
    if needed != len(devices):
        raise TonyError(
            f"a mesh of {dict(zip(AXES, shape, strict=True))} needs {needed} devices; there are {len(devices)}"
        )
    # Auto: the partitioner spreads what parameters and batch leave open; no array has its sharding in its type.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def named_sharding(
    mesh: Mesh, rules: Mapping[str, str | tuple[str, ...] | None], axes: tuple[str, ...], shape: tuple[int, ...]
) -> NamedSharding:
    """The sharding of an array by the rules; an axis that the mesh axes do not divide stays whole."""
    parts = []
    for axis, size in zip(axes, shape, strict=True):
        names = rules.get(axis)
        names = (names,) if isinstance(names, str) else tuple(names or ())
        ways = 1
        for name in names:
            ways *= mesh.shape[name]
        parts.append(names if names and size % ways == 0 else None)
    return NamedSharding(mesh, PartitionSpec(*parts))


def start_hosts() -> None:
    """Join the other hosts of a cluster, if the environment describes one (`jax.distributed`)."""
    import os

    if os.environ.get("JAX_COORDINATOR_ADDRESS") or os.environ.get("MEGASCALE_COORDINATOR_ADDRESS"):
        jax.distributed.initialize()
