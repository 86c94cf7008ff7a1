"""The train step: one function for the trainer, which runs it, and for planning, which only compiles it."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from tony.errors import TonyError
from tony.model.config import ModelConfig
from tony.model.params import abstract, declare, shardings
from tony.parallel.sharding import Extent, Layout, constrain, divisors, inside_pods, is_spread, spread
from tony.train.loss import language_loss
from tony.train.optimizer import make_optimizer

LossFunction = Callable[[Any, Any, jax.Array], tuple[jax.Array, dict]]


class Step(NamedTuple):
    """A train step and what it is called with.

    `run(state, batch, key) -> (state, metrics)` is jitted and reuses the state's buffers, a state being {"params",
    "optimizer"}. `abstract` are the ShapeDtypeStructs of its arguments, with shardings if it is spread over a mesh, so
    `run.lower(*abstract).compile()` needs none of the mesh's devices. `init(params)` makes the optimiser's state.
    """

    run: Any
    abstract: tuple[Any, Any, Any]
    init: Callable[[Any], Any]


def make_step(
    loss_fn: LossFunction,
    config: Any,
    params: Any,
    batch: Any,
    layout: Layout | None = None,
    param_shardings: Any = None,
) -> Step:
    """The step of training by `loss_fn(params, batch, key) -> (loss, scalar metrics)`.

    `config` is a `tony.recipe.Training`; of `params` and `batch` only shapes and types matter. With a `layout`,
    parameters lie as `param_shardings` says, the optimiser's state as its parameters, and the batch's first axis is
    split. Then pods work for themselves until they exchange gradients (`_by_pod`); a loss that is not a mean over rows
    takes its normaliser through `mean_over_pods`.
    """
    optimizer = make_optimizer(config)
    params, batch = jax.tree.map(_shape_of, (params, batch))
    state = {"params": params, "optimizer": jax.eval_shape(optimizer.init, params)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    gradient_of = _accumulated(jax.value_and_grad(loss_fn, has_aux=True), config.accumulation)
    if layout is None:
        run = jax.jit(_update(jax.jit(gradient_of), optimizer), donate_argnums=0)
        return Step(run, (state, batch, key), optimizer.init)
    whole = layout.sharding()
    placed = {
        "params": param_shardings,
        "optimizer": optimizer_shardings(state["optimizer"], params, param_shardings, whole),
    }
    rows = layout.sharding("batch")
    check_rows({x.shape[0] for x in jax.tree.leaves(batch)}, config.accumulation, layout)

    def step(state, batch, key):
        with spread(layout):
            gradients = _by_pod(gradient_of, layout, param_shardings)
            return _update(gradients, optimizer, partial(_in_every_pod, layout=layout))(state, batch, key)

    return Step(
        jax.jit(step, donate_argnums=0, out_shardings=(placed, whole), compiler_options=layout.compiler_options),
        (jax.tree.map(_placed, state, placed), jax.tree.map(lambda x: _placed(x, rows), batch), _placed(key, whole)),
        jax.jit(optimizer.init, out_shardings=placed["optimizer"]),
    )


def check_rows(batches: Iterable[int], accumulation: int, layout: Layout, section: str = "") -> None:
    """TonyError, which names the `section`, unless the mesh divides batches of so many rows, and their parts a pod's
    share of them."""
    where = f"{section}." if section else ""
    batches = sorted(batches)
    layout.check(rows_extents(batches, section))
    for share in (rows // layout.pods for rows in batches):
        if share % accumulation:
            raise TonyError(
                f"{where}accumulation = {accumulation}: it must divide the {share} rows that each of mesh.pod = "
                f"{layout.pods} has of a batch; give one of {', '.join(map(str, divisors(share)))}"
            )


def check_groups(config: ModelConfig, batches: Iterable[int], section: Any, layout: Layout, name: str = "") -> None:
    """TonyError unless the tokens that a device has of batches of so many rows are whole groups of experts' tokens."""
    if not (config.experts and config.dispatch == "capacity" and config.expert_group):
        return
    for rows in sorted(batches):
        tokens = rows * section.length // layout.ways("batch") // section.accumulation
        if tokens % config.expert_group:
            where = f"{name}.rows" if name else "rows"
            raise TonyError(
                f"model.expert_group = {config.expert_group}: it must divide the {tokens} tokens that a device has of "
                f"{where} = {rows}; give a divisor of that"
            )


