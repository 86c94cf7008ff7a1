"""Training throughput on this machine: `python -m bench.train [--work experts] [--json]`, or `--growth`.

Tony's train step, as `tony run` takes it, beside the same decoder in PyTorch (eager and compiled, float32 and bfloat16)
and in Hugging Face's Trainer: 8 rows of 512 tokens, AdamW, clipped gradients. All contenders compile first; then they
take turns, so that a machine which grows slower does so for all, and of each the median turn counts. A turn's first
step, in which memory and caches come back, is left out of that; what it changes is told beside. PyTorch is also run on
the huge pages that Tony asks glibc for. `bench/exchange/environment.py` makes the peers' environment.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.exchange.environment import PEERS
from bench.train.work import LENGTH, ROWS, WORKS
from tony.hardware import CACHE, HUGE_PAGES

TORCH = ("compiled_bf16", "eager_bf16", "compiled_float32", "eager_float32")
REFERENCE = "torch_compiled_bf16"
GROWTH = {  # heads of 64, a SwiGLU of 8/3 of the width
    "1M": {"width": 128, "layers": 5}, "5M": {"width": 256, "layers": 6}, "17M": {"width": 384, "layers": 10},
    "50M": {"width": 640, "layers": 10}, "100M": {"width": 768, "layers": 14},
}  # fmt: skip


class Contender:
    """A process that takes steps when it is asked to."""

    def __init__(self, name: str, command: list, huge_pages: bool = False):
        environment = {
            **os.environ,
            "GLIBC_TUNABLES": f"{HUGE_PAGES}=1" if huge_pages else "",
            "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE / "jax")),
        }
        self.name, self.turns = name, []
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2], env=environment, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.facts = self._answer()

    def _answer(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"error: {self.name} ended with code {self.process.wait()}; run it alone to see why")

    def take(self, steps: int) -> None:
        """Take so many steps and note how long they took."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        self.turns.append({"steps": steps, **self._answer()})

    def close(self) -> None:
        """Let the process end."""
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def speeds(self, first: bool = False) -> list[float]:
        """Tokens a second of each turn, its first step left out or not."""
        return [
            (turn["steps"] + first) * ROWS * LENGTH / (turn["seconds"] + first * turn["first_seconds"])
            for turn in self.turns
        ]

    def tokens_per_second(self, first: bool = False) -> float:
        """The median over turns."""
        return statistics.median(self.speeds(first))


def tony(work: str | dict, name: str = "tony", dispatch: str = "capacity") -> Contender:
    """Tony in this Python, on huge pages as the command is."""
    given = work if isinstance(work, str) else json.dumps(work)
    command = [sys.executable, "-m", "bench.train.tony_contender", given, dispatch]
    return Contender(name, command, huge_pages=True)


def compared(work: str, peers: Path, steps: int, rounds: int, only: list[str]) -> dict:
    """All contenders in turn."""
    kinds = {f"torch_{kind}": (kind, False) for kind in TORCH}
    kinds["torch_compiled_bf16_huge_pages"] = ("compiled_bf16", True)
    kinds["transformers_trainer_bf16"] = ("trainer", False)
    script, contenders = Path(__file__).with_name("torch_contender.py"), []
    own = {"tony": "capacity"} | ({"tony_dropless": "sorted"} if WORKS[work]["experts"] else {})
    for name in (*own, *kinds):
        if only and name not in only:
            continue
        print(f"compiling {name}", file=sys.stderr)
        if name in own:
            contenders.append(tony(work, name, own[name]))
        else:
            kind, huge_pages = kinds[name]
            contenders.append(Contender(name, [peers, script, work, kind], huge_pages))
    for turn in range(rounds):
        for contender in contenders:
            contender.take(steps)
            print(f"turn {turn + 1} of {rounds}: {contender.name} {contender.turns[-1]['seconds']:.1f} s",
                  file=sys.stderr)  # fmt: skip
    speed = {contender.name: round(contender.tokens_per_second()) for contender in contenders}
    told = {"work": work, "rows": ROWS, "length": LENGTH, "rounds": rounds, "steps": steps, "tokens_per_second": speed}
    for name in ("parameters", "compile_seconds", "versions"):
        told[name] = {contender.name: contender.facts[name] for contender in contenders}
    told["peak_memory_bytes"] = {contender.name: contender.turns[-1]["peak_memory_bytes"] for contender in contenders}
    told["losses"] = {contender.name: [*contender.facts["losses"], contender.turns[-1]["loss"]]
                      for contender in contenders}  # fmt: skip
    told["tokens_per_second_with_first_steps"] = {one.name: round(one.tokens_per_second(True)) for one in contenders}
    if "tony" in speed and REFERENCE in speed:
        mine, other = (next(one for one in contenders if one.name == name) for name in ("tony", REFERENCE))
        told["ratio_vs_torch_compiled_bf16"] = round(speed["tony"] / speed[REFERENCE], 3)
        told["ratio_of_each_turn"] = [round(a / b, 3) for a, b in zip(mine.speeds(), other.speeds(), strict=True)]
        told["ratio_with_first_steps"] = round(mine.tokens_per_second(True) / other.tokens_per_second(True), 3)
    for contender in contenders:
        contender.close()
    return told


