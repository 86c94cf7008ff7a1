"""Logical axes -> mesh axes -> NamedSharding, and the mesh that a training runs on."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from tony.errors import TonyError
from tony.parallel import hosts
from tony.parallel.rules import AXES, RULES

Rules = Mapping[str, tuple[str, ...]]


class Extent(NamedTuple):
    """Something that a mesh must divide: what it is called, and the logical axis and size of each of its axes."""

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How a training is spread out: a mesh with all of AXES, which of them each logical axis is split over, and in what
    the pods exchange gradients ("bfloat16" or "float32")."""

    mesh: Mesh | AbstractMesh
    rules: Rules
    exchange: str = "bfloat16"

    @property
    def pods(self) -> int:
        """Groups of devices that share nothing but gradients."""
        return self.mesh.shape["pod"]

    @property
    def compiler_options(self) -> dict[str, str] | None:
        """What XLA is told of programs on this mesh: on TPUs, to gather weights ahead of their use."""
        tpu = isinstance(self.mesh, Mesh) and self.mesh.devices.flat[0].platform == "tpu"
        return {"xla_enable_async_all_gather": "true"} if tpu else None

    def ways(self, axis: str) -> int:
        """Parts that a logical axis is split into."""
        return math.prod(self.mesh.shape[name] for name in self.rules[axis])

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The mesh axes of an array's logical axes; a mesh axis splits an array once."""
        return PartitionSpec(*_split(self.rules, axes))

    def sharding(self, *axes: str | None) -> NamedSharding:
        """The sharding of an array by its logical axes; those that are not named stay whole."""
        return NamedSharding(self.mesh, self.spec(axes))

    def shardings(self, specs: Any) -> Any:
        """The sharding of every array of a tree of specs {shape, axes}."""
        return jax.tree.map(lambda spec: self.sharding(*spec.axes), specs, is_leaf=_has_axes)

    def divides(self, extents: Iterable[Extent]) -> bool:
        """Whether the mesh does."""
        return all(
            size % _ways(self.mesh.shape, names) == 0
            for extent in extents
            for size, names in zip(extent.shape, _split(self.rules, extent.axes), strict=True)
        )

    def check(self, extents: Iterable[Extent]) -> None:
        """TonyError, with the nearest mesh that does, unless the mesh divides everything."""
        sizes, needed = dict(self.mesh.shape), [(e, _split(self.rules, e.axes)) for e in extents]

        def fits(mesh: Mapping[str, int]) -> bool:
            return mesh["pod"] == sizes["pod"] and not any(
                size % _ways(mesh, names) for e, parts in needed for size, names in zip(e.shape, parts, strict=True)
            )

        if fits(sizes):
            return
        extent, axis, size, names = next(
            (e, axis, size, names)
            for e, parts in needed
            for axis, size, names in zip(e.axes, e.shape, parts, strict=True)
            if size % _ways(sizes, names)
        )
        near = _nearest(sizes, math.prod(sizes.values()), fits)
        split = " x ".join(f"mesh.{name} = {sizes[name]}" for name in names)
        told = f"the nearest mesh that fits is {_shown(near)}" if near else "no mesh of as many devices fits"
        whole = f"{', or' if near else ';'} keep that axis whole with mesh.rules.{axis} = []"
        raise TonyError(
            f"{split}: {extent.name} {list(extent.shape)} can't be split so along {axis!r} = {size}; "
            f"{told}{'' if axis == 'batch' else whole}"
        )


