"""`tony serve RUN --detach` and `--stop`: a service in a session of its own, and RUN/serve.json, which says where."""

import errno
import fcntl
import http.client
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

import tony
from tony.errors import TonyError
from tony.files import write_json
from tony.generate.release import find_release, home_of
from tony.serve.main import HOST, PORT, SLOTS, address, check_reach, listen

STATE, LOG, LOCK = "serve.json", "serve.log", ".serve.lock"
PORTS = 100  # tried from PORT on, where the user gives none
PATIENCE = 10  # seconds in which a service must have ended before it is killed


@dataclass(frozen=True)
class State:
    """What serve.json holds; `started` is in seconds after the machine's own start, which no change of clocks moves."""

    pid: int
    started: float
    host: str
    port: int
    slots: int = SLOTS

    def __str__(self) -> str:
        url = address(self.host, self.port)
        return f"{url} (page), {url}/v1 (API), pid {self.pid}"


def detach(
    directory: Path,
    host: str = HOST,
    port: int | None = None,
    api_key: str | None = None,
    slots: int = SLOTS,
) -> None:
    """Start a service in the background and wait until it answers; one that runs already is told and left alone, and
    which of the options it does not have."""
    check_reach(host, api_key)
    find_release(directory)
    home = home_of(directory)
    with _lock(home):
        state = _running(home)
        if state is not None:
            print(f"already running: {state}")
            if unused := _unused(state, host, port, api_key, slots):
                print(f"not used: {', '.join(unused)}; stop it first, then start it so", file=sys.stderr, flush=True)
        else:
            state = _start(directory, home, host, port, api_key, slots)
            print(f"running: {state}")
    print(f"stop it: {_program()} serve {shlex.quote(str(directory))} --stop", flush=True)


def stop(directory: Path) -> None:
    """Stop the service that `detach` started; there being none is told and is no error."""
    home = home_of(directory)
    if not home.is_dir():
        raise TonyError(f"there is no folder {directory}; give the run's folder that was served with --detach")
    state = _running(home)
    if state is None:
        print(f"no service of {directory} is running in the background")
    else:
        _end(state)
        print(f"stopped: {state}")
    (home / STATE).unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------- starting


def _start(directory: Path, home: Path, host: str, port: int | None, api_key: str | None, slots: int) -> State:
    with _listen_somewhere(host, port) as listener:
        command = [sys.executable, "-m", "tony", "serve", str(Path(directory).resolve()), "--host", host,
                   "--slots", str(slots), "--fd", str(listener.fileno())]  # fmt: skip
        # The key stays out of the command line, which everybody on the machine can read.
        environment = {**os.environ, "TONY_API_KEY": api_key or ""}
        print(f"starting; it writes to {home / LOG}", file=sys.stderr, flush=True)
        with open(home / LOG, "wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[listener.fileno()],
                cwd=Path(tony.__file__).parents[1],  # where `-m tony` finds this very program
                env=environment,
            )
        state = State(process.pid, _started(psutil.Process(process.pid)), host, listener.getsockname()[1], slots)
    try:
        write_json(home / STATE, asdict(state))
        _await_health(process, state, home / LOG)
    except BaseException:
        _end(state)
        (home / STATE).unlink(missing_ok=True)
        raise
    return state


def _listen_somewhere(host: str, port: int | None) -> socket.socket:
    if port is not None:
        return listen(host, port)
    for candidate in range(PORT, PORT + PORTS):
        try:
            return listen(host, candidate)
        except TonyError as error:
            if getattr(error.__cause__, "errno", None) != errno.EADDRINUSE:
                raise
    raise TonyError(f"all ports of {host} from {PORT} to {PORT + PORTS - 1} are taken; give --port")


def _await_health(process: subprocess.Popen, state: State, log: Path) -> None:
    while process.poll() is None:
        if _answers(state):
            return
        time.sleep(0.1)
    lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    said = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
    raise TonyError(f"the service ended while it was starting: {said.removeprefix('error: ')} (all it said: {log})")


def _answers(state: State, path: str = "/health", api_key: str | None = None) -> bool:
    """Whether a path is answered, with this key if there is one."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(state.host, state.host)
    connection = http.client.HTTPConnection(near, state.port, timeout=2)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {api_key}"} if api_key else {})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# ----------------------------------------------------------------------------------------- what is running


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Two that start a service of one folder at a time do so one after the other."""
    try:
        file = os.open(home / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise TonyError(f"{home} can't be written to ({error.strerror}); serve it without --detach") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _running(home: Path) -> State | None:
    """The service that serve.json names, if it is alive and no other process has got its number meanwhile."""
    try:
        state = State(**json.loads((home / STATE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return state if _process(state) is not None else None


def _unused(state: State, host: str, port: int | None, api_key: str | None, slots: int) -> list[str]:
    """Options, other than the defaults, that a running service was not started with."""
    models = "/v1/models"
    same = {
        f"--host {host}": host in (HOST, state.host),
        f"--port {port}": port in (None, 0, state.port),
        "--api-key": not api_key or (_answers(state, models, api_key) and not _answers(state, models)),
        f"--slots {slots}": slots in (SLOTS, state.slots),
    }
    return [option for option, holds in same.items() if not holds]


def _process(state: State) -> psutil.Process | None:
    try:
        process = psutil.Process(state.pid)
        same = abs(_started(process) - state.started) < 0.1 and "serve" in process.cmdline()
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, ValueError, TypeError):
        return None


def _started(process: psutil.Process) -> float:
    return round(process.create_time() - psutil.boot_time(), 2)


def _end(state: State) -> None:
    for signal in ("terminate", "kill"):
        deadline = time.monotonic() + PATIENCE
        process = _process(state)
        try:
            if process is not None:
                getattr(process, signal)()
        except psutil.NoSuchProcess:
            return
        except psutil.AccessDenied:
            raise TonyError(f"process {state.pid} belongs to another user; ask them to stop it") from None
        while _process(state) is not None and time.monotonic() < deadline:
            time.sleep(0.05)


def _program() -> str:
    """How this program was called, to be called again."""
    called, found = sys.argv[0], shutil.which("tony")
    if Path(called).name != "tony":
        return "tony" if found else f"{sys.executable} -m tony"
    return "tony" if found and os.path.samefile(found, called) else shlex.quote(called)
