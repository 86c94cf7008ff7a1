"""What an assistant's reply may be, as a table automaton that sampling is constrained by.

    reply = [<think> text <think_end>] part* <end>      part = text | image | speech | tool call, as in `chat.py`

The state remembers which modalities the request allows, the picture size it asked for, and the one voice it may speak
with: no other voice, no bare `<audio>`, no unfinished picture and no modality that was not asked for has a path. A
reply with text may be empty; one without holds at least one part, and a picture on its own is exactly one picture.

The tables index by state and token class, so a compiled sampler needs two gathers:
`mask = allowed[state][class_of]`, `state = next_state[state, class_of[token]]`.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from tony.errors import TonyError
from tony.tokens.vocabulary import IMAGE_TOKENS, Vocabulary

MODALITIES = ("think", "text", "audio", "image", "tools")
DONE = 0  # the state after `<end>`: it allows nothing but `<end>` again, so that a sampler always has a choice
NEVER = 0  # the class of tokens that no state allows: padding, roles, reserved and unregistered ones


class _Options(NamedTuple):
    """What a request allows; part of every state of its replies."""

    text: bool
    tools: bool
    images: tuple[str, ...]  # headers
    voice: int | None

    @property
    def one_picture(self) -> bool:
        return bool(self.images) and not self.text and not self.tools and self.voice is None


class Grammar:
    """The automaton over a vocabulary and the registered voices.

    class_of: int32 [padded vocabulary]; next_state: int32 [states, classes]; allowed: bool [states, classes].
    """

    def __init__(self, vocab: Vocabulary, voices: Sequence[int] | None = None):
        self.vocab = vocab
        self.voices = tuple(range(vocab.voices)) if voices is None else tuple(voices)
        self._classes = {
            name: index
            for index, name in enumerate(
                (
                    *("think", "think_end", *IMAGE_TOKENS, "image_end", "speech", "audio", "audio_end", "call", "args"),
                    *("next", "end", *(f"voice{voice}" for voice in self.voices), "TEXT", "IMAGE", "AUDIO"),
                ),
                start=NEVER + 1,
            )
        }
        self.class_of = self._class_table()
        self._index, edges = _explore(self.voices)
        shape = (len(edges), len(self._classes) + 1)
        self.next_state = np.zeros(shape, np.int32)
        self.allowed = np.zeros(shape, bool)
        for state, leaving in enumerate(edges):
            for name, target in leaving.items():
                self.allowed[state, self._classes[name]] = True
                self.next_state[state, self._classes[name]] = target

    def _class_table(self) -> np.ndarray:
        table = np.full(self.vocab.padded_size, NEVER, np.int32)
        for name, index in self._classes.items():
            if name.isupper():
                ids = getattr(self.vocab, name.lower())
                table[ids.start : ids.stop] = index
            else:
                table[self.vocab.special(name)] = index
        return table

    def start_state(self, modalities: Iterable[str], voice: int | None = None, image_size: int | None = None) -> int:
        """The state of an opened reply that may hold these modalities (of MODALITIES).

        `voice` is the registered voice of speech (else the first one), `image_size` the side of pictures, 32 or 64
        (else either).
        """
        asked = set(modalities)
        unknown = sorted(asked - set(MODALITIES))
        if unknown or not asked - {"think"}:
            raise TonyError(
                f"a reply of {', '.join(unknown or sorted(asked)) or 'nothing'} can't be asked for; expected one or "
                f"more of {', '.join(MODALITIES[1:])}, and think if it may think first"
            )
        if "audio" in asked and voice is not None and voice not in self.voices:
            known = ", ".join(map(str, self.voices))
            raise TonyError(f"voice {voice} is not registered; expected one of {known}")
        if "image" in asked and image_size not in (None, 32, 64):
            raise TonyError(f"pictures of size {image_size} can't be asked for; expected 32 or 64")
        images = tuple(IMAGE_TOKENS) if image_size is None else (f"image{image_size}",)
        options = _Options(
            "text" in asked,
            "tools" in asked,
            images if "image" in asked else (),
            (self.voices[0] if voice is None else voice) if "audio" in asked else None,
        )
        return self._index[("think" if "think" in asked else "start", options)]

    def advance(self, state: int, token: int) -> int:
        """The state after a token; TonyError if the state doesn't allow it."""
        kind = self.class_of[token]
        if not self.allowed[state, kind]:
            raise TonyError(f"token {self.vocab.name(int(token))} is not allowed here; the reply's grammar forbids it")
        return int(self.next_state[state, kind])

    def accepts(self, tokens: Iterable[int], state: int) -> bool:
        """Whether these tokens are a whole reply, up to and with `<end>`, from a start state."""
        for token in tokens:
            kind = self.class_of[token]
            if state == DONE or not self.allowed[state, kind]:
                return False
            state = self.next_state[state, kind]
        return state == DONE

    def within(self, *places: str) -> np.ndarray:
        """Which states lie in these places of a reply ("thinking", "image", ...: see `_edges`), bool [states]."""
        inside = np.zeros(len(self.next_state), bool)
        inside[[state for (place, *_), state in self._index.items() if place in places]] = True
        return inside

    def mask(self, state: int) -> np.ndarray:
        """Which tokens a state allows, bool [padded vocabulary]; don't write to it."""
        return self.masks[self.mask_of[state]]

    @cached_property
    def _distinct(self) -> tuple[np.ndarray, np.ndarray]:
        return np.unique(self.allowed, axis=0, return_inverse=True)

    @property
    def mask_of(self) -> np.ndarray:
        """The row of `masks` of each state, int [states]: most states share theirs."""
        return self._distinct[1].reshape(-1)

    @cached_property
    def masks(self) -> np.ndarray:
        """The different masks over the vocabulary, bool [masks, padded vocabulary]."""
        return self._distinct[0][:, self.class_of]


