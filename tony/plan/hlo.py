"""What a compiled program does, read from its text: products, memory traffic, transfers, loops by their trip counts.

XLA's own `cost_analysis` counts the body of a loop once and says nothing of who talks to whom. Here every instruction
of the partitioned program, which is the work of one device, becomes an `Operation` with the number of times it runs.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all",
    "collective-broadcast",
)  # fmt: skip
# What moves no data: names for parts of others, and what is counted where it begins or in what it calls.
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency", "partition-id",
    "replica-id", "opt-barrier", "domain", "recv", "async-update", "infeed", "outfeed",
}  # fmt: skip
FREE_CALLS = {"AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding"}
Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Shape:
    """An array of a program: type, dimensions, and memory space (0 is HBM, others are on the chip or the host)."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Size, without the padding of its layout."""
        digits = re.search(r"\d+", self.dtype)
        bits = 8 if self.dtype == "pred" else int(digits[0]) if digits else 0
        return math.ceil(math.prod(self.dims) * bits / 8)

    @property
    def hbm(self) -> int:
        """Bytes that it takes of HBM."""
        return 0 if self.space else self.bytes


@dataclass(frozen=True)
class Instruction:
    """One line of a computation; a tuple's parts are its `shapes`. `text` is what stands behind the opcode."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str
    root: bool = False

    def attribute(self, name: str) -> str:
        """A plain attribute, such as `direction=LT` or a computation's name; "" if there is none."""
        found = re.search(rf"[ ,]{name}=%?([\w.\-]+)", self.text)
        return found[1] if found else ""

    @property
    def collective(self) -> str:
        """Which of COLLECTIVES it is or begins, or ""."""
        base = self.opcode.removesuffix("-start")
        return base if base in COLLECTIVES else ""


@dataclass
class Computation:
    """Instructions by name, in the order in which they run."""

    instructions: dict[str, Instruction] = field(default_factory=dict)

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(made for made in self.instructions.values() if made.root)

    def parameter(self, number: int) -> Instruction:
        """The parameter of a number."""
        parameters = (made for made in self.instructions.values() if made.opcode == "parameter")
        return next(made for made in parameters if made.text.startswith(f"({number})"))

    def users(self, name: str) -> Iterator[Instruction]:
        """Who reads a result, views of it left out for their own readers."""
        for made in self.instructions.values():
            if name in made.operands:
                if made.opcode in ("bitcast", "reshape"):
                    yield from self.users(made.name)
                else:
                    yield made


@dataclass(frozen=True)
class Operation:
    """Work of one device: `times` runs, each with `flops` of products, `bytes` to and from HBM, `sent` to others.

    `groups` are the devices that talk to each other, as positions in the mesh. `host` marks a transfer between slices,
    which goes through the hosts. `cycles` is the compiler's own estimate, 0 where it gives none; `alone` is whether
    nothing else runs beside a transfer.
    """

    name: str
    kind: str
    times: float = 1
    flops: float = 0
    bytes: float = 0
    sent: float = 0
    groups: Groups = ()
    host: bool = False
    cycles: float = 0
    alone: bool = True


# --------------------------------------------------------------------------------------------------------- reading


