"""`tony run`: a recipe's stages in order, each resumable, each skipped while nothing that it depends on has changed.

A stage's fingerprint is the hash of the parts of the recipe and of the data that it reads, the seed, and the
fingerprints of the stages before it. `manifest.json` in the run's folder says which fingerprint each stage was finished
with; it is written atomically after every stage, so a run that dies at any point goes on from there.
"""

import fcntl
import hashlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import tony
from tony.energy import ESTIMATED, KILOGRAMS_CO2E_PER_KWH, Energy, Meter, of_all, told
from tony.errors import TonyError
from tony.files import read_json, write_json
from tony.parallel import hosts
from tony.plan.arithmetic import tonnes_co2e
from tony.recipe import Recipe

PACKAGES = ("tony-lm", "jax", "jaxlib", "optax", "orbax-checkpoint", "numpy", "tokenizers", "safetensors", "soundfile")


@dataclass(frozen=True)
class Stage:
    """A step of a recipe: what it is called, does, reads of the recipe ("model", "data.items"), and comes after.

    `version` is raised when the code of a stage changes what it makes. Of several processes all do a stage that is
    `together`, the first one does every other.
    """

    name: str
    fn: Callable[["RunContext"], dict]
    inputs: tuple[str, ...]
    after: tuple[str, ...]
    version: int = 1
    together: bool = False


@dataclass(frozen=True)
class RunContext:
    """What a stage is given."""

    recipe: Recipe
    directory: Path
    console: Any

    def stage_directory(self, name: str) -> Path:
        """The folder of a stage's files."""
        return self.directory / name

    def progress(self) -> Any:
        """A rich progress display."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        return Progress(TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
                        TimeElapsedColumn(), console=self.console)  # fmt: skip


def run(
    recipe: Recipe, stages: list[Stage], out: Path, console: Any, data_hashes: dict[str, Any] | None = None
) -> dict:
    """Run the stages that must be run; returns the manifest."""
    directory = Path(out) / recipe.name
    if not hosts.first():
        return _follow(stages, RunContext(recipe, directory, console))
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        manifest = read_manifest(directory)
        manifest = {
            **manifest,
            "recipe": recipe.to_dict(),
            "seed": recipe.seed,
            "code_version": code_version(),
            "packages": _packages(),
            "hardware": _hardware(),
            "data_hashes": data_hashes or {},
            "stages": manifest.get("stages", {}),
        }
        context = RunContext(recipe, directory, console)
        marks: dict[str, str] = {}
        for number, stage in enumerate(stages, 1):
            marks[stage.name] = mark = fingerprint(stage, recipe, marks, data_hashes or {})
            before = manifest["stages"].get(stage.name, {})
            if before.get("fingerprint") == mark and before.get("complete"):
                console.print(f"[dim]{number}/{len(stages)} {stage.name}: unchanged[/]", highlight=False)
                hosts.agree("skip")
                continue
            console.print(f"[bold]{number}/{len(stages)} {stage.name}[/]", highlight=False)
            if before.get("fingerprint") not in (None, mark):
                # What an earlier recipe left there would be taken for this one's half-done work.
                shutil.rmtree(context.stage_directory(stage.name), ignore_errors=True)
                before = {}
            context.stage_directory(stage.name).mkdir(exist_ok=True)
            manifest["stages"][stage.name] = {**before, "fingerprint": mark, "complete": False}
            write_json(directory / "manifest.json", manifest)
            hosts.agree("run")
            began, meter = time.perf_counter(), Meter()
            try:
                with nullcontext() if stage.together else hosts.apart(), meter:
                    facts = stage.fn(context)
            except BaseException:
                manifest["stages"][stage.name] |= _spent(before, time.perf_counter() - began, meter.energy)
                write_json(directory / "manifest.json", manifest)
                raise
            seconds, energy = time.perf_counter() - began, meter.energy
            manifest["stages"][stage.name] = done = {
                "fingerprint": mark, "complete": True, **_spent(before, seconds, energy), "facts": facts
            }  # fmt: skip
            write_json(directory / "manifest.json", manifest)
            if stage.together:  # after the stage is done for good, whoever does not answer
                energy = of_all(hosts.collected(told(energy)))
                done |= _spent(before, seconds, energy)
                write_json(directory / "manifest.json", manifest)
            _summarise(directory, manifest)
            shown = "  ".join(f"{key}: {_short(value)}" for key, value in facts.items())
            console.print(f"   [dim]{done['seconds']:.0f} s  {shown}[/]", highlight=False)
    hosts.barrier()
    return manifest


def _spent(before: dict, seconds: float, energy: Energy) -> dict:
    """Time and energy of a stage, what an interrupted attempt took included."""
    return {
        "seconds": round(before.get("seconds", 0.0) + seconds, 1),
        "joules": round(before.get("joules", 0.0) + energy.joules, 1),
        "energy": energy.source,
        "energy_from": energy.how,
    }


def _follow(stages: list[Stage], context: RunContext) -> dict:
    """What the other processes do: their part of the stages that the first one says must be run."""
    for stage in stages:
        if hosts.agree("") == "run" and stage.together:
            with Meter() as meter:
                stage.fn(context)
            hosts.collected(told(meter.energy))
    hosts.barrier()
    return read_manifest(context.directory)


def _short(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) < 90 else text[:87] + "..."


def fingerprint(stage: Stage, recipe: Recipe, marks: dict[str, str], data_hashes: dict[str, Any]) -> str:
    """Hash of all that a stage's result depends on."""
    sections = {name: _plain(recipe, name) for name in stage.inputs}
    read = {name: data_hashes[name] for name in sorted(data_hashes) if {name, f"data.{name}"} & set(stage.inputs)}
    content = [stage.name, stage.version, sections, recipe.seed, read, [marks[name] for name in stage.after]]
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _plain(recipe: Recipe, name: str) -> Any:
    """What a dotted name such as "data.items" means in a recipe, as plain data."""
    value: Any = recipe.to_dict()
    for part in name.split("."):
        value = value[part]
    return value


