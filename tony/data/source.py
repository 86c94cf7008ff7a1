"""Sources of training examples: a name, a number of examples, and each example as a pure function of its index."""

import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeGuard

import numpy as np

from tony.errors import TonyError
from tony.files import whole
from tony.tokens.text import TextTokenizer
from tony.tokens.tokenizer import Example
from tony.tokens.vocabulary import Vocabulary

TEXTS_AT_ONCE = 1024


class Source(Protocol):
    """Examples by index. `example` depends on its arguments only; the seed is for sources that draw at random."""

    name: str

    def __len__(self) -> int: ...

    def example(self, index: int, seed: int) -> Example:
        """The example at an index in 0..len-1."""


class SizedSource(Source, Protocol):
    """A source that knows the sizes of its examples without making them, so that packing is exact and cheap."""

    lengths: np.ndarray  # int [n]: tokens
    losses: np.ndarray  # int [n]: tokens with a weight, the first token left out


def is_sized(source: Source) -> TypeGuard[SizedSource]:
    """Whether a source is a SizedSource."""
    return getattr(source, "lengths", None) is not None and getattr(source, "losses", None) is not None


class GeneratorSource:
    """Examples that a function makes up: `make(index, seed)`, for `count` indices before an epoch is over."""

    def __init__(self, name: str, make: Callable[[int, int], Example], count: int = 2**31):
        self.name, self._make, self._count = name, make, count

    def __len__(self) -> int:
        return self._count

    def example(self, index: int, seed: int) -> Example:
        """What the function makes for an index and a seed."""
        return self._make(index, seed)


class ArraySource:
    """Encoded examples, end to end in arrays: tokens, weights and modality [total], offsets [n + 1], losses [n]."""

    def __init__(self, name: str, arrays: dict[str, np.ndarray]):
        self.name = name
        self._tokens, self._weights, self._modality = (arrays[key] for key in ("tokens", "weights", "modality"))
        self._offsets = np.asarray(arrays["offsets"])
        self.lengths = np.diff(self._offsets)
        self.losses = np.asarray(arrays["losses"])

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, index: int, seed: int = 0) -> Example:
        """The stored example; the seed changes nothing."""
        here = slice(self._offsets[index], self._offsets[index + 1])
        return Example(self._tokens[here], self._weights[here], self._modality[here])


class EncodedSource(ArraySource):
    """Examples that `write_encoded` wrote, mapped into memory rather than read."""

    def __init__(self, path: Path, name: str | None = None):
        path = Path(path)
        arrays = _map_arrays(path)
        offsets = np.asarray(arrays["offsets"])
        sizes = {len(arrays[key]) for key in ("tokens", "weights", "modality")}
        ordered = len(offsets) > 0 and offsets[0] == 0 and (np.diff(offsets) > 0).all()
        if not ordered or sizes != {offsets[-1]} or len(arrays["losses"]) != len(offsets) - 1:
            raise TonyError(f"{path} is damaged: its arrays don't fit each other; encode the data again")
        super().__init__(name or path.stem, arrays)


ARRAYS = {"tokens": np.int32, "weights": np.float32, "modality": np.int8, "offsets": np.int64, "losses": np.int32}


def collect(examples: Iterable[Example]) -> dict[str, np.ndarray]:
    """Examples end to end, as the arrays of an `ArraySource`."""
    examples = list(examples)
    joined = {
        field: np.concatenate([np.zeros(0), *(getattr(each, field) for each in examples)])
        for field in ("tokens", "weights", "modality")
    }
    joined["offsets"] = np.cumsum([0, *(len(each.tokens) for each in examples)])
    joined["losses"] = np.array([np.count_nonzero(each.weights[1:]) for each in examples])
    return {name: joined[name].astype(kind) for name, kind in ARRAYS.items()}


def write_encoded(path: Path, examples: Iterable[Example]) -> None:
    """Store examples as an uncompressed .npz, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, open(partial, "wb") as file:
        np.savez(file, **collect(examples))  # type: ignore[arg-type]


def _map_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed .npz as memory maps, which `np.load` itself does not offer."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            return {name: _map_member(file, path, archive.getinfo(f"{name}.npy")) for name in ARRAYS}
    except FileNotFoundError:
        raise TonyError(f"{path} does not exist; encode the data first") from None
    except (zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise TonyError(f"{path} is damaged or not of encoded examples ({error}); encode the data again") from None


def _map_member(file, path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename} is compressed")
    # The local header's own name and extra lengths say where the data begins (APPNOTE.TXT 4.3.7).
    file.seek(member.header_offset + 26)
    name, extra = np.frombuffer(file.read(4), "<u2").tolist()
    file.seek(member.header_offset + 30 + name + extra)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if len(shape) != 1 or dtype.hasobject:
        raise ValueError(f"{member.filename} has shape {shape} and type {dtype}")
    if not shape[0]:
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r", file.tell(), shape)


# -------------------------------------------------------------------------------------------------- text


class TextSource(ArraySource):
    """Plain documents, cut into pieces that fill a row: `<bos> text`, with `<end>` after a document's last piece."""

    def __init__(self, name: str, texts: Iterable[str], vocab: Vocabulary, text_tok: TextTokenizer, length: int):
        room = length - 2  # tokens of text in a piece; `<bos>` and `<end>` are the other two
        if room < 1:
            raise TonyError(f"rows of {length} tokens can't hold text; expected at least 3")
        super().__init__(name, collect(_pieces(texts, vocab, text_tok, room)))


def _pieces(texts: Iterable[str], vocab: Vocabulary, text_tok: TextTokenizer, room: int) -> Iterator[Example]:
    for group in _groups(texts, TEXTS_AT_ONCE):
        for ids in text_tok.encode_many(group):
            body = [*(vocab.text.start + token for token in ids), vocab.special("end")]
            for at in range(0, len(body), room):
                tokens = np.array([vocab.special("bos"), *body[at : at + room]], np.int32)
                weights = np.ones(len(tokens), np.float32)
                weights[0] = 0
                yield Example(tokens, weights, np.zeros(len(tokens), np.int8))


def _groups(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    group = []
    for text in texts:
        group.append(text)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
