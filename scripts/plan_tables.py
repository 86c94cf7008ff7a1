"""Plan every recipe of the papers and write docs/plans.md: `python scripts/plan_tables.py [RECIPE:TOPOLOGY ...]`.

Each plan is compiled in a process of its own and kept in docs/plans/ as JSON; what is there already is not made again.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "plans"
PAPERS = [path.stem for kind in ("glam", "palm") for path in sorted((ROOT / "recipes").glob(f"{kind}-*.toml"))]
COLUMNS = (
    "recipe", "machine", "mesh", "GiB of a chip", "step, s", "compute", "memory", "inside a slice", "between slices",
    "MFU", "HFU", "tokens/s", "hours", "MWh", "tCO2e", "compiled in, s",
)  # fmt: skip


def planned(name: str) -> dict:
    """The report of RECIPE or RECIPE:CHIP:SHAPE, or {"error": ...}."""
    path = KEPT / f"{name.replace(':', '-')}.json"
    if not path.exists():
        recipe, _, topology = name.partition(":")
        command = [sys.executable, "-m", "tony", "plan", str(ROOT / "recipes" / f"{recipe}.toml"), "--json"]
        if topology:
            command += ["--topology", topology, "--slices", "1"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        report = json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr.strip().splitlines()[-1]}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"recipe": recipe, **report}, indent=1) + "\n")
    return json.loads(path.read_text())


def row(report: dict) -> str:
    """A line of the table."""
    if "error" in report:
        return f"| {report['recipe']} | {report['error']} |" + " |" * (len(COLUMNS) - 2)
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


def main(names: list[str]) -> None:
    """Plan what is named, then write the table of all that is kept."""
    for name in names or PAPERS:
        print(row(planned(name)), flush=True)
    reports = [json.loads(path.read_text()) for path in sorted(KEPT.glob("*.json"))]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS), *map(row, reports)]
    (ROOT / "docs" / "plans.md").write_text(
        "# Plans\n\nWhat `tony plan` says of the papers' recipes (`scripts/plan_tables.py` writes this page; "
        "[planning.md](planning.md) says what the columns mean).\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
