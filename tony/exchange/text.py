"""Tokenizers that came with a model: text alone, their own special tokens, their own chat template.

Their folder in a release: `tokenizer.json`, as the `tokenizers` library writes it, and `text.json`: which tokens begin
and end a text, and the chat template. The stream of such a model is its text tokens from 0 on, nothing around them.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tony.errors import TonyError, require
from tony.files import write_json
from tony.tokens.chat import Message, Text, ToolCall, ToolResult
from tony.tokens.grammar import DONE
from tony.tokens.text import FILE, StreamDecoder, TextTokenizer
from tony.tokens.tokenizer import Example, Tokenizer

FACTS = "text.json"  # by which `tony.generate.release.is_imported` knows such a folder
LONGEST = 4_000_000  # characters that a template may write
OPEN, CLOSE = "\ue000", "\ue001"
MARK = re.compile(f"{OPEN}(\\d{{1,6}}){CLOSE}")  # stands for a special token's spelling in somebody's words
BYTE = re.compile("<0x([0-9A-F]{2})>")
SPACE = "▁"  # for a space, in SentencePiece's tokens


@dataclass(frozen=True)
class TextVocabulary:
    """Ids of a model of text alone, as `tony.tokens.vocabulary.Vocabulary` offers them: all `rows` are text.

    `ends` are the tokens that end a reply; the first is what "end" means. A special token that there is not is -1.
    """

    rows: int
    ends: tuple[int, ...]
    names = ()
    voices = 0

    @property
    def text_size(self) -> int:
        """Number of text tokens, and of rows of the embedding."""
        return self.rows

    size = padded_size = text_size

    @property
    def text(self) -> range:
        """Ids of the text tokens."""
        return range(self.rows)

    @property
    def image(self) -> range:
        """No ids."""
        return range(self.rows, self.rows)

    audio = image

    def special(self, name: str) -> int:
        """The id of "end"; -1 for any other special token of Tony's."""
        return self.ends[0] if name == "end" else -1

    def name(self, token: int) -> str:
        """How a token is written in messages."""
        return f"text:{token}"


class TextGrammar:
    """Replies of text alone, as `tony.tokens.grammar.Grammar` offers them: any token that there is, then an end."""

    REPLY, TEXT, END = 1, 1, 2

    def __init__(self, vocabulary: TextVocabulary, known: Iterable[int]):
        self.class_of = np.zeros(vocabulary.rows, np.int32)
        self.class_of[list(known)] = self.TEXT
        self.class_of[list(vocabulary.ends)] = self.END
        self.allowed = np.array([[False, False, True], [False, True, True]])
        self.next_state = np.array([[DONE] * 3, [DONE, self.REPLY, DONE]], np.int32)
        self.masks, self.mask_of = self.allowed[:, self.class_of], np.arange(2)

    def start_state(self, modalities: Iterable[str], voice: int | None = None, image_size: int | None = None) -> int:
        """The state of an opened reply; TonyError if it is to be anything but text."""
        others = sorted(set(modalities) - {"text", "think"})
        if others:
            raise TonyError(f"this model writes text alone; it was asked for {', '.join(others)}")
        return self.REPLY

    def within(self, *places: str) -> np.ndarray:
        """No state lies in a picture, a thought or a sound."""
        return np.zeros(2, bool)


