"""The user's own data, from a recipe's `data.sources` to the encoded examples that training reads."""

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image as Pillow
from rich.console import Console

from tony.data.loader import Loader
from tony.data.records import fingerprint
from tony.data.source import EncodedSource
from tony.errors import TonyError
from tony.recipe import load
from tony.run import RunContext
from tony.stages.world import encode, encoded_path
from tony.tokens.chat import Image, Message, Text, decode_stream
from tony.tokens.image import to_pixels
from tony.tokens.tokenizer import Tokenizer

DOCUMENTS = ["hello, I am Tony", "27 + 48 = 75. " * 20, "draw a seven"]
TALK = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "what is it"}, {"type": "image", "image": "in/red.png"}]},
        {"role": "assistant", "thinking": "a circle", "content": "the circle is red"},
    ]
}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "in").mkdir(parents=True)
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:24, 8:24, 0] = 250
    Pillow.fromarray(pixels).save(folder / "in" / "red.png")
    (folder / "books.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    (folder / "talk.jsonl").write_text(json.dumps(TALK) + "\n" + json.dumps({**TALK, "modality": "text"}) + "\n")
    return folder


@pytest.fixture
def context(data, tmp_path, release):
    """A run whose tokeniser and codecs are made, and nothing else."""
    run = tmp_path / "run"
    for stage, part in (("text", "text"), ("image_codec", "image"), ("audio_codec", "audio")):
        shutil.copytree(release / "tokenizer" / part, run / stage)
    path = tmp_path / "mine.toml"
    path.write_text(
        f"""
        [data]
        items = {{}}
        [data.sources.books]
        path = "{data}/books.jsonl"
        [data.sources.talk]
        path = "{data}/talk.jsonl"
        [pretrain]
        length = 96
        [pretrain.mixture]
        books = 1
        talk = 1
        [tune]
        length = 64
        [tune.mixture]
        books = 1
        """
    )
    return RunContext(load(path), run, Console(file=io.StringIO()))


@pytest.fixture
def tokenizer(release):
    return Tokenizer.load(release / "tokenizer")


def encoded(context, name):
    source = EncodedSource(encoded_path(context.stage_directory("encode"), name))
    return [source.example(index) for index in range(len(source))]


def test_documents_become_pieces_of_rows(context, tokenizer):
    facts = encode(context)
    vocab = tokenizer.vocabulary
    examples = encoded(context, "books")
    assert facts["tokens"]["books"] == sum(len(example.tokens) for example in examples)
    assert max(len(example.tokens) for example in examples) <= 64  # of the shorter rows, so that both trainings fit
    said, documents = "", []
    for example in examples:
        bos, *body = example.tokens.tolist()
        assert bos == vocab.special("bos")
        assert example.weights.tolist() == [0, *[1] * len(body)]
        said += tokenizer.text.decode([token - vocab.text.start for token in body if token in vocab.text])
        if body[-1] == vocab.special("end"):
            documents.append(said)
            said = ""
    assert documents == DOCUMENTS and said == ""


def test_conversations_keep_their_pictures_and_learn_only_the_answer(context, tokenizer, data):
    encode(context)
    vocab = tokenizer.vocabulary
    free, asked = encoded(context, "talk")
    codes = tokenizer.image.encode(to_pixels((data / "in" / "red.png").read_bytes(), 32)[None])[0]
    expected = [
        Message("user", (Text("what is it"), Image(tuple(codes.tolist())))),
        Message("assistant", (Text("the circle is red"),), "a circle"),
    ]
    assert decode_stream(free.tokens, vocab, tokenizer.text) == expected
    assert vocab.special("mod_text") in asked.tokens and vocab.special("mod_text") not in free.tokens
    for example in (free, asked):
        learnt = example.tokens[example.weights > 0]
        assert not np.isin(learnt, [*vocab.image, vocab.special("image32")]).any()
        words = tokenizer.text.decode([token - vocab.text.start for token in learnt.tolist() if token in vocab.text])
        assert words == "a circlethe circle is red"


def test_both_trainings_can_read_them(context):
    encode(context)
    for section in (context.recipe.pretrain, context.recipe.tune):
        paths = [encoded_path(context.stage_directory("encode"), name) for name in section.mixture]
        loader = Loader(list(map(EncodedSource, paths)), list(section.mixture.values()), 2, section.length, seed=0)
        batch = loader.batch(0)
        assert batch["tokens"].shape == (2, section.length) and batch["weights"].any()


def test_a_broken_source_is_named(context, data):
    (data / "in" / "red.png").unlink()
    with pytest.raises(TonyError, match=r"talk.jsonl line 1: the file in/red.png can't be read"):
        encode(context)


def test_the_fingerprint_follows_the_content(data, tmp_path):
    def of(path, **more):
        return fingerprint({"path": str(path), "kind": "jsonl", "split": "train", "subset": None, **more})

    file = data / "talk.jsonl"
    before, folder = of(file), of(data)
    assert of(file) == before != of(data / "books.jsonl")
    file.touch()
    assert of(file) == before  # the time of the file is not its content
    assert of(file, kind="parquet") != before
    content = file.read_bytes()
    file.write_bytes(content.replace(b"circle", b"square", 1))
    assert of(file) != before and of(data) != folder
    file.write_bytes(content)
    assert (of(file), of(data)) == (before, folder)
    picture = (data / "in" / "red.png").read_bytes()
    (data / "in" / "red.png").write_bytes(picture + b"more")
    assert of(file) != before and of(data) != folder  # what a line names counts
    (data / "in" / "red.png").write_bytes(picture)
    (data / "in" / "red.png").rename(data / "in" / "blue.png")
    assert of(data) != folder  # a file of the folder has another name
    assert fingerprint({"path": "someone/set", "split": "a"}) != fingerprint({"path": "someone/set", "split": "b"})
