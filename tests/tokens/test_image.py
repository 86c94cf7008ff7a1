"""The picture codec: round trips, learning, files, and what users may send as a picture."""

import io
import zlib
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from tony.errors import TonyError
from tony.tokens import image

TINY = image.ImageCodecConfig(levels=(5, 5, 3), width=32, layers=1, heads=2)


@pytest.fixture(scope="module")
def tiny():
    return image.PictureCodec(TINY, image.init(jax.random.key(0), TINY))


def blobs(count, size=32, seed=0):
    """Pictures uint8 [count, size, size, 3] of one bright rectangle each."""
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, size, size, 3), np.uint8)
    for picture in pictures:
        top, left = rng.integers(0, size // 2, 2)
        picture[top : top + size // 2, left : left + size // 2] = rng.integers(100, 256, 3)
    return pictures


def test_patches_are_the_squares_of_the_picture_in_reading_order():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    rows = np.asarray(image.patches(pixels))
    assert rows.shape == (2, 16, 192)
    np.testing.assert_allclose((rows[1, 6].reshape(8, 8, 3) + 1) * 127.5, pixels[1, 8:16, 16:24], atol=1e-3)
    np.testing.assert_allclose((np.asarray(image.unpatches(rows)) + 1) * 127.5, pixels, atol=1e-3)


@pytest.mark.parametrize(("size", "tokens"), [(32, 16), (64, 64)])
def test_shapes_types_and_ranges(tiny, size, tokens):
    codes = tiny.encode(blobs(3, size))
    assert codes.shape == (3, tokens) and codes.dtype == np.int32
    assert codes.min() >= 0 and codes.max() < tiny.codebook_size == 75
    pixels = tiny.decode(codes)
    assert pixels.shape == (3, size, size, 3) and pixels.dtype == np.uint8


@pytest.mark.parametrize("size", image.SIZES)
def test_every_row_of_patches_has_angles_of_its_own(tiny, size, monkeypatch):
    seen, rotation = [], image.transformer.rotation

    def watched(positions, *more, length):
        seen.append((np.asarray(positions), length))
        return rotation(positions, *more, length=length)

    monkeypatch.setattr(image.transformer, "rotation", watched)
    pixels = np.zeros((1, size, size, 3), np.float32)
    image._run(tiny.params["encoder"], tiny.config, image.patches(pixels))
    positions, length = seen[0]
    assert positions.max() < length and len(set(positions[0])) == (size // image.PATCH) ** 2


def test_a_picture_has_the_same_codes_alone_and_in_company(tiny):
    pictures = blobs(130)
    together = tiny.encode(pictures)
    alone = np.concatenate([tiny.encode(pictures[i : i + 1]) for i in (0, 64, 129)])
    assert (together[[0, 64, 129]] == alone).mean() > 0.95  # rounding may fall differently at a border
    assert tiny.encode(pictures[:0]).shape == (0, 16)


def test_it_learns_to_give_pictures_back():
    batch = {"small": blobs(48), "large": blobs(4, 64)}
    params = image.init(jax.random.key(1), TINY)
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)
    gradient = jax.jit(jax.value_and_grad(partial(image.loss, config=TINY), has_aux=True))
    quality = []
    for _ in range(60):
        (_, metrics), grads = gradient(params, batch, jax.random.key(0))
        changes, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, changes)
        quality.append(float(metrics["psnr"]))
    assert quality[-1] > quality[0] + 4
    codec = image.PictureCodec(TINY, params)
    unseen = blobs(48, seed=9)
    error = np.mean(np.square(codec.decode(codec.encode(unseen)).astype(float) - unseen)) / 255**2
    assert -10 * np.log10(error) > quality[0] + 3
    other = np.roll(unseen, 1, axis=0)
    assert error < 0.7 * np.mean(np.square(codec.decode(codec.encode(unseen)).astype(float) - other)) / 255**2


def test_features_tell_codes_apart(tiny):
    features = tiny.features
    assert features.shape == (75, 3 + 5 + 5 + 3 + 3) and features.dtype == np.float32
    assert len(np.unique(features, axis=0)) == 75
    assert np.abs(features).max() <= 1


def test_saved_and_loaded_codecs_agree(tiny, tmp_path):
    tiny.save(tmp_path)
    loaded = image.PictureCodec.load(tmp_path)
    assert loaded.config == TINY
    np.testing.assert_array_equal(loaded.encode(blobs(2)), tiny.encode(blobs(2)))
    with pytest.raises(TonyError, match="missing"):
        image.PictureCodec.load(tmp_path / "nowhere")
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("vit-fsq", "speech-fsq"))
    with pytest.raises(TonyError, match="'speech-fsq'; expected 'vit-fsq'"):
        image.PictureCodec.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(TonyError):
        image.PictureCodec.load(tmp_path)