def extents(specs: Any) -> list[Extent]:
    """The arrays of a tree of specs {shape, axes} as what a mesh must divide."""
    leaves = jax.tree_util.tree_leaves_with_path(specs, is_leaf=_has_axes)
    return [
        Extent(".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path), spec.axes, spec.shape)
        for path, spec in leaves
    ]


def _has_axes(value: Any) -> bool:
    """Leaves of a tree of specs."""
    return hasattr(value, "axes") and hasattr(value, "shape")


def _split(rules: Mapping[str, tuple[str, ...]], axes: Sequence[str | None]) -> list[tuple[str, ...]]:
    used: set[str] = set()
    parts = []
    for axis in axes:
        names = tuple(name for name in rules.get(axis or "", ()) if name not in used)
        used.update(names)
        parts.append(names)
    return parts


def _ways(sizes: Mapping[str, int], names: Iterable[str]) -> int:
    return math.prod(sizes[name] for name in names)


def divisors(number: int) -> list[int]:
    """All of them, 1 and the number among them."""
    return [n for n in range(1, number + 1) if number % n == 0]


def _nearest(sizes: Mapping[str, int], total: int, fits: Callable[[dict[str, int]], bool]) -> dict[str, int] | None:
    """The mesh of `total` devices that fits and whose sizes differ least, by their ratios, with as few new axes as can
    be."""
    found = [
        dict(zip(AXES, (pod, data, expert, total // (pod * data * expert)), strict=True))
        for pod, data, expert in itertools.product(divisors(total), repeat=3)
        if total % (pod * data * expert) == 0
    ]

    def distance(mesh: dict[str, int]) -> tuple[int, float]:
        new = sum(sizes[axis] == 1 < mesh[axis] for axis in AXES)
        return new, sum(abs(math.log(mesh[axis] / sizes[axis])) for axis in AXES)

    return next(filter(fits, sorted(found, key=distance)), None)


def _shown(sizes: Mapping[str, int]) -> str:
    return " x ".join(f"{axis} {size}" for axis, size in sizes.items())


# -------------------------------------------------------------------------------------------------------- meshes


def make_layout(section: Any, devices: Sequence[Any] | None = None) -> Layout | None:
    """The layout of a recipe's `mesh` section (`tony.recipe.Mesh`) on these devices, by default all there are.

    None where the section asks for one device and there is one process: nothing is spread then.
    """
    sizes = {axis: getattr(section, axis) for axis in AXES}
    if devices is None and all(size == 1 for size in sizes.values()) and jax.process_count() == 1:
        return None
    return Layout(make_mesh(devices, **sizes), rules_of(section), section.exchange)


def abstract_layout(section: Any) -> Layout:
    """The layout of a recipe's `mesh` section without any device."""
    sizes = [getattr(section, axis) for axis in AXES]
    if -1 in sizes:
        raise TonyError("a mesh with a size of -1 takes the devices there are; give every size where there are none")
    return Layout(abstract_mesh(sizes), rules_of(section), section.exchange)


def abstract_mesh(sizes: Sequence[int]) -> AbstractMesh:
    """A mesh of AXES of these sizes, without any device."""
    return AbstractMesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def rules_of(section: Any) -> dict[str, tuple[str, ...]]:
    """RULES with a `mesh` section's own laid over them."""
    return RULES | {axis: tuple(names) for axis, names in section.rules.items()}


def make_mesh(devices: Sequence[Any] | None = None, **sizes: int) -> Mesh:
    """A mesh of AXES, such as `make_mesh(data=4, model=2)`; an axis left out has one device, one of -1 what is left.

    A pod is made of devices of one slice, where there are slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise TonyError(f"mesh axis {unknown[0]!r} is unknown; axes are {', '.join(AXES)}")
    shape = completed({axis: sizes.get(axis, 1) for axis in AXES}, len(devices))
    slices = sorted({getattr(device, "slice_index", 0) or 0 for device in devices})
    if shape["pod"] % len(slices):
        raise TonyError(
            f"mesh.pod = {shape['pod']}: the devices are in {len(slices)} slices, between which only gradients should "
            f"go; set mesh.pod = {len(slices)}"
        )
    devices.sort(key=lambda device: getattr(device, "slice_index", 0) or 0)  # stable
    per_pod = len(devices) // shape["pod"]
    pods = [
        _arranged(list(shape.values())[1:], devices[start : start + per_pod])
        for start in range(0, len(devices), per_pod)
    ]
    # Auto: the partitioner spreads what parameters and batch leave open; no array has its sharding in its type.
    return Mesh(np.stack(pods), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def completed(sizes: Mapping[str, int], count: int) -> dict[str, int]:
    """The sizes of a mesh with -1 worked out for `count` devices; TonyError, with the nearest that do, if they don't
    fit."""
    left = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(left) > 1:
        raise TonyError(f"mesh.{left[0]} and mesh.{left[1]} are both -1; only one axis can take what is left")
    if count % fixed == 0 if left else count == fixed:
        return {axis: count // fixed if size == -1 else size for axis, size in sizes.items()}
    asked = {axis: max(1, size) for axis, size in sizes.items()}
    near = _nearest(asked, count, lambda mesh: True)
    needed = f"a multiple of {fixed}" if left else str(fixed)
    raise TonyError(
        f"a mesh of {_shown(sizes)} needs {needed} devices; there are {count}, and the nearest mesh of them is "
        f"{_shown(near or asked)}"
    )


def _arranged(shape: list[int], devices: list[Any]) -> np.ndarray:
    """Devices of one pod as an array, neighbours in the torus as neighbours along an axis where that is possible."""
    if getattr(devices[0], "platform", "cpu") != "tpu":
        return np.array(devices).reshape(shape)
    from jax.experimental import mesh_utils

    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


# -------------------------------------------------------------------------------------------------------- arrays


def place(tree: Any, shardings: Any) -> Any:
    """Arrays that every host has whole, or that are spread already, spread over the mesh; always copies."""

    def one(x, sharding):
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return jax.jit(jnp.copy, out_shardings=sharding)(x)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])

    return jax.tree.map(one, tree, shardings)


def whole(tree: Any) -> Any:
    """The arrays of a tree, wherever their parts are, whole on every host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental.multihost_utils import process_allgather

    hosts.barrier()
    return process_allgather(tree, tiled=True)


def host_share(layout: Layout) -> tuple[int, int]:
    """(host, hosts) of `tony.data.loader.Loader.batch`: the part of a batch's rows that this process' devices hold."""
    ways = layout.ways("batch")
    held = layout.sharding("batch").addressable_devices_indices_map((ways,)).values()
    numbers = {number for index in held if index for number in range(*index[0].indices(ways))}
    first, count = min(numbers), max(numbers) + 1 - min(numbers)
    return (first // count, ways // count) if ways % count == 0 and first % count == 0 else (0, 1)


def place_rows(batch: Any, layout: Layout) -> Any:
    """This process' share of a batch's rows, as a part of the whole batch on the mesh."""
    host, count = host_share(layout)
    sharding = layout.sharding("batch")

    def one(x):
        x, first = np.asarray(x), host * len(x)
        shape = (count * len(x), *x.shape[1:])
        return jax.make_array_from_callback(
            shape, sharding, lambda part: x[slice(*(n - first for n in part[0].indices(shape[0])[:2]))]
        )

    return jax.tree.map(one, batch)


# ------------------------------------------------------------------------------------------- inside of a program


_layout: ContextVar[Layout | None] = ContextVar("layout", default=None)
_inside_pods: ContextVar[bool] = ContextVar("inside_pods", default=False)


@contextmanager
def spread(layout: Layout) -> Iterator[None]:
    """While a program is traced inside, `constrain` and its like go by this layout."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


@contextmanager
def inside_pods() -> Iterator[None]:
    """While a program is traced inside, it is that of each pod: a `jax.vmap` over "pod" spreads it over them."""
    token = _inside_pods.set(True)
    try:
        yield
    finally:
        _inside_pods.reset(token)


def _names(layout: Layout, axes: Sequence[str | None]) -> list[tuple[str, ...]]:
    outside = ("pod",) if _inside_pods.get() else ()
    return [tuple(name for name in names if name not in outside) for names in _split(layout.rules, axes)]


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """x, split as its logical axes say; x itself where nothing is spread, or the mesh does not divide it."""
    layout = _layout.get()
    if layout is None:
        return x
    return _constrained(x, layout, _names(layout, axes))


def _constrained(x: jax.Array, layout: Layout, parts: list[tuple[str, ...]]) -> jax.Array:
    if any(size % _ways(layout.mesh.shape, names) for size, names in zip(x.shape, parts, strict=True)):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, PartitionSpec(*parts)))


def gathered(x: jax.Array, *axes: str | None) -> jax.Array:
    """`constrain`, but whole along the mesh axes that the batch is split over, as fully sharded weights are in use."""
    layout = _layout.get()
    if layout is None:
        return x
    parts = _names(layout, ("batch", *axes))[1:]  # the batch has claimed its mesh axes
    return _constrained(x, layout, parts)


def is_spread() -> bool:
    """Whether the program that is being traced is spread over a mesh."""
    return _layout.get() is not None


def moved(x: jax.Array, before: Sequence[str | None], after: Sequence[str | None]) -> jax.Array:
    """x, which is split by logical axes, split by others: in bfloat16 on the way, and so is its gradient on the way
    back; x itself where nothing is spread."""
    if not is_spread():
        return x
    return constrain(constrain(x.astype(jnp.bfloat16), *before), *after).astype(x.dtype)


def by_rows(function: Callable, in_axes: tuple[int | None, ...]) -> Callable:
    """A function of rows, which are axis 0 of the arguments with 0 in `in_axes`, done by each part of the batch for its
    own ones; its results have an axis of parts in front. One part has the function's own results and no axis.

    What it sums over rows stays a part's own until the caller adds it up, so a loop adds up once.
    """
    layout = _layout.get()
    names = _names(layout, ("batch",))[0] if layout else ()
    parts = _ways(layout.mesh.shape, names) if layout else 1
    if parts == 1:
        return function
    split = jax.vmap(function, in_axes=in_axes, spmd_axis_name=names)

    def apart(*arguments):
        return split(*(
            x if axis is None else x.reshape(parts, -1, *x.shape[1:])
            for x, axis in zip(arguments, in_axes, strict=True)
        ))  # fmt: skip

    return apart


def mean_over_pods(x: jax.Array) -> jax.Array:
    """Inside of pods, the mean of what they have; else x itself."""
    return jax.lax.pmean(x, "pod") if _inside_pods.get() else x
