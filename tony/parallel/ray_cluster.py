"""`tony run RECIPE --on ray://HOST:PORT`: the processes of a training on the machines of a Ray cluster.

A placement group holds a place for each worker; in it an actor starts the very command that one would type on each host
(`tony.parallel.hosts`), as a process of its own, and passes on what it says. All machines need Tony, and a folder for
`--out` that all of them see.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tony.errors import TonyError, first_line
from tony.parallel.hosts import LOST

PLACES = 60  # seconds to wait for the workers' places
GRACE = 90  # seconds in which processes end by themselves after one of them has failed
POLL = 0.5
TRIES = 3  # to connect
ACCELERATORS = ("TPU", "GPU")
TAIL = 20  # lines told of a process that failed


def launch(
    on: str, recipe: Path, arguments: Sequence[str], workers: int | None, say: Callable[[str, bool], None]
) -> int:
    """Run `tony run RECIPE ARGUMENTS` with a process for each of `workers` places (None: one for each machine); the
    exit code of the first process to fail, or 0.

    `say(line, error)` gets what the first process writes to standard output or error. TonyError if there is no Ray, no
    such cluster, or no room in it.
    """
    ray = _connected(on)
    try:
        crew = _placed(ray, workers)
        return _supervised(ray, crew, recipe, list(arguments), say)
    finally:
        ray.shutdown()


def _connected(on: str) -> Any:
    try:
        import ray
    except ImportError:
        raise TonyError(f"--on {on} needs Ray: pip install -e '.[cluster]' in Tony's folder") from None
    if on != "ray" and not on.startswith("ray://"):
        raise TonyError(f"--on {on!r}: expected ray://HOST:PORT, or ray for a cluster that this machine is part of")
    for left in reversed(range(TRIES)):
        try:
            ray.init(address="auto" if on == "ray" else on, log_to_driver=False, logging_level=logging.ERROR)
            break
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            if left and "Initialization failure" in str(error):
                continue  # the cluster is there, but its server for us was too slow to start
            raise TonyError(
                f"--on {on}: no Ray cluster answers ({first_line(error, 160)}); start one with: ray start --head"
            ) from None
    return ray


def bundle(nodes: Sequence[dict[str, float]], workers: int | None) -> tuple[int, dict[str, float]]:
    """(how many workers, what each of them needs), given the resources of the machines: a processor, and as many
    accelerators as all of them can have. None is a worker for each machine, of those with accelerators if there are
    any."""
    for kind in ACCELERATORS:
        having = [int(resources[kind]) for resources in nodes if resources.get(kind)]
        if having:
            count = workers or len(having)
            each = max((n for n in range(1, max(having) + 1) if sum(has // n for has in having) >= count), default=0)
            if not each:
                raise TonyError(f"--workers {count}: the cluster has {sum(having)} {kind}s; give at most as many")
            return count, {"CPU": 1, kind: each}
    return workers or len(nodes), {"CPU": 1}


def _placed(ray: Any, workers: int | None) -> list[Any]:
    """An actor for each worker, in the order of their numbers."""
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    count, needs = bundle(nodes, workers)
    able = sum(all(node.get(kind, 0) >= amount for kind, amount in needs.items()) for node in nodes)
    group = placement_group([needs] * count, strategy="STRICT_SPREAD" if count <= able else "SPREAD")
    try:
        ray.get(group.ready(), timeout=PLACES)
    except ray.exceptions.GetTimeoutError:
        raise TonyError(
            f"the cluster's {len(nodes)} machines have had no room for {count} workers with {needs} each "
            f"for {PLACES} s; lower --workers, or wait until others are done"
        ) from None
    actor = ray.remote(Worker)
    return [
        actor.options(
            num_cpus=1,
            resources={kind: amount for kind, amount in needs.items() if kind == "TPU"},
            num_gpus=needs.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
        ).remote()
        for number in range(count)
    ]


def _supervised(ray: Any, crew: list[Any], recipe: Path, arguments: list[str], say: Callable[[str, bool], None]) -> int:
    text, here = recipe.read_text(), os.getcwd()
    said: list[list[str]] = [[] for _ in crew]
    codes: list[int | None] = [None] * len(crew)
    failed: int | None = None
    since = 0.0
    try:
        coordinator = _started(ray, crew[0].address.remote())
        for answer in [
            worker.start.remote(recipe.name, text, arguments, here, _joining(coordinator, number, len(crew)))
            for number, worker in enumerate(crew)
        ]:
            _started(ray, answer)
        while None in codes:
            running = [number for number, code in enumerate(codes) if code is None]
            for number, answer in [(number, crew[number].poll.remote()) for number in running]:
                out, err, code = _heard(ray, answer)
                for lines, is_error in ((out, False), (err, True)):
                    for line in lines if number == 0 else ():
                        say(line, is_error)
                said[number] = (said[number] + err)[-TAIL:]
                codes[number] = code
                if code and failed is None:
                    failed, since = number, time.monotonic()
            if failed is not None and time.monotonic() - since > GRACE:
                break
            time.sleep(POLL)
    finally:
        for answer in [worker.stop.remote() for worker in crew]:
            with suppress(ray.exceptions.RayActorError):  # who has left the cluster needs no stopping
                ray.get(answer)
    if failed is None:
        return 0
    if failed:
        say(f"process {failed} of {len(crew)} ended with code {codes[failed]}; its last words:", True)
        for line in said[failed]:
            say(f"  {line}", True)
    return codes[failed] or 1


def _started(ray: Any, answer: Any) -> Any:
    """What a worker answers as it starts; TonyError, with the reason, if it can't."""
    try:
        return ray.get(answer)
    except ray.exceptions.RayError as error:  # one of the worker's own has it as its cause
        raise TonyError(f"a worker could not be started ({first_line(getattr(error, 'cause', error), 160)})") from None


