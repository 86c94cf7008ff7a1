"""The corpus that ships with Tony: handwritten digits, named pictures, synthetic and human speech with its words.

A corpus is a folder. `manifest.json` has the size and SHA-256 of every file, checked when the file is first read:

    digits-train.xz, digits-test.xz   LZMA of [n, 28, 28] bytes of images, then n bytes of labels
    dialogues.xz                      LZMA of one line for each conversation: split, turns
    emoji.bin, speech.bin, human.bin  pictures (WebP, 64x64) or sounds (Ogg/Opus, 16 kHz), one after another
    emoji.jsonl.xz, ...               LZMA of one line of facts for each: split, name or text, place in the .bin

`scripts/build_corpus.py` makes it; `NOTICE.md` beside the files says where everything comes from and on which terms.
Splits never share a writer (digits), a subject whoever shows it (emoji), a sentence or a held-out voice (speech).
"""

import hashlib
import io
import json
import lzma
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from tony.errors import TonyError

SAMPLE_RATE = 16_000
PAUSES = ".?!,"  # among phonemes
ONSET = 1  # the 10 ms frame at which the first phoneme of synthetic speech begins
DIGIT_SPLITS = EMOJI_SPLITS = ("train", "test")
SPEECH_SPLITS = ("train", "heard", "asked", "spoken", "human_train", "human_test")


@dataclass(frozen=True)
class Utterance:
    """One recording: words as written in the corpus, phonemes and the 10 ms frame at which each of them ends (none for
    human recordings), and where its bytes are. The first phoneme begins at frame ONSET."""

    id: str
    text: str
    phonemes: str
    voice: str
    kind: str
    split: str
    offset: int
    length: int
    ends: tuple[int, ...] = ()

    @property
    def word_ends(self) -> tuple[int, ...]:
        """The 10 ms frame at which each word ends; () if nobody labelled the utterance."""
        if not self.ends:
            return ()
        spelled = self.phonemes.rstrip(PAUSES)
        return tuple(self.ends[at - 1] for at, symbol in enumerate(spelled + " ") if symbol == " ")


