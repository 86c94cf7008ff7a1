"""Short silent videos that the program draws itself: one thing that moves one, two or three steps, with pauses.

A motion is held out by the hash of its sentence, as scenes are: "a red circle moves left twice".
"""

import random
from dataclasses import dataclass, replace

import numpy as np

from tony.data.world.pictures import BACKGROUNDS, Scene, Thing, jitter_paint, place, render
from tony.data.world.sentences import COLORS, DIRECTIONS, SHAPES, TIMES, is_held_out

FRAMES = 6
GRID = 16
STEP = 3 / GRID  # of the picture's width
_TOWARDS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True)
class Motion:
    """A thing at its starting place, a direction, and for each of the FRAMES - 1 transitions whether it moves."""

    thing: Thing
    direction: str
    moves: tuple[bool, ...]
    background: tuple[int, int, int]

    @property
    def times(self) -> int:
        """Number of steps, 1..3."""
        return sum(self.moves)


def sentence(motion: Motion) -> str:
    """What happens: "a red circle moves left twice"."""
    return f"{motion.thing.name} moves {motion.direction} {TIMES[motion.times - 1]}"


def _path(motion: Motion) -> list[tuple[float, float]]:
    """Where the thing is in each of the FRAMES."""
    dx, dy = _TOWARDS[motion.direction]
    done = np.cumsum([0, *motion.moves]) * STEP
    return [(motion.thing.x + steps * dx, motion.thing.y + steps * dy) for steps in done]


def places(motion: Motion) -> str:
    """The GRID's column and row of the thing in each frame: "4,7 4,7 7,7 7,7 7,7 10,7"."""
    return " ".join(f"{round(x * GRID)},{round(y * GRID)}" for x, y in _path(motion))


def random_motion(rng: random.Random, held_out: bool = False) -> Motion:
    """A motion whose sentence is among the training ones or among the held-out ones."""
    while True:
        color, shape, direction = rng.choice(COLORS), rng.choice(SHAPES), rng.choice(DIRECTIONS)
        times, radius = rng.randint(1, len(TIMES)), rng.choice((5, 6)) / 32
        # Along the way there must be room for all steps; start anywhere that leaves it.
        along = place(rng, radius + times * STEP, 1 - radius, GRID)
        across = place(rng, radius, 1 - radius, GRID)
        if direction in ("right", "down"):
            along = 1 - along
        x, y = (along, across) if direction in ("left", "right") else (across, along)
        moving = set(rng.sample(range(FRAMES - 1), times))
        motion = Motion(
            Thing(color, shape, x, y, radius, jitter_paint(rng, color)),
            direction,
            tuple(index in moving for index in range(FRAMES - 1)),
            rng.choice(BACKGROUNDS),
        )
        if is_held_out(sentence(motion)) == held_out:
            return motion


def frames(motion: Motion, size: int = 32) -> np.ndarray:
    """Pixels uint8 [FRAMES, size, size, 3]."""
    scenes = (Scene((replace(motion.thing, x=x, y=y),), None, motion.background) for x, y in _path(motion))
    return np.stack([render(scene, size) for scene in scenes])