def _heard(ray: Any, answer: Any) -> tuple[list[str], list[str], int | None]:
    """What a worker says when it is polled; one that is gone has ended."""
    try:
        return ray.get(answer)
    except ray.exceptions.RayActorError as error:
        return [], [f"its machine left the cluster ({first_line(error, 160)})"], LOST


def _joining(coordinator: str, number: int, count: int) -> dict[str, str]:
    if count == 1:
        return {}
    return {
        "JAX_COORDINATOR_ADDRESS": coordinator, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(number),
    }  # fmt: skip


class Worker:
    """Starts one process on its machine, keeps what it says until it is asked, and ends it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.lines: dict[str, list[str]] = {"out": [], "err": []}
        self.readers: list[threading.Thread] = []

    def address(self) -> str:
        """host:port of this machine, where process 0 will wait for the others."""
        import ray

        with socket.socket() as free:
            free.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def start(self, name: str, recipe: str, arguments: list[str], folder: str, environment: dict[str, str]) -> None:
        """Start `tony run` on the recipe's text, in `folder` where this machine has it."""
        path = Path(tempfile.mkdtemp(prefix="tony-")) / name
        path.write_text(recipe)
        command = [sys.executable, "-m", "tony", "run", str(path), *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, **environment}, cwd=folder if Path(folder).is_dir() else None,
        )  # fmt: skip
        for kind, stream in (("out", self.process.stdout), ("err", self.process.stderr)):
            reader = threading.Thread(target=self._read, args=(kind, stream), daemon=True)
            reader.start()
            self.readers.append(reader)

    def _read(self, kind: str, stream: Any) -> None:
        for line in stream:
            self.lines[kind].append(line.rstrip("\n"))

    def poll(self) -> tuple[list[str], list[str], int | None]:
        """(lines of standard output, of standard error, exit code or None), each line once."""
        code = self.process.poll() if self.process else None
        if code is not None:
            for reader in self.readers:
                reader.join(timeout=5)
        told = []
        for kind in ("out", "err"):
            count = len(self.lines[kind])
            told.append(self.lines[kind][:count])
            del self.lines[kind][:count]
        return told[0], told[1], code

    def stop(self) -> None:
        """End the process, if it still runs: as Ctrl-C first, for good after a while."""
        if not self.process or self.process.poll() is not None:
            return
        for number, seconds in ((signal.SIGINT, 15), (signal.SIGKILL, 5)):
            os.killpg(self.process.pid, number)
            try:
                self.process.wait(seconds)
                return
            except subprocess.TimeoutExpired:
                continue
