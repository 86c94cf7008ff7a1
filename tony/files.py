"""Files that are whole or absent, never half written."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Write beside the target, make it durable, then rename over it. Not waiting for the disk is for many small files
    that are made again if they are lost."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """The name to write a large file under; it gets its own name, durably, when the block ends without an error."""
    partial = path.with_name(f"{path.name}.part")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    write_bytes(path, (json.dumps(data, indent=1, ensure_ascii=False, default=_plain) + "\n").encode())


def write_jsonl(path: Path, rows: list[dict]) -> None:
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in rows).encode())


def check_readable(path: Path) -> None:
    """OSError with the file's name if it can't be opened; safetensors calls every such file missing, and names none."""
    with open(path, "rb"):
        pass


def read_json(path: Path) -> Any:
    """The file's content, or None if it is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def mapping(value: Any) -> dict:
    """The value if it is an object; {} for anything else that a damaged file may hold."""
    return value if isinstance(value, dict) else {}


def read_jsonl(path: Path) -> list[dict]:
    """The rows of a file; lines that are not JSON objects (a torn last line) are left out; [] if there is no file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays, and paths, as JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
