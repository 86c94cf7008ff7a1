import json

import pytest

from tony.errors import TonyError
from tony.tokens.vocabulary import Vocabulary

VOCAB = Vocabulary(1024, 1000, 4375)


def test_ranges_follow_each_other_without_gap_or_overlap():
    ids = [*range(len(VOCAB.names)), *VOCAB.text, *VOCAB.image, *VOCAB.audio]
    assert ids == list(range(VOCAB.size))
    assert len(VOCAB.audio) == 4375 and len(VOCAB.image) == 1000 and len(VOCAB.text) == 1024
    assert VOCAB.padded_size % 128 == 0 and 0 <= VOCAB.padded_size - VOCAB.size < 128


def test_every_special_token_has_its_own_id():
    names = (
        "bos pad end system developer user assistant tool think think_end image32 image64 image_end video frame t0 t31"
    )
    names += " video_end audio audio_end speech voice0 voice15 call args result null cut listen speak yield backchannel"
    names += " mod_text mod_audio mod_image next"
    ids = [VOCAB.special(name) for name in names.split()]
    assert len(set(ids)) == len(ids) and max(ids) < len(VOCAB.names) == len(set(VOCAB.names))
    with pytest.raises(KeyError):
        VOCAB.special("voice16")


def test_training_codecs_again_does_not_move_special_or_text_tokens():
    other = Vocabulary(1024, 2000, 100)
    assert other.special("mod_image") == VOCAB.special("mod_image") and other.text == VOCAB.text


def test_names_of_tokens():
    assert VOCAB.name(VOCAB.special("end")) == "<end>"
    assert VOCAB.name(VOCAB.image.start + 3) == "image:3"
    assert VOCAB.name(VOCAB.size) == f"outside:{VOCAB.size}"


def test_save_and_load(tmp_path):
    VOCAB.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == VOCAB
    assert json.loads((tmp_path / "vocabulary.json").read_text())["image_size"] == 1000


def test_what_is_missing_damaged_or_foreign_is_told(tmp_path):
    path = tmp_path / "vocabulary.json"
    with pytest.raises(TonyError, match="missing"):
        Vocabulary.load(path)
    for broken in (
        "{",
        "{}",
        "[]",
        '{"text_size": "x", "image_size": 1, "audio_size": 1, "voices": 1, "specials": []}',
    ):
        path.write_text(broken)
        with pytest.raises(TonyError):
            Vocabulary.load(path)
    VOCAB.save(path)
    path.write_text(path.read_text().replace('"think"', '"ponder"'))
    with pytest.raises(TonyError, match="ponder"):
        Vocabulary.load(path)


@pytest.mark.parametrize("size", [0, -1, 2.5, True, None])
def test_sizes_must_be_positive_numbers(size):
    with pytest.raises(TonyError, match="image_size"):
        Vocabulary(256, size, 100)
