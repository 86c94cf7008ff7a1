"""`tony plan`: compile a recipe's own program for a machine and say what it would take."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tony.errors import TonyError
from tony.model.config import ModelConfig
from tony.model.count import active_parameter_count, flops_per_token, parameter_count
from tony.parallel.rules import AXES
from tony.parallel.sharding import completed, rules_of
from tony.plan.aot import DoesNotFit, Program, compile_program, layout_on
from tony.plan.arithmetic import (
    GRID,
    HOURS,
    PUE,
    megawatt_hours,
    tonnes_co2e,
    utilization,
)
from tony.plan.chips import CHIPS, GIB, Topology, most_even, read_topology
from tony.plan.estimate import Choice, Cost, choices, cost
from tony.plan.hlo import Module, Operation
from tony.plan.roofline import Place, crosses, roofline

# Meshes that a search finds fitting layouts of, such layouts of each, and layouts that it tries in all, at most.
MESHES, LAYOUTS, ATTEMPTS = 4, 2, 12
MESH = {"data", "expert", "model"}  # what `--set mesh...` changes of a choice


@dataclass(frozen=True)
class Asked:
    """What `tony plan` is asked: a recipe's file with overrides, a topology, and what turns watts into emissions."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    topology: str | None = None
    slices: int | None = None
    batch: int | None = None  # sequences, of `--serve`
    pue: float = PUE
    grid: float = GRID

    def load(self, more: Sequence[str] = ()) -> Any:
        """The recipe."""
        from tony.recipe import load

        recipe = load(self.recipe, (*self.overrides, *more))
        if recipe.model.base:
            raise TonyError(
                f"{recipe.name} tunes {recipe.model.base!r}, and plans are of pre-training; give a recipe without "
                "model.base"
            )
        return recipe


