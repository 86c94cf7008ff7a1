"""`python -m experiments NAME [--seeds 3] [--json]`: train, measure, draw; `python -m experiments` lists them.

Each training is a line in `runs/experiments/NAME.jsonl`; what is there is not done again, so a stopped experiment goes
on where it was. `NAME.png` and `NAME.json` beside it are what came out, `NAME-5-steps.json` with `--steps 5`.
"""

import argparse
import importlib
import json
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tony.errors import TonyError

NAMES = ("moe_vs_dense", "number_of_experts", "data_quality", "scaling", "emergence", "spikes")

INTRODUCTION = """# Experiments

Claims of the papers, tried with networks of at most a few million parameters on {cores} cores: each is one command,
and this page is written by `python -m experiments --write docs/experiments.md`. Values are means over seeds with
95 % intervals (Student's t); differences are paired by seed, which fixes parameters and batches. What small networks
show need not hold for large ones, nor the reverse.
"""


def run(module: ModuleType, name: str, seeds: int, steps: int | None, out: Path, console: Console) -> dict:
    """What is missing is trained; the report, which is also written."""
    from experiments import lab

    settings = [lab.shortened(setting, steps) for setting in module.SETTINGS]
    records = lab.Records(out / f"{name}.jsonl")
    missing = [(s, seed) for s in settings for seed in range(seeds) if not records.find(s, seed)]
    began = time.perf_counter()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[facts]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task(name, total=sum(s.steps for s, _ in missing), facts="reading")
        done = 0
        for number, (setting, seed) in enumerate(missing, 1):
            told = f"{number}/{len(missing)} {setting.name}, seed {seed}"

            def watch(step, loss, told=told, done=done):
                shown = told if loss is None else f"{told}, loss {loss:.3f}"
                progress.update(task, completed=done + step, facts=shown)

            record, params = _train(module, setting, seed, watch)
            if hasattr(module, "measure"):
                record |= module.measure(setting, params)
            records.add(setting, seed, record)
            done += setting.steps
            console.print(f"{told}: held-out loss {record['loss']:.3f}, {record['seconds']:.0f} s")
    found = records.of(settings, seeds)
    report = module.report(found)
    label = name if steps is None else f"{name}-{steps}-steps"  # a quick look takes nothing's place
    picture = out / f"{label}.png"
    module.draw(found, picture)
    trained = sum(record["seconds"] for some in found.values() for record in some)
    told = {
        "experiment": name, "claim": module.__doc__, "seeds": seeds, "picture": str(picture),
        "training_seconds": trained, "wall_seconds": time.perf_counter() - began, **report,
    }  # fmt: skip
    (out / f"{label}.json").write_text(json.dumps(told, indent=1))
    return told


def _train(module: ModuleType, setting, seed: int, watch) -> tuple[dict, Any]:
    """(record, parameters) of a training: the experiment's own, or one on its batches, or on the usual ones."""
    from experiments import lab, text

    if hasattr(module, "train"):
        return module.train(setting, seed, watch)
    if hasattr(module, "batches"):
        return lab.train(setting, seed, module.batches(setting, seed), module.held_out(setting), watch)
    mixed, held_out = text.mixed(), text.held_out(setting.rows, setting.length)
    return lab.train(setting, seed, lambda step: mixed.batch(setting.rows, setting.length, seed, step), held_out, watch)


def show(told: dict, console: Console) -> None:
    """The table and the verdict."""
    table = Table(title=f"{told['experiment']}, {told['seeds']} seeds, mean ± 95 % interval")
    for number, heading in enumerate(told["head"]):
        table.add_column(heading, justify="right" if number else "left")
    for row in told["rows"]:
        table.add_row(*row)
    console.print(table)
    console.print(told["verdict"])
    console.print(f"{told['picture']}; {told['training_seconds']:.0f} s of training")


def write(out: Path, page: Path) -> None:
    """A page of Markdown of every experiment that has come out, with its picture beside it; what the page has of others
    stays."""
    from tony.hardware import describe

    parts, before = [INTRODUCTION.format(cores=describe()["cores"])], _sections(page)
    for name in NAMES:
        if not (out / f"{name}.json").exists():
            print(f"{name} has not been run: python -m experiments {name}", file=sys.stderr)
            parts += [before[name]] if name in before else []
            continue
        told = json.loads((out / f"{name}.json").read_text())
        pictures = page.parent / "images" / "experiments"
        pictures.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(told["picture"], pictures / f"{name}.png")
        title, _, claim = told["claim"].strip().partition("\n")
        lines = [" | ".join(row) for row in (told["head"], ["---"] * len(told["head"]), *told["rows"])]
        parts.append(
            f"## {title}\n\n{claim.strip()}\n\n`python -m experiments {name}`, {told['seeds']} seeds, "
            f"{told['training_seconds'] / 60:.1f} minutes of training.\n\n![{name}](images/experiments/{name}.png)\n\n"
            + "\n".join(f"| {line} |" for line in lines)
            + f"\n\n**{told['verdict']}**\n"
        )
    page.write_text("\n".join(parts))
    print(page)


def _sections(page: Path) -> dict[str, str]:
    """What a page has of each experiment."""
    told = page.read_text() if page.exists() else ""
    parts = [f"## {part.strip()}\n" for part in told.split("\n## ")[1:]]
    return {name: part for name in NAMES for part in parts if f"`python -m experiments {name}`" in part}


def main() -> None:
    """Run one, or list all."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=NAMES)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each setting (default 3)")
    parser.add_argument("--steps", type=int, help="so many steps instead, for a quick look")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="where records and pictures go")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write a page of all that has come out, and end")
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error(f"--seeds {options.seeds}: an interval needs at least 2")
    if options.steps is not None and options.steps < 1:
        parser.error(f"--steps {options.steps}: expected at least 1")
    if options.write:
        write(options.out, options.write)
        return
    if options.name is None:
        for name in NAMES:
            print(f"{name:18} {(importlib.import_module(f'experiments.{name}').__doc__ or '').splitlines()[0]}")
        return
    from tony.hardware import keep_programs, use_huge_pages

    use_huge_pages()
    keep_programs()
    console = Console(stderr=options.json)
    module = importlib.import_module(f"experiments.{options.name}")
    try:
        told = run(module, options.name, options.seeds, options.steps, options.out, console)
    except TonyError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on after the last whole training")
        sys.exit(130)
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        show(told, console)


if __name__ == "__main__":
    main()
