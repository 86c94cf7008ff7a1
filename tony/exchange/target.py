"""Where an import or export may write: never into a run or into what it reads, over anything else only if asked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tony.errors import TonyError
from tony.generate.release import is_run


def check_target(out: Path, source: Path | None, overwrite: bool, file: bool = False) -> None:
    """TonyError unless a folder, or a `file`, can be written at `out` without loss; nothing is read or made.

    `source` is what will be read, None if it is not on this machine.
    """
    with writing(out):
        place = out.resolve()
        if source is not None and place == source.resolve():
            raise TonyError(f"{out} is what is read; give another place to write to")
        if source is not None and source.resolve() in place.parents:
            raise TonyError(f"{out} lies in {source}, which is read; give another place to write to")
        run = next((folder for folder in (place, *place.parents) if is_run(folder)), None)
        if run is not None:
            where = "is a run" if run == place else f"lies in the run {run}"
            raise TonyError(f"{out} {where}; give a place outside of it")
        if place.exists():
            _check_existing(out, place, overwrite, file)
        parent = next(folder for folder in (place, *place.parents) if folder.exists())
        if not parent.is_dir() and not (file and parent == place):
            raise TonyError(f"{out} can't be written: {parent} is not a folder; give another place")
        if not os.access(parent, os.W_OK):
            raise TonyError(f"{out} can't be written: {parent} gives no permission to; give another place")


def _check_existing(out: Path, place: Path, overwrite: bool, file: bool) -> None:
    if file and place.is_dir():
        raise TonyError(f"{out} is a folder; expected the name of a file to write")
    if not file and not place.is_dir():
        raise TonyError(f"{out} can't be written: it is a file, expected a folder; give another name")
    if (file or any(place.iterdir())) and not overwrite:
        what = "exists" if file else "is a folder that is not empty"
        raise TonyError(f"{out} {what}; give another name, or --overwrite to write over it")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Errors of the file system in the block are TonyErrors that name `out`."""
    try:
        yield
    except OSError as error:
        raise TonyError(f"{out} can't be written ({error.strerror or error}); give another place") from None
