"""A plan as a table in the terminal and as a picture."""

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
    made = [
        ("parameters", f"{total:.3f} B, of which a token meets {active:.2f} B"),
        ("chips", f"{report['chips']:,}, mesh " + " x ".join(f"{k} {v}" for k, v in report["mesh"].items())),
        ("batch", f"{batch}, {report['accumulation']} microbatches, remat {report['remat']}"),
        ("memory of a chip", f"{report['hbm_bytes_per_chip'] / GIB:.2f} of {report['hbm_usable'] / GIB:.2f} GiB: "
         + ", ".join(f"{name} {size / GIB:.2f}" for name, size in hbm.items())
         + ("" if report["fits"] else "  DOES NOT FIT")),
    ]  # fmt: skip
    made += [(f"seconds, {name}", f"{seconds[name]:9.4f}  {meaning}") for name, meaning in SECONDS.items()]
    made += [
        ("sent by a chip", f"{report['ici_bytes_per_step'] / 1e9:.2f} GB inside a slice, "
         f"{report['dcn_bytes_per_step'] / 1e9:.3f} GB to other slices"),
        ("tokens a second", f"{report['tokens_per_second']:,.0f}"),
        ("MFU", f"{report['mfu']:.1%}"),
    ]  # fmt: skip
    if report["program"] == "train":
        made += [
            ("HFU", f"{report['hfu']:.1%}"),
            ("FLOPs of a token", f"{report['flops_per_token'] / 1e9:,.1f} G (PaLM, appendix B)"),
            ("training", f"{report['train_tokens'] / 1e9:,.1f} B tokens in {report['train_hours']:,.0f} hours"),
            ("energy", f"{report['energy_mwh']:,.1f} MWh, {report['tco2e']:,.1f} tCO2e, at "
             f"{report['watts_per_chip']:g} W a chip ({report['watts_source']})"),
        ]  # fmt: skip
    made.append(("compiled in", f"{report['compile_seconds']:.0f} s"))
    if report["unread_loops"]:
        told = f"{len(report['unread_loops'])} loops whose number of trips can't be read count as one trip each"
        made.append(("too good", f"[red]{told}[/]"))
    if report.get("advice"):
        made.append(("advice", f"[red]{report['advice']}[/]"))
    return made


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
