import json
import time
from types import SimpleNamespace

import pytest

from tony import energy
from tony.energy import ESTIMATED, MEASURED, WATTS_PER_CORE, Counter, Energy, Meter, counters, of_all, told


def zone(folder, number: str, name: str, joules: float, range_: float = 1000.0):
    path = folder / f"intel-rapl:{number}"
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{int(range_ * 1e6)}\n")
    (path / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    return path


def test_packages_and_memory_are_counted_once(tmp_path):
    for number, name in (("0", "package-0"), ("0:0", "core"), ("0:1", "dram"), ("1", "package-1"), ("2", "psys")):
        zone(tmp_path, number, name, 5.0)
    found = counters(tmp_path)
    assert [counter.name for counter in found] == ["RAPL package-0", "RAPL dram", "RAPL package-1"]
    assert [counter.read() for counter in found] == [5.0] * 3


def test_a_machine_without_counters_or_with_a_broken_one_has_none(tmp_path):
    assert counters(tmp_path / "nothing") == []
    (zone(tmp_path, "0", "package-0", 1.0) / "max_energy_range_uj").write_text("unknown")
    assert counters(tmp_path) == []


def test_what_counters_passed_is_measured_over_their_ends(tmp_path):
    path, other = zone(tmp_path, "0", "package-0", 990.0), zone(tmp_path, "1", "package-1", 10.0)
    with Meter(counters(tmp_path)) as meter:
        (path / "energy_uj").write_text(str(int(5e6)))  # past 1000 and on from 0
        (other / "energy_uj").write_text(str(int(30e6)))
    assert meter.energy.joules == pytest.approx(15 + 20)
    assert meter.energy.source == MEASURED and "package-1" in meter.energy.how
    assert meter.energy.kwh == pytest.approx(35 / 3.6e6)


def test_a_counter_that_wraps_twice_is_read_in_between():
    values = iter([0.0, 60.0, 20.0, 80.0, 40.0] + [40.0] * 1000)
    with Meter([Counter("fast", lambda: next(values), wraps=100.0)], every=0.01) as meter:
        time.sleep(0.3)
    assert meter.energy.joules == pytest.approx(240.0)


def test_without_counters_the_estimate_says_that_it_is_one():
    with Meter([]) as meter:
        time.sleep(0.05)
    assert meter.energy.source == ESTIMATED and f"{WATTS_PER_CORE:g} W" in meter.energy.how
    assert meter.energy.joules > 0.04 * WATTS_PER_CORE


def test_tpus_are_reckoned_with_their_watts_and_nothing_is_counted_twice(monkeypatch):
    chips = [SimpleNamespace(device_kind="TPU v4")] * 4
    monkeypatch.setattr("jax.local_devices", lambda: chips)
    with Meter([Counter("RAPL package-0", lambda: 0.0)]) as meter:
        time.sleep(0.05)
    assert meter.energy.source == ESTIMATED and meter.energy.how == "4 v4 at 378.5 W"
    assert 0.05 * 4 * 378.5 < meter.energy.joules < 4 * 378.5
    monkeypatch.setattr("jax.local_devices", lambda: [SimpleNamespace(device_kind="TPU7x")] * 8)
    assert energy.tpus() == (4, "tpu7x")


def test_processes_are_added_up_by_machine():
    def of(node, *facts, **more):
        return json.dumps({**json.loads(told(Energy(*facts, **more))), "on": node})

    two_on_one = [of("a", 10.0, MEASURED, "RAPL"), of("a", 10.1, MEASURED, "RAPL"), of("b", 5.0, MEASURED, "RAPL")]
    assert of_all(two_on_one) == Energy(15.0, MEASURED, "RAPL, of 2 machines")
    mixed = of_all([of("a", 10.0, MEASURED, "RAPL"), of("b", 5.0, ESTIMATED, "2 cores at 8 W")])
    assert (mixed.joules, mixed.source) == (15.0, ESTIMATED) and "RAPL, 2 cores at 8 W" in mixed.how
    chips = [of(node, 7.0, ESTIMATED, "2 v4 at 378.5 W", machine=False) for node in "aabb"]
    assert of_all(chips).joules == 28.0
    assert of_all([told(Energy(3.0, MEASURED, "RAPL"))]) == Energy(3.0, MEASURED, "RAPL")


def test_a_counter_that_fails_leaves_an_estimate_and_the_work_is_done():
    def broken():
        yield 1.0
        raise OSError("the driver is gone")

    values = broken()
    with Meter([Counter("broken", lambda: next(values)), Counter("good", lambda: 5.0)]) as meter:
        done = True
    assert done and meter.energy.source == ESTIMATED and meter.energy.joules > 0