def topology_of(asked: Asked, recipe: Any) -> Topology:
    """The topology that is asked for; a chip alone, v4 if not even that, has the recipe's mesh made of it."""
    mesh = recipe.mesh
    name, _, size = (asked.topology or "v4").partition(":")
    slices = max(1, mesh.pod) if asked.slices is None else asked.slices
    if slices < 1:
        raise TonyError(f"--slices {slices}: expected at least one")
    if size or name not in CHIPS:
        return read_topology(asked.topology or name, slices)
    chip = CHIPS[name]
    such = f"--topology {name}:{'8' if chip.gpu else 'x'.join('4' * chip.torus)}"
    if -1 in (mesh.pod, mesh.data, mesh.expert, mesh.model):
        raise TonyError(
            f"{recipe.name}: its mesh takes all devices that are left (-1), so how many there are must be said: give "
            f"{such}, or another"
        )
    devices, parts = mesh.data * mesh.expert * mesh.model * mesh.pod, slices * chip.devices
    shape = most_even(chip, devices // parts) if devices % parts == 0 else None
    if shape is None:
        raise TonyError(
            f"{recipe.name}: its mesh has {devices} devices, and no {slices} slices of {name} have just so many; give "
            f"{such}, or another, and a mesh with --set mesh.data=..."
        )
    return Topology(chip, shape, slices)


# ------------------------------------------------------------------------------------------------------ training


def plan_training(asked: Asked, more: Sequence[str] = ()) -> dict[str, Any]:
    """The report on the train step of a recipe's pre-training, at its largest batch.

    If the recipe's mesh is for another number of chips, the one that arithmetic ranks best is taken. TonyError if the
    program does not fit, with what would help most.
    """
    from tony.stages.language import network, tokens_seen
    from tony.train.step import language_step

    recipe = asked.load(more)
    config, topology = network(recipe), topology_of(asked, recipe)
    if not has_mesh(asked, recipe, topology, more):
        as_it_is = (config.remat, recipe.pretrain.accumulation)
        return plan_training(asked, (*more, *_ranked(recipe, config, topology, as_it_is)[0].overrides()))
    layout = layout_on(topology, recipe)
    rows = largest_batch(recipe.pretrain)
    step = language_step(config, recipe.pretrain, layout, rows=rows)
    try:
        program = compile_program(step.run, step.abstract, topology)
    except DoesNotFit as failure:
        raise TonyError(_advice(failure, recipe, config, topology)) from None
    report = described(recipe, config, topology, layout.mesh, program)
    if not report["fits"]:  # of GPUs, whose compiler was not asked
        report["advice"] = _advice(DoesNotFit(program.hbm_bytes, topology.chip.usable), recipe, config, topology)
    return {**report, **_training(asked, recipe, config, topology, rows, tokens_seen(recipe.pretrain), report)}


def has_mesh(asked: Asked, recipe, topology: Topology, more: Sequence[str]) -> bool:
    """Whether a recipe's mesh is for so many devices, or was given by hand for better or worse."""
    sizes = [getattr(recipe.mesh, axis) for axis in AXES]
    by_hand = any(override.strip().startswith("mesh.") for override in (*asked.overrides, *more))
    return by_hand or -1 in sizes or math.prod(sizes) == topology.devices


def largest_batch(section: Any) -> int:
    """Rows of a step once a training's ramp is at its end."""
    return max(section.batch_sizes)


def described(recipe, config: ModelConfig, topology: Topology, mesh, program: Program) -> dict[str, Any]:
    """What the report on any program has: sizes, memory, bytes, seconds."""
    module = Module(program.text)
    operations = module.operations()
    place = Place.in_order(topology) if topology.chip.gpu else Place.of(mesh.devices.ravel())
    found = roofline(operations, topology, place)
    chip = topology.chip
    return {
        "recipe": recipe.name,
        "topology": topology.name,
        "estimate": chip.gpu,
        "parameters": parameter_count(config),
        "active_parameters": active_parameter_count(config),
        "chips": topology.chips,
        "slices": topology.slices,
        "mesh": dict(mesh.shape),
        "hbm_bytes_per_chip": program.hbm_bytes * chip.devices,
        "hbm": {name: size * chip.devices for name, size in program.memory.items()},
        "hbm_usable": int(chip.usable * chip.devices),
        "fits": program.hbm_bytes <= chip.usable,
        "ici_bytes_per_step": found.ici_bytes,
        "dcn_bytes_per_step": found.dcn_bytes,
        "hbm_traffic_bytes_per_step": found.hbm_bytes * chip.devices,
        "product_flops_per_step": found.flops * chip.devices,
        "step_seconds": found.seconds(),
        "transfers": transfers(operations, topology, place),
        "unread_loops": module.unread_loops(),
        "compile_seconds": program.seconds,
    }


def transfers(operations: Sequence[Operation], topology: Topology, place: Place) -> list[dict[str, Any]]:
    """What a chip sends in a step: by network, kind, devices of a group, and whether anything runs beside it."""
    total: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for made in operations:
        if made.sent:
            between = made.host or crosses(made.groups, place)
            group = topology.slices if made.host else len(made.groups[0]) if made.groups else 2  # one sends, one gets
            key = ("dcn" if between else "ici", made.kind, group, made.alone)
            total[key][0] += made.times * made.sent * topology.chip.devices
            total[key][1] += made.times
    keys = ("network", "kind", "devices", "alone", "bytes", "times")
    rows = [dict(zip(keys, (*key, *values), strict=True)) for key, values in total.items()]
    return sorted(rows, key=lambda row: -row["bytes"])


def _training(
    asked: Asked, recipe, config: ModelConfig, topology: Topology, rows: int, seen: int, report
) -> dict[str, Any]:
    """What the report on a train step has beside, for a training on `seen` tokens."""
    chip, length = topology.chip, recipe.pretrain.length
    step = report["step_seconds"]["step"]
    tokens = rows * length
    flops = flops_per_token(config, length)
    speed = tokens / step
    hours = seen / speed / HOURS
    energy = megawatt_hours(hours * topology.chips, chip.watts, asked.pue)
    return {
        "program": "train",
        "rows": rows,
        "length": length,
        "remat": config.remat,
        "accumulation": recipe.pretrain.accumulation,
        "flops_per_token": flops,
        "mfu": utilization(speed, flops, topology.chips, chip.peak),
        "hfu": report["product_flops_per_step"] / step / chip.peak,
        "tokens_per_second": speed,
        "train_tokens": seen,
        "train_hours": hours,
        "watts_per_chip": chip.watts,
        "watts_source": chip.power,
        "energy_mwh": energy,
        "tco2e": tonnes_co2e(energy, asked.grid),
    }


# -------------------------------------------------------------------------------------------------------- search


def search(asked: Asked, say=lambda text: None) -> dict[str, Any]:
    """The report of the fastest of several layouts, each compiled, with how each of them did in "searched".

    They are the recipe's own, if it is for as many chips, and of every mesh those LAYOUTS that arithmetic ranks best,
    or the next where one does not fit, until MESHES meshes have them.
    """
    from tony.stages.language import network

    recipe = asked.load()
    config, topology = network(recipe), topology_of(asked, recipe)
    own = _own(recipe, config, topology) if has_mesh(asked, recipe, topology, ()) else None
    fitting: list[dict] = []
    tried: dict[Choice, dict] = {}
    meshes: Counter[tuple[int, ...]] = Counter()
    for choice in ([own] if own else []) + _ranked(recipe, config, topology):
        mesh = (choice.data, choice.expert, choice.model)
        if len(tried) == ATTEMPTS:
            break
        if meshes[mesh] == LAYOUTS or choice in tried or (not meshes[mesh] and len(+meshes) == MESHES):
            continue
        say(f"compiling {_shown(choice)}")
        try:
            made = plan_training(asked, choice.overrides())
            outcome = {"step_seconds": made["step_seconds"]["step"], "mfu": made["mfu"], "fits": made["fits"]}
            fitting += [made] if made["fits"] else []
        except TonyError as error:
            outcome = {"fits": False, "error": str(error)}
        tried[choice] = outcome
        if outcome["fits"] and choice != own:
            meshes[mesh] += 1
    searched = [{**asdict(choice), **outcome} for choice, outcome in tried.items()]
    if not fitting:
        raise TonyError(
            f"none of the {len(tried)} likeliest layouts fits {topology.name}; {searched[0].get('error', '')}"
        )
    best = min(fitting, key=lambda made: made["step_seconds"]["step"])
    return {**best, "searched": searched}


def _ranked(recipe, config: ModelConfig, topology: Topology, fixed: tuple[str, int] | None = None) -> list[Choice]:
    """Layouts that should fit, the fastest first, by arithmetic; perhaps of one `remat` and number of microbatches.

    TonyError if there is none.
    """
    usable, every = topology.chip.usable, _costs(recipe, config, topology)
    costs = {choice: made for choice, made in every.items() if fixed in (None, (choice.remat, choice.accumulation))}
    if not costs:
        raise TonyError(
            f"no mesh of {topology.name} divides {recipe.name}, a batch of {largest_batch(recipe.pretrain)} rows, "
            f"{config.heads} heads and a width of {config.width}; change pretrain.rows or the topology, or give a mesh "
            "with --set mesh.data=..."
        )
    fitting = sorted((c for c in costs if costs[c].hbm_bytes < usable), key=lambda c: costs[c].seconds)
    if not fitting:
        least = min(costs, key=lambda c: costs[c].hbm_bytes)
        needed = costs[least].hbm_bytes
        raise TonyError(
            f"{recipe.name} does not fit {topology.name}: in the mesh that needs least ({_shown(least)}) a device "
            f"needs about {needed / GIB:.1f} GiB by arithmetic and has {usable / GIB:.2f}, "
            f"{(needed - usable) / GIB:.1f} GiB too little; "
            + _help(least, {choice: made.hbm_bytes for choice, made in every.items()}, usable)
        )
    return fitting


def _costs(recipe, config: ModelConfig, topology: Topology, first: Sequence[Choice] = ()) -> dict[Choice, Cost]:
    """What each layout costs by arithmetic: those that are given, and every one that divides network and batch."""
    rows, length, state = largest_batch(recipe.pretrain), recipe.pretrain.length, state_bytes(recipe, config)
    found = (*first, *choices(config, rows, topology, rules_of(recipe.mesh)))
    return {choice: cost(config, rows, length, state, topology, choice) for choice in found}


def _own(recipe, config: ModelConfig, topology: Topology) -> Choice:
    """What a recipe says itself."""
    sizes = completed({axis: getattr(recipe.mesh, axis) for axis in AXES}, topology.devices)
    return Choice(**sizes, remat=config.remat, accumulation=recipe.pretrain.accumulation)


def _shown(choice: Choice) -> str:
    sizes = f"data {choice.data} x expert {choice.expert} x model {choice.model}"
    return f"{sizes}, remat {choice.remat}, {choice.accumulation} microbatches"


def state_bytes(recipe, config: ModelConfig) -> float:
    """Bytes a parameter of what is kept between steps and of gradients."""
    import jax

    from tony.model.params import abstract, declare
    from tony.train.optimizer import make_optimizer

    params = abstract(declare(config))
    kept = jax.tree.leaves(jax.eval_shape(make_optimizer(recipe.pretrain).init, params))
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in [*kept, *jax.tree.leaves(params)])
    return size / parameter_count(config) + 4


