"""The speech codec: streaming equals the whole, nothing looks ahead, pitch is right, training learns."""

import jax
import numpy as np
import optax
import pytest

from tony.errors import TonyError
from tony.tokens import audio
from tony.tokens.audio import (
    LOOK_AHEAD,
    TOKEN,
    AudioCodecConfig,
    SpeechCodec,
    Spoken,
    envelope_distance,
    pack_batch,
)
from tony.tokens.speech_signal import DELAY, HOP, SAMPLE_RATE, WINDOW, features, overlap_add, pitch, pulses, shape

CONFIG = AudioCodecConfig(levels=(5, 3), width=32, layers=2, heads=2, window=6, symbols="abc")


@pytest.fixture(scope="module")
def codec():
    return SpeechCodec(CONFIG, audio.init(jax.random.key(0), CONFIG))


def voice(seconds: float, hertz: float = 120.0, seed: int = 0) -> np.ndarray:
    """A buzzing tone that swells and fades, with a little noise."""
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tone = sum(np.sin(2 * np.pi * hertz * k * time) / k for k in range(1, 20))
    noise = np.random.default_rng(seed).standard_normal(len(time))
    return (0.2 * tone * (0.6 + 0.4 * np.sin(7 * time)) + 0.003 * noise).astype(np.float32)


def test_streaming_encoder_equals_whole(codec):
    samples = voice(1.7)
    whole = codec.encode(samples)
    assert len(whole) == int(np.ceil(len(samples) / 640))
    encoder, codes, rng, at = codec.encoder(), [], np.random.default_rng(1), 0
    while at < len(samples):
        size = int(rng.integers(1, 3_000))
        codes.append(encoder.push(samples[at : at + size]))
        at += size
    codes.append(encoder.flush())
    np.testing.assert_array_equal(np.concatenate(codes), whole)


def test_encoder_hears_its_look_ahead_and_no_more(codec):
    samples = voice(1.5)
    changed = samples.copy()
    changed[16_000:] = voice(1.0, hertz=200, seed=3)[: len(samples) - 16_000]
    before = 16_000 // 640 - LOOK_AHEAD
    np.testing.assert_array_equal(codec.encode(samples)[:before], codec.encode(changed)[:before])


def test_encode_many_equals_encode_one_by_one(codec):
    sounds = [voice(seconds, hertz) for seconds, hertz in ((0.5, 90), (1.3, 220), (0.2, 150), (2.1, 110))]
    many = codec.encode_many(sounds, rows=2, tokens=40)
    for sound, codes in zip(sounds, many, strict=True):
        agreement = np.mean(codes == codec.encode(sound))
        assert agreement > 0.97  # rounding at a level's edge may differ between the two compiled programs


def test_streaming_decoder_equals_whole(codec):
    codes = np.random.default_rng(0).integers(codec.codebook_size, size=57)
    whole = codec.decode(codes, voice=1)
    assert whole.shape == (57 * 640,)
    decoder = codec.decoder(voice=1)
    pieces = [decoder.push(codes[:1]), decoder.push(codes[1:20]), decoder.push(codes[20:])]
    assert (len(pieces[0]), len(pieces[1])) == (0, (20 - LOOK_AHEAD) * 640 - DELAY)
    np.testing.assert_allclose(np.concatenate([*pieces, decoder.flush()]), whole, atol=5e-3)


def test_voice_changes_sound(codec):
    codes = np.arange(15)
    assert np.abs(codec.decode(codes, voice=1) - codec.decode(codes, voice=2)).max() > 1e-3


@pytest.mark.parametrize("hertz", [80.0, 120.0, 210.0, 330.0])
def test_pitch_of_a_known_tone(hertz):
    found = pitch(voice(1.0, hertz))
    assert np.mean(np.abs(found[5:-5] - hertz) < 0.02 * hertz) > 0.95


def test_pitch_of_noise_is_unvoiced():
    found = pitch((0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE)).astype(np.float32))
    assert np.mean(found > 0) < 0.05


def test_pulses_have_the_asked_pitch_and_unit_power():
    train, _ = pulses(np.full((1, 100), 160.0, np.float32), np.zeros(1, np.float32))
    train = np.asarray(train[0])
    spectrum = np.abs(np.fft.rfft(train * np.hanning(len(train))))
    hertz = np.fft.rfftfreq(len(train), 1 / SAMPLE_RATE)
    loud = hertz[spectrum > 0.5 * spectrum.max()]
    np.testing.assert_allclose(loud / 160, np.round(loud / 160), atol=0.02)
    assert 0.8 < np.mean(train**2) < 1.2


def test_flat_envelope_returns_the_source():
    source = np.random.default_rng(0).standard_normal((1, 41 * HOP)).astype(np.float32)
    rebuilt = np.asarray(overlap_add(shape(source, np.zeros((1, 40, 80), np.float32))))[0]
    margin = DELAY - HOP
    np.testing.assert_allclose(rebuilt[margin + HOP : margin + 39 * HOP], source[0, HOP : 39 * HOP], atol=1e-4)


