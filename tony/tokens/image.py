"""The picture codec: 32x32 or 64x64 RGB <-> 16 or 64 tokens of one finite-scalar-quantised codebook.

Each 8x8 patch is one token. Encoder: patches -> bidirectional transformer -> FSQ (Mentzer et al. 2023, "Finite Scalar
Quantization: VQ-VAE Made Simple"). Decoder: codes -> bidirectional transformer -> patches. The layout follows ViT-VQGAN
(Yu et al. 2021, section 3.1), without its critic: trained small, an adversarial loss gives flat or black pictures.
One set of weights serves both sizes; a patch is placed by its row and column.

Shapes: n pictures, t tokens, d width, p = 192 numbers of a patch.
"""

import io
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tony.arrays import matmul, rms_norm
from tony.errors import TonyError
from tony.tokens import transformer, weights
from tony.tokens.codec import codes_to_values, fsq_quantize, values_to_codes

PATCH = 8
SIZES = (32, 64)
LARGEST_GRID = SIZES[-1] // PATCH
CHUNKS = (1, 128)  # pictures per call: only these shapes are ever compiled
EDGE_WEIGHT = 3.0
MAX_BYTES = 20_000_000
MAX_PIXELS = 50_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True)
class ImageCodecConfig:
    """Everything that fixes the codec's shapes."""

    levels: tuple[int, ...] = (8, 5, 5, 5)
    width: int = 128
    layers: int = 3
    heads: int = 4
    kind: str = field(default="vit-fsq", init=False)


def init(key: jax.Array, config: ImageCodecConfig) -> dict:
    """Random parameters."""
    keys = jax.random.split(key, 8)
    d, p, levels = config.width, PATCH * PATCH * 3, len(config.levels)
    places = (LARGEST_GRID, LARGEST_GRID, d)

    def side(keys, inputs, outputs, scale):
        return {
            "into": transformer.linear_init(keys[0], inputs, d),
            "places": 0.2 * jax.random.normal(keys[1], places),
            "blocks": transformer.init(keys[2], config.layers, d),
            "norm": jnp.ones(d),
            "out": transformer.linear_init(keys[3], d, outputs, scale=scale),
            "bias": jnp.zeros(outputs),
        }

    return {"encoder": side(keys[:4], p, levels, 1.0), "decoder": side(keys[4:], levels, p, 0.3)}


# ----------------------------------------------------------------------------------------------- network


def patches(pixels: jax.Array) -> jax.Array:
    """uint8 [n, h, w, 3] -> [n, t, p] in [-1, 1], row by row."""
    n, h, w, _ = pixels.shape
    x = pixels.astype(jnp.float32) / 127.5 - 1
    x = x.reshape(n, h // PATCH, PATCH, w // PATCH, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, (h // PATCH) * (w // PATCH), PATCH * PATCH * 3)


def unpatches(x: jax.Array) -> jax.Array:
    """[n, t, p] -> [n, h, w, 3], the inverse of `patches` but for the scale."""
    n, t, _ = x.shape
    grid = round(t**0.5)
    x = x.reshape(n, grid, grid, PATCH, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, grid * PATCH, grid * PATCH, 3)


def _run(params, config, x):
    """A side of the codec on x [n, t, inputs] -> [n, t, outputs]."""
    n, t, _ = x.shape
    grid = round(t**0.5)
    row, column = jnp.divmod(jnp.arange(t), grid)
    hidden = matmul(x, params["into"]) + params["places"][row, column]
    positions = jnp.broadcast_to(row * LARGEST_GRID + column, (n, t))
    together = jnp.zeros((n, t), jnp.int32)
    hidden = transformer.apply(
        params["blocks"], hidden, together, positions, config.heads, causal=False, furthest=LARGEST_GRID**2
    )
    return rms_norm(hidden, params["norm"]) @ params["out"] + params["bias"]


@partial(jax.jit, static_argnames="config")
def _encode(params, config, pixels):
    return values_to_codes(fsq_quantize(_run(params["encoder"], config, patches(pixels)), config.levels), config.levels)


@partial(jax.jit, static_argnames="config")
def _decode(params, config, codes):
    made = unpatches(_run(params["decoder"], config, codes_to_values(codes, config.levels)))
    return jnp.rint(jnp.clip((made + 1) * 127.5, 0, 255)).astype(jnp.uint8)


# ---------------------------------------------------------------------------------------------- training


def loss(params: dict, batch: dict, key: jax.Array, *, config: ImageCodecConfig) -> tuple[jax.Array, dict]:
    """Training loss of a batch of pictures: uint8 "small" [n, 32, 32, 3], "large" [m, 64, 64, 3], or one.

    Absolute and squared error of the pixels, of the picture at half and quarter size, and of its edges. An error counts
    up to 1 + EDGE_WEIGHT times where the picture has an edge: most of a drawing is plain, but its lines make it.
    """
    total, squared, weight, latents = jnp.zeros(()), jnp.zeros(()), 0, []
    for pixels in batch.values():
        x = patches(pixels)
        latent = _run(params["encoder"], config, x)
        made = unpatches(_run(params["decoder"], config, fsq_quantize(latent, config.levels)))
        real = unpatches(x)
        tokens = x.shape[0] * x.shape[1]
        total += tokens * _distance((made - real) * (1 + EDGE_WEIGHT * _edges(real)))
        squared += tokens * jnp.mean(jnp.square((made - real) / 2))
        weight += tokens
        latents.append(latent.reshape(tokens, -1))
    spread = _spread_penalty(jnp.concatenate(latents))
    metrics = {"pixels": total / weight, "psnr": -10 * jnp.log10(squared / weight), "spread": spread}
    return total / weight + 0.05 * spread, metrics


def _edges(real: jax.Array) -> jax.Array:
    """How much of an edge there is at each pixel of pictures [n, h, w, 3] in [-1, 1]: 0 to 1, [n, h, w, 1]."""
    down = jnp.abs(jnp.diff(real, axis=1)).max(-1, keepdims=True)
    right = jnp.abs(jnp.diff(real, axis=2)).max(-1, keepdims=True)
    found = [jnp.pad(down, ((0, 0), side, (0, 0), (0, 0))) for side in ((0, 1), (1, 0))]
    found += [jnp.pad(right, ((0, 0), (0, 0), side, (0, 0))) for side in ((0, 1), (1, 0))]
    return jnp.minimum(1, jnp.stack(found).max(0))


def _distance(error: jax.Array) -> jax.Array:
    """How visible an error [n, h, w, 3] is: its size at three scales, and how it changes from pixel to pixel."""
    distance = jnp.mean(jnp.abs(error)) + 2 * jnp.mean(jnp.square(error))
    edges = jnp.mean(jnp.abs(jnp.diff(error, axis=1))) + jnp.mean(jnp.abs(jnp.diff(error, axis=2)))
    coarse = jnp.zeros(())
    for _ in range(2):
        n, h, w, c = error.shape
        error = error.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))
        coarse += jnp.mean(jnp.abs(error))
    return distance + 0.5 * edges + 0.5 * coarse


