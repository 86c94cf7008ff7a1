"""Conversations <-> one stream of tokens, exactly.

    <bos> (<role> [<mod_...>] [<think> text <think_end>] part* <end>)*

    text    raw text tokens; `<next>` before them if they would otherwise join the text before, or if there are none
    image   <image32> 16 codes <image_end>  or  <image64> 64 codes <image_end>
    audio   <audio> codes <audio_end>
    speech  <speech> <voiceK> text <audio> codes (text codes)* <audio_end>   (each word runs ahead of its sound)
    video   <video> (<frame> <tK> 16 codes)+ <video_end>
    tools   <call> name <args> arguments        <result> name <args> what it returned

`<mod_text>`, `<mod_audio>` and `<mod_image>` ask the assistant for an output modality. Text can't spell any of these
tokens: the text tokeniser has none of them.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from tony.errors import TonyError
from tony.tokens.text import TextTokenizer
from tony.tokens.vocabulary import FRAME_TOKENS, IMAGE_TOKENS, OUTPUTS, ROLES, TIMES, Vocabulary


@dataclass(frozen=True)
class Text:
    """Written text; two in a row stay two."""

    text: str


@dataclass(frozen=True)
class Image:
    """A picture: 16 codes (32x32) or 64 codes (64x64), row by row."""

    codes: tuple[int, ...]


@dataclass(frozen=True)
class Audio:
    """Sound, 25 codes a second; at least one."""

    codes: tuple[int, ...]


@dataclass(frozen=True)
class Speech:
    """Speech in a registered voice: what is said, and its sound.

    `runs` says how the two alternate, word by word as a rule: (characters, codes) of each piece of text and of the
    sound after it; () is all of the text before all of the sound.
    """

    text: str
    codes: tuple[int, ...]
    voice: int = 0
    runs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Video:
    """Frames of 16 codes each, and when each is seen, in quarter seconds, 0..31."""

    frames: tuple[tuple[int, ...], ...]
    times: tuple[int, ...]


@dataclass(frozen=True)
class ToolCall:
    """The assistant calls a tool; arguments are text, as a rule JSON."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolResult:
    """What a tool returned."""

    name: str
    result: str


Part = Text | Image | Audio | Speech | Video | ToolCall | ToolResult


@dataclass(frozen=True)
class Message:
    """What one role says: parts of any modality in any order; the assistant may think first."""

    role: str
    content: tuple[Part, ...]
    thinking: str | None = None


def words_of(text: str) -> list[str]:
    """The words of a text with the spaces before them; together they are the text, of which there is at least ""."""
    return re.findall(r"\s*\S+(?:\s+$)?", text) or [text]


def interleaved(text: str, word_ends: Sequence[int], count: int) -> tuple[tuple[int, int], ...]:
    """`Speech.runs` of a text whose words end at the given ones of its `count` codes; () if they are not as many.

    A word too short to have a code of its own goes with the next.
    """
    words = words_of(text)
    if len(word_ends) != len(words):
        return ()
    runs, characters, start = [], 0, 0
    for word, end in zip(words, word_ends, strict=True):
        characters += len(word)
        if start < end < count:
            runs.append((characters, end - start))
            characters, start = 0, end
    characters, codes = (characters, 0) if characters or not runs else runs.pop()
    runs.append((characters, codes + count - start))
    return tuple(runs) if len(runs) > 1 else ()


class Span(NamedTuple):
    """A run of tokens with one role ("" for `<bos>`) and one kind: control, text, think, image or audio."""

    ids: list[int]
    role: str
    kind: str


# ------------------------------------------------------------------------------------------- to tokens


def encode_messages(
    messages: Iterable[Message],
    vocab: Vocabulary,
    text_tok: TextTokenizer,
    open_reply: bool = False,
    modality: str | None = None,
) -> list[int]:
    """The stream of a conversation. With `open_reply` it ends where the assistant is to go on.

    `modality` ("text", "audio" or "image") asks for it: in the opened reply, or else in the last message.
    """
    return [token for span in spans(messages, vocab, text_tok, open_reply, modality) for token in span.ids]


