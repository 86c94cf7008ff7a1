"""Processes that train together, one for each host: joining, agreeing, and ending together when one of them fails.

Each process says every few seconds that it lives; one that is silent for SILENCE seconds, having been killed or
stopped, ends all the others with a line that names it, and so does one that ends by itself with an error. That a
process lives and still does not get on shows in the steps: `progress` must be called every STALL seconds. Where process
0 is killed, which all meet at, JAX itself ends the others at once, in its own words.
"""

import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax

from tony.errors import TonyError, first_line


def _seconds(name: str, default: float) -> float:
    """A number of seconds from the environment; the default where what is there is none."""
    given = os.environ.get(name, default)
    try:
        if 0 < float(given) < 1e6:
            return float(given)
    except ValueError:
        pass
    print(f"warning: {name} = {given}: expected seconds; {default:g} are taken", file=sys.stderr)
    return default


BEAT = 1.0  # seconds between signs of life
SILENCE = _seconds("TONY_SILENCE_SECONDS", 20)  # without one that are taken for death
STALL = _seconds("TONY_STALL_SECONDS", 1800)  # between steps
JOIN = 120  # seconds to wait for the others at the start
LOST = 75  # exit code of a process that another one has left

_numbers = itertools.count()
_watch: "_Watch | None" = None
_apart = False  # while this process does what the others take no part in


def join() -> None:
    """Join the other processes, if the environment names any; before anything else is asked of JAX.

    Either JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID, or what SLURM, Open
    MPI, GKE and TPU machines set by themselves (`jax.distributed.initialize`).
    """
    global _watch
    if "proxy" in os.environ.get("JAX_PLATFORMS", "").split(","):
        _single_controller()
        return
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    if not given and not _cluster():
        return
    options: dict[str, Any] = {"initialization_timeout": JOIN}
    if len(given) == len(names):
        try:
            options |= {"num_processes": int(given[names[1]]), "process_id": int(given[names[2]])}
        except ValueError:
            raise TonyError(
                f"{names[1]} = {given[names[1]]}, {names[2]} = {given[names[2]]}: expected numbers"
            ) from None
        options |= {"coordinator_address": given[names[0]], "cluster_detection_method": "deactivate"}
    elif set(given) - {names[0]}:
        missing = next(name for name in names if name not in given)
        raise TonyError(f"{missing} is not set; give all of {', '.join(names)}, or none where the cluster says it")
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        raise TonyError(f"could not join the other processes within {JOIN} s ({first_line(error)})") from None
    if jax.process_count() > 1:
        _keep_stdout()
        _watch = _Watch()
        _watch.start()