def rows_extents(batches: Iterable[int], section: str = "") -> list[Extent]:
    """Batches of so many rows as what a mesh must divide."""
    where = f"{section}.rows" if section else "rows"
    return [Extent(f"a batch of {rows} rows ({where})", ("batch",), (rows,)) for rows in sorted(batches)]


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))


def _placed(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _update(gradients, optimizer: optax.GradientTransformation, everywhere=lambda function: function):
    """A step by the gradients of a batch; one whose loss or gradients are not finite changes nothing."""

    def update(state, loss, gradient):
        norm = optax.global_norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        if not is_spread():  # a choice of each number would have XLA's CPU back end copy the state
            return jax.lax.cond(finite, updated, lambda _, state: state, gradient, state), norm
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), updated(gradient, state), state), norm

    def updated(gradient, state):
        updates, opt_state = optimizer.update(gradient, state["optimizer"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "optimizer": opt_state}

    def step(state, batch, key):
        (loss, metrics), gradient = gradients(state["params"], batch, key)
        kept, norm = everywhere(update)(state, loss, gradient)
        return kept, {**metrics, "loss": loss, "gradient_norm": norm}

    return step


def _accumulated(gradient_of, parts: int):
    """The mean of loss, metrics and gradients over so many parts of a batch, one after the other, by what each part's
    loss is a mean over: the metric "targets", above zero, which goes no further. Of losses without it all parts count
    the same, and a metric that is not a number in a part, such as the loss of a modality that it lacks, does not."""

    def whole(params, batch, key):
        (loss, metrics), gradient = gradient_of(params, batch, key)
        return (loss, {name: x for name, x in metrics.items() if name != "targets"}), gradient

    def accumulated(params, batch, key):
        split = jax.tree.map(lambda x: _parts(x, parts), batch)

        def one(mean_and_seen, part_and_index):
            (mean, seen), (part, index) = mean_and_seen, part_and_index
            (loss, metrics), gradient = gradient_of(params, part, jax.random.fold_in(key, index))
            targets = metrics.pop("targets", jnp.ones(()))
            share = targets / (seen + targets)
            mean = jax.tree.map(lambda m, x: m + share * (x - m), mean, (loss, gradient))
            return (mean, seen + targets), (metrics, targets)

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        ((loss, gradient), _), (told, weights) = jax.lax.scan(one, (zero, jnp.zeros(())), (split, jnp.arange(parts)))
        return (loss, {name: _mean(x, weights) for name, x in told.items()}), gradient

    return whole if parts == 1 else accumulated


def _mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted mean of those values that are numbers; not a number if there are none."""
    there = jnp.where(jnp.isnan(values), 0, weights)
    return jnp.nansum(values * there) / there.sum()


def _parts(x: jax.Array, parts: int) -> jax.Array:
    x = x.reshape(parts, x.shape[0] // parts, *x.shape[1:])
    return constrain(x, None, "batch", *(None,) * (x.ndim - 2))


def _by_pod(gradient_of, layout: Layout, param_shardings: Any):
    """Forward and backward of each pod on its rows, then the exchange of gradients, so that all pods have the same.

    As PaLM's two pods (section 4): nothing else goes between pods but scalars. Each sends its gradients in `exchange`'s
    type once to every other one and adds them up in float32, in the same order everywhere: for two pods as many bytes
    as a reduction, and parameters stay bitwise equal.
    """
    if layout.pods == 1:
        return gradient_of

    def exchanged(gradient, sharding):  # [pods, ...], a pod's own in each
        sent = gradient.astype(layout.exchange)
        for pod in ("pod", None):
            spec = PartitionSpec(pod, *sharding.spec)
            sent = jax.lax.optimization_barrier(
                jax.lax.with_sharding_constraint(sent, NamedSharding(layout.mesh, spec))
            )
        return sent.astype(jnp.float32).sum(0) / layout.pods

    def gradients(params, batch, key):
        rows = jax.tree.map(lambda x: x.reshape(layout.pods, -1, *x.shape[1:]), batch)
        with inside_pods():
            (loss, metrics), gradient = jax.vmap(
                gradient_of, in_axes=(None, 0, None), axis_name="pod", spmd_axis_name="pod"
            )(params, rows, key)
        means = jax.tree.map(lambda x: x.mean(0), (loss, metrics))
        return means, jax.tree.map(exchanged, gradient, param_shardings)

    return gradients


def _in_every_pod(function, layout: Layout):
    """A function of what all pods have, computed by each of them for itself."""
    if layout.pods == 1:
        return function
    whole = PartitionSpec()
    return jax.shard_map(
        function, mesh=layout.mesh, in_specs=whole, out_specs=whole, axis_names={"pod"}, check_vma=False
    )


def optimizer_shardings(state: Any, params: Any, param_shardings: Any, whole: NamedSharding) -> Any:
    """Shardings of an optimiser's state: as the parameter that an array belongs to, less the axis that a factored
    second moment of Adafactor has summed over; counts and placeholders are `whole`."""
    known = {
        path: (x.shape, sharding)
        for (path, x), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(param_shardings), strict=True
        )
    }

    def of(path, x):
        for start in range(len(path) + 1):
            if path[start:] in known:
                shape, sharding = known[path[start:]]
                spec = _spec_of(x.shape, shape, sharding.spec, getattr(path[start - 1], "name", ""))
                return NamedSharding(sharding.mesh, spec)
        return whole

    return jax.tree_util.tree_map_with_path(of, state)


def _spec_of(shape: tuple, of_param: tuple, spec: PartitionSpec, name: str) -> PartitionSpec:
    if shape == of_param:
        return spec
    parts = (*spec, *(None,) * (len(of_param) - len(spec)))
    # optax: rows have lost the largest axis, columns the second largest; of axes of one size the last is the largest.
    lost = [axis for axis in range(len(of_param)) if shape == of_param[:axis] + of_param[axis + 1 :]]
    if not lost:
        return PartitionSpec()
    axis = lost[-2] if name == "v_col" and len(lost) > 1 else lost[-1]
    return PartitionSpec(*parts[:axis], *parts[axis + 1 :])


# ------------------------------------------------------------------------------------------------ of the network


def language_loss_fn(config: ModelConfig, section: Any) -> LossFunction:
    """The loss of a `tony.recipe.Language` training."""

    def loss_fn(params, batch, key):
        del key
        return language_loss(params, config, batch, modality_weights=dict(section.weights), z_loss=section.z_loss)

    return loss_fn


def language_step(config: ModelConfig, section: Any, layout: Layout | None = None, rows: int | None = None) -> Step:
    """The step of a `tony.recipe.Language` training as `tony.stages.language` takes it, with `rows` in place of the
    section's, and every position of a row with a loss."""
    placed = shardings(config, layout) if layout else None
    if layout:
        check_groups(config, {rows or section.rows}, section, layout)
    batch = language_batch(rows or section.rows, section.length)
    return make_step(language_loss_fn(config, section), section, abstract(declare(config)), batch, layout, placed)


def language_batch(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What `tony.data.loader.Loader` gives, with a loss at every position."""
    whole = ("tokens", "targets", "positions", "segments", "modality", "loss_index")
    types = {**dict.fromkeys(whole, jnp.int32), "weights": jnp.float32}
    return {name: jax.ShapeDtypeStruct((rows, length), kind) for name, kind in types.items()}
