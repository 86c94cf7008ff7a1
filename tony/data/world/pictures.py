"""Pictures that the program draws itself and can therefore describe exactly: coloured shapes, alone or in twos.

A scene's caption is canonical: of two things the left or the upper one comes first, so one picture has one caption.
Scenes are held out by a hash (`sentences.is_held_out`): two things by their caption, so that an unseen scene shows a
combination of colours, shapes and relation that no training picture has; one thing, of which there are only 48, by
caption and background.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tony.data.world.sentences import COLORS, SHAPES, is_held_out

PAINT = {
    "red": (226, 42, 42),
    "blue": (48, 88, 240),
    "green": (36, 172, 66),
    "yellow": (250, 222, 40),
    "purple": (150, 50, 205),
    "orange": (250, 140, 20),
    "white": (250, 250, 250),
    "pink": (255, 158, 200),
}
BACKGROUNDS = ((0, 0, 0), (44, 44, 44), (20, 24, 52), (92, 92, 92))
GRID = 8  # places along each side where the middle of a thing can be
OPPOSITE = {"left of": "right of", "above": "below"}


@dataclass(frozen=True)
class Thing:
    """A coloured shape: its centre and half width as fractions of the picture, its paint as drawn (0..255)."""

    color: str
    shape: str
    x: float
    y: float
    radius: float
    paint: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Such as "a red circle"."""
        return f"{'an' if self.color[0] in 'aeiou' else 'a'} {self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """One or two things on a plain background; `relation` ("left of" or "above") holds of the first to the second."""

    things: tuple[Thing, ...]
    relation: str | None
    background: tuple[int, int, int]


def caption(scene: Scene) -> str:
    """The one canonical caption: "a red circle", "a red circle left of a blue square"."""
    if scene.relation is None:
        return scene.things[0].name
    return f"{scene.things[0].name} {scene.relation} {scene.things[1].name}"


def shorthand(scene: Scene) -> str:
    """The caption with each colour again after its shape ("a red circle red"), so that either is found by the other.

    A small network continues a pair of words that it has read before; it hardly learns to read one backwards.
    """
    return f" {scene.relation} ".join(f"{thing.name} {thing.color}" for thing in scene.things)


def captions(scene: Scene) -> tuple[str, ...]:
    """Every true description, the canonical one first; with two things also the one told from the other's side."""
    if scene.relation is None:
        return (caption(scene),)
    return caption(scene), f"{scene.things[1].name} {OPPOSITE[scene.relation]} {scene.things[0].name}"


def jitter_paint(rng: random.Random, color: str, amount: int = 5) -> tuple[int, int, int]:
    """The colour's paint, a little lighter or darker in each channel."""
    red, green, blue = (min(255, max(0, level + rng.randint(-amount, amount))) for level in PAINT[color])
    return red, green, blue


def place(rng: random.Random, low: float, high: float, grid: int = GRID) -> float:
    """A random coordinate between low and high, one of `grid` to a picture's side.

    A small codec has few bits for a patch: of things that may begin at every fourth pixel it meets a sixteenth of the
    patterns that it would meet of things at any pixel.
    """
    return rng.randint(math.ceil(low * grid - 1e-9), math.floor(high * grid + 1e-9)) / grid


def _one(rng: random.Random, color: str, shape: str) -> Scene:
    radius = rng.choice((8, 10)) / 32
    x, y = (place(rng, radius, 1 - radius) for _ in range(2))
    return Scene((Thing(color, shape, x, y, radius, jitter_paint(rng, color)),), None, rng.choice(BACKGROUNDS))


def _two(rng: random.Random, first: tuple[str, str], second: tuple[str, str], relation: str) -> Scene:
    # Along the relation the centres are 0.5 apart, across it at most 0.25: neither can pass for the other.
    across = place(rng, 0.375, 0.625)
    things = []
    for (color, shape), along in zip((first, second), (0.25, 0.75), strict=True):
        aside = place(rng, across - 0.125, across + 0.125)
        x, y = (along, aside) if relation == "left of" else (aside, along)
        things.append(Thing(color, shape, x, y, 7 / 32, jitter_paint(rng, color)))
    return Scene(tuple(things), relation, rng.choice(BACKGROUNDS))


def random_scene(rng: random.Random, held_out: bool = False, count: int | None = None) -> Scene:
    """A scene of `count` things (None: one or two), one for training or a held-out one.

    Two things never have the same colour and shape.
    """
    things = count or rng.choice((1, 2))
    while True:
        first, second = ((rng.choice(COLORS), rng.choice(SHAPES)) for _ in range(2))
        if things == 2 and first == second:
            continue
        scene = _one(rng, *first) if things == 1 else _two(rng, first, second, rng.choice(tuple(OPPOSITE)))
        if _is_unseen(scene) == held_out:
            return scene


def _is_unseen(scene: Scene) -> bool:
    background = "" if scene.relation else f" on {scene.background}"
    return is_held_out(caption(scene) + background)


