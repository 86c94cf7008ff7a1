"""Plan the papers' recipes for several machines and write docs/plans.md: `python scripts/plan_tables.py [PLAN ...]`.

A PLAN is RECIPE, for the machine that the recipe's mesh is made for, or RECIPE:CHIP:SHAPE for one slice of another.
Each is compiled in a process of its own and kept in docs/plans/ as JSON; what is there already is not made again.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "plans"
OWN = [path.stem for kind in ("glam", "palm") for path in sorted((ROOT / "recipes").glob(f"{kind}-*.toml"))]
OTHERS = [
    *(f"palm-8b:{machine}" for machine in ("v5e:16x16", "v5p:4x8x8", "v6e:16x16", "tpu7x:4x4x8")),
    *(f"palm-62b:{machine}" for machine in ("v5e:16x16", "v5p:8x8x8", "v6e:16x16", "tpu7x:4x8x8")),
    *(f"palm-540b:{machine}" for machine in ("v5e:16x16", "v5p:16x16x12", "v6e:16x16", "tpu7x:8x16x16")),
    *(f"glam-8b-64e:{machine}" for machine in ("v5e:16x16", "v5p:4x4x8", "v6e:16x16", "tpu7x:4x4x8")),
    *(f"glam-64b-64e:{machine}" for machine in ("v5e:16x16", "v5p:8x8x8", "v6e:16x16", "tpu7x:8x8x8")),
    *("palm-8b:h100:64", "glam-8b-64e:h100:64"),
]
COLUMNS = (
    "recipe", "machine", "mesh", "GiB of a chip", "step, s", "compute", "memory", "inside a slice", "between slices",
    "MFU", "HFU", "tokens/s", "hours", "MWh", "tCO2e", "compiled in, s",
)  # fmt: skip
PAGE = """# Plans

What `tony plan` says of the papers' recipes. `python scripts/plan_tables.py` writes this page,
[planning.md](planning.md) says what the columns mean, and [plans/](plans) has each report whole. MWh are of a chip's
power, which was only measured and published of v4. Some were compiled beside other work, which took them longer.

## On the machines that the recipes' meshes are made for

{own}

## On other machines

The mesh is the one that arithmetic ranks best, with the recipe's own rematerialisation and microbatches; `--search`
would try others. GPUs are estimates of a program that is partitioned but not compiled for them.

{others}
"""


def report_path(plan: str) -> Path:
    """Where the report of a plan is kept."""
    return KEPT / f"{plan.replace(':', '-')}.json"


def planned(plan: str) -> dict:
    """The report of a plan, or {"error": ...}."""
    path = report_path(plan)
    if not path.exists():
        recipe, _, topology = plan.partition(":")
        command = [sys.executable, "-m", "tony", "plan", str(ROOT / "recipes" / f"{recipe}.toml"), "--json"]
        if topology:
            command += ["--topology", topology, "--slices", "1"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode and "does not fit" not in done.stderr:  # which is an answer too
            sys.exit(done.stderr)
        report = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr.strip().splitlines()[-1]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"recipe": recipe, "topology": topology, **report}, indent=1) + "\n")
    return json.loads(path.read_text())


def row(report: dict) -> str:
    """A line of the table."""
    if "error" in report:
        return f"| {report['recipe']} | {report['topology']} | does not fit |" + " |" * (len(COLUMNS) - 3)
    seconds = report["step_seconds"]
    slices = f"{report['slices']} x " if report["slices"] > 1 else ""
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    cells = (
        report["recipe"], f"{slices}{report['topology']}", mesh, f"{report['hbm_bytes_per_chip'] / 2**30:.1f}",
        f"{seconds['step']:.3g}", *(f"{seconds[name]:.3g}" for name in ("compute", "memory", "ici", "dcn")),
        f"{report['mfu']:.1%}", f"{report['hfu']:.1%}", f"{report['tokens_per_second']:,.0f}",
        f"{report['train_hours']:,.0f}", f"{report['energy_mwh']:,.1f}", f"{report['tco2e']:,.1f}",
        f"{report['compile_seconds']:.0f}",
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def table(plans: list[str]) -> str:
    """The lines of those plans that are kept."""
    reports = [planned(plan) for plan in plans if report_path(plan).exists()]
    told = [f"- {report['error'].removeprefix('error: ')}" for report in reports if "error" in report]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *map(row, reports)]
    return "\n".join([*lines, *([""] if told else []), *told])


def main(plans: list[str]) -> None:
    """Plan what is named, else all; the page has what is kept of OWN and OTHERS."""
    for plan in plans or [*OWN, *OTHERS]:
        print(row(planned(plan)), flush=True)
        (ROOT / "docs" / "plans.md").write_text(PAGE.format(own=table(OWN), others=table(OTHERS)))


if __name__ == "__main__":
    main(sys.argv[1:])
