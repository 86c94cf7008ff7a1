"""Drawn scenes and motions: captions are true, canonical and parseable; held-out ones never meet the training ones."""

import random

import numpy as np
import pytest

from tony.data.world import pictures, videos
from tony.data.world.sentences import COLORS, RELATIONS, SHAPES


def scenes(number, seed=0, **options):
    rng = random.Random(seed)
    return [pictures.random_scene(rng, **options) for _ in range(number)]


def colored(pixels, color):
    """[h, w] of the pixels that are near a colour."""
    return np.abs(pixels.astype(int) - pictures.PAINT[color]).max(-1) < 40


def test_rendering_depends_on_the_scene_only():
    first, second = scenes(2)
    assert first == scenes(2)[0]
    np.testing.assert_array_equal(pictures.render(first), pictures.render(first))
    assert (pictures.render(first) != pictures.render(second)).any()
    assert pictures.render(first).shape == (32, 32, 3) and pictures.render(first, 64).shape == (64, 64, 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_fits_and_differs_from_the_others(shape):
    def drawn(name, size=64):
        canvas = np.zeros((size, size, 3))
        pictures.draw(canvas, pictures.Thing("white", name, 0.5, 0.5, 0.4, (255, 255, 255)))
        return canvas[..., 0] / 255

    picture = drawn(shape)
    rows, columns = np.flatnonzero(picture.max(1) > 0.5), np.flatnonzero(picture.max(0) > 0.5)
    assert rows[0] >= 5 and rows[-1] <= 58 and 38 <= rows[-1] - rows[0] <= 53
    assert 38 <= columns[-1] - columns[0] <= 53
    np.testing.assert_allclose(picture, picture[:, ::-1], atol=1e-6)
    for other in set(SHAPES) - {shape}:
        assert np.abs(picture - drawn(other)).mean() > 0.05, other
    smaller = drawn(shape, 32)
    np.testing.assert_allclose(picture.reshape(32, 2, 32, 2).mean((1, 3)), smaller, atol=0.3)


def test_captions_tell_where_the_colours_are():
    for scene in scenes(300, count=2):
        first, second = scene.things
        if first.color == second.color:
            continue
        pixels = pictures.render(scene, 64)
        at = [np.argwhere(colored(pixels, thing.color)).mean(0) for thing in scene.things]
        assert scene.relation in ("left of", "above")
        axis = 1 if scene.relation == "left of" else 0
        assert at[0][axis] + 10 < at[1][axis], pictures.caption(scene)


def test_captions_parse_back_in_either_wording():
    rng = random.Random(3)
    for scene in scenes(200):
        for text in pictures.captions(scene):
            assert pictures.caption(pictures.scene_of(text, rng)) == pictures.caption(scene)
    assert pictures.scene_of("a red elephant", rng) is None
    assert pictures.scene_of("a red circle left of", rng) is None
    used = {relation for scene in scenes(200) for relation in RELATIONS if relation in pictures.captions(scene)[-1]}
    assert used == {"right of", "below"}


def test_held_out_scenes_share_no_combination_and_no_picture_with_the_training_ones():
    sides = {side: scenes(3_000, held_out=side) for side in (False, True)}
    pairs = {side: {pictures.caption(s) for s in some if s.relation} for side, some in sides.items()}
    assert len(pairs[True]) > 200 and not pairs[True] & pairs[False]
    alone = {side: {(pictures.caption(s), s.background) for s in sides[side] if not s.relation} for side in sides}
    assert len(alone[True]) > 10 and not alone[True] & alone[False]
    drawn = {side: {pictures.render(scene).tobytes() for scene in some} for side, some in sides.items()}
    assert not drawn[True] & drawn[False]
    for side in sides:  # nothing a question can be about is missing on either side
        things = [thing for scene in sides[side] for thing in scene.things]
        assert {thing.color for thing in things} == set(COLORS)
        assert {thing.shape for thing in things} == set(SHAPES)


def test_questions_have_one_true_answer():
    for scene in scenes(300):
        asked = pictures.questions(scene)
        assert asked[-1].answer == ["one", "two"][len(scene.things) - 1]
        for question in asked[:-1]:
            facts = {"color": ("shape", "color"), "shape": ("color", "shape")}[question.kind]
            matching = [thing for thing in scene.things if getattr(thing, facts[0]) == question.about]
            assert [getattr(thing, facts[1]) for thing in matching] == [question.answer]
    twins = next(s for s in scenes(500, count=2) if s.things[0].shape == s.things[1].shape)
    assert not [question for question in pictures.questions(twins) if question.kind == "color"]


def test_shrinking_averages():
    pixels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert pictures.shrink(pixels)[0, 0, 1, 2] == round(np.mean([8, 11, 20, 23]))


def center(frame, color):
    return np.argwhere(colored(frame, color)).mean(0)


def test_videos_show_what_their_sentence_says():
    rng = random.Random(5)
    names = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    for _ in range(100):
        motion = videos.random_motion(rng)
        film = videos.frames(motion, 64)
        assert film.shape == (videos.FRAMES, 64, 64, 3)
        places = np.array([center(frame, motion.thing.color) for frame in film])
        steps = np.diff(places, axis=0)
        moved = np.abs(steps).max(1) > 5
        words = videos.sentence(motion).split(" moves ")[1].split(" ", 1)
        assert moved.sum() == {"once": 1, "twice": 2, "three times": 3}[words[1]]
        np.testing.assert_allclose(steps[moved] / (videos.STEP * 64), [names[words[0]]] * moved.sum(), atol=0.2)
        assert all(colored(frame, motion.thing.color).sum() > 40 for frame in film)


def test_the_places_of_a_film_are_where_its_thing_is_seen():
    rng = random.Random(7)
    for _ in range(20):
        motion = videos.random_motion(rng)
        told = [tuple(map(int, place.split(","))) for place in videos.places(motion).split()]
        # Background and outline shift what is seen of a cross or a star by a pixel or two of 64.
        seen = np.array([center(frame, motion.thing.color)[::-1] for frame in videos.frames(motion, 64)])
        np.testing.assert_allclose(np.array(told) * 64 / videos.GRID, seen, atol=2.5)


def test_held_out_motions_share_no_sentence_with_the_training_ones():
    rng = random.Random(6)
    texts = [{videos.sentence(videos.random_motion(rng, side)) for _ in range(2_000)} for side in (False, True)]
    assert len(texts[1]) > 30 and not texts[0] & texts[1]


def test_codec_batches_are_a_function_of_the_step():
    class Corpus:
        def digits(self, split):
            assert split == "train"
            return np.full((20, 32, 32, 3), 7, np.uint8), None

        def emoji(self, split):
            assert split == "train"
            return [("dot", np.full((64, 64, 3), 9, np.uint8))] * 3

    batch_at = pictures.codec_batches(Corpus(), seed=1, small=10, large=2)
    batch = batch_at(4)
    assert batch["small"].shape == (10, 32, 32, 3) and batch["large"].shape == (2, 64, 64, 3)
    again = pictures.codec_batches(Corpus(), seed=1, small=10, large=2)(4)
    np.testing.assert_array_equal(batch["small"], again["small"])
    assert (batch["small"] != batch_at(5)["small"]).any()
