"""`tony serve`: load a model, compile everything, listen."""

import logging
import socket
import sys
import time
from pathlib import Path

from tony.errors import TonyError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    directory: Path, host: str = "127.0.0.1", port: int = 8000, api_key: str | None = None, slots: int = 8
) -> None:
    """Serve until interrupted; TonyError if the port is taken or the model is not there."""
    if host not in LOOPBACK and not api_key:
        raise TonyError(f"--host {host} can be reached from other machines; give --api-key, or leave the host out")
    listener = _listen(host, port)
    began = time.perf_counter()
    print(f"loading {directory} ...", file=sys.stderr, flush=True)
    import uvicorn

    from tony.generate.omni import Omni
    from tony.serve.app import Settings, create_app

    omni = Omni.load(directory, slots=slots)
    omni.audio_part([0.0] * 3200)  # compiles the codecs' streaming programs
    name = Path(directory).resolve()
    app = create_app(omni, Settings(model=name.parent.name if name.name == "model" else name.name, api_key=api_key))
    shown = f"http://{host}:{listener.getsockname()[1]}"
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


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before the model is loaded, so that a taken port is told at once."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        raise TonyError(
            f"port {port} of {host} can't be used ({error.strerror}); stop what uses it or give --port"
        ) from None
    return listener
