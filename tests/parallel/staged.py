"""One process of a run on several: `python -m tests.parallel.staged FOLDER [fail]`; its second stage is for all."""

import sys
from pathlib import Path

from rich.console import Console

from tony.errors import TonyError
from tony.parallel import hosts
from tony.recipe import Recipe
from tony.run import Stage, run


def stage(context) -> dict:
    """Leave a trace of this process."""
    import jax

    if "fail" in sys.argv and hosts.first():
        raise TonyError("there is no more room")
    hosts.barrier()
    with open(context.directory.parent / f"trace-{jax.process_index()}", "a") as file:
        file.write("together\n")
    return {}


def alone(context) -> dict:
    """Leave a trace of whoever does this."""
    import jax

    with open(context.directory.parent / f"trace-{jax.process_index()}", "a") as file:
        file.write("alone\n")
    return {}


if __name__ == "__main__":
    with hosts.joined():
        made = "tune" if "fail" in sys.argv else "text"
        stages = [
            Stage("alone", alone, inputs=("text",), after=()),
            Stage("both", stage, inputs=(made,), after=("alone",), together=True),
        ]
        run(Recipe(name="r"), stages, Path(sys.argv[1]), Console(quiet=True))