def _keep_stdout() -> None:
    """Send what libraries print from C++ to standard error; Gloo says who is connected, and `--json` is to be read."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(own, "w", encoding="utf-8", buffering=1)  # noqa: SIM115


@contextmanager
def joined() -> Iterator[None]:
    """Inside, `join` is done; an error ends the other processes too, a TonyError with one line and exit code 2."""
    join()
    try:
        yield
    except BaseException as error:
        if not together():
            raise
        if isinstance(error, TonyError):
            print(f"error: {error}", file=sys.stderr)
            end(2, str(error))
        traceback.print_exc()
        end(130 if isinstance(error, KeyboardInterrupt) else 1, first_line(error))


def _single_controller() -> None:
    """Make the proxy of Pathways known to JAX: one process then has the devices of all hosts (Barham et al. 2022)."""
    try:
        import pathwaysutils
    except ImportError:
        raise TonyError(
            "JAX_PLATFORMS has proxy, which is Pathways' back end: pip install pathwaysutils, or unset it"
        ) from None
    pathwaysutils.initialize()


def _cluster() -> bool:
    """Whether a cluster started several of us."""
    several = any(
        os.environ.get(name, "1") not in ("", "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    )
    return several or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in os.environ


def together() -> bool:
    """Whether there are other processes that take part in what is being done."""
    return _watch is not None and not _apart


@contextmanager
def apart() -> Iterator[None]:
    """Inside, this process works by itself, whoever else there is: nobody waits for anybody."""
    global _apart
    _apart = True
    try:
        yield
    finally:
        _apart = False


def left_out() -> bool:
    """Whether there are other processes that take no part in what is being done."""
    return _watch is not None and _apart


def first() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return not together() or jax.process_index() == 0


def barrier() -> None:
    """Wait until every process has come here."""
    if together():
        _client().wait_at_barrier(f"tony/barrier/{next(_numbers)}", int(STALL * 1000))


def agree(value: str) -> str:
    """What the first process says, whatever the others do; they wait as long as it takes."""
    if not together():
        return value
    key = f"tony/agree/{next(_numbers)}"
    if first():
        _client().key_value_set(key, value)
        return value
    while True:
        try:
            return _client().blocking_key_value_get(key, 10_000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def collected(value: str) -> list[str]:
    """What each process says, for the first one; the others have only what they said themselves."""
    if not together():
        return [value]
    key = f"tony/collected/{next(_numbers)}"
    if not first():
        _client().key_value_set(f"{key}/{jax.process_index()}", value)
        return [value]
    others = range(1, jax.process_count())
    return [value, *(_client().blocking_key_value_get(f"{key}/{n}", int(STALL * 1000)) for n in others)]


def compiled_together(function: Any) -> Any:
    """A jitted function, each of whose programs every process has compiled before any of them runs it: who exchanges
    waits less long for another one than compilers differ."""
    if not together():
        return function
    programs: dict[Any, Any] = {}

    def call(*arguments):
        kinds = tuple((x.shape, x.dtype) for x in jax.tree.leaves(arguments))
        if kinds not in programs:
            if _watch:
                _watch.moved = None  # how long a compiler takes says nothing
            programs[kinds] = function.lower(*arguments).compile()
            barrier()
            progress()
        return programs[kinds](*arguments)

    return call


def progress() -> None:
    """Say that this process gets on."""
    if _watch and together():
        _watch.moved = time.monotonic()


def end(code: int, reason: str) -> NoReturn:
    """End this process and tell the others why; all meet at the first one, so it leaves them time to hear it."""
    if _watch:
        _watch.fail(reason)
        time.sleep(4 * BEAT if first() else 0)
    _exit(code)


@contextmanager
def exchanging() -> Iterator[None]:
    """Inside there are steps, and an error of an exchange is a TonyError that says who is gone, if anybody is."""
    progress()
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if (
            not _watch
            or not together()
            or (not isinstance(error, jax.errors.JaxRuntimeError) and "Gloo" not in str(error))
        ):
            raise
        found = _watch.found(SILENCE + 5 * BEAT)
        raise TonyError(found or f"the exchange with the other processes failed ({first_line(error)})") from None
    finally:
        if _watch:
            _watch.moved = None


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an orderly end would wait for the processes that are gone


def _client() -> Any:
    from jax._src.distributed import global_state  # the store that all processes of jax.distributed share

    return global_state.client


class _Watch:
    """A thread that gives signs of life, looks for those of the next process, and hears of failures; another one that
    ends this process when there is a reason to."""

    def __init__(self) -> None:
        self.number, self.count = jax.process_index(), jax.process_count()
        self.heard = time.monotonic()
        self.moved: float | None = None  # at the last step, while there are steps
        self.reason: str | None = None  # to end
        self._ending = threading.Lock()

    def start(self) -> None:
        for run in (self._beat, self._judge):
            threading.Thread(target=run, daemon=True).start()

    def found(self, seconds: float) -> str | None:
        """Why the training can't go on, if that becomes known in so many seconds."""
        self._ending.acquire(timeout=0)  # the caller will end this process
        until = time.monotonic() + seconds
        while self.reason is None and time.monotonic() < until:
            time.sleep(0.1)
        return self.reason

    def fail(self, reason: str) -> None:
        """Let the others know."""
        self._ending.acquire(timeout=0)
        try:
            _client().key_value_set("tony/failed", f"process {self.number} of {self.count} ended: {reason}")
        except jax.errors.JaxRuntimeError:
            return  # it is known already, or nobody is there to hear it

    def _beat(self) -> None:
        after, seen, since = (self.number + 1) % self.count, None, time.monotonic()
        for beat in itertools.count():
            if _client() is None:
                return  # an orderly end
            try:
                _client().key_value_set(f"tony/beat/{self.number}", str(beat), allow_overwrite=True)
                now = _try(f"tony/beat/{after}")
                failed = _try("tony/failed")
            except jax.errors.JaxRuntimeError:
                time.sleep(BEAT)
                continue  # `_judge` knows for how long
            self.heard = time.monotonic()
            if now != seen:
                seen, since = now, self.heard
            elif self.heard - since > SILENCE:
                failed = (
                    failed or f"process {after} of {self.count} was killed or hangs: no sign of it for {SILENCE:.0f} s"
                )
                try:
                    _client().key_value_set("tony/failed", failed)
                except jax.errors.JaxRuntimeError:
                    continue  # somebody was first
            if failed and self.reason is None:
                self.reason = failed
            time.sleep(BEAT)

    def _judge(self) -> None:
        while True:
            time.sleep(BEAT / 2)
            now = time.monotonic()
            if _client() is None:
                return
            if now - self.heard > SILENCE:
                self.reason = f"process 0 of {self.count}, which all meet at, was killed or hangs"
            if self.moved is not None and now - self.moved > STALL:
                self.reason = f"process {self.number} of {self.count} made no step for {STALL:.0f} s"
                self.fail(self.reason)
            if self.reason:
                self._ending.acquire(timeout=SILENCE)  # a program that is about to end by itself has so long for it
                print(f"error: {self.reason}", file=sys.stderr)
                time.sleep(3 * BEAT if first() else 0)
                _exit(LOST)


def _try(key: str) -> str | None:
    try:
        return _client().key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise
