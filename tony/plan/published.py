"""Published measurements of trainings, and what `tony.plan.estimate` says of the same ones: `python -m
tony.plan.published` prints both, with the errors.

MaxText's programs are not Tony's: they keep activations in bfloat16, have a fused attention kernel, and some offload
activations to the host; so the estimate stands for them, and is held against all of them alike.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tony.model.config import ModelConfig
from tony.model.count import flops_per_token
from tony.plan.chips import read_topology
from tony.plan.estimate import Choice, Cost, cost

STATE = 4 * 4  # bytes a parameter: AdamW's or unfactored Adafactor's, float32, and gradients


@dataclass(frozen=True)
class Row:
    """A measurement: model, machine, layout, rows of the batch on each chip, and the published MFU.

    All of them are taken to count the whole square of attention. MaxText has counted its causal half since July 2025;
    its tables do not say which of their rows were measured since.
    """

    name: str
    topology: str
    slices: int
    mfu: float
    per_chip: float
    length: int
    model: dict
    remat: str = "blocks"
    ways: int = 1  # of the model axis
    source: str = "MaxText, configs/tpu"


def _scaled(layers: int, width: int, heads: int, hidden: int) -> dict:
    """MaxText's default network, scaled by its `global_parameter_scale`."""
    return {"layers": layers, "width": width, "heads": heads, "kv_heads": heads, "hidden": hidden, **PLAIN}


# Only so do these two have as many parameters as their names say.
UNGATED = {"activation": "gelu", "head_dim": 256}
PLAIN = {"vocab_size": 32_000, "head_dim": 128, "tied": False}
B16, B32, B64 = _scaled(32, 4096, 64, 28672), _scaled(32, 8192, 64, 28672), _scaled(64, 8192, 64, 28672)
B128, B256 = _scaled(64, 8192, 128, 57344), _scaled(64, 16384, 128, 57344)
B512, B1024 = _scaled(128, 16384, 128, 57344), _scaled(128, 16384, 256, 114688)
LLAMA2 = {"width": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "hidden": 28672, **PLAIN}
LLAMA7 = {"width": 4096, "layers": 32, "heads": 32, "kv_heads": 32, "hidden": 11008, **PLAIN}
LLAMA3 = {**PLAIN, "vocab_size": 128_256, "kv_heads": 8}
PALM = {
    "vocab_size": 256_000, "layers": 118, "width": 18432, "heads": 48, "kv_heads": 1, "head_dim": 256,
    "hidden": 73728, "parallel_block": True,
}  # fmt: skip

