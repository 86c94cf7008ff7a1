"""One process of pre-training as `tony run` does it: `python -m tests.parallel.stage RECIPE FOLDER`."""

import sys
from pathlib import Path

from rich.console import Console

from tony.parallel import hosts
from tony.recipe import load
from tony.run import RunContext
from tony.stages.language import pretrain

if __name__ == "__main__":
    with hosts.joined():
        pretrain(RunContext(load(sys.argv[1]), Path(sys.argv[2]), Console(quiet=True)))