class Corpus:
    """Read access to a corpus folder; everything is decoded on demand."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._checked: dict[str, bytes] = {}
        self._read: dict[str, list[dict]] = {}
        self._sounds: dict[tuple[str, int], np.ndarray] = {}  # int16: two bytes a sample, 2 MB a minute

    @classmethod
    def named(cls, name: str) -> "Corpus":
        """The corpus that a recipe's `data.corpus` names: "builtin", or a folder."""
        return cls.builtin() if name == "builtin" else cls(name)

    @classmethod
    def builtin(cls) -> "Corpus":
        """The corpus that ships with the package."""
        return cls(Path(__file__).parent / "corpus")

    @cached_property
    def manifest(self) -> dict:
        """What the folder must hold: `{"version": int, "files": {name: {"bytes": int, "sha256": str}}}`."""
        path = self.path / "manifest.json"
        if not path.is_file():
            raise TonyError(
                f"no corpus in {self.path}: manifest.json is missing; give a folder made by scripts/build_corpus.py, "
                f"or install Tony again to get the one that ships with it"
            )
        try:
            return {"files": dict(json.loads(path.read_text())["files"])}
        except (ValueError, KeyError, TypeError) as error:
            raise TonyError(f"{path} is damaged ({error}); install Tony again, or build the corpus again") from None

    @property
    def fingerprint(self) -> str:
        """Hash of the whole corpus, for the data hashes of a run's manifest."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    def digits(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Handwritten digits, white on black: (uint8 [n, 32, 32, 3], labels int64 [n]).

        "train" and "test" are MNIST's own, written by different people (LeCun et al. 1998, section III.A).
        """
        _choose(split, DIGIT_SPLITS, "digits")
        name = f"digits-{split}.xz"
        data = np.frombuffer(self._unpacked(name), np.uint8)
        count = len(data) // (28 * 28 + 1)
        images = data[: count * 28 * 28].reshape(count, 28, 28)
        padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
        return np.repeat(padded[..., None], 3, axis=3), data[count * 28 * 28 :].astype(np.int64)

    def emoji(self, split: str) -> list[tuple[str, np.ndarray]]:
        """Named pictures on white: (name, uint8 [64, 64, 3])."""
        from PIL import Image

        _choose(split, EMOJI_SPLITS, "emoji")
        data = self._file("emoji.bin")
        pictures = []
        for line in self._lines("emoji"):
            if line["split"] == split:
                with Image.open(io.BytesIO(data[line["offset"] : line["offset"] + line["length"]])) as picture:
                    pictures.append((line["name"], np.asarray(picture.convert("RGB"))))
        return pictures

    def speech(self, split: str) -> list[Utterance]:
        """Utterances of a split; `samples` decodes their sound.

        "train"; "heard" and "asked": unseen sentences in unseen voices, statements with questions and questions about
        pictures; "spoken": unseen sentences in the assistant's own voices; "human_train", "human_test": one woman's
        telephone prompts, recorded.
        """
        _choose(split, SPEECH_SPLITS, "speech")
        name = "human" if split.startswith("human") else "speech"
        fields = Utterance.__dataclass_fields__
        lines = [line for line in self._lines(name) if line["split"] == split]
        return [
            Utterance(**{key: line[key] for key in fields if key in line} | {"ends": tuple(line.get("ends", ()))})
            for line in lines
        ]

    def samples(self, utterance: Utterance) -> np.ndarray:
        """The sound of an utterance: float32 [n] in [-1, 1] at 16 kHz."""
        where = ("human.bin" if utterance.split.startswith("human") else "speech.bin", utterance.offset)
        if where not in self._sounds:  # decoding takes as long as all else that is done with a sound
            self._sounds[where] = self._decoded(*where, utterance.length)
        return self._sounds[where].astype(np.float32) / 32768

    def _decoded(self, name: str, offset: int, length: int) -> np.ndarray:
        import soundfile

        return soundfile.read(io.BytesIO(self._file(name)[offset : offset + length]), dtype="int16")[0]

    def dialogues(self, split: str) -> list[list[str]]:
        """Small talk between two people: the turns of each conversation, in order."""
        _choose(split, DIGIT_SPLITS, "dialogues")
        lines = self._unpacked("dialogues.xz").decode().splitlines()
        return [line["turns"] for line in map(json.loads, lines) if line["split"] == split]

    def check(self) -> None:
        """Check every file against its SHA-256; raises TonyError for the first that is missing or damaged."""
        for name in self.manifest["files"]:
            self._file(name)

    def _lines(self, name: str) -> list[dict]:
        if name not in self._read:  # every split is in one file
            try:
                self._read[name] = [json.loads(line) for line in self._unpacked(f"{name}.jsonl.xz").splitlines()]
            except ValueError as error:
                raise self._damaged(f"{name}.jsonl.xz") from error
        return self._read[name]

    def _unpacked(self, name: str) -> bytes:
        try:
            return lzma.decompress(self._file(name))
        except lzma.LZMAError:
            raise self._damaged(name) from None

    def _file(self, name: str) -> bytes:
        if name not in self._checked:
            expected = self.manifest["files"].get(name)
            if expected is None:
                raise TonyError(f"the corpus in {self.path} has no {name}; choose one that has it, or build it again")
            try:
                data = (self.path / name).read_bytes()
            except OSError:
                raise TonyError(
                    f"the corpus in {self.path} lacks {name}, which its manifest lists; "
                    f"install Tony again, or build the corpus again"
                ) from None
            if hashlib.sha256(data).hexdigest() != expected["sha256"]:
                raise self._damaged(name)
            self._checked[name] = data
        return self._checked[name]

    def _damaged(self, name: str) -> TonyError:
        return TonyError(
            f"{self.path / name} is damaged: its SHA-256 is not the one in manifest.json; "
            f"install Tony again, or build the corpus again"
        )


def _choose(split: str, splits: tuple[str, ...], what: str) -> None:
    if split not in splits:
        raise TonyError(f"{what} have no split {split!r}; choose one of {', '.join(splits)}")