def test_features_see_only_their_window():
    samples = voice(0.5)[None, : 48 * HOP]
    seen = np.asarray(features(samples, np.zeros((1, WINDOW - HOP), np.float32)))
    later = samples.copy()
    later[:, 20 * HOP :] = 0
    np.testing.assert_allclose(
        np.asarray(features(later, np.zeros((1, WINDOW - HOP), np.float32)))[:, :20], seen[:, :20]
    )


def test_envelopes_are_compared_as_stoi_does():
    pystoi = pytest.importorskip("pystoi")
    rng = np.random.default_rng(0)
    # Speech-like: a voice whose loudness and brightness change, and worse and worse copies of it.
    changing = np.repeat(rng.uniform(0.05, 1, 40), 1000)
    clean = (voice(2.5)[:40_000] * changing).astype(np.float32)
    one = np.ones((1, -(-len(clean) // TOKEN)), np.int32)
    ours, theirs = [], []
    for level in (0.0, 0.05, 0.2, 0.8):
        noisy = (clean + level * clean.std() * rng.standard_normal(len(clean)) * 3).astype(np.float32)
        ours.append(1 - float(envelope_distance(noisy[None], clean[None], one)))
        theirs.append(float(pystoi.stoi(clean, noisy, SAMPLE_RATE)))
    assert ours[0] == pytest.approx(1, abs=1e-3) and sorted(ours, reverse=True) == ours
    assert np.corrcoef(ours, theirs)[0, 1] > 0.97
    quieter = 1 - float(envelope_distance(0.3 * clean[None], clean[None], one))
    assert quieter == pytest.approx(1, abs=1e-2)
    # What is packed into one row is compared apart: the distance is the mean of the two, the silence between not heard.
    apart = [np.concatenate([x, np.zeros(-len(x) % TOKEN + 4 * TOKEN, np.float32)]) for x in (clean, 0.5 * clean[::-1])]
    wrong = [x + 0.02 * rng.standard_normal(len(x)).astype(np.float32) for x in apart]
    whose = np.repeat([1, 2], [len(x) // TOKEN for x in apart])[None]
    together = float(envelope_distance(np.concatenate(wrong)[None], np.concatenate(apart)[None], whose))
    each = [float(envelope_distance(w[None], x[None], np.ones((1, len(x) // TOKEN), np.int32)))
            for w, x in zip(wrong, apart, strict=True)]  # fmt: skip
    assert together == pytest.approx(np.mean(each), abs=0.02)


def test_batches_are_a_pure_function_of_the_step():
    items = [Spoken((voice(s) * 20_000).astype(np.int16), pitch(voice(s)), np.full(len(pitch(voice(s))), 1 + i), i % 3)
             for i, s in enumerate((0.4, 0.7, 1.1))]  # fmt: skip
    first, again, other = (pack_batch(items, 0, step, rows=2, tokens=64) for step in (5, 5, 6))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["samples"], other["samples"])
    assert (first["segments"] > 0).mean() > 0.6


def test_training_reduces_the_loss():
    items = [
        Spoken((voice(0.8, h) * 20_000).astype(np.int16), pitch(voice(0.8, h)), np.ones(80, np.int8), 1)
        for h in (100, 180)
    ]
    params = audio.init(jax.random.key(0), CONFIG)
    batch = pack_batch(items, 0, 0, rows=2, tokens=48)
    optimizer = optax.adam(1e-2)
    gradient_of = jax.value_and_grad(lambda p: audio.loss(p, batch, jax.random.key(1), config=CONFIG)[0])

    @jax.jit
    def step(params, state):
        value, gradient = gradient_of(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(40):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]


def test_save_and_load(codec, tmp_path):
    codec.save(tmp_path)
    loaded = SpeechCodec.load(tmp_path)
    sound = voice(0.5)
    np.testing.assert_array_equal(loaded.encode(sound), codec.encode(sound))
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TonyError, match="damaged"):
        SpeechCodec.load(tmp_path)


def test_coloured_speech_has_the_asked_levels_and_stays_in_place():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=32_000).astype(np.float32)
    flat = audio.coloured(samples, np.zeros(5))
    np.testing.assert_allclose(flat, samples, atol=1e-4)
    levels = np.array([-6.0, -6.0, 6.0, 6.0])  # the middle is between the second and the third point
    power = [np.abs(np.fft.rfft(sound)) ** 2 for sound in (samples, audio.coloured(samples, levels))]
    hertz = np.fft.rfftfreq(len(samples), 1 / 16_000)
    for low, high, level in ((200, 400, -6), (2500, 6000, 6)):
        band = (low < hertz) & (hertz < high)
        assert 10 * np.log10(power[1][band].mean() / power[0][band].mean()) == pytest.approx(level, abs=0.7)
