import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from PIL import Image as Pillow

from tony.data.loader import Loader
from tony.data.records import open_source
from tony.data.source import TextSource, write_encoded
from tony.errors import TonyError
from tony.tokens.chat import Audio, Image, Message, Speech, Text, ToolCall, ToolResult, Video, decode_stream
from tony.tokens.text import TextTokenizer
from tony.tokens.tokenizer import Tokenizer
from tony.tokens.vocabulary import Vocabulary

TOK = TextTokenizer.train(["the cat sat on the mat and the dog sat on the cat"] * 3, 300)
VOCAB = Vocabulary(TOK.size, 256, 100)


class Brightness:
    """Codes are the mean brightness of 8x8 patches."""

    codebook_size = 256

    def encode(self, pixels):
        n, h, w, _ = pixels.shape
        return pixels.reshape(n, h // 8, 8, w // 8, 8, 3).mean((2, 4, 5)).reshape(n, -1).round().astype(np.int32)


class Loudness:
    """Codes are the peak of each 40 ms, in hundredths."""

    codebook_size = 100

    def encode(self, samples):
        blocks = samples[: len(samples) // 640 * 640].reshape(-1, 640)
        return np.minimum(np.abs(blocks).max(1) * 100, 99).round().astype(np.int32)


TOKENIZER = Tokenizer(VOCAB, TOK, Brightness(), Loudness())


def png(level, size=32):
    file = io.BytesIO()
    Pillow.new("RGB", (size, size), (level,) * 3).save(file, "PNG")
    return file.getvalue()


def wav(peak, seconds=0.2, rate=16_000):
    file = io.BytesIO()
    tone = peak * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    soundfile.write(file, tone, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.fixture
def media(tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "grey.png").write_bytes(png(100))
    (tmp_path / "media" / "tone.wav").write_bytes(wav(0.5))
    return tmp_path


def conversation(source, index=0):
    return decode_stream(source.example(index, 0).tokens, VOCAB, TOK)


def opened(kind, path, **more):
    return open_source({"name": "mine", "kind": kind, "path": str(path), **more}, TOKENIZER, 64)


def lines(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


EVERYTHING = {
    "messages": [
        {"role": "system", "content": "the cat"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what <end>"},
                {"type": "image", "image": "media/grey.png"},
                {"type": "image", "image": "media/grey.png", "size": 64},
                {"type": "audio", "audio": "media/tone.wav"},
                {"type": "video", "frames": ["media/grey.png", "media/grey.png"], "times": [0, 2]},
            ],
        },
        {
            "role": "assistant",
            "thinking": "hm",
            "content": [
                {"type": "call", "name": "f", "arguments": "{}"},
                {"type": "speech", "text": "the mat", "audio": "media/tone.wav", "voice": 2},
            ],
        },
        {"role": "tool", "content": [{"type": "result", "name": "f", "result": "4"}]},
    ]
}
SOUND = (50,) * 5
DECODED = [
    Message("system", (Text("the cat"),)),
    Message(
        "user",
        (
            Text("what <end>"),
            Image((100,) * 16),
            Image((100,) * 64),
            Audio(SOUND),
            Video(((100,) * 16,) * 2, (0, 2)),
        ),
    ),
    Message("assistant", (ToolCall("f", "{}"), Speech("the mat", SOUND, 2)), "hm"),
    Message("tool", (ToolResult("f", "4"),)),
]


def test_jsonl_conversations_with_every_part(media):
    path = lines(media / "talk.jsonl", EVERYTHING, {"messages": [{"role": "user", "content": "sat"}]})
    source = opened("jsonl", path)
    assert source.name == "mine" and len(source) == 2
    assert conversation(source) == DECODED
    assert conversation(source, 1) == [Message("user", (Text("sat"),))]


def test_jsonl_pictures_and_sounds_with_their_text(media):
    path = lines(
        media / "pairs.jsonl",
        {"text": "a cat", "image": "media/grey.png"},
        {"text": "a mat", "audio": "media/tone.wav"},
    )
    source = opened("jsonl", path)
    assert conversation(source) == [Message("user", (Image((100,) * 16),)), Message("assistant", (Text("a cat"),))]
    assert conversation(source, 1) == [Message("user", (Audio(SOUND),)), Message("assistant", (Text("a mat"),))]
    assert source.example(0, 0).weights.sum() == len(TOK.encode("a cat")) + 1


def test_a_folder_of_jsonl_documents_is_text_to_continue(tmp_path):
    lines(tmp_path / "a.jsonl", {"text": "the cat"}, {"text": "sat on the mat " * 50})
    lines(tmp_path / "b.jsonl", {"text": "the dog"})
    source = opened("jsonl", tmp_path)
    assert isinstance(source, TextSource) and len(source) > 3 and source.lengths.max() <= 64
    Loader([source], [1], rows=2, length=64, seed=0).batch(0)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ("{}", "expected messages or text"),
        ('{"messages": []}', "at least one"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "'robot'"),
        ('{"messages": [{"role": "user"}]}', "content"),
        ('{"messages": [{"role": "user", "content": [{"type": "smell"}]}]}', "'smell'"),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "has no image"),
        ('{"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}', "expected text"),
        ('{"messages": [{"role": "user", "content": "x", "thinking": 4}]}', "thinking"),
    ],
)
def test_a_broken_line_is_named_when_the_file_is_opened(tmp_path, line, told):
    path = lines(tmp_path / "talk.jsonl", {"messages": [{"role": "user", "content": "x"}]})
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(TonyError, match=rf"talk.jsonl line 3: .*{told}"):
        opened("jsonl", path)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "image", "image": "media/none.png"}, "media/none.png can't be read"),
        ({"type": "image", "image": "talk.jsonl"}, "picture cannot be read"),
        ({"type": "image", "image": "media/grey.png", "size": 48}, "48"),
        ({"type": "audio", "audio": "media/grey.png"}, "sound can't be read"),
        ({"type": "audio", "audio": 5}, "sound"),
        ({"type": "speech", "text": "x", "audio": "media/tone.wav", "voice": 77}, "voice 77"),
        ({"type": "video", "frames": ["media/grey.png"], "times": [99]}, "0..31"),
    ],
)
def test_broken_media_name_the_line_that_refers_to_them(media, part, told):
    path = lines(media / "talk.jsonl", EVERYTHING, {"messages": [{"role": "user", "content": [part]}]})
    with pytest.raises(TonyError, match=rf"talk.jsonl line 2: .*{told}"):
        opened("jsonl", path).example(1, 0)