def spans(
    messages: Iterable[Message],
    vocab: Vocabulary,
    text_tok: TextTokenizer,
    open_reply: bool = False,
    modality: str | None = None,
) -> list[Span]:
    """The same stream in runs of one role and kind, so that loss weights can be laid on it."""
    messages = list(messages)
    if modality is not None and modality not in OUTPUTS:
        raise TonyError(f"output modality {modality!r} is unknown; expected one of {', '.join(OUTPUTS)}, or None")
    if modality is not None and not open_reply and not (messages and messages[-1].role == "assistant"):
        raise TonyError("an output modality can only be asked of the assistant; end with its message or open its reply")
    out = [Span([vocab.special("bos")], "", "control")]
    for index, message in enumerate(messages):
        asked = None if open_reply or index < len(messages) - 1 else modality
        out += _Writer(message.role, vocab, text_tok).message(message, asked)
    if open_reply:
        out += _Writer("assistant", vocab, text_tok).opening(modality)
    return out


class _Writer:
    """Writes one message as spans."""

    def __init__(self, role: str, vocab: Vocabulary, text_tok: TextTokenizer):
        if role not in ROLES:
            raise TonyError(f"role {role!r} is unknown; expected one of {', '.join(ROLES)}")
        self.role, self.vocab, self.tok = role, vocab, text_tok

    def message(self, message: Message, modality: str | None) -> list[Span]:
        out = self.opening(modality)
        if message.thinking is not None:
            if self.role != "assistant":
                raise TonyError(f"a message of role {self.role} has thinking; only the assistant's may")
            thought = [self.special("think"), *self.text(message.thinking), self.special("think_end")]
            out.append(Span(thought, self.role, "think"))
        before = None
        for part in message.content:
            out += self.part(part, before)
            before = part
        return [*out, self.control("end")]

    def opening(self, modality: str | None) -> list[Span]:
        return [self.control(self.role), *([self.control(f"mod_{modality}")] if modality else [])]

    def part(self, part: Part, before: Part | None) -> list[Span]:
        match part:
            case Text(text):
                joins = not text or isinstance(before, Text | ToolCall | ToolResult)
                return [*([self.control("next")] if joins else []), self.words(text)]
            case Image(codes):
                header = next((name for name, count in IMAGE_TOKENS.items() if count == len(codes)), None)
                if header is None:
                    raise TonyError(f"a picture has {len(codes)} codes; expected 16 (32x32) or 64 (64x64)")
                return [self.control(header), self.codes("image", codes), self.control("image_end")]
            case Audio(codes):
                return self.sound(codes)
            case Speech():
                return self.speech(part)
            case Video(frames, times):
                return self.video(frames, times)
            case ToolCall(name, arguments):
                return [self.control("call"), self.words(name), self.control("args"), self.words(arguments)]
            case ToolResult(name, result):
                return [self.control("result"), self.words(name), self.control("args"), self.words(result)]
        raise TonyError(f"a message holds a {type(part).__name__}; expected parts such as Text, Image, Audio or Speech")

    def speech(self, part: Speech) -> list[Span]:
        text, codes, voice = part.text, part.codes, part.voice
        if not 0 <= voice < self.vocab.voices:
            raise TonyError(f"voice {voice} is not registered; expected 0..{self.vocab.voices - 1}")
        if not part.runs:
            return [self.control("speech", f"voice{voice}"), self.words(text), *self.sound(codes)]
        sums = tuple(map(sum, zip(*part.runs, strict=True)))
        if sums != (len(text), len(codes)) or min(map(min, part.runs)) < 1:
            raise TonyError(
                f"speech of {len(text)} characters and {len(codes)} codes has the runs {part.runs}; expected "
                "(characters, codes) of at least 1 that add up to them"
            )
        out, said, sounded = [self.control("speech", f"voice{voice}")], 0, 0
        for index, (characters, count) in enumerate(part.runs):
            out.append(self.words(text[said : said + characters]))
            out += [self.control("audio")] if index == 0 else []
            out.append(self.codes("audio", codes[sounded : sounded + count]))
            said, sounded = said + characters, sounded + count
        return [*out, self.control("audio_end")]

    def video(self, frames: Sequence[Sequence[int]], times: Sequence[int]) -> list[Span]:
        if not frames or len(frames) != len(times) or any(len(frame) != FRAME_TOKENS for frame in frames):
            raise TonyError(
                f"a video has {len(frames)} frames and {len(times)} times; expected as many times as frames, at least "
                f"one, and {FRAME_TOKENS} codes in each frame"
            )
        if not all(0 <= time < TIMES for time in times):
            raise TonyError(f"video times {tuple(times)} are in quarter seconds; expected 0..{TIMES - 1}: cut it up")
        out = [self.control("video")]
        for frame, time in zip(frames, times, strict=True):
            out += [self.control("frame", f"t{time}"), self.codes("image", frame)]
        return [*out, self.control("video_end")]

    def sound(self, codes: Sequence[int]) -> list[Span]:
        if not codes:
            raise TonyError("a sound has no codes; expected at least one, which is 40 ms")
        return [self.control("audio"), self.codes("audio", codes), self.control("audio_end")]

    def codes(self, kind: str, codes: Sequence[int]) -> Span:
        ids = getattr(self.vocab, kind)
        if not 0 <= min(codes) <= max(codes) < len(ids):
            raise TonyError(
                f"{kind} codes {min(codes)}..{max(codes)} are outside the codebook; expected 0..{len(ids) - 1}"
            )
        return Span([ids.start + int(code) for code in codes], self.role, kind)

    def words(self, text: str) -> Span:
        return Span(self.text(text), self.role, "text")

    def text(self, text: str) -> list[int]:
        start = self.vocab.text.start
        return [start + token for token in self.tok.encode(text)]

    def control(self, *names: str) -> Span:
        return Span([self.special(name) for name in names], self.role, "control")

    def special(self, name: str) -> int:
        return self.vocab.special(name)


