"""Checkpoints: orbax writes them in the background, each with checksums; a broken one is told and passed over."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tony.errors import TonyError, first_line
from tony.parallel import hosts

SUMS = "checksums.json"


class Checkpoints:
    """The checkpoints of one training, in folders named by step.

    The newest `keep` good ones stay of those whose step is a multiple of `every`; another one, as an interruption makes
    it, stays while it is the newest. So what is kept does not depend on interruptions.
    """

    def __init__(self, directory: Path, keep: int = 2, say=print, every: int = 1):
        self.directory, self.keep, self.say, self.every = Path(directory).absolute(), keep, say, every
        self.directory.mkdir(parents=True, exist_ok=True)
        for left in self.directory.glob("*.new*") if hosts.first() else ():  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        self._writer: Any = None
        self._pending: int | None = None

    def save(self, step: int, state: Any) -> None:
        """Begin to write the state after `step` steps; what was begun before is finished first."""
        import orbax.checkpoint as ocp

        self.finish()
        if hosts.left_out():
            state = jax.tree.map(np.asarray, state)  # of devices' arrays orbax takes only those of all
        if self._writer is None:
            company = _company()
            self._writer = ocp.AsyncCheckpointer(
                ocp.StandardCheckpointHandler(multiprocessing_options=company), multiprocessing_options=company,
                async_options=ocp.options.AsyncOptions(create_directories_asynchronously=not hosts.left_out()),
            )  # fmt: skip
        try:
            self._writer.save(self.directory / f"{step}.new", args=ocp.args.StandardSave(state), force=True)
        except OSError as error:
            raise self._not_saved(step, error) from None
        self._pending = step

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, vouch for it, and drop the oldest ones."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        folder = self.directory / f"{step}.new"
        try:
            self._writer.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_saved(step, error) from None
        hosts.barrier()
        if hosts.first():
            self._vouch(step, folder)
        hosts.barrier()

    def _vouch(self, step: int, folder: Path) -> None:
        """Write the checksums of a checkpoint that is all there, call it by its step, and drop the oldest ones."""
        try:
            sums = {str(path.relative_to(folder)): _digest(path) for path in _files(folder)}
            with open(folder / SUMS, "w") as file:
                json.dump(sums, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, ValueError, RuntimeError) as error:
            raise self._not_saved(step, error) from None
        target = self.directory / str(step)
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)
        steps = self.steps()
        staying = {*[step for step in steps if step % self.every == 0][-self.keep :], steps[-1]}
        self._remove(step for step in steps if step not in staying)

    def _remove(self, steps: Iterable[int]) -> None:
        for step in steps if hosts.first() else ():
            shutil.rmtree(self.directory / str(step), ignore_errors=True)

    def _not_saved(self, step: int, error: Exception) -> TonyError:
        shutil.rmtree(self.directory / f"{step}.new", ignore_errors=True)
        kept = self.steps()
        good = f"the checkpoint of step {kept[-1]} is untouched" if kept else "there is no earlier one"
        return TonyError(
            f"the checkpoint of step {step} could not be written ({first_line(error)}); {good}. Make room and run again"
        )

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit())

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints of later steps and those that interruptions made, but never the first."""
        self._remove(later for later in self.steps()[1:] if later > step or later % self.every)
        hosts.barrier()

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """(step, state) of the newest good checkpoint, with the shapes, types and sharding of `like`; None if none."""
        step = hosts.agree(str(self._newest()) if hosts.first() else "")
        return None if step == "None" else (int(step), self._read(self.directory / step, like))

    def _newest(self) -> int | None:
        """The step of the newest good checkpoint."""
        for step in reversed(self.steps()):
            broken = _broken(self.directory / str(step))
            if not broken:
                return step
            self.say(f"the checkpoint of step {step} is damaged ({broken}); the one before it is used")
        return None

    def _read(self, folder: Path, like: Any) -> Any:
        import orbax.checkpoint as ocp

        company = _company()
        reader = ocp.Checkpointer(
            ocp.StandardCheckpointHandler(multiprocessing_options=company), multiprocessing_options=company
        )
        _compare(folder, reader, like)
        if not hosts.left_out():
            expected = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
            return reader.restore(folder, args=ocp.args.StandardRestore(expected))
        found = reader.restore(folder, args=ocp.args.StandardRestore(jax.tree.map(np.asarray, like)))
        return jax.tree.map(jnp.asarray, found)

    def close(self) -> None:
        """Finish, and stop the writer's threads."""
        self.finish()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _company() -> Any:
    """What orbax must know: for whom to wait."""
    import orbax.checkpoint as ocp

    if not hosts.left_out():
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"alone{own}"
    )


def _compare(folder: Path, reader, like: Any) -> None:
    """TonyError that names the first array whose shape is not what the training expects."""
    metadata = reader.metadata(folder)
    stored = getattr(metadata, "item_metadata", metadata)
    stored = getattr(stored, "tree", stored)
    name_of = partial(jax.tree_util.keystr, simple=True, separator=".")
    expected = {name_of(path): np.shape(x) for path, x in jax.tree_util.tree_flatten_with_path(like)[0]}
    found = {
        name_of(path): tuple(x.shape)
        for path, x in jax.tree_util.tree_flatten_with_path(stored, is_leaf=lambda x: hasattr(x, "shape"))[0]
        if hasattr(x, "shape")
    }
    if expected != found:
        name = next((n for n in expected if n in found and found[n] != expected[n]), None)
        lacking, besides = sorted(expected.keys() - found), sorted(found.keys() - expected)
        if name is not None:
            detail = f"{name} is {found[name]}, expected {expected[name]}"
        else:
            detail = f"it lacks {lacking[0]}" if lacking else f"it has {besides[0]} besides"
        raise TonyError(
            f"the checkpoint in {folder} does not fit this recipe: {detail}; use the recipe that made it, or "
            "another name"
        )


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _broken(folder: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        sums = json.loads((folder / SUMS).read_text())
    except (OSError, ValueError):
        return f"{SUMS} is missing or unreadable"
    for name, digest in sums.items():
        path = folder / name
        if not path.exists():
            return f"{name} is missing"
        if _digest(path) != digest:
            return f"{name} has changed"
    return None