def _advice(failure: DoesNotFit, recipe, config: ModelConfig, topology: Topology) -> str:
    """By how much a program does not fit, and which one change should save most."""
    here = _own(recipe, config, topology)
    needed = {choice: made.hbm_bytes for choice, made in _costs(recipe, config, topology, [here]).items()}
    return (
        f"{recipe.name} does not fit {topology.name}: a device needs {failure.needed / GIB:.1f} GiB and has "
        f"{failure.available / GIB:.2f}, {(failure.needed - failure.available) / GIB:.1f} GiB too little; "
        # What the compiler needs more than arithmetic says is taken to stay.
        + _help(here, needed, failure.available - failure.needed + needed[here])
    )


def _help(here: Choice, needed: dict[Choice, float], usable: float) -> str:
    """The one change that saves most, and what else it takes to fit; bytes by arithmetic."""
    changes = [c for c in needed if _differs(here, c) in ({"remat"}, {"accumulation"}) or _differs(here, c) <= MESH]
    best = min(changes, key=lambda c: needed[c])
    saved = needed[here] - needed[best]
    if saved <= 0:
        return "no change of mesh, rematerialisation or microbatches saves anything: give it more chips"
    most = f"what saves most is {_set(here, best)} (about {saved / GIB:.0f} GiB, by arithmetic)"
    if needed[best] < usable:
        return most
    enough = [choice for choice in needed if needed[choice] < usable]
    if not enough:
        return f"{most}; the least of any layout is {min(needed.values()) / GIB:.1f} GiB: give it more chips"
    return f"{most}; {_set(here, min(enough, key=lambda c: (len(_differs(here, c)), needed[c])))} together are enough"


def _set(here: Choice, there: Choice) -> str:
    """As one types what is different."""
    return " ".join(f"--set {override}" for override in there.overrides() if override not in here.overrides())


def _differs(one: Choice, other: Choice) -> set[str]:
    a, b = asdict(one), asdict(other)
    return {name for name in a if a[name] != b[name]}
