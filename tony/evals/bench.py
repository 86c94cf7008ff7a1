"""The bench on which every evaluation runs: asks the model, keeps what went in and came out as files.

A record (one line of `eval/NAME.jsonl`) is what a reader needs to judge one sample with their own eyes and ears:

    {"index": 0, "prompt": [PART, ...], "answer": [PART, ...], "expected": "...", "score": 1.0, "correct": true,
     "thinking": "...", ...}           with PART one of
    {"kind": "text", "text": "..."}
    {"kind": "image", "file": "eval/media/image_digits/0000-prompt-0.png"}
    {"kind": "audio", "file": "....flac", "text": "..."}
    {"kind": "video", "files": ["....png", ...], "times": [0, 1, ...]}          times in quarters of a second

File names are relative to the run's folder.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tony.evals.judges.speech import SAMPLE_RATE, Recogniser, recogniser, to_pcm16
from tony.files import write_bytes

FRAME_TIME = 2  # quarters of a second between the frames of a raw video
CHUNK = 64  # conversations handed to the engine at a time, so that progress can be shown


@dataclass
class Bench:
    """What an evaluation may use.

    `items(task, n)` gives held-out items of a task of the world; `omni` answers them; `directory` is the run's folder.
    """

    omni: Any
    items: Callable[[str, int], list]
    directory: Path
    corpus: Any = None
    n: int = 100
    seed: int = 0
    advance: Callable[[int, int], None] = lambda done, total: None
    threads: int | None = None
    kept: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of `make()`, made once a run: what several evaluations measure need not be made for each."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    @cached_property
    def recogniser(self) -> Recogniser:
        """The independent recogniser, loaded when first needed and shared by the evaluations of a run."""
        return recogniser(self.threads)

    @cached_property
    def pictures_judge(self) -> Any:
        """The judge of drawings, trained when first needed and kept in the run's folder."""
        from tony.evals.judges.pictures import train_judge

        return train_judge(self.corpus, self.directory / "eval" / "judge")

    def ask(self, items: Sequence, modality: str | None, max_tokens: int) -> list:
        """The model's answer (a Message) to each item's prompt."""
        from tony.data.world.tasks import encode_items

        answers = []
        for start in range(0, len(items), CHUNK):
            asked = [replace(item, messages=tuple(item.prompt)) for item in items[start : start + CHUNK]]
            conversations = encode_items(asked, self.omni.tokenizer)
            answers += self.omni.answer(
                conversations,
                modality=modality,
                max_tokens=max_tokens,
                seed=self.seed + start,
            )
            self.advance(len(answers), len(items))
        return answers

    def say(self, items: Sequence) -> list:
        """Each item's expected answer, read aloud by the model in the item's voice (a Message)."""
        answers = []
        for start in range(0, len(items), CHUNK):
            group = items[start : start + CHUNK]
            texts, voices = [item.answer for item in group], [item.facts["voice"] for item in group]
            answers += self.omni.say(texts, voices, seed=self.seed + start)
            self.advance(len(answers), len(items))
        return answers

    def show(self, name: str, index: int, side: str, parts: Iterable) -> list[dict]:
        """The PARTs of a record; pictures and sounds are written below `eval/media/NAME`."""
        shown = []
        for position, part in enumerate(parts):
            stem = f"eval/media/{name}/{index:04d}-{side}-{position}"
            shown.append(self._show(stem, part))
        return shown

    def _show(self, stem: str, part: Any) -> dict:
        if isinstance(part, str):
            return {"kind": "text", "text": part}
        kind = kind_of(part)
        if kind == "text":
            return {"kind": "text", "text": part.text}
        if kind == "image":
            return {"kind": "image", "file": self._write(f"{stem}.png", png(pixels_of(self.omni, part)))}
        if kind == "audio":
            sound = {"kind": "audio", "file": self._write(f"{stem}.flac", flac(samples_of(self.omni, part)))}
            text = getattr(part, "text", None)
            return {**sound, "text": text} if text else sound
        if kind == "video":
            frames = frames_of(self.omni, part)
            files = [self._write(f"{stem}-{index}.png", png(frame)) for index, frame in enumerate(frames)]
            return {
                "kind": "video",
                "files": files,
                "times": list(getattr(part, "times", range(0, FRAME_TIME * len(files), FRAME_TIME))),
            }
        return {"kind": "text", "text": str(part)}

    def _write(self, name: str, data: bytes) -> str:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data, durable=False)
        return name


