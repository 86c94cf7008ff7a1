"""Sources over files of others: JSONL, Parquet, WebDataset folders, Hugging Face datasets.

Each kind is a sequence of records, read by index, that can say where a record is and fetch the files it refers to;
`open_source` makes a source of it. Conversations are encoded when they are asked for; `write_encoded` stores them for
good, which is worth it for anything that is trained on more than once.
"""

import contextlib
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from tony.data import messages
from tony.data.source import EncodedSource, Source, TextSource
from tony.errors import TonyError, require
from tony.tokens.tokenizer import Example, Tokenizer, example

IMAGE_FILES = ("png", "jpg", "jpeg", "webp", "gif", "bmp")
AUDIO_FILES = ("wav", "flac", "mp3", "ogg", "opus")


class Records(Protocol):
    """Records by index; `where` names one in an error, `read` fetches a file that one refers to."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def where(self, index: int) -> str: ...

    def read(self, index: int, reference: str) -> bytes: ...


class RecordSource:
    """Conversations of records, encoded when asked for."""

    def __init__(self, name: str, records: Records, tokenizer: Tokenizer, weights: Mapping[str, float] | None = None):
        self.name, self._records, self._tokenizer, self._weights = name, records, tokenizer, weights

    def __len__(self) -> int:
        return len(self._records)

    def example(self, index: int, seed: int = 0) -> Example:
        """A record as an example; TonyError, naming the file and the line, if it is broken."""
        try:
            record = self._records[index]
            parts = messages.to_messages(record, self._tokenizer, lambda name: self._records.read(index, name))
            tok = self._tokenizer
            return example(parts, tok.vocabulary, tok.text, self._weights, record.get("modality"))
        except (TonyError, OSError, KeyError, TypeError, ValueError) as error:
            raise TonyError(f"{self._records.where(index)}: {error}") from None


def open_source(table: Mapping[str, Any], tokenizer: Tokenizer, length: int) -> Source:
    """The source that a table of a recipe's `data.sources` describes: name, kind, path, and what its kind takes.

    kinds: encoded, jsonl, parquet, webdataset, huggingface (path is the dataset's name or a folder saved by
    `save_to_disk`; also split, subset). Records that are text alone become rows of `length` tokens.
    """
    kind, path = table.get("kind"), table.get("path")
    if kind == "encoded" and isinstance(path, str | Path):
        return EncodedSource(Path(path), table.get("name"))
    records, name = open_records(table), table.get("name") or Path(str(path)).stem
    if not len(records):
        raise TonyError(f"{path} holds no records; give data source {name!r} some or remove it")
    first = _checked(records, 0)
    if messages.is_plain_text(first):
        return TextSource(name, _texts(records), tokenizer.vocabulary, tokenizer.text, length)
    return RecordSource(name, records, tokenizer, table.get("weights"))


def open_records(table: Mapping[str, Any]) -> Records:
    """The records that a table of a recipe's `data.sources` names."""
    kind, path = table.get("kind"), table.get("path")
    if kind not in KINDS:
        raise TonyError(f"data source {table.get('name')!r} has kind {kind!r}; expected one of {', '.join(KINDS)}")
    if not isinstance(path, str | Path):
        raise TonyError(f"data source {table.get('name')!r} has path {path!r}; expected a file or a folder")
    if kind == "huggingface":
        return HuggingFace(str(path), table.get("split", "train"), table.get("subset"))
    return KINDS[kind](Path(path))


def fingerprint(table: Mapping[str, Any]) -> str:
    """Hash of what a source holds: the content of its files and of those that its JSON Lines name; of a dataset on the
    hub its name, split and subset."""
    digest = hashlib.blake2b(json.dumps(dict(table), sort_keys=True, default=str).encode(), digest_size=16)
    path = Path(str(table.get("path")))
    files = {p for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()}
    for file in [file for file in files if table.get("kind") == "jsonl" and (file == path or file.suffix == ".jsonl")]:
        files.update(_named_in(file))
    for file in sorted(files):
        digest.update(os.path.relpath(file, path.parent).encode())
        with open(file, "rb") as content:
            digest.update(hashlib.file_digest(content, "blake2b").digest())
    return digest.hexdigest()


