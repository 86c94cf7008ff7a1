"""Energy that work takes: read from the machine's own counters where it has them, else estimated and labelled so.

Processors count in `/sys/class/powercap` (RAPL: packages, and memory where it is counted apart), NVIDIA's accelerators
through NVML. TPUs have no counter that a program can read: each is reckoned with the watts of `tony.plan.chips`, its
share of the host included. A machine with neither has its cores' energy estimated, WATTS_PER_CORE each. Cooling and
conversion of a data centre (PUE) are left out.
"""

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

WATTS_PER_CORE = 8.0  # of a busy server core with its share of memory and fans; an assumption, not a measurement
KILOGRAMS_CO2E_PER_KWH = 0.4  # or tonnes a megawatt-hour, of a mixed grid; an assumption, not a measurement
POWERCAP = Path("/sys/class/powercap")
EVERY = 30.0  # seconds between readings: a counter of RAPL starts again at 0 after a few minutes of full load at best
MEASURED, ESTIMATED = "measured", "estimated"


@dataclass(frozen=True)
class Counter:
    """Something that counts joules; `wraps` is where it starts again at 0 (None: never)."""

    name: str
    read: Callable[[], float]
    wraps: float | None = None


def counters(powercap: Path = POWERCAP) -> list[Counter]:
    """Every counter of this machine that may be read."""
    return [*_rapl(powercap), *_nvml()]


def _rapl(powercap: Path) -> list[Counter]:
    """Packages and memories; cores and graphics are part of their package."""
    found = []
    for zone in sorted(powercap.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            range_ = int((zone / "max_energy_range_uj").read_text()) / 1e6
            (zone / "energy_uj").read_text()  # on many systems for root only
        except (OSError, ValueError):
            continue
        if name.startswith(("package", "dram")):
            found.append(Counter(f"RAPL {name}", partial(_microjoules, zone / "energy_uj"), range_))
    return found


def _microjoules(path: Path) -> float:
    return int(path.read_text()) / 1e6


def _nvml() -> list[Counter]:
    try:
        import pynvml

        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        read = pynvml.nvmlDeviceGetTotalEnergyConsumption
        for device in devices:
            read(device)  # older accelerators do not count
    except Exception:  # no package, no driver, no permission: each says so in its own way
        return []
    return [Counter(f"NVML {index}", partial(_millijoules, read, device)) for index, device in enumerate(devices)]


def _millijoules(read: Callable, device) -> float:
    return read(device) / 1e3


TPUS = {  # names of `jax.Device.device_kind`
    "TPU v4": "v4", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v6 lite": "v6e",
    "TPU v6e": "v6e", "TPU7x": "tpu7x",
}  # fmt: skip


def tpus() -> tuple[float, str]:
    """(chips, name) of the TPUs of this process, (0, "") where JAX has none or is not in use at all."""
    if "jax" not in sys.modules:
        return 0, ""
    import jax

    try:
        kinds = [device.device_kind for device in jax.local_devices() if device.device_kind in TPUS]
    except RuntimeError:  # its back end cannot be had: whoever needs it will say so
        return 0, ""
    if not kinds:
        return 0, ""
    from tony.plan.chips import CHIPS

    name = TPUS[kinds[0]]
    return len(kinds) / CHIPS[name].devices, name


@dataclass
class Energy:
    """Joules of some work, whether they were measured or estimated, and how; of a whole `machine` or of what one
    process has of it."""

    joules: float = 0.0
    source: str = ESTIMATED
    how: str = ""
    machine: bool = True

    @property
    def kwh(self) -> float:
        """Kilowatt-hours."""
        return self.joules / 3.6e6


@dataclass
class Meter:
    """Measures the energy of what runs inside `with Meter() as meter`; `meter.energy` says it afterwards."""

    counters: list[Counter] = field(default_factory=counters)
    every: float = EVERY
    energy: Energy = field(default_factory=Energy)

    def __enter__(self) -> "Meter":
        self._joules, self._lock, self._over = 0.0, threading.Lock(), threading.Event()
        self._began = time.perf_counter()
        self._last = [_reading(counter) for counter in self.counters]
        if self.counters:
            threading.Thread(target=self._watch, name="tony-energy", daemon=True).start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(self.every):
            self._read()

    def _read(self) -> None:
        with self._lock:
            for index, counter in enumerate(self.counters):
                now, before = _reading(counter), self._last[index]
                self._last[index] = now
                if now is not None and before is not None:
                    passed = now - before
                    self._joules += passed if passed >= 0 else passed + (counter.wraps or 0.0)

    def __exit__(self, *_) -> None:
        self._over.set()
        if self.counters:
            self._read()
        seconds, (chips, name) = time.perf_counter() - self._began, tpus()
        if chips:  # their watts have the host's share in them, which its counters would count again
            self.energy = estimated_of_tpus(seconds, chips, name)
        elif self.counters and None not in self._last:
            self.energy = Energy(self._joules, MEASURED, ", ".join(counter.name for counter in self.counters))
        else:
            self.energy = estimated(seconds)


def _reading(counter: Counter) -> float | None:
    """What it has counted; None once it can't be read any more, which no work should fail for."""
    try:
        return counter.read()
    except Exception:  # NVML's own, OSError, ValueError: a driver that was unloaded, a right that was taken away
        return None


def estimated(seconds: float) -> Energy:
    """The energy of this machine's cores, all busy for some seconds."""
    cores = os.cpu_count() or 1
    return Energy(seconds * WATTS_PER_CORE * cores, ESTIMATED, f"{cores} cores at {WATTS_PER_CORE:g} W")


def estimated_of_tpus(seconds: float, chips: float, name: str) -> Energy:
    """The energy of so many chips, all busy for some seconds."""
    from tony.plan.chips import CHIPS

    watts = CHIPS[name].watts
    return Energy(seconds * watts * chips, ESTIMATED, f"{chips:g} {name} at {watts:g} W", machine=False)


def told(energy: Energy) -> str:
    """What a process tells the others of its energy."""
    return json.dumps({"on": platform.node(), **asdict(energy)})


def of_all(processes: Sequence[str]) -> Energy:
    """The energy of all processes that `told` theirs; what several measured of one machine counts once."""
    machines: dict[str, list[Energy]] = {}
    for text in processes:
        facts = json.loads(text)
        machines.setdefault(facts.pop("on"), []).append(Energy(**facts))
    parts = [energy for found in machines.values() for energy in (found[:1] if found[0].machine else found)]
    sources = {energy.source for energy in parts}
    how = ", ".join(dict.fromkeys(energy.how for energy in parts))
    several = f", of {len(machines)} machines" if len(machines) > 1 else ""
    return Energy(
        sum(energy.joules for energy in parts), MEASURED if sources == {MEASURED} else ESTIMATED, how + several
    )