# Layouts and batches are those of the scripts that the tables belong to.
ROWS = (
    Row("PaLM 540B", "v4:16x16x12", 2, 46.2, 2048 / 6144, 2048, PALM, ways=12, source="PaLM, table 3"),
    # Of v4 ranges are published, 53.2 to 56.7 and 56 to 59: these are their middles.
    Row("MaxText 22B", "v4:4x4x4", 1, 55.0, 13, 2048, {**_scaled(48, 6144, 24, 24576), **UNGATED}),
    Row("MaxText 52B", "v4:4x4x12", 1, 57.5, 7, 2048, {**_scaled(32, 12288, 32, 49152), **UNGATED}),
    Row("MaxText 32B", "v5p:4x4x4", 1, 71.47, 6, 2048, B32, "products", 4),
    Row("MaxText 32B", "v5p:4x4x4", 2, 69.43, 6, 2048, B32, "products", 4),
    Row("MaxText 128B", "v5p:4x4x8", 1, 68.68, 1, 2048, B128, "products", 8),
    Row("MaxText 128B", "v5p:4x4x8", 2, 66.34, 1, 2048, B128, "products", 8),
    Row("MaxText 512B", "v5p:8x8x8", 1, 63.99, 2, 2048, B512, ways=8),
    Row("MaxText 512B", "v5p:8x8x8", 2, 61.45, 2, 2048, B512, ways=8),
    Row("MaxText 1024B", "v5p:8x8x16", 1, 55.35, 2, 2048, B1024, ways=16),
    Row("MaxText 1024B", "v5p:8x16x16", 1, 64.80, 2, 2048, B1024, ways=16),
    *(Row("MaxText 16B", "v5e:16x16", n, mfu, 6, 2048, B16) for n, mfu in ((1, 61.1), (8, 58.3), (32, 54.7))),
    *(Row("MaxText 32B", "v5e:16x16", n, mfu, 4, 2048, B32) for n, mfu in ((1, 66.9), (8, 63.7), (32, 60.4))),
    *(Row("MaxText 64B", "v5e:16x16", n, mfu, 1, 2048, B64) for n, mfu in ((1, 59.9), (8, 55.0), (32, 50.2))),
    *(
        Row("MaxText 128B", "v5e:16x16", n, mfu, 1, 2048, B128, ways=16)
        for n, mfu in ((1, 56.1), (8, 52.9), (32, 46.3))
    ),
    # TFLOP/s of a GPU are published; 989 are the most it has. Parameters are split within a host of eight.
    *(Row("Llama 2 7B", "h100:8", n, 100 * tera / 989, 4, 4096, LLAMA7, "products", source="MaxText, configs/gpu/a3")
      for n, tera in ((1, 492), (2, 422), (4, 407), (8, 409), (16, 375))),
    Row("Llama 2 70B", "v5p:8x8x8", 1, 65.4, 4, 4096, LLAMA2, source="MaxText, tiering.md"),
    Row("Llama 3.1 8B", "v6e:16x16", 1, 45.46, 4, 8192, {**LLAMA3, "width": 4096, "layers": 32, "heads": 32,
        "hidden": 14336}, source="MaxText, tiering.md"),
    Row("Llama 3.1 70B", "v6e:16x16", 1, 50.33, 5, 8192, {**LLAMA3, "width": 8192, "layers": 80, "heads": 64,
        "hidden": 28672}, source="MaxText, tiering.md"),
    Row("Llama 3.1 405B", "v6e:16x16", 1, 38.55, 1, 8192, {**LLAMA3, "width": 16384, "layers": 126, "heads": 128,
        "hidden": 53248}, source="MaxText, tiering.md"),
)  # fmt: skip


def predicted(row: Row) -> tuple[float, Cost]:
    """(MFU in percent, and what the step's seconds go to)."""
    topology, config = read_topology(row.topology, row.slices), ModelConfig(max_length=row.length, **row.model)
    data = topology.chips // topology.slices // row.ways
    choice = Choice(topology.slices, data, 1, row.ways, row.remat, 1)
    rows = round(row.per_chip * topology.chips)
    made = cost(config, rows, row.length, STATE, topology, choice)
    flops = flops_per_token(config, row.length)
    return 100 * rows * row.length * flops / made.seconds / topology.chips / topology.chip.peak, made


def errors(rows: Sequence[Row] = ROWS) -> list[float]:
    """Relative errors of the predictions."""
    return [predicted(row)[0] / row.mfu - 1 for row in rows]


def markdown(rows: Sequence[Row] = ROWS) -> str:
    """The table of both."""
    lines = ["| training | machine | published MFU | predicted | error |", "|---|---|---|---|---|"]
    for row in rows:
        mfu, _ = predicted(row)
        slices = f"{row.slices} x " if row.slices > 1 else ""
        lines.append(f"| {row.name} | {slices}{row.topology} | {row.mfu:.1f} | {mfu:.1f} | {mfu / row.mfu - 1:+.1%} |")
    sizes = sorted(map(abs, errors(rows)))
    usual = statistics.median(row.mfu for row in rows)
    constant = statistics.median(abs(usual / row.mfu - 1) for row in rows)
    lines += [
        "",
        f"Median error {statistics.median(sizes):.1%}, greatest {sizes[-1]:.1%}, of {len(rows)} measurements. Saying "
        f"{usual:.1f} of every one, which is their median, has a median error of {constant:.1%}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
