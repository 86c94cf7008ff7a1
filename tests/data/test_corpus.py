"""The shipped corpus: it decodes, it is what its manifest says, and its splits share nothing."""

import hashlib
import json
import lzma
import shutil

import numpy as np
import pytest

from tony.data.corpus import ONSET, Corpus
from tony.errors import TonyError


@pytest.fixture(scope="module")
def corpus():
    return Corpus.builtin()


def test_every_file_matches_its_checksum_and_the_whole_fits_in_40_megabytes(corpus):
    corpus.check()
    assert sum(entry["bytes"] for entry in corpus.manifest["files"].values()) <= 40_000_000
    listed = set(corpus.manifest["files"]) | {"manifest.json", "NOTICE.md"}
    assert {path.name for path in corpus.path.iterdir()} == listed


def test_digits_are_centred_white_on_black_pictures(corpus):
    pixels, labels = corpus.digits("test")
    assert pixels.shape == (10_000, 32, 32, 3) and pixels.dtype == np.uint8
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # as published
    assert pixels[:, :2].max() == 0 and pixels[:, :, -2:].max() == 0
    assert (pixels[..., 0] == pixels[..., 2]).all()
    assert pixels.mean() < 40 and pixels.max() == 255


def test_no_digit_is_in_both_splits(corpus):
    digests = {
        split: {hashlib.blake2s(picture[..., 0].tobytes()).digest() for picture in corpus.digits(split)[0]}
        for split in ("train", "test")
    }
    assert len(digests["train"]) >= 20_000
    assert not digests["train"] & digests["test"]


def test_emoji_of_one_subject_stay_on_one_side(corpus):
    names = {split: [name for name, _ in corpus.emoji(split)] for split in ("train", "test")}
    assert len(names["train"]) > 1_500 and len(names["test"]) > 150
    lines = [json.loads(line) for line in lzma.decompress((corpus.path / "emoji.jsonl.xz").read_bytes()).splitlines()]
    subjects = {split: {line["subject"] for line in lines if line["split"] == split} for split in names}
    assert not subjects["train"] & subjects["test"]
    # Without skin tone and gender, as the names themselves say it.
    pose = {"woman": "person", "man": "person", "women": "people", "men": "people"}
    plain = {
        split: {
            " ".join(pose.get(word, word) for word in name.split(": ")[0].split())
            for name in some
            if name.count(":") == 1 and name.endswith("skin tone") and "," not in name
        }
        for split, some in names.items()
    }
    assert len(plain["train"]) > 100 and len(plain["test"]) > 5
    assert not plain["train"] & plain["test"]


def test_emoji_are_pictures_on_white(corpus):
    pictures = dict(corpus.emoji("train") + corpus.emoji("test"))
    apple = pictures["red apple"].astype(int)
    assert apple.shape == (64, 64, 3)
    assert apple[0, 0].min() > 240
    middle = apple[28:36, 28:36].mean((0, 1))
    assert middle[0] > middle[1] + 60 and middle[0] > middle[2] + 60


def test_speech_splits_share_no_sentence_and_no_held_out_voice(corpus):
    splits = {name: corpus.speech(name) for name in ("train", "heard", "asked", "spoken")}
    assert all(splits.values())
    trained = {utterance.text for utterance in splits["train"]}
    for name in ("heard", "asked", "spoken"):
        assert not trained & {utterance.text for utterance in splits[name]}, name
    trained_voices = {voice for utterance in splits["train"] for voice in utterance.voice.split("+")}
    for name in ("heard", "asked"):
        assert not trained_voices & {utterance.voice for utterance in splits[name]}, name
    assert {utterance.voice for utterance in splits["spoken"]} <= trained_voices


def test_human_splits_share_no_sentence(corpus):
    letters = lambda text: "".join(c for c in text.lower() if c.isalnum())  # noqa: E731
    train, test = ({letters(u.text) for u in corpus.speech(f"human_{split}")} for split in ("train", "test"))
    assert len(train) > 200 and len(test) > 30
    assert not train & test


