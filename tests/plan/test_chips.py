import re

import numpy as np
import pytest

from tony.errors import TonyError
from tony.plan.chips import CHIPS, most_even, read_topology
from tony.plan.hlo import Operation
from tony.plan.roofline import Place, hops, link_bandwidth, roofline


def test_a_topology_that_exists():
    palm = read_topology("v4:16x16x12", 2)
    assert palm.chips == 6144 and palm.name == "v4:16x16x12" and palm.chip.config == "megacore"
    assert read_topology("V5E:16x16").chips == 256 and read_topology("h100:64").chips == 64


@pytest.mark.parametrize(
    "text, said",
    [
        ("v9:2x2", "known chips are v4, v5p"),
        ("h10:64", "did you mean h100"),
        ("v4:5x5x5", "2x2x1, 2x2x2, 2x2x4, 2x4x4, and AxBxC"),
        ("v4:16x16", "AxBxC of multiples of 4 with at most 4096 chips"),
        ("v4:64x64x64", "at most 4096"),
        ("v5e:3x3", "2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v5e", "16x16"),
        ("v4:8x8x2", "AxBxC of multiples of 4"),
        ("v4:4x4x1", "AxBxC of multiples of 4"),
        ("v4:4x4x2", "2x4x4"),
        ("h100:12", "every multiple of 8"),
    ],
)
def test_one_that_does_not_lists_those_that_do(text, said):
    with pytest.raises(TonyError, match=re.escape(said)):
        read_topology(text)


@pytest.mark.parametrize(
    "chip, count, shape",
    [
        ("v4", 4, (2, 2, 1)), ("v4", 16, (2, 2, 4)), ("v4", 32, (2, 4, 4)), ("v4", 128, (8, 4, 4)),
        ("v4", 1024, (16, 8, 8)), ("v4", 3072, (16, 16, 12)), ("v4", 96, None), ("v4", 1, None), ("tpu7x", 0, None),
        ("v5e", 8, (2, 4)), ("v5e", 128, (8, 16)), ("v5e", 512, None), ("h100", 64, (64,)), ("h100", 12, None),
    ],
)  # fmt: skip
def test_the_most_even_shape_of_so_many_chips(chip, count, shape):
    assert most_even(CHIPS[chip], count) == shape
    if shape and chip != "h100":
        assert read_topology(f"{chip}:{'x'.join(map(str, shape))}").chips == count


def test_an_all_to_all_is_held_up_in_the_middle_of_the_longest_ring():
    topology = read_topology("v4:4x4x8")
    place, number = grid(topology), np.arange(128).reshape(4, 4, 8)

    def slow(devices):
        """Seconds a byte of each chip, by sending every pair's share the shorter way around: links' greatest load."""
        group = devices.ravel().tolist()
        load, sizes = {}, (4, 4, 8)
        for source in group:
            for target in group:
                at, end = (np.array(np.unravel_index(n, sizes)) for n in (source, target))
                for axis in range(3):
                    steps = (end[axis] - at[axis]) % sizes[axis]
                    ways = [(1, steps)] if 2 * steps < sizes[axis] else [(-1, sizes[axis] - steps)]
                    ways = [(1, steps), (-1, steps)] if 2 * steps == sizes[axis] else ways
                    for way, count in ways:
                        here = at.copy()
                        for _ in range(count):
                            link = (*here, axis, way)
                            load[link] = load.get(link, 0) + 1 / len(group) / len(ways)
                            here[axis] = (here[axis] + way) % sizes[axis]
                    at[axis] = end[axis]
        return max(load.values())

    for devices in (number[0, 0], number[0], number, number[:, :, 0]):
        told = link_bandwidth((tuple(devices.ravel().tolist()),), topology, place, "all-to-all") / CHIPS["v4"].link
        assert 1 / told == pytest.approx(slow(devices)), devices.shape
    half = link_bandwidth((tuple(number[0, 0, :4].tolist()),), topology, place, "ragged-all-to-all")
    assert half == CHIPS["v4"].link  # a piece of a ring: a chip's bytes, half of them over the middle link each way


