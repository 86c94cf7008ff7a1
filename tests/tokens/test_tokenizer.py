import json
from pathlib import Path

import numpy as np
import pytest

from tony.errors import TonyError
from tony.tokens import tokenizer as module
from tony.tokens.chat import Audio, Image, Message, Speech, Text
from tony.tokens.text import TextTokenizer
from tony.tokens.tokenizer import Tokenizer, example, register_codec
from tony.tokens.vocabulary import Vocabulary

TOK = TextTokenizer.train(["a question and an answer", "what is 1 + 2"] * 3, 280)
VOCAB = Vocabulary(TOK.size, 50, 90)


class FakeCodec:
    loads = 0

    def __init__(self, codebook_size):
        self.codebook_size = codebook_size

    def save(self, directory: Path):
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps({"kind": "fake", "size": self.codebook_size}))

    @classmethod
    def load(cls, directory: Path):
        cls.loads += 1
        return cls(json.loads((directory / "config.json").read_text())["size"])


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(module, "_CODECS", dict(module._CODECS))
    monkeypatch.setattr(module, "import_module", lambda name: {"fakes": type("M", (), {"Fake": FakeCodec})}[name])
    register_codec("fake", "fakes:Fake")
    FakeCodec.loads = 0


def test_save_and_load_with_codecs_loaded_only_when_asked_for(tmp_path, fake):
    Tokenizer(VOCAB, TOK, FakeCodec(50), FakeCodec(90)).save(tmp_path / "a")
    loaded = Tokenizer.load(tmp_path / "a")
    assert FakeCodec.loads == 0
    assert loaded.vocabulary == VOCAB and loaded.text.encode("what") == TOK.encode("what")
    assert loaded.image.codebook_size == 50 and loaded.audio.codebook_size == 90 and loaded.image is loaded.image
    assert FakeCodec.loads == 2
    Tokenizer.load(tmp_path / "a").save(tmp_path / "b")
    assert Tokenizer.load(tmp_path / "b").audio.codebook_size == 90


def test_a_missing_unknown_damaged_or_foreign_codec_is_told(tmp_path, fake):
    with pytest.raises(TonyError, match="no image codec"):
        Tokenizer(VOCAB, TOK).image  # noqa: B018
    Tokenizer(VOCAB, TOK, FakeCodec(50)).save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    with pytest.raises(TonyError, match="no audio codec"):
        loaded.audio  # noqa: B018
    config = tmp_path / "image" / "config.json"
    for text, told in (
        ('{"kind": "mimi"}', "mimi"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"kind":"fake","size":7}', "7"),
    ):
        config.write_text(text)
        with pytest.raises(TonyError, match=told):
            loaded.image  # noqa: B018
    config.unlink()
    with pytest.raises(TonyError, match="missing"):
        loaded.image  # noqa: B018


def test_parts_of_different_models_are_told():
    with pytest.raises(TonyError, match="text tokenizer has"):
        Tokenizer(Vocabulary(TOK.size + 1, 50, 90), TOK)
    with pytest.raises(TonyError, match="image tokenizer has 51"):
        Tokenizer(VOCAB, TOK, FakeCodec(51))


TALK = [
    Message("user", (Text("what"), Image((1,) * 16))),
    Message("assistant", (Text("a"), Image((2,) * 16), Speech("b", (3, 4), 1)), thinking="c"),
]


def test_weights_lie_on_what_the_assistant_chooses():
    made = example(TALK, VOCAB, TOK, modality="audio")
    weighted = [VOCAB.name(t) for t, w in zip(made.tokens.tolist(), made.weights, strict=True) if w]
    a, b, c = (f"text:{TOK.encode(letter)[0]}" for letter in "abc")
    assert weighted == [
        *("<think>", c, "<think_end>", a, "<image32>", *["image:2"] * 16, "<speech>", b, "<audio>"),
        *("audio:3", "audio:4", "<audio_end>", "<end>"),
    ]


def test_modality_is_that_of_each_target():
    made = example(TALK, VOCAB, TOK)
    assert made.tokens.dtype == np.int32 and made.weights.dtype == np.float32 and made.modality.dtype == np.int8
    for token, kind in zip(made.tokens.tolist(), made.modality.tolist(), strict=True):
        assert (token in VOCAB.audio) == (kind == 1) and (token in VOCAB.image) == (kind == 2)
    assert (made.modality == 3).sum() == 3  # <think> c <think_end>


def test_weights_by_kind_and_of_the_user():
    weights = {"text": 0.5, "image": 0.25, "audio": 2.0, "think": 3.0, "user": 0.1}
    made = example(TALK, VOCAB, TOK, weights)
    user = np.arange(len(made.tokens)) < made.tokens.tolist().index(VOCAB.special("assistant"))
    image = (made.tokens >= VOCAB.image.start) & (made.tokens < VOCAB.image.stop)
    np.testing.assert_allclose(made.weights[image & user], 0.025, rtol=1e-6)
    np.testing.assert_allclose(made.weights[image & ~user], 0.25)
    np.testing.assert_allclose(made.weights[made.modality == 1], 2.0)
    np.testing.assert_allclose(made.weights[made.modality == 3], 3.0)
    assert made.weights[0] == 0
    with pytest.raises(TonyError, match="sound"):
        example(TALK, VOCAB, TOK, {"sound": 1.0})


def test_a_heard_sound_is_not_learned_unless_asked_for():
    talk = [Message("user", (Audio((1, 2)),)), Message("assistant", (Text("a"),))]
    assert example(talk, VOCAB, TOK).weights[example(talk, VOCAB, TOK).modality == 1].sum() == 0
    assert example(talk, VOCAB, TOK, {"user": 1.0}).weights.sum() > 2