def _spread_penalty(latent: jax.Array) -> jax.Array:
    """Distance of each latent dimension's mean and deviation from (0, 1), where the bounding tanh is not yet flat."""
    return jnp.mean(jnp.square(latent.mean(0)) + jnp.square(latent.std(0) - 1))


def train_image_codec(
    section,
    batch_at: Callable[[int], dict],
    directory: Path,
    fit: Callable,
    seed: int = 0,
    **options,
) -> "PictureCodec":
    """Train a codec as the recipe's image_codec section says, with `tony.train.fit`, and save it to `directory`.

    `batch_at(step)` gives the batches that `loss` takes; `options` (console, seed) go to `fit`.
    """
    config = ImageCodecConfig(tuple(section.levels), section.width, section.layers)
    params = fit(
        name="image_codec",
        loss_fn=partial(loss, config=config),
        params=init(jax.random.key(seed), config),
        batch_at=batch_at,
        config=section,
        directory=directory,
        **options,
    )
    codec = PictureCodec(config, params)
    codec.save(directory)
    return codec


# ------------------------------------------------------------------------------------------------- codec


class PictureCodec:
    """A trained codec: implements `tony.tokens.codec.ImageCodec`."""

    def __init__(self, config: ImageCodecConfig, params: dict):
        self.config, self.params = config, params

    @property
    def codebook_size(self) -> int:
        """Number of distinct codes."""
        return int(np.prod(self.config.levels))

    @property
    def features(self) -> np.ndarray:
        """What is known of each code [codebook_size, k]: its values, the level of each, and the colour it paints."""
        codes = np.arange(self.codebook_size)
        values = np.asarray(codes_to_values(codes, self.config.levels))
        levels = [(column[:, None] == np.unique(column)).astype(np.float32) for column in values.T]
        painted = self.decode(np.repeat(codes[:, None], (SIZES[0] // PATCH) ** 2, axis=1))
        colors = painted.mean((1, 2), dtype=np.float32) / 127.5 - 1
        return np.concatenate([values, *levels, colors], axis=1).astype(np.float32)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Codes int32 [n, 16 or 64] of pictures uint8 [n, 32, 32, 3] or [n, 64, 64, 3]."""
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] not in [(s, s, 3) for s in SIZES]:
            raise TonyError(
                f"pictures of shape {pixels.shape} and type {pixels.dtype} were given to the codec; it takes uint8 "
                f"[n, 32, 32, 3] or [n, 64, 64, 3]: use tony.tokens.image.to_pixels"
            )
        return _in_chunks(partial(_encode, self.params, self.config), pixels).astype(np.int32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Pictures uint8 [n, h, h, 3] of codes int [n, 16] or [n, 64]."""
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] not in [(s // PATCH) ** 2 for s in SIZES]:
            raise TonyError(f"codes of shape {codes.shape} are not pictures; expected [n, 16] or [n, 64]")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codebook_size:
            raise TonyError(f"picture codes must be in 0..{self.codebook_size - 1}; got {codes.min()}..{codes.max()}")
        return _in_chunks(partial(_decode, self.params, self.config), codes.astype(np.int32))

    def save(self, directory: Path) -> None:
        """Write config.json and the weights."""
        weights.save(Path(directory), asdict(self.config), self.params)

    @classmethod
    def load(cls, directory: Path) -> "PictureCodec":
        """Read what `save` wrote; TonyError if it is missing or damaged."""
        fields, params = weights.load(Path(directory))
        try:
            config = ImageCodecConfig(tuple(fields["levels"]), fields["width"], fields["layers"], fields["heads"])
        except (KeyError, TypeError) as error:
            raise TonyError(f"{directory}/config.json is not of a picture codec ({error}); train it again") from None
        if fields.get("kind") != config.kind:
            raise TonyError(f"the codec in {directory} is of kind {fields.get('kind')!r}; expected {config.kind!r}")
        return cls(config, params)


def _in_chunks(function: Callable, rows: np.ndarray) -> np.ndarray:
    """`function` over rows [n, ...] in calls of CHUNKS rows, the last one filled up with copies of its first row."""
    results = []
    size = CHUNKS[0] if len(rows) <= CHUNKS[0] else CHUNKS[-1]
    for start in range(0, max(1, len(rows)), size):
        piece = rows[start : start + size]
        filled = np.zeros((size, *rows.shape[1:]), rows.dtype)
        filled[: len(piece)] = piece
        results.append(np.asarray(function(filled))[: len(piece)])
    return np.concatenate(results)


# ---------------------------------------------------------------------------------------- pictures of users


def to_pixels(picture, size: int = 32) -> np.ndarray:
    """Any picture as uint8 [size, size, 3]: bytes of a file, a PIL image, or an array uint8 [h, w] or [h, w, 3 or 4].

    Transparent parts become white; a picture that is not square is set on a square of its border's colour. Files of
    more than 20 MB or 50 megapixels are refused before anything is decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if size not in SIZES:
        raise TonyError(f"picture size {size} is not one of {SIZES}")
    try:
        if isinstance(picture, bytes | bytearray | memoryview):
            picture = _open(bytes(picture), size)
        elif isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        elif not isinstance(picture, Image.Image):
            raise TypeError(f"got {type(picture).__name__}")
        _refuse_huge(picture)
        flat = _on_white(ImageOps.exif_transpose(picture))
        right, bottom = flat.width - 1, flat.height - 1
        corners = [flat.getpixel(place) for place in ((0, 0), (right, 0), (0, bottom), (right, bottom))]
        border = tuple(int(level) for level in np.median(corners, axis=0))
        filter = Image.Resampling.BOX if max(flat.size) > 4 * size else Image.Resampling.LANCZOS
        return np.array(ImageOps.pad(flat, (size, size), filter, color=border), np.uint8)
    except UnidentifiedImageError:
        raise TonyError("the picture cannot be read; send a PNG, JPEG, WebP, GIF or BMP") from None
    except _UNREADABLE as error:
        raise TonyError(f"the picture cannot be read ({error}); send a PNG, JPEG, WebP, GIF or BMP") from None


# What Pillow raises for broken, cut off, empty or dangerous files.
_UNREADABLE = (OSError, ValueError, TypeError, SyntaxError, EOFError, IndexError, ZeroDivisionError, MemoryError)


def _open(data: bytes, size: int):
    import warnings

    from PIL import Image

    if len(data) > MAX_BYTES:
        raise TonyError(
            f"the picture has {len(data) / 1e6:.1f} MB; at most {MAX_BYTES // 1_000_000} MB are taken: shrink it first"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is lower than Pillow's
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TonyError(f"the picture is too large ({error}); shrink it first") from None
    _refuse_huge(picture)
    picture.draft("RGB", (8 * size, 8 * size))  # lets JPEG decode at a fraction of its size
    picture.load()
    return picture


def _on_white(picture):
    """RGB, 16-bit greys brought to 8 (Pillow would cut them off at 255), transparent parts white."""
    from PIL import Image

    if picture.mode.startswith("I") or picture.mode == "F":
        levels = np.asarray(picture, np.float64)
        picture = Image.fromarray(np.uint8(np.clip(levels / (257 if levels.max() > 255 else 1), 0, 255)))
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return white.convert("RGB")


def _refuse_huge(picture) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise TonyError(
            f"the picture has {picture.width}x{picture.height} pixels; at most {MAX_PIXELS // 1_000_000} million are "
            f"taken: shrink it first"
        )
