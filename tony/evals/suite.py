"""Every evaluation of a run, each resumable, and the summary they end in."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from tony.errors import TonyError
from tony.evals.bench import Bench
from tony.evals.result import Result
from tony.files import mapping, read_json, write_json, write_jsonl
from tony.generate.release import FILES, is_imported
from tony.hardware import peak_memory_bytes
from tony.info import machine

SAMPLES = 200  # items of an evaluation if the recipe says nothing
STRIDE = 7919
VERSION = 2  # raised when an evaluation changes what it measures, so that old results are measured again


@dataclass(frozen=True)
class Evaluation:
    """One family: the results it gives, and `module:function` of the code that gives them."""

    names: tuple[str, ...]
    title: str
    code: str

    def function(self) -> Callable[[Bench], list[Result]]:
        module, function = self.code.split(":")
        return getattr(import_module(f"tony.evals.{module}"), function)


EVALUATIONS = (
    Evaluation(("text_arithmetic",), "sums in text", "reading:text_arithmetic"),
    Evaluation(("image_digits",), "handwritten digits, read", "reading:image_digits"),
    Evaluation(("image_caption",), "scenes, described", "reading:image_caption"),
    Evaluation(("video_motion",), "motion, described", "reading:video_motion"),
    Evaluation(("speech_wer",), "speech, transcribed", "hearing:speech_wer"),
    Evaluation(("tts_wer", "tts_source_wer"), "sentences, spoken", "speaking:tts_wer"),
    Evaluation(("image_generation",), "pictures, drawn", "drawing:image_generation"),
    Evaluation(("speech_image_speech",), "asked aloud about a picture", "speaking:speech_image_speech"),
    Evaluation(("codec_stoi",), "speech codec, intelligibility", "codecs:codec_stoi"),
    Evaluation(("codec_pesq",), "speech codec, quality", "codecs:codec_pesq"),
    Evaluation(("codec_psnr",), "picture codec, fidelity", "codecs:codec_psnr"),
    Evaluation(("codec_ssim",), "picture codec, structure", "codecs:codec_ssim"),
    Evaluation(("codec_usage",), "codes in use", "codecs:codec_usage"),
)
NAMES = tuple(name for evaluation in EVALUATIONS for name in evaluation.names)


def evaluate(
    run_directory: Path | str,
    only: Iterable[str] | str | None = None,
    *,
    n: int | dict[str, int] | None = None,
    seed: int = 1,
    omni: Any = None,
    corpus: Any = None,
    console: Any = None,
    again: bool = False,
) -> dict:
    """Measure the model of a run and write `eval/` and `summary.json`; returns the summary.

    `only` names some of NAMES. `n` is the number of items, for all or by name ({"speech_wer": 160, "default": 100});
    it and the corpus are those of the run's recipe unless given.
    TonyError for a model of another family, imported or tuned: the evaluations are of Tony's own.
    An evaluation that this very model has been through, with the same n and seed, is not run again unless `again`.
    What cannot be measured here (a judge is not installed) is listed under "skipped" with the reason.
    """
    started = time.perf_counter()
    directory = Path(run_directory)
    chosen = choose(only)
    if is_imported(directory / "model") or is_imported(directory):
        raise TonyError(
            f"{directory} holds a model of another family; these evaluations are of Tony's own models. Measure it as "
            "its task wants, through `tony serve`: harnesses call /v1/completions"
        )
    model = model_fingerprint(directory)
    n = mapping(_recipe(directory).get("eval")).get("n") if n is None else n
    console = console or _console()
    state: dict[str, Any] = {"omni": omni, "corpus": corpus, "bench": None}
    skipped: dict[str, str] = {}
    with _progress(console) as progress:
        for evaluation in chosen:
            count = _count(n, evaluation)
            mark = _fingerprint(model, evaluation, count, seed)
            if not again and all(_finished(directory, name, mark) for name in evaluation.names):
                continue
            bench = state["bench"] = state["bench"] or _bench(directory, state, seed, console)
            bar = progress.add_task(evaluation.title, total=None)
            bench.n = count
            bench.advance = lambda done, total, bar=bar: progress.update(bar, completed=done, total=total)
            begun = time.perf_counter()
            try:
                results = evaluation.function()(bench)
            except TonyError as error:
                skipped |= dict.fromkeys(evaluation.names, str(error))
                _forget(directory, evaluation)
                progress.update(bar, total=1, completed=1, description=f"{evaluation.title}: skipped")
                console.print(f"[yellow]{', '.join(evaluation.names)} skipped:[/] {error}", highlight=False)
                continue
            seconds = time.perf_counter() - begun
            for result in results:
                _save(directory, result, mark, model, seconds / len(results))
            shown = ", ".join(f"{result.name} {result.value:.3f} ± {result.stderr:.3f}" for result in results)
            progress.update(bar, total=1, completed=1, description=shown)
    if state["bench"]:
        from tony.evals.describe import describe

        write_json(directory / "eval" / "context.json", describe(state["corpus"]))
    return _summarise(directory, model, skipped, time.perf_counter() - started)


def choose(only: Iterable[str] | str | None) -> list[Evaluation]:
    """The evaluations that give the named results; all of them for None."""
    if only is None:
        return list(EVALUATIONS)
    names = [only] if isinstance(only, str) else list(only)
    for name in names:
        if name not in NAMES:
            from difflib import get_close_matches

            near = get_close_matches(name, NAMES, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(NAMES)}"
            raise TonyError(f"there is no evaluation {name!r}; {hint}")
    return [evaluation for evaluation in EVALUATIONS if set(evaluation.names) & set(names)]


# ------------------------------------------------------------------------------------------------------- what is run


def _bench(directory: Path, state: dict, seed: int, console: Any) -> Bench:
    if state["omni"] is None:
        from tony.generate.omni import Omni

        with console.status("loading the model"):
            state["omni"] = Omni.load(directory)
    if state["corpus"] is None:
        from tony.data.corpus import Corpus

        state["corpus"] = Corpus.named(mapping(_recipe(directory).get("data")).get("corpus", "builtin"))
    (directory / "eval").mkdir(parents=True, exist_ok=True)
    return Bench(
        omni=state["omni"],
        items=held_out_items(state["corpus"], seed),
        corpus=state["corpus"],
        directory=directory,
        seed=seed,
        threads=os.cpu_count(),
    )


def _recipe(directory: Path) -> dict:
    """The recipe that the run's manifest holds; {} without one."""
    return mapping(mapping(read_json(directory / "manifest.json")).get("recipe"))


