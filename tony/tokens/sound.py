"""Any sound as the samples that the audio codec takes: float32, one channel, 16 kHz."""

import io

import numpy as np

from tony.errors import TonyError
from tony.tokens.codec import SAMPLE_RATE

MAX_BYTES = 50_000_000
MAX_SECONDS = 600


def to_samples(sound: bytes | np.ndarray, rate: int | None = None) -> np.ndarray:
    """float32 [n] in [-1, 1] at 16 kHz of a file's bytes, or of samples [n] or [n, channels] at a rate.

    Channels are averaged; integer samples are scaled by their type's range. TonyError if it is broken, empty,
    longer than ten minutes or larger than 50 MB.
    """
    if isinstance(sound, bytes | bytearray | memoryview):
        samples, rate = _read(bytes(sound))
    else:
        samples = np.asarray(sound)
        if rate is None or rate < 1:
            raise TonyError(f"sound of rate {rate} was given; samples need their rate in Hz")
    if samples.ndim not in (1, 2) or not samples.size:
        raise TonyError(f"sound of shape {samples.shape} was given; expected samples [n] or [n, channels]")
    if len(samples) > MAX_SECONDS * rate:
        raise TonyError(f"the sound is {len(samples) / rate:.0f} s long; at most {MAX_SECONDS} s are taken: cut it up")
    if np.issubdtype(samples.dtype, np.integer):
        samples = samples / -float(np.iinfo(samples.dtype).min or -1)
    samples = np.asarray(samples, np.float32)
    if samples.ndim == 2:
        samples = samples.mean(axis=1)
    if not np.isfinite(samples).all():
        raise TonyError("the sound holds samples that are no numbers; send it again or repair the file")
    if rate != SAMPLE_RATE:
        import soxr

        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return np.clip(samples, -1, 1).astype(np.float32)


def _read(data: bytes) -> tuple[np.ndarray, int]:
    import soundfile

    if len(data) > MAX_BYTES:
        raise TonyError(f"the sound has {len(data) / 1e6:.0f} MB; at most {MAX_BYTES // 1_000_000} MB are taken")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            # Reads one sample more than may be, so that a small file of hours is refused without being decoded whole.
            return file.read(MAX_SECONDS * file.samplerate + 1, dtype="float32"), file.samplerate
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        raise TonyError(f"the sound can't be read ({error}); send WAV, FLAC, MP3 or Ogg") from None