# ----------------------------------------------------------------------------------------- from tokens


def decode_stream(ids: Iterable[int], vocab: Vocabulary, text_tok: TextTokenizer, strict: bool = True) -> list[Message]:
    """The conversation of a stream, the exact inverse of `encode_messages`.

    A malformed stream is a TonyError; with `strict=False` what can't be read is skipped and what is unfinished is
    kept as far as it has a meaning, which suits replies that were cut off.
    """
    reader = _Reader(ids, vocab, text_tok, strict)
    reader.take("bos")
    messages = []
    while not reader.done:
        role = reader.take(*ROLES)
        if role is None:
            reader.unexpected("a role")
        else:
            messages.append(reader.message(role))
    return messages


def decode_reply(ids: Iterable[int], vocab: Vocabulary, text_tok: TextTokenizer, strict: bool = False) -> Message:
    """The assistant's message of the tokens generated after an opened reply, up to `<end>` or where they stop."""
    reader = _Reader(ids, vocab, text_tok, strict)
    message = reader.message("assistant")
    if strict and not reader.done:
        reader.unexpected("nothing after <end>")
    return message


class _Reader:
    """A place in a stream; in strict mode whatever is not expected is an error, else it is skipped."""

    def __init__(self, ids: Iterable[int], vocab: Vocabulary, text_tok: TextTokenizer, strict: bool):
        self.ids, self.vocab, self.tok, self.strict = [int(token) for token in ids], vocab, text_tok, strict
        self.at = 0
        while self.ids and self.ids[-1] == vocab.special("pad"):
            self.ids.pop()

    @property
    def done(self) -> bool:
        return self.at >= len(self.ids)

    def take(self, *names: str) -> str | None:
        """The name of the next token if it is one of these specials, and step over it."""
        if not self.done and self.ids[self.at] < len(self.vocab.names):
            name = self.vocab.names[self.ids[self.at]]
            if name in names:
                self.at += 1
                return name
        return None

    def expect(self, *names: str) -> bool:
        """Step over one of these specials; False, or an error, if something else is there."""
        found = self.take(*names) is not None
        if not found and self.strict:
            self.unexpected(" or ".join(f"<{name}>" for name in names))
        return found

    def unexpected(self, expected: str) -> None:
        if self.strict:
            self.fail(f"is {'the end' if self.done else self.vocab.name(self.ids[self.at])}", expected)
        self.at += 1

    def fail(self, found: str, expected: str) -> NoReturn:
        raise TonyError(f"malformed stream: token {self.at} {found}; expected {expected}")

    def run(self, kind: str, most: int | None = None) -> tuple[int, ...]:
        """The codes, at most `most`, of the run of one kind that starts here; may be empty."""
        ids, start = getattr(self.vocab, kind), self.at
        stop = len(self.ids) if most is None else min(len(self.ids), start + most)
        while self.at < stop and self.ids[self.at] in ids:
            self.at += 1
        return tuple(token - ids.start for token in self.ids[start : self.at])

    def text(self) -> str:
        return self.tok.decode(self.run("text"))

    def message(self, role: str) -> Message:
        """The rest of a message after its role."""
        thinking, parts = None, []
        if role == "assistant":
            self.take(*(f"mod_{name}" for name in OUTPUTS))
            if self.take("think"):
                thinking = self.text()
                self.expect("think_end")
        while not self.take("end"):
            if self.done or (not self.strict and self._at_role()):
                if self.strict:
                    self.unexpected("<end>")
                break
            part = self.part()
            if part is not None:
                parts.append(part)
        return Message(role, tuple(parts), thinking)

    def _at_role(self) -> bool:
        token = self.ids[self.at]
        return token < len(self.vocab.names) and self.vocab.names[token] in ROLES

    def part(self) -> Part | None:
        """The part that starts here; None, after a step, if there is none or too little of one."""
        if self.ids[self.at] in self.vocab.text:
            return Text(self.text())
        match self.take("next", *IMAGE_TOKENS, "audio", "speech", "video", "call", "result"):
            case "next":
                return Text(self.text())
            case "image32" | "image64" as header:
                codes = self.exactly(IMAGE_TOKENS[header])
                self.expect("image_end")
                return Image(codes) if codes else None
            case "audio":
                codes = self.sound()
                return Audio(codes) if codes else None
            case "speech":
                return self.speech()
            case "video":
                return self.video()
            case "call" | "result" as header:
                name = self.text()
                if self.expect("args"):
                    return (ToolCall if header == "call" else ToolResult)(name, self.text())
            case None:
                self.unexpected("a part of a message or <end>")
        return None

    def exactly(self, count: int) -> tuple[int, ...]:
        """`count` picture codes; () if there are fewer."""
        codes = self.run("image", count)
        if len(codes) < count and self.strict:
            self.unexpected(f"picture code {len(codes) + 1} of {count}")
        return codes if len(codes) == count else ()

    def sound(self) -> tuple[int, ...]:
        """The codes after `<audio>`, at least one in strict mode, and `<audio_end>`."""
        codes = self.run("audio")
        if not codes and self.strict:
            self.unexpected("a sound code")
        self.expect("audio_end")
        return codes

    def speech(self) -> Speech | Text | None:
        voice = self.take(*(f"voice{index}" for index in range(self.vocab.voices)))
        if voice is None and self.strict:
            self.unexpected("a voice")
        said = [self.text()]
        sounds: list[tuple[int, ...]] = [self.run("audio") if self.expect("audio") else ()]
        while sounds[-1] and not self.done and self.ids[self.at] in self.vocab.text:
            said.append(self.text())
            sounds.append(self.run("audio"))
        if not sounds[-1] and self.strict:
            self.unexpected("a sound code")
        self.expect("audio_end")
        if not (sounds[0] and voice):
            return Text(said[0]) if said[0] else None  # cut off before it sounded
        spoken = [(text, codes) for text, codes in zip(said, sounds, strict=True) if codes]  # cut off between the two
        text, codes = "".join(text for text, _ in spoken), tuple(code for _, codes in spoken for code in codes)
        runs = tuple((len(text), len(codes)) for text, codes in spoken) if len(spoken) > 1 else ()
        return Speech(text, codes, int(voice.removeprefix("voice")), runs)

    def video(self) -> Video | None:
        frames, times = [], []
        while self.take("frame"):
            time = self.take(*(f"t{index}" for index in range(TIMES)))
            if time is None and self.strict:
                self.unexpected("a time")
            codes = self.exactly(FRAME_TOKENS)
            if time and codes:
                frames.append(codes)
                times.append(int(time.removeprefix("t")))
        if not frames and self.strict:
            self.unexpected("<frame>")
        self.expect("video_end")
        return Video(tuple(frames), tuple(times)) if frames else None
