"""A recipe that takes a trained codec over instead of training one."""

import io
import shutil

import numpy as np
import pytest
from rich.console import Console

from tony.data.records import fingerprint
from tony.errors import TonyError
from tony.recipe import CODECS, load
from tony.run import RunContext
from tony.run import fingerprint as mark_of
from tony.stages import STAGES
from tony.stages.codecs import train_audio_codec, train_image_codec
from tony.stages.language import network
from tony.stages.world import tokenizer_of, train_text_tokenizer
from tony.tokens.tokenizer import load_codec

PARTS = {"image_codec": "image", "audio_codec": "audio"}


@pytest.fixture
def recipe_of(tmp_path):
    def make(**trained):
        path = tmp_path / "mine.toml"
        path.write_text("".join(f'[{name}]\ntrained = "{folder}"\n' for name, folder in trained.items()))
        return load(path)

    return make


def test_trained_codecs_are_taken_over_whole(release, recipe_of, tmp_path):
    folders = {name: release / "tokenizer" / part for name, part in PARTS.items()}
    context = RunContext(recipe_of(**folders), tmp_path / "run", Console(file=io.StringIO()))
    facts = [train_image_codec(context), train_audio_codec(context)]
    theirs = [load_codec(folder) for folder in folders.values()]
    assert [fact["codes"] for fact in facts] == [codec.codebook_size for codec in theirs]
    train_text_tokenizer(context)
    ours = tokenizer_of(context)
    sound = np.sin(np.arange(16_000) / 20).astype(np.float32)
    np.testing.assert_array_equal(ours.audio.encode(sound), theirs[1].encode(sound))
    pixels = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(ours.image.encode(pixels), theirs[0].encode(pixels))
    # The network that is planned has a vocabulary of the size that the one which is trained will have.
    assert network(recipe_of(**folders)).vocab_size == ours.vocabulary.padded_size != network(recipe_of()).vocab_size


def test_another_kind_of_codec_or_none_is_told(release, recipe_of, tmp_path):
    for name, part, told in (("audio_codec", "image", "a picture codec"), ("image_codec", "audio", "a sound codec")):
        recipe = recipe_of(**{name: release / "tokenizer" / part})
        stage = {"audio_codec": train_audio_codec, "image_codec": train_image_codec}[name]
        with pytest.raises(TonyError, match=f"{name}.trained .* is {told}"):
            stage(RunContext(recipe, tmp_path / "run", Console(file=io.StringIO())))
    with pytest.raises(TonyError, match=r"audio_codec\.trained = '/nowhere': expected a codec's folder"):
        recipe_of(audio_codec="/nowhere")


def test_a_codec_that_has_changed_is_taken_over_again(release, recipe_of, tmp_path):
    folder = shutil.copytree(release / "tokenizer" / "audio", tmp_path / "codec")
    recipe = recipe_of(audio_codec=folder)
    stage = next(stage for stage in STAGES if stage.name == "audio_codec")

    def mark():
        return mark_of(stage, recipe, {}, {"audio_codec": fingerprint({"path": str(folder)})})

    before = mark()
    assert mark() == before
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert mark() != before
    assert set(CODECS) == set(PARTS)
