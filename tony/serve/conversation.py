"""OpenAI's chat messages -> Tony's, and generated tokens -> what a client is told as they come."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tony.generate.omni import VOICE_NAMES, Omni
from tony.serve.errors import ApiError
from tony.serve.media import from_base64, from_url, read_sound
from tony.serve.schema import ChatMessage
from tony.tokens.chat import Image, Message, Part, Text, Video
from tony.tokens.codec import Decoder
from tony.tokens.vocabulary import Vocabulary

# OpenAI's built-in voices are accepted and mean the registered one that is nearest.
BUILT_IN = {
    **dict.fromkeys(("alloy", "coral", "sage", "shimmer", "marin", "nova"), "heart"),
    **dict.fromkeys(("ash", "ballad", "echo", "verse", "cedar", "fable", "onyx"), "michael"),
}
MAX_FRAMES = 16


def voice_of(voice: str | dict[str, Any]) -> int:
    """The registered voice of a name; ApiError for any other."""
    name = voice.get("id") if isinstance(voice, dict) else voice
    name = BUILT_IN.get(str(name), str(name))
    if name not in VOICE_NAMES:
        raise ApiError(400, f"voice {name!r} is not registered; voices are {', '.join(VOICE_NAMES)}", "voice")
    return VOICE_NAMES[name]


def to_messages(messages: Sequence[ChatMessage], omni: Omni) -> list[Message]:
    """The conversation, its pictures and sounds encoded."""
    return [_message(message, f"messages.{index}", omni) for index, message in enumerate(messages)]


def _message(message: ChatMessage, param: str, omni: Omni) -> Message:
    content = message.content
    if content is None and message.audio is not None:
        content = str(message.audio.get("transcript") or "")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    made = [_part(part, f"{param}.content.{index}", omni) for index, part in enumerate(parts)]
    return Message(message.role, tuple(_merged(made)), thinking=message.reasoning_content or None)


def _merged(parts: list[Part]) -> Iterator[Part]:
    """Neighbouring texts joined by a line break; empty ones left out."""
    waiting = ""
    for part in parts:
        if isinstance(part, Text):
            waiting = f"{waiting}\n{part.text}" if waiting and part.text else waiting or part.text
            continue
        if waiting:
            yield Text(waiting)
        waiting = ""
        yield part
    if waiting:
        yield Text(waiting)


def _part(part: dict[str, Any], param: str, omni: Omni) -> Part:
    kind = part.get("type")
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return Text(part["text"])
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return Text(part["refusal"])
    if kind in ("image_url", "input_image"):
        return _picture(part.get("image_url"), param, omni)
    if kind == "input_audio":
        sound = part.get("input_audio")
        if not isinstance(sound, dict) or not isinstance(sound.get("data"), str):
            raise ApiError(400, f"{param}.input_audio.data is missing; expected base64 of a sound file", param)
        return omni.audio_part(read_sound(from_base64(sound["data"], f"{param}.input_audio.data"), param))
    if kind == "video_url":
        # Not in OpenAI's API: {"type": "video_url", "video_url": {"frames": [data URL, ...], "interval": seconds}}.
        video = part.get("video_url") or {}
        frames = video.get("frames") if isinstance(video, dict) else None
        if not isinstance(frames, list) or not 1 <= len(frames) <= MAX_FRAMES:
            raise ApiError(400, f"{param}.video_url.frames must be a list of 1 to {MAX_FRAMES} data: URLs", param)
        step = max(1, round(4 * float(video.get("interval") or 0.5)))
        codes = tuple(_picture(frame, param, omni).codes for frame in frames)
        return Video(codes, tuple(step * index for index in range(len(codes))))
    known = "text, image_url, input_audio, video_url"
    raise ApiError(400, f"{param}: a part of type {kind!r} is not understood; expected one of {known}", param)


def _picture(value: Any, param: str, omni: Omni) -> Image:
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str):
        raise ApiError(400, f"{param}.image_url.url is missing; expected a data: URL", param)
    return omni.image_part(from_url(url, f"{param}.image_url.url"))


def count_thinking(tokens: Sequence[int], vocab: Vocabulary) -> int:
    """How many tokens of a reply are text between <think> and <think_end>, or where it stops."""
    inside, count = False, 0
    for token in tokens:
        inside = token == vocab.special("think") or (inside and token != vocab.special("think_end"))
        count += inside and token in vocab.text
    return count


class ReplyStream:
    """Follows the tokens of a reply and says what they mean as soon as they mean something.

    `push` returns events: ("thinking" | "text" | "transcript", str), ("audio", float32 samples), ("image", codes).
    """

    def __init__(self, omni: Omni):
        self.omni, self.vocab = omni, omni.tokenizer.vocabulary
        self._place, self._text = "text", omni.tokenizer.text.stream()
        self._codes: list[int] = []
        self._decoder: Decoder | None = None

    def push(self, token: int) -> list[tuple[str, Any]]:
        """Events that this token completes."""
        vocab = self.vocab
        if token in vocab.text:
            piece = self._text.push(token - vocab.text.start)
            return [(self._place, piece)] if piece else []
        if token in vocab.audio and self._decoder is not None:
            return [("audio", self._decoder.push(np.array([token - vocab.audio.start])))]
        if token in vocab.image:
            self._codes.append(token - vocab.image.start)
            return []
        return self._control(vocab.name(token).strip("<>"))

    def _control(self, name: str) -> list[tuple[str, Any]]:
        rest, self._text = self._text.flush(), self.omni.tokenizer.text.stream()
        events: list[tuple[str, Any]] = [(self._place, rest)] if rest else []
        if name == "think":
            self._place = "thinking"
        elif name in ("think_end", "end"):
            self._place = "text"
        elif name == "speech":
            self._place = "transcript"
        elif name.startswith("voice"):
            self._decoder = self.omni.tokenizer.audio.decoder(int(name.removeprefix("voice")))
        elif name == "audio_end" and self._decoder is not None:
            events.append(("audio", self._decoder.flush()))
            self._decoder, self._place = None, "text"
        elif name == "image_end":
            events.append(("image", tuple(self._codes)))
            self._codes = []
        return events

    def finish(self) -> list[tuple[str, Any]]:
        """What is left when the reply ends, wherever it does."""
        events = self._control("end")
        if self._decoder is not None:
            events.append(("audio", self._decoder.flush()))
        return events
