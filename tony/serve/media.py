"""Pictures and sounds as requests and answers carry them: base64, data URLs, file formats."""

import base64
import binascii
import io
from typing import Any

import numpy as np

from tony.errors import TonyError
from tony.generate.omni import LONGEST_SOUND
from tony.serve.errors import ApiError
from tony.tokens.codec import SAMPLE_RATE
from tony.tokens.sound import to_samples

MAX_SOUND_BYTES = 10_000_000
PCM_RATE = 24_000  # of raw PCM, as OpenAI's service sends it
MIME = {"wav": "audio/wav", "mp3": "audio/mpeg", "flac": "audio/flac", "opus": "audio/ogg", "pcm": "audio/pcm"}


def from_base64(text: str, param: str) -> bytes:
    """Bytes of base64 text; ApiError if it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, f"{param} is not base64", param) from None


def from_url(url: str, param: str) -> bytes:
    """Bytes of a data: URL. Other URLs are refused: the service fetches nothing from the network."""
    head, comma, body = url.partition(",")
    if not head.startswith("data:") or not comma:
        raise ApiError(400, f"{param} must be a data: URL with base64 content; this service fetches no other", param)
    return from_base64(body, param) if head.endswith(";base64") else body.encode()


def read_sound(data: bytes, param: str) -> np.ndarray:
    """float32 [n] at 16 kHz of a WAV, MP3, FLAC or Ogg file; ApiError if it can't be read or is too long."""
    if len(data) > MAX_SOUND_BYTES:
        raise ApiError(
            413, f"{param} has {len(data) / 1e6:.0f} MB; at most {MAX_SOUND_BYTES // 1_000_000} are taken", param
        )
    try:
        return to_samples(data, longest=LONGEST_SOUND)
    except TonyError as error:
        raise ApiError(400, f"{param}: {error}", param) from None


def write_sound(samples: np.ndarray, kind: str) -> bytes:
    """A sound file of 16 kHz samples; "pcm" and "pcm16" are raw s16le at 24 kHz."""
    import soundfile
    import soxr

    if kind in ("pcm", "pcm16"):
        return to_pcm(soxr.resample(samples, SAMPLE_RATE, PCM_RATE))
    formats: dict[str, dict[str, Any]] = {
        "wav": {"format": "WAV", "subtype": "PCM_16"},
        "flac": {"format": "FLAC", "subtype": "PCM_16"},
        "mp3": {"format": "MP3"},
        "opus": {"format": "OGG", "subtype": "OPUS"},
    }
    if kind not in formats:
        raise ApiError(
            400, f"sound format {kind!r} is not offered; choose from {', '.join([*formats, 'pcm'])}", "format"
        )
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), SAMPLE_RATE, **formats[kind])
    return buffer.getvalue()


def to_pcm(samples: np.ndarray) -> bytes:
    """float [-1, 1] -> s16le."""
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def write_picture(pixels: np.ndarray, side: int, kind: str = "png") -> bytes:
    """A picture file; scaled up to side x side with crisp pixels if it is smaller."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    if picture.width != side:
        picture = picture.resize((side, side), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}[kind])
    return buffer.getvalue()


def base64_of(data: bytes) -> str:
    """ASCII base64."""
    return base64.b64encode(data).decode()
