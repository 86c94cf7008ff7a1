"""The work that every contender does: shapes of a decoder, its batch, and how it is asked for steps.

A contender is a process that compiles, says it is ready, and then takes as many steps as each line of its standard
input says, answering with a line of JSON. So the contenders take turns on one machine without compiling in between.
Neither JAX nor PyTorch is imported here.
"""

import json
import sys
import time
from collections.abc import Callable

from tony.hardware import peak_memory_bytes

ROWS, LENGTH = 8, 512
DENSE = {
    "vocab_size": 8192, "layers": 6, "width": 384, "heads": 6, "head_dim": 64, "hidden": 1024,
    "experts": 0, "experts_per_token": 2,
}  # fmt: skip
WORKS = {"dense": DENSE, "experts": {**DENSE, "experts": 8, "hidden": 512}}  # as many operations a token
LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP = 1e-3, 0.01, (0.9, 0.98), 1.0


def serve(step: Callable[[], float], parameters: int, versions: dict[str, str], **facts: float) -> None:
    """Take steps as asked for; `step()` takes one, waits for it, and returns its loss. `facts` are told too."""
    began = time.perf_counter()
    losses = [step(), step()]  # the first compiles, and of some the second too
    seconds = time.perf_counter() - began
    say({"compile_seconds": seconds, "parameters": parameters, "versions": versions, "losses": losses, **facts})
    for line in sys.stdin:
        began = time.perf_counter()
        step()  # told apart: what the others' turns took of memory and caches comes back
        returning, began = time.perf_counter() - began, time.perf_counter()
        losses = [step() for _ in range(int(line))]
        seconds = time.perf_counter() - began
        memory = peak_memory_bytes(children=False)
        say({"seconds": seconds, "first_seconds": returning, "loss": losses[-1], "peak_memory_bytes": memory})


def say(told: dict) -> None:
    """A line of JSON to whoever asks."""
    print(json.dumps(told), flush=True)
