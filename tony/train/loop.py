"""One training loop for everything that is trained here: codecs, the network, small judges.

The batch of a step is a pure function of the step, and so is its random key; a checkpoint holds parameters, optimiser
state and the step. Training that is killed and started again is therefore bitwise the training that was not.
"""

import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tony.errors import TonyError
from tony.parallel import hosts
from tony.parallel.sharding import Layout, host_share, place, place_rows
from tony.train.checkpoint import Checkpoints
from tony.train.meters import Meters
from tony.train.recovery import Detours, replayed
from tony.train.step import LossFunction, make_step

AHEAD = 3  # batches made before they are needed


def fit(
    *,
    name: str,
    loss_fn: LossFunction,
    params: Any,
    batch_at: Callable[..., Any],
    config: Any,
    directory: Path,
    console: Any = None,
    seed: int = 0,
    tokens_per_step: Callable[[int], int] | None = None,
    flops_per_token: int = 0,
    layout: Layout | None = None,
    shardings: Any = None,
) -> Any:
    """Train `params` for `config.steps` steps and return them; go on from the last checkpoint in `directory`.

    `loss_fn(params, batch, key) -> (loss, scalar metrics)`; `batch_at(step)` is a tree of arrays, and where batches
    were left out before it (`config.rewind`) it is `batch_at(step, skipped=their number)`; `config` is a
    `tony.recipe.Training`. With a `layout` the parameters are spread as `shardings` says, and `batch_at(step, host,
    hosts)` has the host's part of the rows. Writes `checkpoints/`, `metrics.jsonl` and `curves.png`. A step with a loss
    or gradient that is not finite is skipped; three in a row, a full disk, or a checkpoint of another shape end in
    TonyError. With `config.rewind` a spike of the loss is gone back from and around (`tony.train.recovery`).
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    detours = Detours(directory / "detours.json")
    meters = Meters(name, directory, config, console, tokens_per_step, flops_per_token)
    checkpoints = Checkpoints(directory / "checkpoints", config.keep, meters.say, every=config.checkpoint_every)
    train_step = make_step(loss_fn, config, params, None, layout, shardings)
    # A copy, since the buffers of a step's input are given to its output.
    state = {"params": place(params, shardings) if layout else jax.tree.map(jnp.array, params)}
    state["optimizer"] = train_step.init(state["params"])
    share = host_share(layout) if layout else ()
    run = hosts.compiled_together(train_step.run)
    step = 0
    if (restored := checkpoints.restore(state)) is not None:
        step, state = restored
        meters.say(f"{name}: going on from step {step} of {config.steps}")
    elif config.rewind:
        checkpoints.save(0, state)

    def key_of(step: int) -> jax.Array:
        return jax.random.fold_in(jax.random.key(seed), step)

    if layout:
        key_of = jax.jit(key_of, out_shardings=layout.sharding())

    def made(step: int) -> Any:
        skipped = detours.skipped(step)
        batch = batch_at(step, *share, **({"skipped": skipped} if skipped else {}))
        return place_rows(batch, layout) if layout else batch

    def advance(step: int, state: Any) -> tuple[int, Any, int | None]:
        """Train on from a step until the end or until the loss spikes: (step, state, where it began to spike)."""
        saved = step
        meters.begin(step)
        hosts.barrier()
        detector = replayed(meters.rows()) if config.rewind else None
        spiked = detector.spiked if detector else None
        try:
            with hosts.exchanging(), Batches(made, step, config.steps) as batches, meters, interrupted:
                while step < config.steps and spiked is None:
                    interrupted.check()
                    state, measured = run(state, batches.get(), key_of(step))
                    step += 1
                    hosts.progress()
                    taken = meters.add(step - 1, measured)
                    if detector and taken:
                        spiked = detector.observe(*taken)
                    if step % config.checkpoint_every == 0 and step < config.steps and spiked is None:
                        taken = meters.flush()
                        if detector and taken:
                            spiked = detector.observe(*taken)
                        if spiked is None:
                            checkpoints.save(step, state)
                            saved = step
                taken = meters.flush(check=spiked is None)
                if detector and taken and spiked is None:
                    spiked = detector.observe(*taken)
            if spiked is None and config.steps > saved:
                checkpoints.save(config.steps, state)
        except KeyboardInterrupt:
            # Where there are others, they may be at another step; a second Ctrl-C comes when the state is not whole.
            if step > saved and not hosts.together() and not interrupted.at_once:
                checkpoints.save(step, state)
                saved = step
            checkpoints.close()
            meters.say(f"{name}: stopped after step {step}; the same command goes on from step {saved}")
            raise
        return step, state, spiked

    interrupted = Interrupt()
    step, state, spiked = advance(step, state)
    while spiked is not None:
        checkpoints.finish()
        checkpoints.forget_after(spiked - config.rewind)
        seen, (step, state) = step, _restored(checkpoints, state, name)
        detours.take(step, config.skip)
        meters.say(
            f"{name}: the loss spiked at step {spiked + 1}; back from {seen} to {step}, past {config.skip} batches"
        )
        step, state, spiked = advance(step, state)
    checkpoints.close()
    meters.draw()
    return state["params"]


def _restored(checkpoints: Checkpoints, like: Any, name: str) -> tuple[int, Any]:
    restored = checkpoints.restore(like)
    if restored is None:
        raise TonyError(f"{name}: the loss spiked and there is no checkpoint to go back to; raise {name}.keep")
    return restored


class Interrupt:
    """Turns Ctrl-C into a KeyboardInterrupt between two steps, where the state is whole; a second one is immediate."""

    def __enter__(self) -> "Interrupt":
        self.asked, self.at_once, self._before = False, False, None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number, frame) -> None:
        if self.asked:
            self.at_once = True
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        """Raise if asked to stop."""
        if self.asked:
            raise KeyboardInterrupt

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


class Batches:
    """Batches made by a thread while the device works."""

    def __init__(self, batch_at: Callable[[int], Any], start: int, stop: int):
        self._queue: queue.Queue = queue.Queue(AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._make, args=(batch_at, start, stop), daemon=True)

    def _make(self, batch_at, start, stop):
        for step in range(start, stop):
            try:
                made = batch_at(step)
            except BaseException as error:  # handed to the consumer, which raises it
                made = error
            while not self._stopped.is_set():
                try:
                    self._queue.put(made, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if self._stopped.is_set() or isinstance(made, BaseException):
                return

    def get(self) -> Any:
        """The next batch; raises what making it raised."""
        made = self._queue.get()
        if isinstance(made, BaseException):
            raise made
        return made

    def __enter__(self) -> "Batches":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stopped.set()
        self._thread.join(timeout=10)
