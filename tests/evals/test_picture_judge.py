"""The judge of pictures: right on real held-out pictures, at a loss on noise, and quick to load."""

import random
import time

import numpy as np
import pytest

from tony.data.corpus import Corpus
from tony.data.world.pictures import BACKGROUNDS, Scene, Thing, caption, random_scene, render
from tony.errors import TonyError
from tony.evals.judges import pictures as judges


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("judge")
    start = time.process_time()
    judge = judges.train_judge(Corpus.builtin(), directory)
    return judge, directory, time.process_time() - start


@pytest.mark.slow
def test_it_knows_real_pictures_and_says_how_well(trained):
    judge, _, _ = trained
    assert judge.accuracy["digits"] >= 0.97
    assert judge.accuracy["scenes"] >= 0.98
    assert judge.accuracy["pairs"] >= 0.9
    pixels, labels = Corpus.builtin().digits("test")
    found, probabilities = judge.digit(pixels[:500])
    assert abs((found == labels[:500]).mean() - judge.accuracy["digits"]) < 0.03
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)
    rng = random.Random(11)
    scenes = [random_scene(rng, held_out=True, count=1) for _ in range(200)]
    seen = judge.scene(np.stack([render(scene) for scene in scenes]))
    right = [caption(scene) == text for scene, text in zip(scenes, seen, strict=True)]
    assert np.mean(right) >= 0.95


@pytest.mark.slow
def test_it_can_say_no(trained):
    judge, _, _ = trained
    noise = np.random.default_rng(0).integers(0, 256, (300, 32, 32, 3)).astype(np.uint8)
    wanted = np.arange(300) % 10
    assert (judge.digit(noise)[0] == wanted).mean() < 0.25
    black = np.zeros((1, 32, 32, 3), np.uint8)
    assert len(judge.scene(black)) == 1


@pytest.mark.slow
def test_shapes_are_told_apart_in_any_paint(trained):
    """The silhouette decides: a star in a paint that no scene has is still a star."""
    judge, _, _ = trained
    for shape in ("circle", "square", "star"):
        scene = Scene((Thing("red", shape, 0.5, 0.5, 0.3, (10, 250, 200)),), None, BACKGROUNDS[0])
        assert judge.scene(render(scene)[None])[0].endswith(shape)


@pytest.mark.slow
def test_it_is_trained_once(trained):
    judge, directory, _ = trained
    start = time.monotonic()
    again = judges.train_judge(Corpus.builtin(), directory)
    assert time.monotonic() - start < 3
    assert again.accuracy == judge.accuracy
    (directory / "weights.safetensors").write_bytes(b"broken")
    assert judges._load(directory, judges._tag(Corpus.builtin(), 0)) is None


@pytest.mark.slow
def test_decoded_digits_of_unseen_people_are_still_read(trained, tmp_path):
    """A codec of half a minute's training keeps what makes a digit that digit."""
    from tony.data.world.pictures import codec_batches
    from tony.recipe import ImageCodec
    from tony.tokens.image import train_image_codec
    from tony.train.loop import fit

    judge, _, _ = trained
    section = ImageCodec(steps=400, batch=24)
    batch_at = codec_batches(Corpus.builtin(), small=section.batch, large=1)
    codec = train_image_codec(section, batch_at, tmp_path, fit)
    pixels, labels = (some[:1_000] for some in Corpus.builtin().digits("test"))
    codes = codec.encode(pixels)
    assert (judge.digit(codec.decode(codes))[0] == labels).mean() > 0.75
    assert len(np.unique(codes)) / codec.codebook_size > 0.4


def test_a_picture_of_another_size_is_refused():
    judge = judges.Judge({}, {})
    with pytest.raises(TonyError, match="uint8"):
        judge.digit(np.zeros((1, 28, 28, 1), np.uint8))


def test_silhouettes_ignore_paint_and_background():
    def silhouette(paint, background):
        scene = Scene((Thing("red", "star", 0.4, 0.6, 0.3, paint),), None, background)
        return judges._silhouette(judges._checked(render(scene)[None]))

    np.testing.assert_allclose(silhouette((255, 0, 0), (0, 0, 0)), silhouette((20, 240, 250), (92, 92, 92)), atol=0.02)