def _summarise(directory: Path, manifest: dict) -> None:
    """Time, memory, energy and operations of the whole run into summary.json, beside what the evaluations wrote."""
    from tony.hardware import peak_memory_bytes

    path = directory / "summary.json"
    summary = read_json(path)
    if not isinstance(summary, dict):
        summary = {"results": []}
    stages = [stage for stage in manifest["stages"].values() if "seconds" in stage]
    energy = Energy(sum(stage.get("joules", 0.0) for stage in stages))
    summary["wall_seconds"] = round(sum(stage["seconds"] for stage in stages), 1)
    summary["kwh"] = energy.kwh
    summary["tco2e"] = tonnes_co2e(energy.kwh / 1000, KILOGRAMS_CO2E_PER_KWH)
    summary["energy"] = " and ".join(sorted({stage.get("energy", ESTIMATED) for stage in stages}))
    summary["energy_from"] = "; ".join(sorted({stage["energy_from"] for stage in stages if "energy_from" in stage}))
    summary["training_flops"] = sum(stage.get("facts", {}).get("flops", 0) for stage in stages)
    summary["peak_memory_bytes"] = max(summary.get("peak_memory_bytes", 0), peak_memory_bytes())
    write_json(path, summary)


def read_manifest(directory: Path) -> dict:
    """The manifest of a run's folder, {} for a new one; TonyError if it can't be read."""
    path = directory / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        if not isinstance(manifest, dict):
            raise ValueError(f"it holds a {type(manifest).__name__}")
        return manifest
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TonyError(
            f"{path} is damaged ({error}); remove it to check every stage again, or give another name"
        ) from None


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Only one process at a time works in a run's folder; the lock goes with the process."""
    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TonyError(
                f"{directory} is in use by another `tony run`; wait for it, or give --set name=another"
            ) from None
        yield


def code_version() -> str:
    """Version of Tony, with the git commit where it runs from a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return tony.__version__
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return tony.__version__
    return f"{tony.__version__}+{found.stdout.strip()}" if found.returncode == 0 else tony.__version__


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hardware() -> dict:
    from tony.hardware import describe

    return describe()