def test_training_goes_through_fit_and_saves(tmp_path):
    @dataclass
    class Section:
        levels: tuple = (5, 5, 3)
        width: int = 32
        layers: int = 1

    def fit(*, name, loss_fn, params, batch_at, config, directory):
        assert name == "image_codec" and config == Section()
        value, metrics = jax.jit(loss_fn)(params, batch_at(0), jax.random.key(0))
        assert np.isfinite(value) and set(metrics) >= {"psnr"}
        return params

    codec = image.train_image_codec(Section(), lambda step: {"small": blobs(2)}, tmp_path, fit)
    np.testing.assert_array_equal(image.PictureCodec.load(tmp_path).encode(blobs(1)), codec.encode(blobs(1)))


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 28, 28, 3), np.uint8), np.zeros((2, 32, 32, 3), np.float32), np.zeros((32, 32, 3), np.uint8)],
)
def test_other_arrays_are_refused(tiny, wrong):
    with pytest.raises(TonyError, match="to_pixels"):
        tiny.encode(wrong)


def test_codes_that_are_no_picture_are_refused(tiny):
    with pytest.raises(TonyError, match="expected"):
        tiny.decode(np.zeros((1, 17), np.int32))
    with pytest.raises(TonyError, match=r"0\.\.74"):
        tiny.decode(np.full((1, 16), 75))


# ------------------------------------------------------------------------------------ pictures of users


def encoded(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_files_of_all_kinds_become_pixels(form):
    picture = Image.new("RGB", (200, 200), (250, 10, 10))
    pixels = image.to_pixels(encoded(picture, form))
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.mean((0, 1)), (250, 10, 10), atol=6)


def test_modes_transparency_and_shape():
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert image.to_pixels(encoded(clear, "PNG")).min() == 255
    grey16 = Image.fromarray(np.full((40, 40), 32_896, np.uint16))
    np.testing.assert_allclose(image.to_pixels(encoded(grey16, "PNG")), 128, atol=1)
    wide = Image.new("RGB", (80, 40), (0, 0, 200))
    assert (image.to_pixels(wide, 64) == (0, 0, 200)).all()
    assert image.to_pixels(np.full((32, 32), 9, np.uint8)).tolist() == np.full((32, 32, 3), 9).tolist()
    one_bit = Image.new("1", (32, 32), 1)
    assert image.to_pixels(encoded(one_bit, "PNG")).min() == 255


def test_the_camera_orientation_is_obeyed():
    picture = Image.new("RGB", (64, 64))
    picture.paste((255, 255, 255), (0, 0, 64, 32))
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise to view
    pixels = image.to_pixels(encoded(picture, "JPEG", exif=exif))
    assert pixels[:, 20:].mean() > 200 and pixels[:, :12].mean() < 50


def test_a_picture_of_the_right_size_stays_as_it_is():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    np.testing.assert_array_equal(image.to_pixels(encoded(Image.fromarray(pixels), "PNG")), pixels)


def png_claiming(width, height):
    """A tiny PNG whose header claims to be huge."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunk = lambda kind, data: (  # noqa: E731
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    )
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read"),
        (b"not a picture at all", "cannot be read"),
        (encoded(Image.new("RGB", (300, 300)), "PNG")[:60], "cannot be read"),
        (encoded(Image.effect_noise((300, 300), 90), "JPEG")[:700], "cannot be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read"),
        (encoded(Image.new("RGB", (30, 30)), "TIFF"), "cannot be read"),
        (png_claiming(30_000, 30_000), "too large"),
        (png_claiming(8_000, 8_000), "8000x8000 pixels; at most"),
        (png_claiming(0, 10), "cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20_000_001), "20.0 MB"),
    ],
)
def test_broken_and_huge_pictures_end_in_one_clear_line(data, message):
    with pytest.raises(TonyError, match=message) as caught:
        image.to_pixels(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [None, "picture.png", 3, np.zeros((2, 2, 7), np.uint8), np.zeros((0, 4), np.uint8)])
def test_things_that_are_no_pictures_are_refused(wrong):
    with pytest.raises(TonyError):
        image.to_pixels(wrong)


def test_only_the_two_sizes_exist():
    with pytest.raises(TonyError, match="48"):
        image.to_pixels(Image.new("RGB", (9, 9)), 48)
