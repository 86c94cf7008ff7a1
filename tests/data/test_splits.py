import pytest

from tony.data.splits import assert_disjoint, held_out
from tony.errors import TonyError


def test_about_one_group_in_so_many_is_held_out_and_always_the_same():
    chosen = [held_out(f"writer {number}", 10) for number in range(5000)]
    assert 400 < sum(chosen) < 600
    assert chosen == [held_out(f"writer {number}", 10) for number in range(5000)]
    with pytest.raises(TonyError, match="one group in 1"):
        held_out("x", 1)


def test_a_split_by_group_is_disjoint_and_a_leak_is_named():
    groups = [f"voice {number}" for number in range(50)]
    test = [group for group in groups if held_out(group, 3)]
    train = [group for group in groups if not held_out(group, 3)]
    assert_disjoint({"train": train, "test": test, "other": ["else"]})
    with pytest.raises(TonyError, match=f"'train' and 'test' share 1 groups, such as '{train[0]}'"):
        assert_disjoint({"train": train, "other": [], "test": [*test, train[0]]})