@pytest.mark.parametrize("split", ["train", "spoken", "human_test"])
def test_sounds_decode_to_speech(corpus, split):
    for utterance in corpus.speech(split)[:5]:
        samples = corpus.samples(utterance)
        assert samples.dtype == np.float32 and samples.ndim == 1
        assert 0.03 * len(utterance.text) < len(samples) / 16_000 < 0.3 * len(utterance.text) + 1
        assert 0.1 < np.abs(samples).max() <= 1.1


def small_copy(corpus, path):
    """A corpus with the human prompts only."""
    path.mkdir()
    names = ("human.bin", "human.jsonl.xz")
    for name in names:
        shutil.copy(corpus.path / name, path / name)
    files = {name: corpus.manifest["files"][name] for name in names}
    (path / "manifest.json").write_text(json.dumps({"version": 1, "files": files}))
    return Corpus(path)


def test_a_folder_of_ones_own_is_read_like_the_builtin(corpus, tmp_path):
    copy = small_copy(corpus, tmp_path / "own")
    utterance = copy.speech("human_test")[3]
    np.testing.assert_array_equal(copy.samples(utterance), corpus.samples(utterance))
    assert copy.fingerprint != corpus.fingerprint


def test_missing_and_damaged_files_are_named(corpus, tmp_path):
    with pytest.raises(TonyError, match=r"manifest.json is missing"):
        Corpus(tmp_path).digits("train")
    copy = small_copy(corpus, tmp_path / "own")
    with pytest.raises(TonyError, match=r"has no emoji.bin"):
        copy.emoji("train")
    data = bytearray((copy.path / "human.bin").read_bytes())
    data[1_000] ^= 1
    (copy.path / "human.bin").write_bytes(data)
    with pytest.raises(TonyError, match=r"human.bin is damaged"):
        copy.samples(copy.speech("human_train")[0])
    (copy.path / "human.bin").unlink()
    with pytest.raises(TonyError, match=r"lacks human.bin"):
        Corpus(copy.path).check()
    (copy.path / "manifest.json").write_text("{")
    with pytest.raises(TonyError, match=r"manifest.json is damaged"):
        Corpus(copy.path).check()


def test_an_unknown_split_is_refused_with_the_choices(corpus):
    with pytest.raises(TonyError, match="'validation'; choose one of train, test"):
        corpus.digits("validation")
    with pytest.raises(TonyError, match="human_test"):
        corpus.speech("human")


def test_phonemes_end_one_after_another_within_their_sound(corpus):
    for utterance in corpus.speech("train")[:200]:
        assert len(utterance.ends) == len(utterance.phonemes)
        assert list(utterance.ends) == sorted(utterance.ends)
        assert utterance.ends[0] >= ONSET
    assert not any(utterance.ends for utterance in corpus.speech("human_train"))


def test_s_hisses_when_it_is_said_to_be_spoken(corpus):
    hiss = {shift: [] for shift in (-12, -6, 0, 6, 12)}  # frames of 10 ms
    for utterance in corpus.speech("train")[:80]:
        samples = corpus.samples(utterance)
        spectra = np.abs(np.fft.rfft(samples[: len(samples) // 160 * 160].reshape(-1, 160), axis=1))
        high, low = spectra[:, 35:].sum(1), spectra[:, 1:20].sum(1)
        balance = np.log(high + 1e-2) - np.log(low + 1e-2)
        for symbol, begin, end in zip(utterance.phonemes[1:], utterance.ends, utterance.ends[1:], strict=False):
            for shift in hiss:
                at = (begin + end) // 2 + shift
                if symbol == "s" and 0 <= at < len(balance):
                    hiss[shift].append(balance[at])
    assert max(hiss, key=lambda shift: np.mean(hiss[shift])) == 0
