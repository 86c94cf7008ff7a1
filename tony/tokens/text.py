"""Text <-> tokens: a byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2) with every digit its own token.

It knows no special tokens, so no text can spell one. Lossless for every Unicode text; lone surrogates, which are not
Unicode text and which UTF-8 cannot hold, become U+FFFD.
"""

import codecs
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tony.errors import TonyError

FILE = "tokenizer.json"
BYTES = 256


class TextTokenizer:
    """A trained tokeniser; ids count from 0. Make one with `train` or `load`."""

    def __init__(self, model):
        self._model = model  # a tokenizers.Tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "TextTokenizer":
        """Learn merges from texts until there are `vocab_size` tokens, or nothing occurs twice any more."""
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if vocab_size < BYTES:
            raise TonyError(f"text.vocab_size is {vocab_size}; the single bytes alone are {BYTES}: give at least that")
        model = Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        model.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, min_frequency=2, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
        )
        model.train_from_iterator(map(_unicode, texts), trainer)
        return cls(model)

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self._model.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._model.encode(_unicode(text), add_special_tokens=False).ids

    def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts at once, on all cores."""
        encoded = self._model.encode_batch([_unicode(text) for text in texts], add_special_tokens=False)
        return [each.ids for each in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; bytes that are no UTF-8, which only a model can produce, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of token ids; ValueError on an id outside the tokeniser."""
        try:
            return b"".join([self._bytes[token] for token in ids])
        except KeyError as error:
            raise ValueError(f"text token {error} is outside 0..{self.size - 1}") from None

    def stream(self) -> "StreamDecoder":
        """A new decoder for tokens that arrive one at a time."""
        return StreamDecoder(self)

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        letters = byte_letters()
        return {token: bytes(letters[c] for c in letter) for letter, token in self._model.get_vocab().items()}

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` into a folder."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f"{FILE}.part"
        partial.write_text(self._model.to_str(pretty=True), encoding="utf-8")
        partial.replace(directory / FILE)

    @classmethod
    def load(cls, directory: Path) -> "TextTokenizer":
        """Read what `save` wrote; TonyError if it is missing or damaged."""
        from tokenizers import Tokenizer

        path = Path(directory) / FILE
        try:
            return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise TonyError(f"{path} is missing; train the text tokenizer again or copy the whole folder") from None
        except Exception as error:  # the library raises bare Exception on what it cannot read
            raise TonyError(f"{path} is damaged ({error}); train the text tokenizer again or copy it again") from None


class StreamDecoder:
    """Text of tokens as they arrive; holds back the bytes of a character until it is whole."""

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, *ids: int) -> str:
        """The characters that became whole with these tokens; may be empty."""
        return self._utf8.decode(self._tokenizer.decode_bytes(ids))

    def flush(self) -> str:
        """What was held back, as U+FFFD, if the stream ended within a character."""
        return self._utf8.decode(b"", final=True)


def _unicode(text: str) -> str:
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def byte_letters() -> dict[str, int]:
    """The printable letter that stands for each byte inside tokenizer.json (`bytes_to_unicode` of GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(BYTES + i): byte for i, byte in enumerate(others)}
