import io

import numpy as np
import pytest
import soundfile

from tony.errors import TonyError
from tony.tokens.sound import to_samples


def tone(rate, seconds=0.5, hertz=440):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def test_any_rate_and_channels_become_16_khz_mono():
    expected = tone(16_000)
    for rate in (8_000, 16_000, 24_000, 44_100):
        samples = to_samples(np.stack([tone(rate), tone(rate)], axis=1), rate)
        assert samples.dtype == np.float32 and abs(len(samples) - 8_000) <= 1
        assert np.abs(samples[500:7500] - expected[500:7500]).max() < 0.02


@pytest.mark.parametrize(("form", "loss"), [("WAV", 1e-3), ("FLAC", 1e-3), ("OGG", 0.1), ("MP3", None)])
def test_files(form, loss):
    file = io.BytesIO()
    soundfile.write(file, tone(16_000), 16_000, format=form)
    samples = to_samples(file.getvalue())
    assert samples.std() == pytest.approx(tone(16_000).std(), rel=0.15)
    if loss:
        assert np.abs(samples[800:7200] - tone(16_000)[800:7200]).max() < loss


def test_integer_samples_are_scaled():
    assert to_samples(np.array([0, 16384, -32768], np.int16), 16_000).tolist() == [0, 0.5, -1]


@pytest.mark.parametrize(
    ("sound", "rate", "told"),
    [
        (b"", None, "can't be read"),
        (b"RIFF broken", None, "can't be read"),
        (np.zeros(0), 16_000, "the sound is empty"),
        (np.zeros((0, 2)), 16_000, "the sound is empty"),
        (np.zeros((2, 2, 2)), 16_000, "shape"),
        (np.zeros(5), None, "rate None"),
        (np.array([np.nan]), 16_000, "no numbers"),
        (np.zeros(601), 1, "lasts 601.0 s; at most 600 s"),
    ],
)
def test_what_is_no_sound_is_refused(sound, rate, told):
    with pytest.raises(TonyError, match=told):
        to_samples(sound, rate)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_caller_says_what_is_too_long(rate):
    file = io.BytesIO()
    soundfile.write(file, tone(rate, 2), rate, format="WAV")
    for sound in ((file.getvalue(),), (tone(rate, 2), rate)):
        assert abs(len(to_samples(*sound, longest=2)) - 32_000) <= 1
        with pytest.raises(TonyError, match=r"lasts 2\.0 s; at most 1\.9 s are taken"):
            to_samples(*sound, longest=1.9)
