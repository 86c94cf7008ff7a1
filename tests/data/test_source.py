import numpy as np
import pytest

from tony.data.source import EncodedSource, GeneratorSource, TextSource, write_encoded
from tony.errors import TonyError
from tony.tokens.chat import decode_stream
from tony.tokens.text import TextTokenizer
from tony.tokens.tokenizer import Example
from tony.tokens.vocabulary import Vocabulary

TOK = TextTokenizer.train(["the cat sat on the mat and the dog sat on the cat"] * 3, 300)
VOCAB = Vocabulary(TOK.size, 50, 90)


def examples(count=20):
    rng = np.random.default_rng(0)
    return [
        Example(
            rng.integers(0, 500, n).astype(np.int32),
            rng.integers(0, 2, n).astype(np.float32),
            rng.integers(0, 4, n).astype(np.int8),
        )
        for n in rng.integers(2, 30, count)
    ]


def test_encoded_examples_come_back_from_memory_maps(tmp_path):
    made = examples()
    write_encoded(tmp_path / "sums.npz", iter(made))
    source = EncodedSource(tmp_path / "sums.npz")
    assert source.name == "sums" and EncodedSource(tmp_path / "sums.npz", "other").name == "other"
    assert len(source) == len(made)
    for index, each in enumerate(made):
        back = source.example(index, seed=index)
        for field in ("tokens", "weights", "modality"):
            assert np.array_equal(getattr(back, field), getattr(each, field))
            assert getattr(back, field).dtype == getattr(each, field).dtype
            assert isinstance(getattr(back, field), np.memmap)
        assert source.lengths[index] == len(each.tokens)
        assert source.losses[index] == (each.weights[1:] > 0).sum()
    plain = np.load(tmp_path / "sums.npz")
    assert np.array_equal(plain["tokens"], np.concatenate([each.tokens for each in made]))
    assert [path.name for path in tmp_path.iterdir()] == ["sums.npz"]


def test_an_empty_file_is_a_source_of_nothing(tmp_path):
    write_encoded(tmp_path / "none.npz", [])
    assert len(EncodedSource(tmp_path / "none.npz")) == 0


def test_missing_damaged_and_foreign_files_are_told(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(TonyError, match="does not exist"):
        EncodedSource(path)
    path.write_bytes(b"no zip file")
    with pytest.raises(TonyError, match="damaged"):
        EncodedSource(path)
    write_encoded(path, examples())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TonyError, match="damaged"):
        EncodedSource(path)
    np.savez(path, tokens=np.zeros(3, np.int32))
    with pytest.raises(TonyError, match="damaged"):
        EncodedSource(path)
    arrays = {name: np.zeros(3) for name in ("tokens", "weights", "modality", "losses")}
    np.savez_compressed(path, offsets=np.array([0, 3]), **arrays)
    with pytest.raises(TonyError, match="compressed"):
        EncodedSource(path)
    np.savez(path, offsets=np.array([0, 2]), **arrays)
    with pytest.raises(TonyError, match="fit each other"):
        EncodedSource(path)


def test_a_generator_is_asked_for_index_and_seed():
    source = GeneratorSource("pairs", lambda index, seed: (index, seed), count=7)
    assert len(source) == 7 and source.example(3, 11) == (3, 11) and source.name == "pairs"


def test_documents_are_cut_into_pieces_and_nothing_is_lost():
    texts = ["the cat sat", "", "on the mat é😀 " * 40, "12345"]
    source = TextSource("books", texts, VOCAB, TOK, length=24)
    bos, end = VOCAB.special("bos"), VOCAB.special("end")
    documents, current = [], []
    for index in range(len(source)):
        made = source.example(index)
        assert len(made.tokens) == source.lengths[index] <= 23 and made.tokens[0] == bos
        assert made.weights[0] == 0 and (made.weights[1:] == 1).all() and not made.modality.any()
        current += [token - VOCAB.text.start for token in made.tokens[1:].tolist() if token != end]
        if made.tokens[-1] == end:
            documents.append(TOK.decode(current))
            current = []
    assert documents == texts and not current
    with pytest.raises(TonyError, match="can't hold text"):
        TextSource("books", texts, VOCAB, TOK, length=2)
    assert decode_stream([bos], VOCAB, TOK) == []