def test_a_conversation_among_documents_is_told(media):
    path = lines(media / "mixed.jsonl", {"text": "x"}, EVERYTHING)
    with pytest.raises(TonyError, match="line 2: a conversation among plain documents"):
        opened("jsonl", path)


def test_parquet_rows_over_several_files_and_groups(media):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    records = [{"text": f"{n} cats", "image": {"bytes": png(n), "path": None}} for n in range(7)]
    parquet.write_table(arrow.Table.from_pylist(records[:5]), media / "a.parquet", row_group_size=2)
    parquet.write_table(arrow.Table.from_pylist(records[5:]), media / "b.parquet")
    source = opened("parquet", media)
    assert len(source) == 7
    for index in (6, 0, 4, 5, 1):
        assert conversation(source, index)[0] == Message("user", (Image((index,) * 16),))
        assert conversation(source, index)[1] == Message("assistant", (Text(f"{index} cats"),))
    columns = [
        {**each, "content": [{"type": "text", "text": each["content"]}]} if isinstance(each["content"], str) else each
        for each in EVERYTHING["messages"]  # a column of Parquet has one type, and a missing field is null
    ]
    parquet.write_table(arrow.Table.from_pylist([{"messages": columns}]), media / "b.parquet")
    assert conversation(opened("parquet", media / "b.parquet")) == DECODED