def _explore(voices: Sequence[int]) -> tuple[dict[tuple, int], list[dict[str, int]]]:
    """Number all states that any request can reach, and list the edges that leave each: class name -> state."""
    headers = tuple(IMAGE_TOKENS)
    options = [
        _Options(text, tools, images, voice)
        for text in (False, True)
        for tools in (False, True)
        for images in ((), headers[:1], headers[1:], headers)
        for voice in (None, *voices)
        if text or tools or images or voice is not None
    ]
    index: dict[tuple, int] = {("done",): DONE}
    waiting = [("think", option) for option in options] + [("start", option) for option in options]
    for state in waiting:
        index[state] = len(index)
    edges: list[dict[str, int]] = [{"end": DONE}]
    for state in waiting:  # grows while it is walked
        leaving = {}
        for name, target in _edges(*state):
            if target not in index:
                index[target] = len(index)
                waiting.append(target)
            leaving[name] = index[target]
        edges.append(leaving)
    return index, edges


def _edges(place: str, options: _Options, left: int = 0) -> Iterator[tuple[str, tuple]]:
    """(class, state) of each way on from a place in a reply; `left` counts the codes a picture still lacks."""
    match place:
        case "think":  # opened; may think
            yield "think", ("thinking", options)
            yield from _edges("start", options)
        case "thinking":
            yield "TEXT", ("thinking", options)
            yield "think_end", ("start", options)
        case "start":  # no part yet
            yield from _parts(options)
            if options.text:
                yield "end", ("done",)
        case "between":  # after a part that closed itself
            yield "end", ("done",)
            if not options.one_picture:
                yield from _parts(options)
        case "text":  # within text, or a call's arguments, which go on until something else begins
            yield "end", ("done",)
            yield from _parts(options)
            yield "TEXT", ("text", options)
        case "image" if left:
            yield "IMAGE", ("image", options, left - 1)
        case "image":
            yield "image_end", ("between", options)
        case "voice":
            yield f"voice{options.voice}", ("said", options)
        case "said":
            yield "TEXT", ("said", options)
            yield "audio", ("silent", options)
        case "silent":  # a sound has at least one code
            yield "AUDIO", ("sound", options)
        case "sound":
            yield "AUDIO", ("sound", options)
            yield "TEXT", ("more", options)
            yield "audio_end", ("between", options)
        case "more":  # words that go on after some of the sound
            yield "TEXT", ("more", options)
            yield "AUDIO", ("sound", options)
        case "call":
            yield "TEXT", ("name", options)
        case "name":
            yield "TEXT", ("name", options)
            yield "args", ("text", options)


def _parts(options: _Options) -> Iterator[tuple[str, tuple]]:
    if options.text:
        yield "TEXT", ("text", options)
        yield "next", ("text", options)
    if options.tools:
        yield "call", ("call", options)
    for header in options.images:
        yield header, ("image", options, IMAGE_TOKENS[header])
    if options.voice is not None:
        yield "speech", ("voice", options)
