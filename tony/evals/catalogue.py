"""What each result is called, which way it goes through the model, and what it has to reach."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """`given` and `made` are modalities of the any-to-any table; "" for the codecs, which are no way through it."""

    title: str
    what: str
    given: str = ""
    made: str = ""
    unit: str = "share right"


MEASURES = {
    "text_arithmetic": Measure("Sums", "exact answers, reasoning written out", "text", "text"),
    "image_digits": Measure("Handwritten digits", "unseen people's handwriting", "picture", "text"),
    "image_caption": Measure("Captions", "unseen scenes, the whole caption exact", "picture", "text"),
    "video_motion": Measure("Motion", "what moved, which way, how often", "video", "text"),
    "speech_wer": Measure("Transcription", "unseen sentences and voices", "speech", "text", "word error rate"),
    "tts_wer": Measure("Speaking", "unseen sentences, heard by a recogniser", "text", "speech", "word error rate"),
    "tts_source_wer": Measure("Speaking: the source", "the recogniser's error on the source recordings",
                              unit="word error rate"),
    "image_generation": Measure("Drawing", "digits and scenes, judged by classifiers", "text", "picture"),
    "speech_image_speech": Measure("Spoken questions", "asked aloud about a picture, answered aloud",
                                   "speech + picture", "speech"),
    "codec_stoi": Measure("Speech codec, STOI", "intelligibility after coding", unit="0 to 1"),
    "codec_pesq": Measure("Speech codec, PESQ", "quality after coding, wide band", unit="1 to 4.64"),
    "codec_psnr": Measure("Picture codec, PSNR", "fidelity after coding", unit="dB"),
    "codec_ssim": Measure("Picture codec, SSIM", "structure after coding", unit="up to 1"),
    "codec_usage": Measure("Codes in use", "share of the codebook that held-out data uses", unit="share"),
}  # fmt: skip

TARGETS = {
    "demo": {"image_digits": 0.80, "image_generation": 0.70},
    "laptop": {
        "text_arithmetic": 0.95, "image_digits": 0.95, "image_caption": 0.85, "speech_wer": 0.10,
        "image_generation": 0.90, "video_motion": 0.85, "speech_image_speech": 0.75, "codec_stoi": 0.85,
        "codec_usage": 0.5,
    },
}  # fmt: skip
TTS_MARGIN = 0.10  # how much worse than its source recordings the laptop model's speech may be understood


def target(recipe: str, name: str, values: dict[str, float]) -> float | None:
    """What a result must reach under a recipe; None where the recipe only asks to report it."""
    if recipe == "laptop" and name == "tts_wer" and "tts_source_wer" in values:
        return values["tts_source_wer"] + TTS_MARGIN
    return TARGETS.get(recipe, {}).get(name)


def reached(result: dict, goal: float) -> bool:
    """On the right side of the target, or exactly on it."""
    return result["value"] >= goal if result["higher_is_better"] else result["value"] <= goal
