"""What serving a recipe's network would take: its prefill and decode programs, compiled for a machine."""

from collections.abc import Sequence
from typing import Any

from tony.errors import TonyError
from tony.parallel.sharding import rules_of
from tony.plan.aot import DoesNotFit, compile_program, layout_on
from tony.plan.chips import GIB
from tony.plan.estimate import choices
from tony.plan.report import Asked, described, has_mesh, topology_of


def plan_serving(asked: Asked, more: Sequence[str] = ()) -> dict[str, Any]:
    """Reports on reading a prompt of the greatest length ("prefill") and on one token more for each of a batch
    ("decode"), {"prefill": ..., "decode": ...}.

    Parameters and cache are float32, as `tony.model.forward.decode` has them. If the recipe's mesh is for another
    number of devices, the one that splits the network into most parts is taken: weights that are split over data would
    have to be gathered for every token.
    """
    from tony.stages.language import network

    recipe = asked.load(more)
    config, topology = network(recipe), topology_of(asked, recipe)
    if not has_mesh(asked, recipe, topology, more):
        return plan_serving(asked, (*more, *_mesh_overrides(asked, recipe, config, topology)))
    layout = layout_on(topology, recipe)
    ways = layout.ways("batch")
    batch = 8 * ways if asked.batch is None else asked.batch
    if batch % ways or batch < 1:
        raise TonyError(f"--batch {batch}: the mesh splits it into {ways} parts; give a multiple of that, above zero")
    made: dict[str, Any] = {}
    for name, tokens in (("prefill", config.max_length), ("decode", 1)):
        function, arguments = program(config, layout, batch, tokens)
        try:
            compiled = compile_program(function, arguments, topology)
        except DoesNotFit as failure:
            raise TonyError(
                f"{recipe.name} can't {name} {batch} sequences on {topology.name}: a device needs "
                f"{failure.needed / GIB:.1f} GiB and has {failure.available / GIB:.2f}; give a smaller --batch or more "
                "chips"
            ) from None
        report = described(recipe, config, topology, layout.mesh, compiled)
        seconds = report["step_seconds"]["step"]
        made[name] = {
            **report,
            "program": name,
            "rows": batch,
            "length": config.max_length,
            "tokens_per_second": batch * tokens / seconds,
            "mfu": 2 * report["active_parameters"] * batch * tokens / seconds / topology.chips / topology.chip.peak,
        }
    return made


def _mesh_overrides(asked: Asked, recipe, config, topology) -> list[str]:
    """The mesh of a topology, as `--set` takes it."""
    rows = topology.devices if asked.batch is None else asked.batch
    best = max(choices(config, rows, topology, rules_of(recipe.mesh)), key=lambda c: (c.model, c.expert), default=None)
    if best is None:
        raise TonyError(
            f"no mesh of {topology.name} divides {recipe.name} and {rows} sequences; give another topology, or a mesh "
            "with --set mesh.data=..."
        )
    return [override for override in best.overrides() if override.startswith("mesh.")]


def program(config, layout, batch: int, tokens: int):
    """(jitted function, abstract arguments) of extending `batch` sequences by `tokens` each; it returns the logits of
    the last one and the cache, whose buffers it reuses."""
    import jax
    import jax.numpy as jnp

    from tony.model.forward import decode, init_cache, unembed
    from tony.model.params import abstract, declare, shardings
    from tony.parallel.sharding import spread

    def extend(params, cache, written, positions):
        with spread(layout):
            hidden, cache = decode(params, config, cache, written, positions)
            return unembed(params, config, hidden[:, -1]), cache

    heads = "kv_heads" if config.kv_heads > 1 else None
    kept, rows = layout.sharding("batch", heads), layout.sharding("batch")
    cache = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=kept),
        jax.eval_shape(lambda: init_cache(config, batch, config.max_length)),
    )
    integers = jax.ShapeDtypeStruct((batch, tokens), jnp.int32, sharding=rows)
    params = abstract(declare(config), shardings(config, layout))
    placed = (rows, jax.tree.map(lambda _: kept, cache))
    run = jax.jit(extend, donate_argnums=1, out_shardings=placed, compiler_options=layout.compiler_options)
    return run, (params, cache, integers, integers)
