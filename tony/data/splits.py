"""Held-out splits by what is to be new: a writer, a voice, a sentence, a picture; never by random row."""

from collections.abc import Iterable, Mapping
from itertools import combinations

from tony.data.mixture import key as stable_hash
from tony.errors import TonyError


def held_out(group: str, one_in: int) -> bool:
    """Whether everything of a group is kept from training: one group in `one_in`, by a hash that never changes."""
    if one_in < 2:
        raise TonyError(f"one group in {one_in} can't be held out; expected at least 2")
    return stable_hash("held out", group) % one_in == 0


def assert_disjoint(splits: Mapping[str, Iterable[str]]) -> None:
    """TonyError, naming an example, if two splits share a group."""
    groups = {name: set(members) for name, members in splits.items()}
    for first, second in combinations(groups, 2):
        shared = groups[first] & groups[second]
        if shared:
            raise TonyError(
                f"splits {first!r} and {second!r} share {len(shared)} groups, such as {min(shared)!r}; "
                "a held-out split must have none in common: split by the group, not by the row"
            )
