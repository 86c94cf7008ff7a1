"""Fakes: a run's folder as the stages leave it, and a model that answers what it is told to."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tony.evals.bench import flac, png
from tony.evals.suite import NAMES

HOSTILE = '<script>alert("x")</script> & "quotes"'


def picture(seed: int, size: int = 32) -> np.ndarray:
    """A coloured disc on a dark ground, uint8 [size, size, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centre, radius = rng.uniform(size * 0.3, size * 0.7, 2), rng.uniform(size * 0.15, size * 0.3)
    pixels = np.full((size, size, 3), 24, np.uint8)
    pixels[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = rng.integers(90, 255, 3)
    return pixels


def sound(seed: int, seconds: float = 0.8) -> np.ndarray:
    """A wobbling tone with a few syllables, 16 kHz float32."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16_000)) / 16_000
    loud = np.clip(np.sin(2 * np.pi * rng.uniform(2, 4) * t + rng.uniform(0, 6)), 0, 1) ** 0.6
    return (0.4 * loud * np.sin(2 * np.pi * rng.uniform(120, 220) * t)).astype(np.float32)


def make(directory: Path, rounds: int = 10) -> Path:
    """Fill `directory` with a whole fake run and return it."""
    run = _Maker(directory)
    run.json("manifest.json", {
        "recipe": {"name": "laptop", "seed": 0, "size": 6, "card": {"title": "Tony laptop", "authors": ["A. Builder"]}},
        "code_version": "0.1.0+abc123", "packages": {"jax": "0.10.2"},
        "stages": {name: {"seconds": seconds} for name, seconds in
                   (("text", 8), ("image_codec", 420), ("audio_codec", 1300), ("encode", 160), ("pretrain", 1900),
                    ("tune", 820), ("model", 6), ("eval", 260), ("card", 3))},
    })  # fmt: skip
    run.json("model/config.json", {"vocab_size": 6656, "layers": 6, "width": 384, "heads": 6, "activation": "swiglu",
                                   "norm": "rmsnorm"})  # fmt: skip
    header = json.dumps({"embedding": {"dtype": "F32", "shape": [6656, 384], "data_offsets": [0, 0]},
                         "layers": {"dtype": "F32", "shape": [6, 384, 4096], "data_offsets": [0, 0]}})  # fmt: skip
    run.bytes("model/model.safetensors", len(header).to_bytes(8, "little") + header.encode())
    run.json("model/tokenizer/vocabulary.json", {"text_size": 1024, "image_size": 1000, "audio_size": 4375})
    run.json("eval/context.json", {"notice": "# Notice\nMNIST: CC BY-SA 3.0\nFluent emoji: MIT", "rows": [
        {"kind": "handwritten digits", "split": "train", "use": "train", "count": 60000, "note": "other people"},
        {"kind": "speech", "split": "heard", "use": "test", "count": 160, "voices": 4, "sentences": 150,
         "note": "unseen sentences in unseen voices"}]})  # fmt: skip
    _curves(run)
    scores = dict(
        zip(
            NAMES, (0.97, 0.964, 0.88, 0.79, 0.083, 0.131, 0.011, 0.93, 0.78, 0.871, 2.1, 24.2, 0.87, 0.64), strict=True
        )
    )
    results = []
    for name in NAMES:
        less, top = name.endswith("wer"), {"codec_pesq": 4.64, "codec_psnr": 100.0}.get(name, 1.0)
        controls = {"positive": 0.0 if less else top, "negative": 1.02 if less else 0.1 * top}
        result = {"name": name, "value": scores[name], "stderr": 0.018, "n": 200, "higher_is_better": not less,
                  "controls": controls, "facts": {"digits": 0.95}, "notes": "Positive control: the references.",
                  "seconds": 12.0}  # fmt: skip
        results.append(result)
        run.jsonl(f"eval/{name}.jsonl", [_record(run, name, i) for i in range(2 if name == "codec_usage" else rounds)])
    run.json("summary.json", {
        "results": results, "skipped": [{"name": "codec_pesq_nb", "reason": HOSTILE}], "wall_seconds": 4870.0,
        "peak_memory_bytes": int(4.4 * 2**30), "model_fingerprint": "0123456789abcdef",
        "machine": {"processor": "AMD EPYC 9R14", "cores": 2}, "kwh": 0.0216, "energy": "measured",
        "energy_from": "RAPL package-0", "training_flops": 12_300_000_000_000_000,
    })  # fmt: skip
    return directory


class _Maker:
    def __init__(self, directory: Path):
        self.directory = directory

    def bytes(self, name: str, data: bytes) -> str:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return name

    def json(self, name: str, data: dict) -> str:
        return self.bytes(name, json.dumps(data).encode())

    def jsonl(self, name: str, rows: list[dict]) -> str:
        return self.bytes(name, "".join(json.dumps(row) + "\n" for row in rows).encode())

    def image(self, name: str, seed: int) -> dict:
        return {"kind": "image", "file": self.bytes(f"eval/media/{name}.png", png(picture(seed)))}

    def audio(self, name: str, seed: int, text: str | None = None) -> dict:
        part = {"kind": "audio", "file": self.bytes(f"eval/media/{name}.flac", flac(sound(seed)))}
        return {**part, "text": text} if text else part

    def video(self, name: str, seed: int) -> dict:
        files = [self.bytes(f"eval/media/{name}-{i}.png", png(np.roll(picture(seed), 4 * i, 1))) for i in range(4)]
        return {"kind": "video", "files": files, "times": [0, 2, 4, 6]}


def _curves(run: _Maker) -> None:
    rng = np.random.default_rng(0)

    def row(step: int, start: dict[str, float]) -> dict:
        fall = {name: 0.15 * top + top * math.exp(-step / 250) for name, top in start.items()}
        noisy = {name: value * (1 + 0.08 * rng.standard_normal()) for name, value in fall.items()}
        return {"step": step, "loss": sum(noisy.values()), "gradient_norm": 0.4, **noisy}

    for stage, start in (("image_codec", {}), ("pretrain", {"text": 6.0, "audio": 8.2, "image": 6.8}),
                         ("tune", {"text": 1.1, "audio": 3.9, "image": 3.0})):  # fmt: skip
        rows = [row(step, start or {"loss": 0.4}) for step in range(0, 1500, 5)]
        run.jsonl(f"{stage}/metrics.jsonl", rows)


def _record(run: _Maker, name: str, index: int) -> dict:
    correct = index % 3 != 2
    stem = f"{name}/{index:04d}"
    text = {"kind": "text", "text": "What digit is this?"}
    record = {"index": index, "correct": correct, "score": float(correct), "expected": "7"}
    if name == "text_arithmetic":
        return {**record, "prompt": [{"kind": "text", "text": f"What is 38 + 57? {HOSTILE}"}], "expected": "95",
                "answer": [{"kind": "text", "text": "95" if correct else "85"}],
                "thinking": "8+7=15, 5 carry 1; 3+5+1=9"}  # fmt: skip
    if name in ("image_digits", "image_caption"):
        said = "7" if name == "image_digits" else "a red circle left of a blue star"
        return {**record, "prompt": [run.image(stem, index), text], "answer": [{"kind": "text", "text": said}],
                "expected": said if correct else "a green cross above a pink square"}  # fmt: skip
    if name == "video_motion":
        moved = "a red circle moves left twice"
        return {**record, "prompt": [run.video(stem, index), {"kind": "text", "text": "What moves?"}],
                "answer": [{"kind": "text", "text": moved}], "expected": moved}  # fmt: skip
    words = {"errors": 0 if correct else 2, "words": 8}
    sentence = "my brother bought a small lamp at the market"
    if name == "speech_wer":
        return {**record, **words, "prompt": [run.audio(stem, index), {"kind": "text", "text": "Transcribe."}],
                "answer": [{"kind": "text", "text": sentence}], "expected": sentence}  # fmt: skip
    if name in ("tts_wer", "tts_source_wer"):
        return {**record, **words, "prompt": [{"kind": "text", "text": f"Say: {sentence}"}], "heard": sentence,
                "answer": [run.audio(stem, index, sentence)], "expected": sentence}  # fmt: skip
    if name == "image_generation":
        return {**record, "kind": "digit", "prompt": [{"kind": "text", "text": "Draw a seven, please."}],
                "answer": [run.image(stem, index)], "seen": "7" if correct else "1"}  # fmt: skip
    if name == "speech_image_speech":
        return {**record, "prompt": [run.audio(f"{stem}-q", index), run.image(stem, index)],
                "answer": [run.audio(stem, 50 + index, "the circle is red")], "expected": "the circle is red",
                "heard": "The circle is red."}  # fmt: skip
    if name == "codec_usage":
        codec, entries = (("image", 1000), ("audio", 4375))[index % 2]
        return {"index": index, "codec": codec, "entries": entries, "used": int(entries * 0.7), "tokens": 9000}
    make_part = run.audio if name in ("codec_stoi", "codec_pesq") else run.image
    groups = ("unseen voices", "assistant voices") if make_part == run.audio else ("digits", "scenes")
    return {"index": index, "group": groups[index % 2], "tokens": 64, "score": 0.86,
            "prompt": [make_part(f"{stem}-a", index)], "answer": [make_part(f"{stem}-b", index + 1)]}  # fmt: skip


# ------------------------------------------------------------------------------------------------- a model of fakes


class MemoryCodec:
    """Codes that stand for whole pieces it has seen; `damage` is added to what it gives back."""

    codebook_size = 50

    def __init__(self, damage: float = 0.0):
        self.pieces, self.damage = [], damage

    def _remember(self, piece: np.ndarray, tokens: int) -> np.ndarray:
        self.pieces.append(piece)
        return np.full(tokens, len(self.pieces) - 1, np.int32)


class PictureMemory(MemoryCodec):
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return np.stack([self._remember(picture, 16) for picture in pixels])

    def decode(self, codes: np.ndarray) -> np.ndarray:
        kept = [self.pieces[row[0]] for row in codes]
        noise = np.random.default_rng(0).uniform(-1, 1, kept[0].shape) * self.damage
        return np.stack([np.clip(picture + noise, 0, 255).astype(np.uint8) for picture in kept])


class SoundMemory(MemoryCodec):
    def encode(self, samples: np.ndarray) -> np.ndarray:
        return self._remember(samples, len(samples) // 640)

    def decode(self, codes: np.ndarray, voice: int) -> np.ndarray:
        kept = self.pieces[codes[0]]
        return kept + self.damage * np.random.default_rng(0).standard_normal(len(kept)).astype(np.float32)


class FakeOmni:
    """Answers with what `replies` holds, in the order it is asked."""

    def __init__(self, replies: list, damage: float = 0.0):
        self.replies, self.asked = list(replies), []
        self.tokenizer = SimpleNamespace(image=PictureMemory(60 * damage), audio=SoundMemory(0.05 * damage))

    def answer(self, conversations, modality=None, max_tokens=0, seed=0):
        start = len(self.asked)
        self.asked += [(conversation, modality) for conversation in conversations]
        return self.replies[start : start + len(conversations)]

    def say(self, texts, voices, seed=0):
        start = len(self.asked)
        self.asked += list(zip(texts, voices, strict=True))
        return self.replies[start : start + len(texts)]

    def pixels(self, part):
        return self.tokenizer.image.decode(np.array([part.codes]))[0]

    def samples(self, part):
        return self.tokenizer.audio.decode(np.array(part.codes), 0)