# -------------------------------------------------------------------------- parts: raw (in items) or coded (in answers)


def kind_of(part: Any) -> str:
    """Which PART shows it: "text", "image", "audio", "video" or "other"."""
    if isinstance(part, np.ndarray):
        return "image" if part.ndim == 3 else "audio"
    for field_name, kind in (("frames", "video"), ("samples", "audio"), ("pixels", "image")):
        if hasattr(part, field_name):
            return kind
    return {"Text": "text", "Image": "image", "Audio": "audio", "Speech": "audio"}.get(type(part).__name__, "other")


def pixels_of(omni: Any, part: Any) -> np.ndarray:
    """uint8 [height, width, 3] of a raw or coded picture."""
    if isinstance(part, np.ndarray):
        return part
    return part.pixels if hasattr(part, "pixels") else np.asarray(omni.pixels(part))


def samples_of(omni: Any, part: Any) -> np.ndarray:
    """16 kHz float32 of a raw or coded sound."""
    if isinstance(part, np.ndarray):
        return part
    return part.samples if hasattr(part, "samples") else np.asarray(omni.samples(part))


def frames_of(omni: Any, part: Any) -> np.ndarray:
    """uint8 [frames, height, width, 3] of a raw or coded video."""
    frames = np.asarray(part.frames)
    return frames if frames.ndim == 4 else np.asarray(omni.tokenizer.image.decode(frames.astype(np.int32)))


def prompt_parts(item: Any) -> list:
    """All parts of an item's prompt, in order."""
    return [part for message in item.prompt for part in message.content]


def text_of(message: Any) -> str:
    """The words of an answer: its text, without the thinking."""
    return " ".join(part.text for part in message.content if type(part).__name__ == "Text").strip()


def sounds_of(omni: Any, message: Any) -> list[np.ndarray]:
    """The sounds of an answer, as 16 kHz float32."""
    return [samples_of(omni, part) for part in message.content if kind_of(part) == "audio"]


def spoken(omni: Any, message: Any) -> np.ndarray:
    """All that an answer says aloud, as one sound; empty if it is silent."""
    sounds = sounds_of(omni, message)
    return np.concatenate(sounds).astype(np.float32) if sounds else np.zeros(0, np.float32)


# ------------------------------------------------------------------------------------------------------------- files


def png(pixels: np.ndarray) -> bytes:
    """uint8 [height, width, 3] -> PNG file."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).save(data, format="PNG")
    return data.getvalue()


def flac(samples: np.ndarray) -> bytes:
    """16 kHz float32 -> FLAC file, which every current browser plays."""
    import soundfile

    data = io.BytesIO()
    soundfile.write(data, to_pcm16(samples), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return data.getvalue()


# ----------------------------------------------------------------------------------------------------------- grading


def same_text(expected: str, got: str) -> bool:
    """Equal but for case, spacing and a final mark."""
    return _plain(expected) == _plain(got)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".!? ")


def same_number(expected: str, got: str) -> bool:
    """The last number written in the answer is the expected one; text around it does not matter."""
    wanted, given = _last_number(expected), _last_number(got)
    return wanted == given if wanted is not None else same_text(expected, got)


def _last_number(text: str) -> int | None:
    found = re.findall(r"-?\d+", text.replace("−", "-"))
    return int(found[-1]) if found else None