def scene_of(text: str, rng: random.Random) -> Scene | None:
    """A scene that the caption describes, in either wording; None if the text is not such a caption."""
    words = text.split()
    if len(words) == 3 and words[1] in COLORS and words[2] in SHAPES:
        return _one(rng, words[1], words[2])
    for relation, opposite in OPPOSITE.items():
        for told in (relation, opposite):
            left, found, right = text.partition(f" {told} ")
            first, second = scene_of(left, rng) if found else None, scene_of(right, rng) if found else None
            if first and second and first.relation is None and second.relation is None:
                near, far = ((scene.things[0].color, scene.things[0].shape) for scene in (first, second))
                return _two(rng, near, far, relation) if told == relation else _two(rng, far, near, relation)
    return None


# ----------------------------------------------------------------------------------------------- questions


@dataclass(frozen=True)
class Question:
    """What can be asked of a scene: `kind` is "color", "shape" or "count"; `about` the shape or colour it names."""

    kind: str
    about: str
    answer: str


def questions(scene: Scene) -> tuple[Question, ...]:
    """All questions with exactly one right answer: colours of lone shapes, shapes of lone colours, how many things."""
    shapes, colors = [thing.shape for thing in scene.things], [thing.color for thing in scene.things]
    found = [Question("color", t.shape, t.color) for t in scene.things if shapes.count(t.shape) == 1]
    found += [Question("shape", t.color, t.shape) for t in scene.things if colors.count(t.color) == 1]
    return (*found, Question("count", "", ("one", "two")[len(scene.things) - 1]))


# ------------------------------------------------------------------------------------------------- drawing


def _half_planes(x: np.ndarray, y: np.ndarray, corners: int, distance: float, turn: float) -> np.ndarray:
    """Signed distances [corners, h, w] to lines at `distance` around the origin, the first at angle `turn`."""
    angles = turn + 2 * math.pi * np.arange(corners) / corners
    return np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y - distance


def _outline(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance [h, w], about in the units of x and y, to a shape of half width `radius`; negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - 0.95 * radius
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.84 * radius
    if shape == "diamond":
        return (abs(x) + abs(y) - 1.03 * radius) / math.sqrt(2)
    if shape == "triangle":
        return _half_planes(x, y - 0.2 * radius, 3, 0.57 * radius, math.pi / 2).max(0)
    if shape == "cross":
        arm = 0.34 * radius
        return np.minimum(np.maximum(abs(x) - radius, abs(y) - arm), np.maximum(abs(x) - arm, abs(y) - radius))
    # A pentagram holds the points on the inner side of at least four of its five lines.
    lines = _half_planes(x, y - 0.06 * radius, 5, 1.1 * radius * math.cos(2 * math.pi / 5), -math.pi / 2)
    return np.sort(lines, axis=0)[-2]


def draw(canvas: np.ndarray, thing: Thing) -> None:
    """Paint a thing onto canvas [size, size, 3] (float, 0..255) with smooth edges."""
    size = canvas.shape[0]
    steps = np.arange(size) + 0.5
    x, y = steps[None, :] - thing.x * size, steps[:, None] - thing.y * size
    cover = np.clip(0.5 - _outline(thing.shape, x, y, thing.radius * size), 0, 1)[..., None]
    canvas += cover * (np.array(thing.paint) - canvas)


def render(scene: Scene, size: int = 32) -> np.ndarray:
    """Pixels uint8 [size, size, 3] of a scene."""
    canvas = np.full((size, size, 3), scene.background, np.float64)
    for thing in scene.things:
        draw(canvas, thing)
    return np.rint(canvas).astype(np.uint8)


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Half the size by averaging 2x2 pixels: uint8 [..., 2h, 2w, 3] -> uint8 [..., h, w, 3]."""
    *lead, height, width, channels = pixels.shape
    blocks = pixels.reshape(*lead, height // 2, 2, width // 2, 2, channels)
    return np.rint(blocks.mean(axis=(-4, -2))).astype(np.uint8)


def codec_batches(corpus, seed: int = 0, small: int = 96, large: int = 8) -> Callable[[int], dict[str, np.ndarray]]:
    """Training pictures for the picture codec, as a pure function of the step: `{"small": ..., "large": ...}`.

    `small` pictures of 32x32 (digits, scenes, video frames, emoji) and `large` ones of 64x64 (emoji and scenes), all
    of them from the training splits. Scenes and frames come from a pool that is drawn once.
    """
    from tony.data.world import videos

    rng = random.Random(seed)
    emoji = np.stack([picture for _, picture in corpus.emoji("train")])
    pools = {
        "small": (
            (0.3, corpus.digits("train")[0]),
            (0.45, np.stack([render(random_scene(rng)) for _ in range(12_000)])),
            (0.15, np.concatenate([videos.frames(videos.random_motion(rng)) for _ in range(800)])),
            (0.1, shrink(emoji)),
        ),
        "large": ((0.7, emoji), (0.3, np.stack([render(random_scene(rng), 64) for _ in range(1_500)]))),
    }

    def batch_at(step: int, skipped: int = 0) -> dict[str, np.ndarray]:
        chance = np.random.default_rng([seed, step + skipped])

        def draw_from(name: str, count: int) -> np.ndarray:
            counts = chance.multinomial(count, [share for share, _ in pools[name]])
            chosen = [
                pool[chance.integers(0, len(pool), some)] for some, (_, pool) in zip(counts, pools[name], strict=True)
            ]
            return np.concatenate(chosen)

        return {"small": draw_from("small", small), "large": draw_from("large", large)}

    return batch_at
