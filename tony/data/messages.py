"""Records of files -> conversations. A record is a mapping of one of these forms:

    {"messages": [{"role": "user", "content": "text" or [parts], "thinking": "..."}], "modality": "audio"}
    {"text": "a caption or transcript", "image": picture}        asked with the picture, answered with the text
    {"text": "a caption or transcript", "audio": sound}

A part is {"type": "text", "text"}, {"type": "image", "image", "size": 32 or 64}, {"type": "audio", "audio"},
{"type": "speech", "text", "audio", "voice"}, {"type": "video", "frames", "times"}, {"type": "call", "name",
"arguments"} or {"type": "result", "name", "result"}. A picture or sound is a reference that `read` turns into the bytes
of a file, the bytes themselves, or what Hugging Face datasets and Parquet hold: {"bytes", "path"}, {"array",
"sampling_rate"}, a PIL image.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tony.errors import TonyError
from tony.tokens.chat import Audio, Image, Message, Part, Speech, Text, ToolCall, ToolResult, Video
from tony.tokens.sound import to_samples
from tony.tokens.tokenizer import Tokenizer
from tony.tokens.vocabulary import ROLES

Read = Callable[[str], bytes]
FIELDS = {
    "text": {"text"},
    "image": {"image"},
    "audio": {"audio"},
    "speech": {"text", "audio"},
    "video": {"frames", "times"},
    "call": {"name", "arguments"},
    "result": {"name", "result"},
}


def is_plain_text(record: Any) -> bool:
    """Whether a record is a document to continue rather than a conversation."""
    return isinstance(record, Mapping) and isinstance(record.get("text"), str) and not _is_conversation(record)


def texts_of(record: Mapping) -> Iterator[str]:
    """Everything that is written in a record: its text, or its messages' words and thinking."""
    if isinstance(record.get("text"), str):
        yield record["text"]
    for message in record.get("messages") or ():
        content = message.get("content") or ""
        parts = [content] if isinstance(content, str) else [part.get("text") for part in content]
        yield from filter(None, [*parts, message.get("thinking")])


def files_of(record: Any) -> Iterator[str]:
    """The names of the files that a record's pictures, sounds and films are in."""
    if isinstance(record, Mapping):
        for key, value in record.items():
            named = value if isinstance(value, list | tuple) else [value]
            if key in ("image", "audio", "frames"):
                yield from (name for name in named if isinstance(name, str))
            else:
                yield from (name for each in named for name in files_of(each))


def check(record: Any) -> None:
    """TonyError if a record has none of the forms; no file is opened for it."""
    if not isinstance(record, Mapping):
        raise TonyError(f"a record is {_short(record)}; expected an object with messages or text")
    if record.get("messages") is not None:
        messages = record["messages"]
        if not isinstance(messages, list | tuple) or not len(messages):
            raise TonyError(f"messages is {_short(messages)}; expected a list of at least one message")
        for message in messages:
            _check_message(message)
    elif not isinstance(record.get("text"), str):
        raise TonyError(f"a record has the fields {', '.join(map(str, record)) or 'none'}; expected messages or text")


def to_messages(record: Mapping, tokenizer: Tokenizer, read: Read) -> list[Message]:
    """The conversation of a record, its media read and encoded."""
    check(record)
    if record.get("messages") is not None:
        return [_message(message, tokenizer, read) for message in record["messages"]]
    kind = next((kind for kind in ("image", "audio") if record.get(kind) is not None), None)
    if kind is None:
        return [Message("assistant", (Text(record["text"]),))]
    asked = _part({"type": kind, **record}, tokenizer, read)
    return [Message("user", (asked,)), Message("assistant", (Text(record["text"]),))]


def _is_conversation(record: Mapping) -> bool:
    return any(record.get(key) is not None for key in ("messages", "image", "audio"))


def _check_message(message: Any) -> None:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        role = message.get("role") if isinstance(message, Mapping) else message
        raise TonyError(f"a message has the role {_short(role)}; expected one of {', '.join(ROLES)}")
    if message.get("thinking") is not None and not isinstance(message["thinking"], str):
        raise TonyError(f"the thinking of a message is {_short(message['thinking'])}; expected text")
    content = message.get("content")
    if isinstance(content, str):
        return
    if not isinstance(content, list | tuple):
        raise TonyError(f"the content of a message is {_short(content)}; expected text or a list of parts")
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else part
        if not isinstance(kind, str) or kind not in FIELDS:
            raise TonyError(f"a part has the type {_short(kind)}; expected one of {', '.join(FIELDS)}")
        for name in sorted(FIELDS[kind]):
            if part.get(name) is None:
                raise TonyError(f"a part of type {kind} has no {name}; it needs {', '.join(sorted(FIELDS[kind]))}")
            if name in ("text", "name", "arguments", "result") and not isinstance(part[name], str):
                raise TonyError(f"the {name} of a part of type {kind} is {_short(part[name])}; expected text")


def _message(message: Mapping, tokenizer: Tokenizer, read: Read) -> Message:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return Message(message["role"], tuple(_part(part, tokenizer, read) for part in parts), message.get("thinking"))


def _part(part: Mapping, tokenizer: Tokenizer, read: Read) -> Part:
    match part["type"]:
        case "image":
            return Image(_picture(part["image"], part.get("size") or 32, tokenizer, read))
        case "audio":
            return Audio(_sound(part["audio"], tokenizer, read))
        case "speech":
            return Speech(part["text"], _sound(part["audio"], tokenizer, read), int(part.get("voice") or 0))
        case "video":
            frames = tuple(_picture(frame, 32, tokenizer, read) for frame in part["frames"])
            return Video(frames, tuple(int(time) for time in part["times"]))
        case "call":
            return ToolCall(part["name"], part["arguments"])
        case "result":
            return ToolResult(part["name"], part["result"])
    return Text(part["text"])


def _picture(value: Any, size: int, tokenizer: Tokenizer, read: Read) -> tuple[int, ...]:
    from tony.tokens.image import to_pixels

    value = _bytes(value, read)
    return tuple(tokenizer.image.encode(to_pixels(value, size)[None])[0].tolist())


def _sound(value: Any, tokenizer: Tokenizer, read: Read) -> tuple[int, ...]:
    if isinstance(value, Mapping) and value.get("array") is not None:
        samples = to_samples(np.asarray(value["array"]), value.get("sampling_rate"))
    else:
        samples = to_samples(_bytes(value, read))
    return tuple(tokenizer.audio.encode(samples).tolist())


def _bytes(value: Any, read: Read) -> Any:
    """The bytes of a file that a value refers to; other values as they are."""
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    return read(value) if isinstance(value, str) else value


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