class ImportedText(TextTokenizer):
    """A tokenizer of somebody else's; what people write cannot spell its special tokens."""

    def __init__(self, model, rows: int):
        super().__init__(model)
        self._rows = rows
        added = json.loads(model.to_str())["added_tokens"]
        self.specials = {token["content"]: token["id"] for token in added if token["special"]}
        self._marked = [*self.specials, OPEN, CLOSE]
        self._added = {token["id"]: token["content"] for token in added}
        self._literal = type(model).from_str(model.to_str())
        self._literal.encode_special_tokens = True
        self._pieces = any(
            BYTE.fullmatch(token) for token in ("<0x00>", "<0x0A>") if model.token_to_id(token) is not None
        )
        if max(model.get_vocab().values(), default=0) >= rows:
            raise TonyError(
                f"the tokenizer has ids up to {max(model.get_vocab().values())}, the network {rows} rows; they do not "
                "belong together"
            )

    @property
    def size(self) -> int:
        """Rows of the embedding, of which some may have no token."""
        return self._rows

    @property
    def known(self) -> list[int]:
        """Ids that have a token."""
        return sorted(self._model.get_vocab().values())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens are spelled out like everything else."""
        return self._literal.encode(text, add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts at once, on all cores."""
        return [each.ids for each in self._literal.encode_batch(list(texts), add_special_tokens=False)]

    def document(self, text: str) -> list[int]:
        """Token ids of a text with what the tokenizer begins texts with, if anything."""
        return self._literal.encode(text, add_special_tokens=True).ids

    def marked(self, text: str) -> str:
        """A text with a mark for each spelling of a special token, and for what marks are made of, for use within a
        chat template."""
        pattern = "|".join(map(re.escape, sorted(self._marked, key=len, reverse=True)))
        return re.sub(pattern, lambda found: f"{OPEN}{self._marked.index(found[0])}{CLOSE}", text)

    def encode_template(self, text: str) -> tuple[list[int], list[int]]:
        """(token ids, where each begins) of what a chat template wrote, its special tokens being those."""
        ids, places, at = [], [], 0
        for number, piece in enumerate(MARK.split(text)):
            if number % 2 and int(piece) < len(self._marked):
                made = self._literal.encode(self._marked[int(piece)], add_special_tokens=False)
                ids += made.ids
                places += [at] * len(made.ids)
                at += len(piece) + 2
            elif piece:
                made = self._model.encode(piece, add_special_tokens=False)
                ids += made.ids
                places += [at + start for start, _ in made.offsets]
                at += len(piece)
        return ids, places

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of token ids; special tokens, and rows without a token, have none."""
        return b"".join([self._bytes.get(token, b"") for token in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids."""
        text = super().decode(ids)
        return text.removeprefix(" ") if self._pieces else text

    def stream(self) -> StreamDecoder:
        """A new decoder for tokens that arrive one at a time."""
        return _PiecesDecoder(self) if self._pieces else StreamDecoder(self)

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        from tony.tokens.text import byte_letters

        letters, made = byte_letters(), {}
        for token, index in self._model.get_vocab().items():
            if index in self._added:
                made[index] = b"" if token in self.specials else token.encode()
            elif self._pieces:
                byte = BYTE.fullmatch(token)
                made[index] = bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
            else:
                made[index] = bytes(letters[c] for c in token) if all(c in letters for c in token) else token.encode()
        return made


class _PiecesDecoder(StreamDecoder):
    """SentencePiece begins every text with a space that is none."""

    _began = False

    def push(self, *ids: int) -> str:
        text = super().push(*ids)
        if text and not self._began:
            self._began = True
            return text.removeprefix(" ")
        return text


# ---------------------------------------------------------------------------------------------- template


class ChatTemplate:
    """A model's own Jinja template, run in a sandbox that lets it change and reach nothing."""

    def __init__(self, source: str, names: Mapping[str, str]):
        jinja2 = require("jinja2", "exchange")
        sandbox = require("jinja2.sandbox", "exchange")

        def raise_exception(message: str):
            raise jinja2.TemplateError(str(message))

        self.source, self._names = source, dict(names)
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
        environment.globals["raise_exception"] = raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TonyError(f"the model's chat template is not valid Jinja ({error}); give another one") from None

    def render(self, messages: Sequence[Mapping[str, Any]], open_reply: bool) -> str:
        """The conversation as the model knows it; TonyError if the template refuses it."""
        parts, size = [], 0
        try:
            for part in self._template.generate(
                messages=list(messages), add_generation_prompt=open_reply, tools=None, **self._names
            ):
                parts.append(part)
                size += len(part)
                if size > LONGEST:
                    raise TonyError(
                        f"the model's chat template writes more than {LONGEST} characters; shorten the messages"
                    )
        except TonyError:
            raise
        except Exception as error:  # templates are programs of others': anything can go wrong in them
            raise TonyError(f"the model's chat template does not take these messages: {error}") from None
        return "".join(parts)


def plain(message: Message, text: ImportedText) -> dict[str, Any]:
    """A message as chat templates take it; TonyError if it holds anything but words and tools."""
    made: dict[str, Any] = {"role": message.role}
    words: list[str] = []
    for part in message.content:
        match part:
            case Text(said):
                words.append(said)
            case ToolCall(name, arguments):
                known = {"name": text.marked(name), "arguments": _marked(_json(arguments), text)}
                call = {"type": "function", "function": known}
                made.setdefault("tool_calls", []).append(call)
            case ToolResult(name, result):
                made["name"] = text.marked(name)
                words.append(result)
            case _:
                raise TonyError(f"this model reads text alone; a message holds {type(part).__name__.lower()}")
    made["content"] = text.marked("\n".join(words))
    if message.thinking is not None:
        made["reasoning_content"] = text.marked(message.thinking)
    return made


def _marked(value: Any, text: ImportedText) -> Any:
    """`ImportedText.marked` of every string in a JSON value."""
    if isinstance(value, str):
        return text.marked(value)
    if isinstance(value, list):
        return [_marked(one, text) for one in value]
    if isinstance(value, dict):
        return {text.marked(name): _marked(one, text) for name, one in value.items()}
    return value


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


