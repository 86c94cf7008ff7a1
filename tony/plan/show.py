"""A plan as a table in the terminal and as a picture."""

import math
import os
from pathlib import Path
from typing import Any

from tony.errors import TonyError
from tony.plan.chips import GIB

SECONDS = {
    "compute": "products at peak",
    "memory": "memory at full bandwidth",
    "program": "products and memory, as the compiler estimates them",
    "ici": "transfers inside a slice",
    "dcn": "transfers between slices",
    "overlapped": "if all transfers are hidden",
    "serial": "if none is",
    "step": "as scheduled",
}


def table(report: dict[str, Any]):
    """A rich table of a report."""
    from rich.table import Table

    made = Table(title=title(report), box=None, show_header=False, title_justify="left")
    for name, value in rows(report):
        made.add_row(name, value)
    return made


def title(report: dict[str, Any]) -> str:
    """What was planned."""
    kind = "; an estimate: memory and traffic are those of simulated devices" if report["estimate"] else ""
    slices = f"{report['slices']} x " if report["slices"] > 1 else ""
    return f"{report['recipe']}, {report['program']}, on {slices}{report['topology']}{kind}"


def rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values, as text."""
    seconds, hbm = report["step_seconds"], report["hbm"]
    total, active = report["parameters"] / 1e9, report["active_parameters"] / 1e9
    batch = f"{report['rows']:,} x {report['length']:,} tokens"
    if report["program"] == "train":
        batch += f", {report['accumulation']} microbatches, remat {report['remat']}"
    elif report["program"] == "decode":
        batch = f"a token more for each of {report['rows']:,} sequences of up to {report['length']:,}"
    made = [
        ("parameters", f"{total:.3f} B, of which a token meets {active:.2f} B"),
        ("chips", f"{report['chips']:,}, mesh " + " x ".join(f"{k} {v}" for k, v in report["mesh"].items())),
        ("batch", batch),
        ("memory of a chip", f"{report['hbm_bytes_per_chip'] / GIB:.2f} of {report['hbm_usable'] / GIB:.2f} GiB: "
         + ", ".join(f"{name} {size / GIB:.2f}" for name, size in hbm.items())
         + ("" if report["fits"] else "  DOES NOT FIT")),
    ]  # fmt: skip
    made += [(f"seconds, {name}", f"{seconds[name]:<9.3g} {meaning}") for name, meaning in SECONDS.items()]
    made += [
        ("sent by a chip", f"{quantity(report['ici_bytes_per_step'])}B inside a slice, "
         f"{quantity(report['dcn_bytes_per_step'])}B to other slices"),
        ("tokens a second", f"{report['tokens_per_second']:,.0f}"),
        ("MFU", f"{report['mfu']:.1%}"),
    ]  # fmt: skip
    if report["program"] == "train":
        made += [
            ("HFU", f"{report['hfu']:.1%}"),
            ("FLOPs of a token", f"{quantity(report['flops_per_token'])} (PaLM, appendix B)"),
            ("training", f"{quantity(report['train_tokens'])} tokens in {report['train_hours']:,.3g} hours"),
            ("energy", f"{quantity(1e6 * report['energy_mwh'])}Wh, {report['tco2e']:,.3g} tCO2e, at "
             f"{report['watts_per_chip']:g} W a chip ({report['watts_source']})"),
        ]  # fmt: skip
    made.append(("compiled in", f"{report['compile_seconds']:.0f} s"))
    if report["unread_loops"]:
        told = f"{len(report['unread_loops'])} loops whose number of trips can't be read count as one trip each"
        made.append(("too good", f"[red]{told}[/]"))
    if report.get("advice"):
        made.append(("advice", f"[red]{report['advice']}[/]"))
    return made


def quantity(value: float) -> str:
    """Three digits and a prefix of the SI."""
    power = max(0, min(math.floor(math.log10(value) / 3), 6)) if value > 0 else 0
    return f"{value / 1000**power:.3g} {('', 'k', 'M', 'G', 'T', 'P', 'E')[power]}"


def check_picture(path: Path) -> None:
    """TonyError, before anything is compiled, if a picture of that name can't be written."""
    kinds = (".svg", ".png", ".pdf")
    if path.suffix.lower() not in kinds:
        raise TonyError(f"--picture {path}: expected a name that ends in {', '.join(kinds)}")
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise TonyError(f"--picture {path} can't be written; give a file in a folder that is there and yours")


def picture(report: dict[str, Any], path: Path) -> None:
    """Write a chart of a report's seconds and memory; the name's ending says the format."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(3, 2), layout="constrained")
    names = list(SECONDS)[::-1]
    values = [report["step_seconds"][name] for name in names]
    bars = left.barh(names, values, color=["#1b4965" if name == "step" else "#9fb8c8" for name in names])
    left.bar_label(bars, [f"{value:.3g} s" for value in values], padding=3, fontsize=8)
    left.set_xlim(0, 1.15 * max(values))
    left.set_title(f"a step: MFU {report['mfu']:.1%}, {report['tokens_per_second']:,.0f} tokens/s", fontsize=9)
    start = 0.0
    for (name, size), colour in zip(report["hbm"].items(), ("#1b4965", "#5fa8d3", "#9fb8c8", "#cae9ff"), strict=True):
        right.barh("chip", size / GIB, left=start, color=colour, label=f"{name} {size / GIB:.2f}")
        start += size / GIB
    right.axvline(report["hbm_usable"] / GIB, color="#c1121f", label=f"usable {report['hbm_usable'] / GIB:.2f}")
    right.set_title("memory of a chip, GiB", fontsize=9)
    right.set_yticks([])
    right.set_ylim(-1.2, 0.8)
    right.legend(fontsize=7, loc="lower left", ncols=2, frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.suptitle(title(report), fontsize=10)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise TonyError(f"--picture {path} can't be written ({error}); give a name such as plan.svg") from None
    finally:
        plt.close(figure)
