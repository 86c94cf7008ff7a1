"""`tony serve`: load a model, compile everything, listen."""

import errno
import logging
import socket
import sys
import time
from pathlib import Path

from tony.errors import TonyError
from tony.generate.release import home_of

HOST, PORT, SLOTS = "127.0.0.1", 8000, 8  # where the user gives none
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    directory: Path,
    host: str = HOST,
    port: int | None = None,
    api_key: str | None = None,
    slots: int = SLOTS,
    fd: int | None = None,
) -> None:
    """Serve until interrupted; TonyError if the port is taken or the model is not there.

    `fd` is a listening socket that another process has opened, taken instead of host and port.
    """
    check_reach(host, api_key)
    listener = listen(host, PORT if port is None else port) if fd is None else socket.socket(fileno=fd)
    began = time.perf_counter()
    print(f"loading {directory} ...", file=sys.stderr, flush=True)
    import uvicorn

    from tony.generate.omni import Omni
    from tony.serve.app import Settings, create_app

    omni = Omni.load(directory, slots=slots)
    omni.warm()
    app = create_app(omni, Settings(model=home_of(directory).name, api_key=api_key))
    shown = address(host, listener.getsockname()[1])
    print(
        f"ready after {time.perf_counter() - began:.1f} s: {shown} (page), {shown}/v1 (API); Ctrl-C stops",
        file=sys.stderr,
        flush=True,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
    try:
        server.run(sockets=[listener])
    finally:
        omni.close()


def check_reach(host: str, api_key: str | None) -> None:
    """TonyError if other machines could use the service without a key."""
    if host not in LOOPBACK and not api_key:
        raise TonyError(f"--host {host} can be reached from other machines; give --api-key, or leave the host out")


def address(host: str, port: int) -> str:
    """The URL of a service."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before the model is loaded, so that a taken port is told at once."""
    if not 0 <= port <= 65535:
        raise TonyError(f"--port {port} is none; expected 0 to 65535")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (socket.gaierror, UnicodeError):
        listener.close()
        raise TonyError(f"--host {host} is not known; give a name or an address of this machine") from None
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise TonyError(f"--host {host} is no address of this machine; give one that is") from error
        raise TonyError(
            f"port {port} of {host} can't be used ({error.strerror}); stop what uses it or give --port"
        ) from error
    return listener