def growth(steps: int, rounds: int) -> dict:
    """Tony alone, from 1M to 100M parameters in turn: operations a second."""
    contenders = []
    for name, shape in GROWTH.items():
        heads = shape["width"] // 64
        full = {
            "vocab_size": 2048,
            "heads": heads,
            "head_dim": 64,
            "hidden": -(-shape["width"] * 8 // 192) * 64,
            **shape,
        }
        print(f"compiling {name}", file=sys.stderr)
        contenders.append(tony(full, name))
    for _ in range(rounds):
        for contender in contenders:
            contender.take(steps)
    told = {}
    for contender in contenders:
        speed, name = contender.tokens_per_second(), contender.name
        told[name] = {
            "parameters": contender.facts["parameters"], "tokens_per_second": round(speed),
            "flops_per_second": round(speed * contender.facts["flops_per_token"]),
            "peak_memory_bytes": contender.turns[-1]["peak_memory_bytes"],
        }  # fmt: skip
        contender.close()
        print(f"{name}: {told[name]['flops_per_second'] / 1e9:.0f} GFLOP/s", file=sys.stderr)
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.train", description=__doc__)
    parser.add_argument("--work", choices=tuple(WORKS), default="dense")
    parser.add_argument("--growth", action="store_true", help="Tony alone, from 1M to 100M parameters")
    parser.add_argument("--peers", type=Path, default=PEERS / "bin" / "python", help="the peers' python")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this contender (repeatable)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.growth and not options.peers.exists():
        sys.exit(f"error: {options.peers} is missing; make it with: python bench/exchange/environment.py")
    told = {"date": time.strftime("%Y-%m-%d"), "machine": f"{os.cpu_count()} cores, {platform.processor() or 'CPU'}"}
    if options.growth:
        told["growth"] = growth(options.steps, options.rounds)
    else:
        told |= compared(options.work, options.peers, options.steps, options.rounds, options.only)
    if options.json:
        print(json.dumps(told, indent=1))
    else:
        show(told)


def show(told: dict) -> None:
    """A table for people."""
    table = Table(title=f"training, {told['machine']}, {told['date']}")
    for heading in ("", "parameters", "tokens/s", "peak memory"):
        table.add_column(heading, justify="left" if not heading else "right")
    if "growth" in told:
        table.add_column("GFLOP/s", justify="right")
        for name, row in told["growth"].items():
            memory, operations = row["peak_memory_bytes"] / 2**30, row["flops_per_second"] / 1e9
            speed = f"{row['tokens_per_second']:,}"
            table.add_row(name, f"{row['parameters']:,}", speed, f"{memory:.2f} GiB", f"{operations:.0f}")
    else:
        for name, speed in sorted(told["tokens_per_second"].items(), key=lambda pair: -pair[1]):
            memory = told["peak_memory_bytes"][name] / 2**30
            table.add_row(name, f"{told['parameters'][name]:,}", f"{speed:,}", f"{memory:.2f} GiB")
    Console().print(table)
    if "ratio_vs_torch_compiled_bf16" in told:
        print(
            f"Tony over compiled bfloat16 PyTorch: {told['ratio_vs_torch_compiled_bf16']}, by turns "
            f"{min(told['ratio_of_each_turn'])} to {max(told['ratio_of_each_turn'])}; "
            f"{told['ratio_with_first_steps']} with each turn's first step"
        )


if __name__ == "__main__":
    main()
