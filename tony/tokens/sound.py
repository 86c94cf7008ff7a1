"""Any sound as the samples that the audio codec takes: float32, one channel, 16 kHz."""

import io

import numpy as np

from tony.errors import TonyError
from tony.tokens.codec import SAMPLE_RATE

MAX_BYTES = 50_000_000
MAX_SECONDS = 600


def to_samples(sound: bytes | np.ndarray, rate: int | None = None, longest: float = MAX_SECONDS) -> np.ndarray:
    """float32 [n] in [-1, 1] at 16 kHz of a file's bytes, or of samples [n] or [n, channels] at a rate.

    Channels are averaged; integer samples are scaled by their type's range. TonyError if it is broken, empty,
    longer than `longest` seconds or larger than 50 MB.
    """
    if isinstance(sound, bytes | bytearray | memoryview):
        samples, rate = _read(bytes(sound), longest)
    else:
        samples = np.asarray(sound)
        if rate is None or rate < 1:
            raise TonyError(f"sound of rate {rate} was given; samples need their rate in Hz")
    if samples.ndim in (1, 2) and not samples.size:
        raise TonyError("the sound is empty; expected at least one sample")
    if samples.ndim not in (1, 2):
        raise TonyError(f"sound of shape {samples.shape} was given; expected samples [n] or [n, channels]")
    _refuse_longer(len(samples), rate, longest)
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


def _refuse_longer(frames: int, rate: int, longest: float) -> None:
    if frames > longest * rate:
        raise TonyError(f"the sound lasts {frames / rate:.1f} s; at most {longest:g} s are taken: cut it")


def _read(data: bytes, longest: float) -> tuple[np.ndarray, int]:
    import soundfile

    if len(data) > MAX_BYTES:
        raise TonyError(f"the sound has {len(data) / 1e6:.0f} MB; at most {MAX_BYTES // 1_000_000} MB are taken")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            # Reads one sample more than may be, so that a small file of hours is refused without being decoded whole.
            samples = file.read(int(longest * file.samplerate) + 1, dtype="float32")
            if len(samples) > longest * file.samplerate:
                _refuse_longer(max(len(samples), file.frames), file.samplerate, longest)
            return samples, file.samplerate
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        reason = getattr(error, "error_string", error)  # without the name of the file, which has none
        raise TonyError(f"the sound can't be read ({reason}); send WAV, FLAC, MP3 or Ogg") from None