def grid(topology):
    """Devices in the order of their coordinates, as on one slice after the other."""
    at = np.stack(np.meshgrid(*map(np.arange, topology.shape), indexing="ij"), -1).reshape(-1, len(topology.shape))
    slices = np.repeat(np.arange(topology.slices), len(at))
    return Place(np.tile(at, (topology.slices, 1)), slices)


def test_bandwidth_follows_the_torus():
    topology = read_topology("v4:4x4x8")
    place, link = grid(topology), CHIPS["v4"].link
    number = np.arange(128).reshape(4, 4, 8)

    def speed(devices):
        return link_bandwidth((tuple(devices.ravel().tolist()),), topology, place) / link

    assert speed(number[0, 0]) == 2  # a ring, both ways
    assert speed(number[0]) == 4 and speed(number) == 6  # two and three dimensions
    assert speed(number[0, 0, :4]) == 1  # half of a ring
    assert speed(number[0, 0, ::2]) == 1  # every other chip: a ring that two groups share
    assert link_bandwidth(((0, 1),), read_topology("v5e:4x4"), grid(read_topology("v5e:4x4"))) == CHIPS["v5e"].link


def test_terms_of_a_step():
    topology = read_topology("v4:4x4x4", 2)
    chip, place = topology.chip, grid(topology)
    ring = tuple(range(4))
    made = [
        Operation("product", "fusion", times=3, flops=275e12, bytes=0.6e12),  # a second each by its products
        Operation("traffic", "fusion", bytes=1.2e12),
        Operation("cycles", "fusion", flops=275e10, cycles=2.1e9),  # two seconds, the compiler says
        Operation("gather", "all-gather", sent=100e9, groups=(ring,)),  # a second over both ways of a ring
        Operation("ahead", "all-gather", sent=100e9, groups=(ring,), alone=False),
        Operation("between", "all-reduce", sent=1e9, host=True, alone=False),
    ]
    found = roofline(made, topology, place)
    assert found.compute == pytest.approx(3.01) and found.memory == pytest.approx(2.5)
    assert found.program == pytest.approx(3 + 1 + 2)
    assert found.ici == pytest.approx(2) and found.ici_bytes == 200e9 and found.dcn_bytes == 1e9
    assert found.dcn == pytest.approx(1e9 / (chip.host_network / 4))
    assert found.overlapped == pytest.approx(6) and found.step == pytest.approx(7)
    assert found.serial == pytest.approx(8 + found.dcn)


def test_a_group_over_two_slices_goes_over_the_hosts():
    topology = read_topology("v4:4x4x4", 2)
    crossing = Operation("sum", "all-reduce", sent=1e9, groups=((0, 64),))
    assert roofline([crossing], topology, grid(topology)).dcn_bytes == 1e9
    # Among GPUs, a host's own are joined by a switch.
    gpus = read_topology("h100:16")
    inside, outside = (Operation("sum", "all-reduce", sent=450e9, groups=(g,)) for g in ((0, 7), (0, 8)))
    found = roofline([inside, outside], gpus, Place.in_order(gpus))
    assert found.ici == pytest.approx(1) and found.dcn == pytest.approx(450 / 50)


def test_shifts_around_a_ring_go_both_ways_at_once():
    topology = read_topology("v4:4x4x12")
    place, link = grid(topology), CHIPS["v4"].link
    up, down = (tuple((i, (i + step) % 12) for i in range(12)) for step in (1, -1))
    assert hops(up, topology, place) == 1 and hops(down, topology, place) == -1
    assert hops(tuple((i, (i + 10) % 12) for i in range(12)), topology, place) == -2
    made = [Operation("shift", "collective-permute", sent=link, groups=pairs, alone=False) for pairs in (up, down)]
    assert roofline(made, topology, place).ici == pytest.approx(1)
