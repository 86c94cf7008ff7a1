import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tony.errors import TonyError
from tony.tokens.text import TextTokenizer

CORPUS = ["the cat sat on the mat", "the dog saw 12 cats and 345 mats", "héllo wörld", "Hello, world! <end>\n"] * 20
TOKENIZER = TextTokenizer.train(CORPUS, 400)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


@given(UNICODE)
@settings(max_examples=300)
def test_any_unicode_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\x00",
        "\r\n\t",
        "  two  spaces  ",
        "\u2028\x85",
        "😀👩‍👩‍👧",
        "العربية",
        "e\u0301 vs é",
        "<|im_end|><end><bos>",
        "\ufffd",
    ],
)
def test_hard_texts_come_back(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= token < TOKENIZER.size for token in ids)


def test_lone_surrogates_become_the_replacement_character():
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a\ufffdb"
    TextTokenizer.train(["a\ud800b"], 256)


@given(st.text("0123456789 .,abc-", max_size=30))
def test_every_digit_is_its_own_token(text):
    for token in TOKENIZER.encode(text):
        piece = TOKENIZER.decode([token])
        assert len(piece) == 1 or not any(c.isdigit() for c in piece)


def test_training_learns_frequent_words_and_is_repeatable():
    assert len(TOKENIZER.encode("the cat")) <= 3
    again = TextTokenizer.train(CORPUS, 400)
    assert again.encode("the dog sat on cats") == TOKENIZER.encode("the dog sat on cats")
    assert 256 < TOKENIZER.size <= 400


def test_many_texts_at_once_are_encoded_as_one_by_one():
    assert TOKENIZER.encode_many(CORPUS[:4]) == [TOKENIZER.encode(text) for text in CORPUS[:4]]


@given(UNICODE)
def test_streaming_gives_whole_characters_and_loses_none(text):
    stream = TOKENIZER.stream()
    pieces = [stream.push(token) for token in TOKENIZER.encode(text)]
    assert "".join(pieces) + stream.flush() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_text_become_replacement_characters():
    cut = TOKENIZER.encode("😀")[:-1]
    assert TOKENIZER.decode(cut) == "\ufffd"
    stream = TOKENIZER.stream()
    assert stream.push(*cut) == "" and stream.flush() == "\ufffd"
    with pytest.raises(ValueError, match="outside"):
        TOKENIZER.decode([TOKENIZER.size])


def test_save_and_load(tmp_path):
    TOKENIZER.save(tmp_path)
    loaded = TextTokenizer.load(tmp_path)
    assert loaded.size == TOKENIZER.size
    for text in CORPUS[:4]:
        assert loaded.encode(text) == TOKENIZER.encode(text) and loaded.decode(loaded.encode(text)) == text


def test_what_is_missing_damaged_or_too_small_is_told(tmp_path):
    with pytest.raises(TonyError, match="missing"):
        TextTokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(TonyError, match="damaged"):
        TextTokenizer.load(tmp_path)
    with pytest.raises(TonyError, match="256"):
        TextTokenizer.train(CORPUS, 100)