class Module:
    """A compiled module's text, taken apart."""

    def __init__(self, text: str):
        self.computations: dict[str, Computation] = {}
        self.entry, current = "", None
        header = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
        self.devices = int(header[1]) if header else 1
        for line in text.splitlines():
            if current is None:
                if line.endswith("{") and (found := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
                    current = self.computations[found[2]] = Computation()
                    self.entry = found[2] if found[1] else self.entry
            elif line.startswith("}"):
                current = None
            elif (made := _instruction(line)) is not None:
                current.instructions[made.name] = made

    def operations(self) -> list[Operation]:
        """All work of one device. A loop whose trip count can't be read runs once (see `unread_loops`)."""
        return list(self._walk(self.computations[self.entry], 1))

    def unread_loops(self) -> list[str]:
        """Names of the loops whose trip count can't be read."""
        loops = [(c, made) for c in self.computations.values() for made in c.instructions.values()]
        return [made.name for c, made in loops if made.opcode == "while" and not self.trip_count(c, made)]

    def _walk(self, computation: Computation, times: float) -> Iterator[Operation]:
        for made in computation.instructions.values():
            if made.opcode == "while":
                trips = self.trip_count(computation, made) or 1
                yield from self._walk(self.computations[made.attribute("body")], times * trips)
            elif made.opcode == "conditional":
                yield from self._heaviest_branch(made, times)
            elif made.opcode in ("call", "async-start"):
                called = self.computations[made.attribute("to_apply") or made.attribute("calls")]
                overlaps = made.opcode == "async-start"
                for work in self._walk(called, times):
                    yield replace(work, alone=False) if overlaps else work
            elif (name := _called(made)) in self.computations:
                yield from self._walk(self.computations[name], times)
            elif (own := self._operation(computation, made)) is not None:
                yield replace(own, times=times)

    def _heaviest_branch(self, made: Instruction, times: float) -> list[Operation]:
        listed = re.search(r"branch_computations=\{([^}]*)\}", made.text)
        names = re.findall(r"%([\w.\-]+)", listed[1]) if listed else []
        names = names or [made.attribute("true_computation"), made.attribute("false_computation")]
        branches = [list(self._walk(self.computations[name], times)) for name in names]
        return max(branches, key=lambda work: sum(o.times * (o.flops + o.bytes + o.sent) for o in work))

    # ------------------------------------------------------------------------------------------------- loops

    def trip_count(self, computation: Computation, loop: Instruction) -> int | None:
        """How often a loop runs: what XLA says, or else the bound of a counter that goes up by one, less its start."""
        known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.text)
        if known:
            return int(known[1])
        condition = self.computations[loop.attribute("condition")]
        compare, (counter, bound) = condition.root, (*condition.root.operands, "", "")[:2]
        if compare.opcode == "fusion":
            inner = self.computations[compare.attribute("calls")]
            counter, bound = (_outside(inner, name, compare) for name in (*inner.root.operands, "", "")[:2])
            condition, compare = Computation(inner.instructions | condition.instructions), inner.root
        source = _settled(condition, counter)
        if compare.opcode != "compare" or compare.attribute("direction") != "LT" or source is None:
            return None
        carried = computation.instructions.get(loop.operands[0])
        most = self._constant(condition, bound, computation, carried)
        if source.opcode != "get-tuple-element" or most is None:
            return None
        return max(0, most - (self._constant(condition, counter, computation, carried) or 0))

    def _constant(self, inside: Computation, name: str, outside: Computation, carried: Instruction | None):
        """The number that a value is, if it is a constant or one that the loop starts with."""
        made = _settled(inside, name)
        if made is None:
            return None
        if made.opcode == "constant":
            number = re.match(r"\((-?\d+)\)", made.text)
            return int(number[1]) if number else None
        if made.opcode == "get-tuple-element" and carried is not None and carried.opcode == "tuple":
            return self._constant(outside, carried.operands[int(made.attribute("index"))], outside, None)
        return None

    # ------------------------------------------------------------------------------------------ one operation

    def _operation(self, computation: Computation, made: Instruction) -> Operation | None:
        if made.opcode in FREE or made.opcode.endswith("-done"):
            return None
        if made.opcode == "custom-call" and _target(made) in FREE_CALLS:
            return None
        work = Operation(made.name, made.opcode, bytes=self._bytes(computation, made), cycles=_cycles(made.text))
        if made.opcode == "send":
            kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', made.text)
            name = kind[1].lower().replace("_", "-") if kind else "send"
            host = "is_host_transfer=true" in made.text
            return replace(work, kind=name, bytes=0, sent=made.shapes[0].bytes, host=host, alone=False)
        if made.collective:
            return replace(work, **self._transfer(computation, made), alone=not made.opcode.endswith("-start"))
        if made.opcode == "fusion":
            return self._fusion(work, self.computations[made.attribute("calls")])
        return replace(work, flops=_flops(computation, made))

    def _fusion(self, work: Operation, inner: Computation) -> Operation:
        flops = sum(self._inner_flops(inner))
        talks = [made for made in inner.instructions.values() if made.collective]
        if not talks:
            return replace(work, flops=flops)
        transfers = [self._transfer(inner, made) for made in talks]
        kind, sent = transfers[0]["kind"], sum(transfer["sent"] for transfer in transfers)
        if kind == "all-reduce" and any(made.opcode == "dynamic-slice" for made in inner.instructions.values()):
            kind, sent = "reduce-scatter", sent / 2  # what a device does not keep is not sent back
        groups = transfers[0]["groups"]
        return replace(work, kind=kind, flops=flops, sent=sent, groups=groups, alone=not flops)

    def _inner_flops(self, computation: Computation) -> Iterator[float]:
        for made in computation.instructions.values():
            if made.opcode == "fusion":
                yield from self._inner_flops(self.computations[made.attribute("calls")])
            else:
                yield _flops(computation, made)

    def _transfer(self, computation: Computation, made: Instruction) -> dict:
        """Kind, groups, and the bytes that a device sends if it sends no more than it must (ring algorithms)."""
        given = sum(s.bytes for name in made.operands for s in _shapes(computation, name))
        if made.collective == "collective-permute":
            pairs = _pairs(made.text)
            return {"kind": made.collective, "groups": pairs, "sent": given if pairs else 0}
        groups = read_groups(made.text, self.devices)
        size = max((len(group) for group in groups), default=1)
        factor = {
            "all-gather": size - 1, "all-reduce": 2 * (size - 1) / size, "collective-broadcast": 1,
        }.get(made.collective, (size - 1) / size)  # fmt: skip
        return {"kind": made.collective, "groups": groups, "sent": given * factor}

    def _bytes(self, computation: Computation, made: Instruction) -> float:
        """What it reads and writes of HBM; a slice is only as much as is sliced."""
        if made.opcode == "copy-start":
            return sum(shape.hbm for shape in made.shapes[:2])
        if made.opcode == "slice-start":
            source, part = made.shapes[:2]
            return part.hbm + (0 if source.space else part.bytes)
        read = [shapes for name in made.operands if (shapes := _shapes(computation, name))]
        written: float = sum(shape.hbm for shape in made.shapes)
        if made.opcode in ("dynamic-slice", "gather", "slice"):
            return written + (0 if read[0][0].space else sum(shape.bytes for shape in made.shapes))
        if made.opcode in ("dynamic-update-slice", "scatter"):
            update = read[1 if made.opcode == "dynamic-update-slice" else -1]
            return sum(s.hbm for s in update) + (0 if made.shapes[0].space else sum(s.bytes for s in update))
        if made.opcode == "fusion":
            return self._fusion_bytes(made, self.computations[made.attribute("calls")], read)
        if made.opcode.endswith("-start"):
            return sum(shape.hbm for shapes in read for shape in shapes)
        return written + sum(shape.hbm for shapes in read for shape in shapes)

    def _fusion_bytes(self, made: Instruction, inner: Computation, read: list[tuple[Shape, ...]]) -> float:
        total = 0.0
        for number, shapes in enumerate(read):
            total += min(_read_of(inner, inner.parameter(number)), sum(s.bytes for s in shapes)) if _hbm(shapes) else 0
        root = inner.root
        parts = [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
        for part, shape in zip(parts, made.shapes, strict=False):
            while part.opcode == "bitcast":
                part = inner.instructions[part.operands[0]]
            if part.opcode == "dynamic-update-slice":
                total += 0 if shape.space else sum(s.bytes for s in _shapes(inner, part.operands[1]))
            else:
                total += shape.hbm
        return total


def _called(made: Instruction) -> str:
    """The computation that a custom call stands for, as where a transfer is left to the SparseCores; "" if none."""
    found = re.search(r"called_computations=\{%([\w.\-]+)\}", made.text) if made.opcode == "custom-call" else None
    return found[1] if found else ""


def _cycles(text: str) -> float:
    """The compiler's estimate; 0 where there is none, which it also writes as the largest of numbers."""
    found = re.search(r'"estimated_cycles":"(\d+)"', text)
    return float(found[1]) if found and int(found[1]) < 2**62 else 0


def _settled(computation: Computation, name: str) -> Instruction | None:
    """What a value is a copy of."""
    made = computation.instructions.get(name)
    while made is not None and made.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
        made = computation.instructions.get(made.operands[0])
    return made


def _outside(inner: Computation, name: str, fusion: Instruction) -> str:
    """What a fusion's parameter is called outside of it; anything else keeps its name."""
    made = inner.instructions.get(name)
    if made is None or made.opcode != "parameter":
        return name
    return fusion.operands[int(made.text[1:].partition(")")[0])]


def _hbm(shapes: tuple[Shape, ...]) -> bool:
    return any(shape.hbm for shape in shapes)


def _read_of(inner: Computation, parameter: Instruction) -> float:
    """Bytes of a fusion's parameter that are read: what is sliced of it, and nothing of what is written in place."""
    whole = sum(shape.bytes for shape in parameter.shapes)
    total = 0.0
    for user in inner.users(parameter.name):
        first = user.operands and inner.instructions[user.operands[0]]
        is_source = first and _viewed(inner, first).name == parameter.name
        if is_source and user.opcode in ("dynamic-slice", "gather", "slice"):
            total += sum(shape.bytes for shape in user.shapes)
        elif not (is_source and user.opcode == "dynamic-update-slice"):
            return whole
    return min(total, whole)


def _viewed(computation: Computation, made: Instruction) -> Instruction:
    while made.opcode in ("bitcast", "reshape"):
        made = computation.instructions[made.operands[0]]
    return made


def _shapes(computation: Computation, name: str) -> tuple[Shape, ...]:
    made = computation.instructions.get(name)
    return made.shapes if made else ()


def _target(made: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', made.text)
    return found[1] if found else ""


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not found:
        return None
    rest = re.sub(r"/\*.*?\*/", "", line[found.end() :])
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shapes = tuple(
        Shape(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d), _space(layout))
        for dtype, dims, layout in re.findall(r"([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", rest[:end])
    )
    opcode, _, text = rest[end:].strip().partition("(")
    text = "(" + text
    return Instruction(
        found[2], opcode, shapes, tuple(re.findall(r"%([\w.\-]+)", text[: _closing(text)])), text, bool(found[1])
    )


def _space(layout: str) -> int:
    found = re.search(r"S\((\d+)\)", layout)
    return int(found[1]) if found else 0


def _closing(text: str) -> int:
    """Where the bracket that opens a text closes."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(text) - 1


# --------------------------------------------------------------------------------------------------------- products


def _flops(computation: Computation, made: Instruction) -> float:
    if made.opcode == "dot":
        left = _shapes(computation, made.operands[0])[0]
        listed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", made.text)
        contracted = [left.dims[int(d)] for d in listed[1].split(",") if d] if listed else []
        return 2 * math.prod(made.shapes[0].dims) * math.prod(contracted)
    if made.opcode == "convolution":
        return _convolution_flops(computation, made)
    return 0


def _convolution_flops(computation: Computation, made: Instruction) -> float:
    """Two operations for every pair of an input and a weight that meet; zeros of padding and dilation meet nobody.

    TPUs have no other product: a batch of products is a convolution whose input is dilated.
    """
    left, right = (_shapes(computation, name)[0] for name in made.operands[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", made.text)
    if labels is None:
        return 0
    of_left, of_right, of_out = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", made.text)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    flops = 2.0 * left.dims[of_left.index("b")] * made.shapes[0].dims[of_out.index("f")]
    flops *= right.dims[of_right.index("i")] / int(made.attribute("batch_group_count") or 1)
    for number in range(len(of_left) - 2):
        label = str(number)
        flops *= _meetings(
            left.dims[of_left.index(label)],
            right.dims[of_right.index(label)],
            made.shapes[0].dims[of_out.index(label)],
            *(_window(fields, name, number, 1) for name in ("stride", "lhs_dilate", "rhs_dilate")),
            _window(fields, "pad", number, 0),
        )
    return flops


def _window(fields: dict[str, str], name: str, number: int, default: int) -> int:
    parts = fields[name].split("x") if name in fields else []
    return int(parts[number].split("_")[0]) if number < len(parts) else default


@lru_cache(maxsize=4096)
def _meetings(inputs: int, kernel: int, outputs: int, stride: int, dilate: int, kernel_dilate: int, pad: int) -> int:
    """Pairs of an output and a kernel position along one axis that fall on an input."""
    at = np.arange(outputs)[:, None] * stride + np.arange(kernel) * kernel_dilate - pad
    return int(((at >= 0) & (at <= (inputs - 1) * dilate) & (at % dilate == 0)).sum())


# --------------------------------------------------------------------------------------------------------- groups


def read_groups(text: str, devices: int) -> Groups:
    """Groups of devices that talk to each other, in any of the ways in which XLA writes them.

    `{{0,1},{2,3}}`; `[2,2]<=[4]`, with dimensions and a transposition; `mesh['a'=2,'b'=2] {'b'}`, groups along axes of
    a mesh, perhaps of parts of axes; nothing or `{}`, all together.
    """
    found = re.search(
        r"replica_groups=(\{\{[\d,{}]*\}\}|\{\}|mesh\[.*?\](?:, ?device_ids=\S+)? \{[^}]*\}|\[[\d,]*\]<=\S+)", text
    )
    return _groups(found[1].rstrip(",") if found else "{}", devices)


@lru_cache(maxsize=4096)
def _groups(text: str, devices: int) -> Groups:
    if text == "{}":
        return (tuple(range(devices)),)
    if text.startswith("{{"):
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", text))
    if text.startswith("mesh"):
        return _mesh_groups(text)
    shape, dims, order = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()  # type: ignore[union-attr]
    ids = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    if order:
        ids = ids.transpose(_numbers(order))
    return tuple(map(tuple, ids.reshape(_numbers(shape)).tolist()))


def _mesh_groups(text: str) -> Groups:
    mesh, axes = re.match(r"mesh\[(.*?)\].*? \{([^}]*)\}", text).groups()  # type: ignore[union-attr]
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", mesh)}
    dims: list[int] = []
    chosen: dict[str, list[int]] = {name: [] for name in sizes}  # axis -> its dimensions that belong to a group
    parts = {name: (before, size) for name, before, size in re.findall(r"'([^']*)':\((\d+)\)(\d+)", axes)}
    for name, size in sizes.items():
        if name in parts:
            before, part = map(int, parts[name])
            chosen[name] = [len(dims) + 1]
            dims += [before, part, size // before // part]
        else:
            chosen[name] = [len(dims)] if f"'{name}'" in axes else []
            dims.append(size)
    inside = [dim for name in re.findall(r"'([^']*)'", axes) for dim in chosen[name]]
    outside = [dim for dim in range(len(dims)) if dim not in inside]
    size = math.prod(dims[dim] for dim in inside)
    ids = np.arange(math.prod(dims)).reshape(dims).transpose(outside + inside).reshape(-1, size)
    return tuple(map(tuple, ids.tolist()))


def _pairs(text: str) -> Groups:
    found = re.search(r"source_target_pairs=(\{\{[\d,{}]*\}\})", text)
    pairs = re.findall(r"\{(\d+),(\d+)\}", found[1]) if found else []
    return tuple((int(source), int(target)) for source, target in pairs if source != target)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
