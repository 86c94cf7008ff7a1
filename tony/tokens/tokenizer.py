"""The omni tokenizer: one vocabulary, the text tokenizer and the codecs; and conversations as weighted examples.

Its folder: `vocabulary.json`, `text/tokenizer.json`, and a folder for each codec whose config.json names its `kind`.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np

from tony.errors import TonyError
from tony.tokens.chat import Message, spans
from tony.tokens.codec import SAMPLE_RATE, TOKENS_PER_SECOND, AudioCodec, ImageCodec
from tony.tokens.grammar import Grammar
from tony.tokens.text import TextTokenizer
from tony.tokens.vocabulary import OUTPUTS, ROLES, Vocabulary

# ------------------------------------------------------------------------------------------------ codecs

_CODECS = {"vit-fsq": "tony.tokens.image:PictureCodec", "speech-fsq": "tony.tokens.audio:SpeechCodec"}
PLUGINS = "tony.codecs"  # the entry-point group in which other packages offer codecs


def register_codec(kind: str, target: str) -> None:
    """Make codecs of a kind loadable: target is "module:Class", and Class.load(directory) returns one."""
    _CODECS[kind] = target


def load_codec(directory: Path) -> ImageCodec | AudioCodec:
    """The codec in a folder, by the kind in its config.json; its module is only imported now."""
    path = Path(directory) / "config.json"
    try:
        kind = json.loads(path.read_text())["kind"]
    except FileNotFoundError:
        raise TonyError(f"{path} is missing; a codec's folder needs it: copy the whole tokenizer folder") from None
    except (ValueError, KeyError, TypeError) as error:
        raise TonyError(f"{path} is damaged ({error!r}); copy the tokenizer folder again") from None
    offered = {} if kind in _CODECS else {point.name: point.value for point in entry_points(group=PLUGINS)}
    target = _CODECS.get(kind) or offered.get(kind)
    if target is None:
        known = ", ".join(sorted(_CODECS))
        raise TonyError(f"{path} is of a codec of kind {kind!r}; known are {known}: install the package that brings it")
    module, _, name = target.partition(":")
    return getattr(import_module(module), name).load(Path(directory))


def codebook_size(recipe: Any, name: str) -> int:
    """How many codes a recipe's "image_codec" or "audio_codec" will have."""
    section = getattr(recipe, name)
    return trained_codec(recipe, name).codebook_size if section.trained else math.prod(section.levels)


def trained_codec(recipe: Any, name: str) -> ImageCodec | AudioCodec:
    """The codec that a recipe names as `image_codec.trained` or `audio_codec.trained`; TonyError if it is another's."""
    folder = getattr(recipe, name).trained
    codec = load_codec(Path(folder))
    rates = [getattr(codec, rate, None) for rate in ("sample_rate", "tokens_per_second")]
    given = _described(*rates)
    expected = _described(SAMPLE_RATE, TOKENS_PER_SECOND) if name == "audio_codec" else _described(None, None)
    if given != expected:
        raise TonyError(f"{name}.trained = {folder!r} is {given}; expected {expected}")
    return codec


def _described(sample_rate: int | None, tokens_per_second: int | None) -> str:
    """The kind of a codec that has these rates; a picture codec has none."""
    if sample_rate is None and tokens_per_second is None:
        return "a picture codec"
    return f"a sound codec of {sample_rate} samples and {tokens_per_second} codes a second"


# --------------------------------------------------------------------------------------------- tokenizer