def _named_in(file: Path) -> Iterator[Path]:
    """The files that the records of a .jsonl file name; what is wrong with it is said when it is opened."""
    with open(file, "rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                named = (file.parent / name for name in messages.files_of(json.loads(line)))
                yield from (path for path in named if os.path.isfile(path))


def _checked(records: Records, index: int) -> Any:
    try:
        record = records[index]
        messages.check(record)
    except TonyError as error:
        place = records.where(index)
        raise error if str(error).startswith(place) else TonyError(f"{place}: {error}") from None
    return record


def _texts(records: Records) -> Iterator[str]:
    for index in range(len(records)):
        record = _checked(records, index)
        if not messages.is_plain_text(record):
            raise TonyError(
                f"{records.where(index)}: a conversation among plain documents; put them into sources of their own"
            )
        yield record["text"]


def _files(path: Path, ending: str) -> list[Path]:
    files = sorted(path.rglob(f"*{ending}")) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise TonyError(f"{path} {'holds no' if path.exists() else 'does not exist; expected'} {ending} files")
    return files


def _read_beside(path: Path, reference: str) -> bytes:
    try:
        return (path.parent / reference).read_bytes()
    except OSError as error:
        raise TonyError(f"the file {reference} can't be read ({error.strerror}); its place is beside {path}") from None


# ------------------------------------------------------------------------------------------------- kinds


class JsonLines:
    """A .jsonl file, or all in a folder. Every line is checked when it is opened, so that no run dies of one later."""

    def __init__(self, path: Path):
        self._places: list[tuple[Path, int, int]] = []  # file, line number, byte offset
        for file in _files(path, ".jsonl"):
            offset = 0
            with open(file, "rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        self._places.append((file, number, offset))
                        self._parse(line, len(self._places) - 1)
                    offset += len(line)

    def _parse(self, line: bytes, index: int) -> Any:
        try:
            record = json.loads(line)
        except ValueError as error:  # also UnicodeDecodeError
            raise TonyError(f"{self.where(index)}: not JSON ({error}); mend or remove the line") from None
        try:
            messages.check(record)
        except TonyError as error:
            raise TonyError(f"{self.where(index)}: {error}") from None
        return record

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        path, _, offset = self._places[index]
        with open(path, "rb") as file:
            file.seek(offset)
            return json.loads(file.readline())

    def where(self, index: int) -> str:
        """File and line."""
        path, number, _ = self._places[index]
        return f"{path} line {number}"

    def read(self, index: int, reference: str) -> bytes:
        """A file beside the .jsonl file."""
        return _read_beside(self._places[index][0], reference)


class Parquet:
    """A .parquet file, or all in a folder, read one row group at a time."""

    def __init__(self, path: Path):
        self._parquet = require("pyarrow.parquet", "data")
        arrow = require("pyarrow", "data")
        self._groups: list[tuple[Path, int, int, int]] = []  # file, row group, its first row in the file, overall
        self._count = 0
        for file in _files(path, ".parquet"):
            try:
                metadata = self._parquet.read_metadata(file)
            except (arrow.ArrowException, OSError) as error:
                raise TonyError(f"{file} is damaged or not Parquet ({error}); copy it again") from None
            row = 0
            for group in range(metadata.num_row_groups):
                self._groups.append((file, group, row, self._count))
                row += metadata.row_group(group).num_rows
                self._count += metadata.row_group(group).num_rows
        self._load = lru_cache(maxsize=2)(self._load_group)
        self._starts = [start for *_, start in self._groups]

    def _load_group(self, number: int):
        file, group, *_ = self._groups[number]
        return self._parquet.ParquetFile(file).read_row_group(group)

    def _place(self, index: int) -> tuple[int, int]:
        from bisect import bisect_right

        number = bisect_right(self._starts, index) - 1
        return number, index - self._starts[number]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        number, row = self._place(index)
        try:
            return self._load(number).slice(row, 1).to_pylist()[0]
        except OSError as error:
            raise TonyError(f"{self.where(index)}: damaged ({error}); copy the file again") from None

    def where(self, index: int) -> str:
        """File and row, counted from 1."""
        number, row = self._place(index)
        return f"{self._groups[number][0]} row {self._groups[number][2] + row + 1}"

    def read(self, index: int, reference: str) -> bytes:
        """A file beside the .parquet file."""
        return _read_beside(self._groups[self._place(index)[0]][0], reference)


class WebDataset:
    """A .tar file, or all in a folder: files whose names differ only after the first dot make up one record.

    A .json file holds the record, or parts of it; .txt is its text; pictures and sounds are its image and audio, and a
    reference in the .json names them by their ending ("png") or their whole name.
    """

    def __init__(self, path: Path):
        self._samples: list[tuple[Path, str, dict[str, tuple[int, int]]]] = []  # tar, key, ending -> (offset, size)
        for file in _files(path, ".tar"):
            samples: dict[str, dict[str, tuple[int, int]]] = {}
            try:
                with tarfile.open(file, "r:") as archive:
                    for member in archive:
                        if member.isfile():
                            folder, slash, last = member.name.rpartition("/")
                            stem, _, ending = last.partition(".")
                            sample = samples.setdefault(f"{folder}{slash}{stem}", {})
                            sample[ending.lower()] = (member.offset_data, member.size)
            except (tarfile.TarError, OSError) as error:
                raise TonyError(f"{file} is damaged or not an uncompressed tar file ({error}); make it again") from None
            self._samples += [(file, key, endings) for key, endings in samples.items()]

    def __len__(self) -> int:
        return len(self._samples)

    def _member(self, index: int, ending: str) -> bytes:
        file, _, endings = self._samples[index]
        offset, size = endings[ending]
        with open(file, "rb") as archive:
            archive.seek(offset)
            data = archive.read(size)
        if len(data) < size:
            raise TonyError(f"{self.where(index)}: the tar file is cut off; copy it again")
        return data

    def __getitem__(self, index: int) -> Any:
        endings = self._samples[index][2]
        record: dict[str, Any] = {}
        try:
            if "json" in endings:
                record |= json.loads(self._member(index, "json"))
            if "txt" in endings:
                record.setdefault("text", self._member(index, "txt").decode("utf-8").strip())
        except (ValueError, TypeError) as error:
            raise TonyError(f"{self.where(index)}: its json or txt can't be read ({error}); make it again") from None
        for kind, known in (("image", IMAGE_FILES), ("audio", AUDIO_FILES)):
            here = next((ending for ending in known if ending in endings), None)
            if here and "messages" not in record:
                record.setdefault(kind, here)
        return record

    def where(self, index: int) -> str:
        """Tar file and key of the sample."""
        file, key, _ = self._samples[index]
        return f"{file} sample {key}"

    def read(self, index: int, reference: str) -> bytes:
        """A file of the same sample."""
        _, key, endings = self._samples[index]
        ending = reference.removeprefix(f"{key}.").lower()
        if ending not in endings:
            raise TonyError(f"the sample has no file {reference}; it has {', '.join(sorted(endings))}")
        return self._member(index, ending)


class HuggingFace:
    """A dataset of the `datasets` library: by its name on the hub, or a folder that `save_to_disk` wrote."""

    def __init__(self, path: str, split: str = "train", subset: str | None = None):
        datasets = require("datasets", "data")
        self._path, self._split = path, split
        try:
            if Path(path).is_dir():
                loaded = datasets.load_from_disk(path)
                self._rows: Sequence = loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
            else:
                self._rows = datasets.load_dataset(path, subset, split=split)
        except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
            raise TonyError(f"dataset {path!r}, split {split!r}, can't be loaded: {error}") from None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._rows[index]

    def where(self, index: int) -> str:
        """Dataset, split and row, counted from 1."""
        return f"{self._path} {self._split} row {index + 1}"

    def read(self, index: int, reference: str) -> bytes:
        """A file named by its path."""
        return _read_beside(Path(self._path) / "x", reference)


KINDS = {
    "encoded": EncodedSource,
    "jsonl": JsonLines,
    "parquet": Parquet,
    "webdataset": WebDataset,
    "huggingface": HuggingFace,
}
