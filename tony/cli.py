"""The front door: `tony run|plan|eval|card|serve|chat|import|export|info`.

Nothing heavy is imported before a command is chosen.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tony import __version__
from tony.errors import TonyError


def main(arguments: list[str] | None = None) -> None:
    """Run a command; a user's error is one line on stderr and exit code 2, Ctrl-C is 130."""
    parser, commands = _parser()
    _check_command(parser, commands, sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(arguments)
    if not hasattr(options, "command"):
        parser.print_help()
        return
    from tony.hardware import keep_programs, use_huge_pages

    if arguments is None:
        use_huge_pages()
    keep_programs()
    try:
        options.command(options)
    except TonyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        onward = "; the same command goes on from here" if options.command is _run else ""
        print(f"\nstopped{onward}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if not _given(error, options):
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)


def _check_command(parser: argparse.ArgumentParser, commands: list[str], arguments: list[str]) -> None:
    """A usage error if the first argument is no command."""
    if not arguments or arguments[0].startswith("-") or arguments[0] in commands:
        return
    from difflib import get_close_matches

    near = get_close_matches(arguments[0], commands, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(commands)}"
    parser.error(f"there is no command {arguments[0]}; {hint}")


def _number(kind: type[int] | type[float], least: float, most: float = math.inf) -> Callable[[str], float]:
    """The type of an argument that is a number from `least` to `most`."""

    def read(text: str) -> float:
        said = f"{text!r}: expected a {'whole ' if kind is int else ''}number from {least}"
        said += f" to {most}" if most < math.inf else " on"
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(said) from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(said)
        return value

    return read


def _given(error: OSError, options: argparse.Namespace) -> bool:
    """Whether an error is of a path that the user gave, or of one within it."""
    paths = [Path(value).absolute() for value in vars(options).values() if isinstance(value, str | Path) and value]
    if not isinstance(error.filename, str | Path):
        return False
    there = Path(error.filename).absolute()
    return any(path == there or path in there.parents for path in paths)


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser, and the names of the commands."""
    parser = argparse.ArgumentParser(
        prog="tony", description="Train, align, evaluate and serve an omni-modal reasoning language model."
    )
    parser.add_argument("--version", action="version", version=f"tony {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="")

    def command(name, function, summary):
        made = commands.add_parser(name, help=summary, description=summary)
        made.set_defaults(command=function)
        return made

    run = command("run", _run, "run a recipe: build, train, measure and describe a model")
    run.add_argument("recipe", help="a TOML file, such as recipes/demo.toml")
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a value, e.g. tune.steps=100"
    )
    run.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    run.add_argument("--json", action="store_true", help="print the summary as JSON")
    run.add_argument(
        "--on", metavar="ray://HOST:PORT", help="run on the machines of a Ray cluster; ray for the local one"
    )
    run.add_argument("--workers", type=int, metavar="N", help="processes of --on (default: one for each machine)")

    plan = command("plan", _plan, "say what a recipe would take, by compiling it for a machine that is not here")
    plan.add_argument("recipe", type=Path, help="a TOML file, such as recipes/palm-540b.toml")
    plan.add_argument("--topology", metavar="CHIP:SHAPE", help="such as v4:16x16x12, v5e:16x16 or h100:64")
    plan.add_argument("--slices", type=int, help="so many of it, joined by the data centre's network")
    plan.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a value of the recipe")
    what = plan.add_mutually_exclusive_group()
    what.add_argument("--serve", action="store_true", help="the programs of prefill and decoding instead")
    what.add_argument("--search", action="store_true", help="try meshes, rematerialisation and microbatches")
    plan.add_argument("--batch", type=int, help="sequences at once, of --serve")
    plan.add_argument("--pue", type=float, help="energy of a site over that of its machines (default: PaLM's, 1.08)")
    plan.add_argument("--grid", type=float, help="tonnes of CO2e a megawatt hour (default: PaLM's, 0.079)")
    plan.add_argument("--picture", type=Path, metavar="FILE", help="write a chart, such as plan.svg; two with --serve")
    plan.add_argument("--json", action="store_true", help="print the report as JSON")

    evaluate = command("eval", _eval, "measure the model of a run again")
    evaluate.add_argument("run", type=Path, help="a run's folder, such as runs/demo")
    evaluate.add_argument("--only", action="append", metavar="NAME", help="only this evaluation (may be repeated)")
    evaluate.add_argument("--n", type=int, help="items of each evaluation")
    evaluate.add_argument("--again", action="store_true", help="also what is already measured")
    evaluate.add_argument("--json", action="store_true", help="print the summary as JSON")

    card = command("card", _card, "write the card of a run again")
    card.add_argument("run", type=Path)
    card.add_argument("--json", action="store_true", help="print the path as JSON")

    serve = command("serve", _serve, "serve a model: OpenAI-compatible HTTP and a web page")
    serve.add_argument("run", type=Path, help="a run's folder or its model/ folder")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument(
        "--port", type=_number(int, 0, 65535), help="default: 8000; with --detach the next free one from there on"
    )
    serve.add_argument("--api-key", default=os.environ.get("TONY_API_KEY"), help="ask clients for this key")
    serve.add_argument("--slots", type=_number(int, 1, 1024), default=8, help="requests answered at once")
    serve.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    background = serve.add_mutually_exclusive_group()
    background.add_argument("--detach", action="store_true", help="in the background; returns when it answers")
    background.add_argument("--stop", action="store_true", help="stop the one in the background")

    chat = command("chat", _chat, "talk to a model in the terminal")
    chat.add_argument("run", type=Path, help="a run's folder or its model/ folder")
    chat.add_argument(
        "--temperature", type=_number(float, 0, 2), help="0 to 2, of everything; else words are the likeliest"
    )
    chat.add_argument("--max-tokens", type=_number(int, 1), default=512, help="of an answer (default: 512)")

    importing = command("import", _import, "take in a model of another family: Llama, Mistral, Mixtral, Qwen")
    importing.add_argument("source", help="a folder of safetensors, a .gguf file, or a name on the Hugging Face Hub")
    importing.add_argument("out", type=Path, help="the folder to write, such as models/smollm2")
    importing.add_argument("--chat-template", type=Path, metavar="FILE", help="a Jinja template instead of its own")
    importing.add_argument("--revision", help="of the model on the Hub")
    importing.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    importing.add_argument("--json", action="store_true", help="print what it is as JSON")

    export = command("export", _export, "write a model for transformers (a folder) or llama.cpp (a .gguf file)")
    export.add_argument("run", type=Path, help="a run's folder, its model/ folder, or an imported model")
    export.add_argument("out", type=Path, help="the folder or .gguf file to write")
    export.add_argument(
        "--precision", choices=("f32", "f16", "bf16", "q8_0"), default="f32", help="of the weights; q8_0 for GGUF only"
    )
    export.add_argument(
        "--overwrite", action="store_true", help="write over a file, or into a folder that is not empty"
    )
    export.add_argument("--json", action="store_true", help="print what was written as JSON")

    info = command("info", _info, "what is installed and what this machine can do")
    info.add_argument("--json", action="store_true")
    return parser, list(commands.choices)


def _run(options) -> None:
    if options.on:
        sys.exit(_run_on(options))
    if options.workers:
        raise TonyError(f"--workers {options.workers} is for --on; say which cluster, such as --on ray://HOST:10001")
    from tony.parallel import hosts

    with hosts.joined():
        _run_recipe(options, speaks=hosts.first())


def _run_on(options) -> int:
    from tony.parallel.ray_cluster import launch
    from tony.recipe import load

    load(options.recipe, options.set)  # a mistake is told before any machine is asked for
    if options.workers is not None and options.workers < 1:
        raise TonyError(f"--workers {options.workers}: expected a number above zero")
    arguments = ["--out", str(options.out.absolute()), *(["--json"] if options.json else [])]
    arguments += [part for value in options.set for part in ("--set", value)]
    return launch(options.on, Path(options.recipe), arguments, options.workers, _passed_on)


def _passed_on(line: str, error: bool) -> None:
    print(line, file=sys.stderr if error else sys.stdout, flush=True)


def _run_recipe(options, speaks: bool) -> None:
    from rich.console import Console

    from tony.recipe import CODECS, load

    recipe = load(options.recipe, options.set)
    console = Console(stderr=True, quiet=not speaks)
    console.print(_outline(recipe), highlight=False)
    from tony.data.corpus import Corpus
    from tony.data.records import fingerprint
    from tony.run import run
    from tony.stages import STAGES, TUNING

    sources = {name: fingerprint(asdict(source)) for name, source in recipe.data.sources.items()}
    data_hashes = {"corpus": Corpus.named(recipe.data.corpus).fingerprint, "sources": sources}
    if recipe.model.base:
        from tony.stages.imported import base_of

        sources["model.base"] = fingerprint({"path": str(base_of(recipe))})
    else:
        from tony.stages.language import check_mesh

        check_mesh(recipe)
    codecs = {name: getattr(recipe, name).trained for name in CODECS}
    data_hashes |= {name: fingerprint({"path": folder}) for name, folder in codecs.items() if folder}
    run(recipe, TUNING if recipe.model.base else STAGES, options.out, console, data_hashes)
    directory = options.out / recipe.name
    if not speaks:
        return
    if options.json:
        print((directory / "summary.json").read_text())
    else:
        _show(json.loads((directory / "summary.json").read_text()), console)
        if not recipe.model.base:
            console.print(f"card: {directory / 'card.html'}", highlight=False)
        console.print(f"serve it: tony serve {directory}", highlight=False)


def _outline(recipe) -> str:
    """What a recipe will do, in a line."""
    tune, pretrain, shape = recipe.tune, recipe.pretrain, recipe.model_fields()
    if recipe.model.base:
        return (
            f"[bold]{recipe.name}[/]: {recipe.model.base}, tuned {tune.steps} steps of {tune.rows}x{tune.length} "
            f"tokens at {tune.learning_rate:g}"
        )
    return (
        f"[bold]{recipe.name}[/]: {shape['layers']} layers, width {shape['width']}, {shape['heads']} heads, "
        f"hidden {shape['hidden']}; pretrain {pretrain.steps} steps of {pretrain.rows}x{pretrain.length} tokens at "
        f"{pretrain.learning_rate:g}, tune {tune.steps} at {tune.learning_rate:g}"
    )


def _plan(options) -> None:
    from tony.plan.aot import settle

    settle()
    from rich.console import Console

    from tony.plan.arithmetic import GRID, PUE
    from tony.plan.report import Asked, plan_training, search
    from tony.plan.serving import plan_serving
    from tony.plan.show import check_picture, picture, table

    site = (PUE if options.pue is None else options.pue, GRID if options.grid is None else options.grid)
    if not (1 <= site[0] < math.inf and 0 <= site[1] < math.inf):
        raise TonyError(f"--pue {site[0]:g} --grid {site[1]:g}: expected at least 1, and at least 0")
    asked = Asked(options.recipe, tuple(options.set), options.topology, options.slices, options.batch, *site)
    if options.batch is not None and not options.serve:
        raise TonyError(f"--batch {options.batch} is for --serve; of a training give --set pretrain.rows=...")
    if options.picture:
        check_picture(options.picture)
    console = Console(stderr=True)
    with console.status(f"compiling {options.recipe.stem} (up to a few minutes)"):
        if options.serve:
            report = plan_serving(asked)
            parts = list(report.values())
        else:
            report = search(asked, partial(console.print, highlight=False)) if options.search else plan_training(asked)
            parts = [report]
    if options.json:
        print(json.dumps(report, indent=1))
    else:
        for part in parts:
            Console().print(table(part), highlight=False)
    if options.picture:
        for part in parts:
            several = options.picture.with_stem(f"{options.picture.stem}-{part['program']}")
            picture(part, several if len(parts) > 1 else options.picture)


def _show(summary: dict, console) -> None:
    from rich.table import Table

    if not summary["results"]:
        return
    table = Table("measure", "value", "± stderr", "n", box=None)
    for result in summary["results"]:
        table.add_row(result["name"], f"{result['value']:.3f}", f"{result['stderr']:.3f}", str(result["n"]))
    console.print(table)
    for skipped in summary.get("skipped", []):
        console.print(f"[yellow]{skipped['name']} was not measured:[/] {skipped['reason']}", highlight=False)


def _eval(options) -> None:
    from rich.console import Console

    from tony.evals.suite import evaluate

    console = Console(stderr=True)
    summary = evaluate(options.run, options.only, n=options.n, console=console, again=options.again)
    if options.json:
        print(json.dumps(summary, indent=1))
    else:
        _show(summary, console)


def _card(options) -> None:
    from tony.evals.card import render

    path = render(options.run)
    print(json.dumps({"card": str(path)}) if options.json else path)


def _serve(options) -> None:
    if options.stop:
        from tony.serve.background import stop

        stop(options.run)
        return
    asked = {"host": options.host, "port": options.port, "api_key": options.api_key, "slots": options.slots}
    if options.detach:
        from tony.serve.background import detach

        detach(options.run, **asked)
    else:
        from tony.serve.main import serve

        serve(options.run, **asked, fd=options.fd)


def _chat(options) -> None:
    from tony.serve.terminal import chat

    chat(options.run, options.temperature, options.max_tokens)


def _import(options) -> None:
    from tony.exchange.importing import import_model

    told = import_model(options.source, options.out, options.chat_template, options.revision, options.overwrite)
    _tell(told, options.json)
    if not options.json:
        print(f"serve it: tony serve {options.out}\ntalk to it: tony chat {options.out}")


def _export(options) -> None:
    from tony.exchange.exporting import export_model

    _tell(export_model(options.run, options.out, options.precision, options.overwrite), options.json)


def _tell(facts: dict, as_json: bool) -> None:
    print(json.dumps(facts, indent=1) if as_json else "\n".join(f"{key}: {value}" for key, value in facts.items()))


def _info(options) -> None:
    from tony.info import facts, lines

    told = facts()
    print(json.dumps(told, indent=1) if options.json else "\n".join(lines(told)))


if __name__ == "__main__":
    main()