class Tokenizer:
    """Everything that turns text, pictures and sound into tokens and back."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        text: TextTokenizer,
        image: ImageCodec | None = None,
        audio: AudioCodec | None = None,
    ):
        self.vocabulary, self.text = vocabulary, text
        self._directory: Path | None = None
        self._codecs = {"image": image, "audio": audio}
        _check_size("text", text.size, vocabulary)
        for name, codec in self._codecs.items():
            if codec is not None:
                _check_size(name, codec.codebook_size, vocabulary)

    @property
    def image(self) -> ImageCodec:
        """The picture codec, loaded when first asked for; TonyError if there is none."""
        return self._codec("image")

    @property
    def audio(self) -> AudioCodec:
        """The sound codec, loaded when first asked for; TonyError if there is none."""
        return self._codec("audio")

    def _codec(self, name: str):
        if self._codecs[name] is None:
            if self._directory is None or not (self._directory / name).is_dir():
                raise TonyError(f"this tokenizer has no {name} codec; train one or use a model that has one")
            codec = load_codec(self._directory / name)
            _check_size(name, codec.codebook_size, self.vocabulary)
            self._codecs[name] = codec
        return self._codecs[name]

    def grammar(self, voices: Sequence[int] | None = None) -> Grammar:
        """What a reply may be, in the registered voices."""
        return Grammar(self.vocabulary, voices)

    def document(self, text: str) -> list[int]:
        """The beginning of a stream that goes on as a text does."""
        return [
            self.vocabulary.special("bos"),
            *(self.vocabulary.text.start + token for token in self.text.encode(text)),
        ]

    def save(self, directory: Path) -> None:
        """Write the tokenizer's folder, vocabulary.json last, so that a half-written folder is not mistaken for one."""
        directory = Path(directory)
        self.text.save(directory / "text")
        for name in self._codecs:
            if self._codecs[name] is not None or (self._directory and (self._directory / name).is_dir()):
                self._codec(name).save(directory / name)
        self.vocabulary.save(directory / "vocabulary.json")

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Read what `save` wrote; the codecs wait until they are asked for. TonyError if a part is missing or wrong."""
        directory = Path(directory)
        tokenizer = cls(Vocabulary.load(directory / "vocabulary.json"), TextTokenizer.load(directory / "text"))
        tokenizer._directory = directory
        return tokenizer


def _check_size(name: str, size: int, vocabulary: Vocabulary) -> None:
    expected = getattr(vocabulary, f"{name}_size")
    if size != expected:
        raise TonyError(
            f"the {name} tokenizer has {size} tokens, the vocabulary {expected} for it; they are not of one model: "
            "copy or export the whole tokenizer folder"
        )


# ---------------------------------------------------------------------------------------------- examples

TARGETS = ("text", "audio", "image", "think")  # the numbers of `Example.modality`; control tokens count as text
WEIGHTS = {"text": 1.0, "think": 1.0, "audio": 1.0, "image": 1.0, "control": 1.0, "user": 0.0}


@dataclass(frozen=True, eq=False)
class Example:
    """A stream to learn from. Weight and modality are those of the token at their own place, as a target."""

    tokens: np.ndarray  # int32 [n]
    weights: np.ndarray  # float32 [n]
    modality: np.ndarray  # int8 [n]: 0 text and control, 1 audio, 2 image, 3 think


def example(
    messages: Iterable[Message],
    vocab: Vocabulary,
    text_tok: TextTokenizer,
    weights: Mapping[str, float] | None = None,
    modality: str | None = None,
) -> Example:
    """A conversation as an example; `modality` is what its last message is asked for.

    `weights` overrides entries of WEIGHTS: per kind for what the assistant produces, times "user" for what everybody
    else does. Tokens that are never sampled freely have weight 0: roles and requests, which the prompt holds, the
    voice, which the caller sets, and `<image_end>`, which the grammar forces.
    """
    unknown = sorted(set(weights or {}) - set(WEIGHTS))
    if unknown:
        raise TonyError(f"loss weight {unknown[0]!r} is unknown; expected some of {', '.join(WEIGHTS)}")
    scale = {**WEIGHTS, **(weights or {})}
    tokens, laid, kinds = [], [], []
    for span in spans(messages, vocab, text_tok, modality=modality):
        tokens += span.ids
        laid += [scale[span.kind] * (1.0 if span.role == "assistant" else scale["user"])] * len(span.ids)
        kinds += [TARGETS.index(span.kind) if span.kind in TARGETS else 0] * len(span.ids)
    ids = np.asarray(tokens, np.int32)
    given = ("bos", *ROLES, *(f"mod_{name}" for name in OUTPUTS), *(f"voice{i}" for i in range(vocab.voices)))
    free = ~np.isin(ids, [vocab.special(name) for name in (*given, "image_end")])
    return Example(ids, np.asarray(laid, np.float32) * free, np.asarray(kinds, np.int8))