def test_broken_parquet_is_told(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(TonyError, match=r"a.parquet is damaged"):
        opened("parquet", path)
    rows = [{"text": "a", "image": {"bytes": png(1)}}, {"text": "b", "image": {"bytes": b"broken"}}]
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    with pytest.raises(TonyError, match=r"a.parquet row 2: the picture"):
        opened("parquet", path).example(1, 0)
    parquet.write_table(arrow.table({"caption": ["a"]}), path)
    with pytest.raises(TonyError, match=r"a.parquet row 1: .*caption; expected messages or text"):
        opened("parquet", path)


def pack(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_webdataset_samples(tmp_path):
    asked = {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "png"}, {"type": "audio", "audio": "b/1.wav"}]}
        ]
    }
    pack(
        tmp_path / "0.tar",
        {"a/1.txt": b"a cat\n", "a/1.png": png(7), "a/2.txt": b"a mat", "a/2.WAV": wav(0.5)},
    )
    pack(tmp_path / "1.tar", {"b/1.json": json.dumps(asked).encode(), "b/1.png": png(9), "b/1.wav": wav(0.5)})
    source = opened("webdataset", tmp_path)
    assert len(source) == 3
    assert conversation(source, 0) == [Message("user", (Image((7,) * 16),)), Message("assistant", (Text("a cat"),))]
    assert conversation(source, 1) == [Message("user", (Audio(SOUND),)), Message("assistant", (Text("a mat"),))]
    assert conversation(source, 2) == [Message("user", (Image((9,) * 16), Audio(SOUND)))]


def test_broken_webdatasets_are_told(tmp_path):
    path = tmp_path / "0.tar"
    path.write_bytes(b"no tar file" * 100)
    with pytest.raises(TonyError, match=r"0.tar is damaged"):
        opened("webdataset", path)
    asked = {"messages": [{"role": "user", "content": [{"type": "image", "image": "jpg"}]}]}
    pack(path, {"1.json": json.dumps(asked).encode(), "1.png": png(9), "2.json": b"{", "3.png": png(1)})
    source = opened("webdataset", path)
    for index, told in (
        (0, "1: the sample has no file jpg; it has json, png"),
        (1, "2: its json"),
        (2, "3: a record has"),
    ):
        with pytest.raises(TonyError, match=f"0.tar sample {told}"):
            source.example(index, 0)


def test_hugging_face_datasets_from_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"text": ["a cat", "a mat"], "image": [Pillow.new("RGB", (32, 32), (n,) * 3) for n in (3, 4)]}
    features = datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()})
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "set")
    source = opened("huggingface", tmp_path / "set", split="train")
    assert conversation(source, 1) == [Message("user", (Image((4,) * 16),)), Message("assistant", (Text("a mat"),))]
    with pytest.raises(TonyError, match="split 'test', can't be loaded"):
        opened("huggingface", tmp_path / "set", split="test")


def test_encoded_files_and_what_no_table_can_say(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"text": "the cat"})
    text = opened("jsonl", path)
    write_encoded(tmp_path / "a.npz", [text.example(0)])
    assert np.array_equal(opened("encoded", tmp_path / "a.npz").example(0).tokens, text.example(0).tokens)
    with pytest.raises(TonyError, match="'csv'; expected one of encoded, jsonl"):
        opened("csv", path)
    with pytest.raises(TonyError, match="does not exist"):
        opened("jsonl", tmp_path / "none.jsonl")
    with pytest.raises(TonyError, match="path None"):
        open_source({"name": "x", "kind": "jsonl"}, TOKENIZER, 64)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TonyError, match="no records"):
        opened("jsonl", tmp_path / "empty.jsonl")


def test_a_missing_extra_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(TonyError, match=r"'\.\[data\]'"):
        opened("huggingface", "someone/something")