def held_out_items(corpus: Any, seed: int) -> Callable[[str, int], list]:
    """`items(task, n)`: held-out items of the laptop world, spread over all that is held out, none of them twice."""
    from tony.data.world import tasks

    world = tasks.World(corpus, held_out=True)
    limits = {"transcribe": len(world.heard), "speak": len(world.spoken), "digits": len(world.digits)}
    made: dict[tuple[str, int], list] = {}

    def items(task: str, n: int) -> list:
        count = min(n, limits.get(task, n))
        if (task, count) not in made:
            # Neighbours in the files come from one writer or one voice. An odd prime stride visits every item once
            # and keeps the parity by which a task alternates between its kinds.
            indices = [STRIDE * index for index in range(count)]
            made[task, count] = [tasks.TASKS[task](world, Random(f"{seed}/{task}/{index}"), index) for index in indices]
        return made[task, count]

    return items


# --------------------------------------------------------------------------------------------------- what is written


def model_fingerprint(directory: Path) -> str:
    """Hash of the released model's own files: what results belong to."""
    folder = directory / "model"
    files = sorted(path for path in map(folder.joinpath, FILES) if path.is_file())
    if not files:
        raise TonyError(f"{folder} holds no model; expected a finished run; do `tony run` with its recipe first")
    digest = hashlib.blake2b(digest_size=16)
    for path in files:
        digest.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _count(n: int | dict[str, int] | None, evaluation: Evaluation) -> int:
    if isinstance(n, dict):
        n = next((n[name] for name in evaluation.names if name in n), n.get("default"))
    count = SAMPLES if n is None else int(n)
    if count < 2:
        raise TonyError(f"{evaluation.names[0]}: n = {count}; an evaluation needs at least 2 items; give a larger n")
    return count


def _fingerprint(model: str, evaluation: Evaluation, n: int, seed: int) -> str:
    return hashlib.blake2b(json.dumps([VERSION, model, evaluation.names, n, seed]).encode(), digest_size=16).hexdigest()


def _finished(directory: Path, name: str, mark: str) -> bool:
    saved = mapping(read_json(directory / "eval" / f"{name}.json"))
    return saved.get("fingerprint") == mark and (directory / "eval" / f"{name}.jsonl").exists()


def _save(directory: Path, result: Result, mark: str, model: str, seconds: float) -> None:
    # The records first: the .json that vouches for them appears only when they are complete.
    write_jsonl(directory / "eval" / f"{result.name}.jsonl", result.records)
    facts = {**result.to_dict(), "seconds": round(seconds, 2), "fingerprint": mark, "model_fingerprint": model}
    write_json(directory / "eval" / f"{result.name}.json", facts)


def _forget(directory: Path, evaluation: Evaluation) -> None:
    """Remove results of an earlier model, so that a skipped evaluation shows no number."""
    for name in evaluation.names:
        for suffix in ("json", "jsonl"):
            (directory / "eval" / f"{name}.{suffix}").unlink(missing_ok=True)


def _summarise(directory: Path, model: str, skipped: dict[str, str], seconds: float) -> dict:
    """Merge what is on disk for this model into `summary.json`, keeping what other stages have written there."""
    path = directory / "summary.json"
    before = mapping(read_json(path))
    same_model = before.get("model_fingerprint") == model
    results = []
    for name in NAMES:
        saved = mapping(read_json(directory / "eval" / f"{name}.json"))
        if saved.get("model_fingerprint") == model:
            results.append({key: value for key, value in saved.items() if "fingerprint" not in key})
    measured = {result["name"] for result in results}
    reasons = {entry["name"]: entry["reason"] for entry in before.get("skipped", []) if same_model} | skipped
    summary = {
        **before,
        "results": results,
        "skipped": [{"name": n, "reason": reasons[n]} for n in NAMES if n in reasons and n not in measured],
        "wall_seconds": before.get("wall_seconds", round(seconds, 1)),
        "peak_memory_bytes": max(before.get("peak_memory_bytes", 0), peak_memory_bytes()),
        "eval_seconds": round(sum(result["seconds"] for result in results), 1),
        "model_fingerprint": model,
        "machine": machine(),
    }
    write_json(path, summary)
    return summary


# ---------------------------------------------------------------------------------------------------------- progress


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _progress(console: Any) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console,
    )  # fmt: skip