# --------------------------------------------------------------------------------------------- tokenizer


class ImportedTokenizer(Tokenizer):
    """The tokenizer of an imported model: its text tokenizer, and conversations by its chat template."""

    text: ImportedText
    vocabulary: TextVocabulary  # type: ignore[assignment]

    def __init__(self, text: ImportedText, ends: Sequence[int], template: str | None = None, begin: int | None = None):
        if not ends or any(not 0 <= end < text.size for end in ends):
            raise TonyError(f"the tokens that end a text are {list(ends)}; expected at least one of the {text.size}")
        super().__init__(TextVocabulary(text.size, tuple(ends)), text)  # type: ignore[arg-type]
        self.begin, self.source = begin, template
        spelled = {index: token for token, index in text.specials.items()}
        self.names = {"eos_token": spelled.get(ends[0], "")}
        if begin is not None:
            self.names["bos_token"] = spelled.get(begin, "")

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template; TonyError if the model has none."""
        if not self.source:
            raise TonyError(
                "this model has no chat template: it continues texts but holds no conversations; use /v1/completions "
                "or import it again with --chat-template FILE"
            )
        return ChatTemplate(self.source, {"bos_token": "", **self.names})

    def grammar(self, voices: Sequence[int] | None = None) -> TextGrammar:  # type: ignore[override]
        """What a reply may be."""
        return TextGrammar(self.vocabulary, self.text.known)

    def document(self, text: str) -> list[int]:
        """The beginning of a stream that goes on as a text does."""
        return self.text.document(text)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The stream of a conversation with the reply opened."""
        rendered = self.template.render([plain(message, self.text) for message in messages], True)
        return self.text.encode_template(rendered)[0]

    def example(self, messages: Sequence[Message]) -> Example:
        """A conversation to learn from: the assistant's words and the token that ends them have weight 1.

        What is the assistant's is found by writing the conversation up to each of its messages. Where a template
        writes a message otherwise once others follow it, as some do with thinking, only the last one counts.
        """
        given = [plain(message, self.text) for message in messages]
        whole = self.template.render(given, False)
        spans = []
        for index in (index for index, message in enumerate(messages) if message.role == "assistant"):
            before, after = self.template.render(given[:index], True), self.template.render(given[: index + 1], False)
            if after.startswith(before) and whole.startswith(after):
                spans.append((len(before), len(after)))
        if not spans:
            raise TonyError("the model's chat template leaves none of the assistant's words to learn in a conversation")
        ids, places = self.text.encode_template(whole)
        weights = np.array([any(start <= place < stop for start, stop in spans) for place in places], np.float32)
        return Example(np.array(ids, np.int32), weights, np.zeros(len(ids), np.int8))

    def pieces(self, texts: Iterable[str], length: int) -> Iterable[Example]:
        """Plain documents, an end after each, cut into rows of `length` tokens to learn from."""
        for text in texts:
            ids = [*self.document(text), self.vocabulary.special("end")]
            for at in range(0, len(ids) - 1, length - 1):  # the last token of a row is the first of the next
                tokens = np.array(ids[at : at + length], np.int32)
                weights = np.ones(len(tokens), np.float32)
                weights[0] = 0
                yield Example(tokens, weights, np.zeros(len(tokens), np.int8))

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` and `text.json`."""
        directory = Path(directory)
        self.text.save(directory)
        facts = {
            "ends": self.vocabulary.ends,
            "begin": self.begin,
            "chat_template": self.source,
            "rows": self.text.size,
        }
        write_json(directory / FACTS, facts)

    @classmethod
    def load(cls, directory: Path) -> "ImportedTokenizer":
        """Read what `save` wrote; TonyError if it is missing or damaged."""
        path = Path(directory) / FACTS
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            text = ImportedText(read_tokenizer(Path(directory) / FILE), facts["rows"])
            return cls(text, facts["ends"], facts["chat_template"], facts["begin"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TonyError(f"{path} is missing or damaged ({type(error).__name__}); import the model again") from None


def read_tokenizer(path: Path):
    """A `tokenizers.Tokenizer`, without padding or truncation; TonyError if the file is missing or damaged."""
    from tokenizers import Tokenizer as Model

    try:
        model = Model.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TonyError(f"{path} is missing; a model's folder needs it: get the whole folder") from None
    except Exception as error:  # the library raises bare Exception on what it cannot read
        raise TonyError(f"{path} is damaged ({str(error)[:80]}); copy it again") from None
    model.no_padding()
    model.no_truncation()
    return model
