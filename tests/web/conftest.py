"""A scripted server that speaks Tony's HTTP protocol, so that tests of the page need no model; and a browser.

What it answers is decided by words in the last question; `received` keeps every request body.
"""

import asyncio
import base64
import io
import json
import shutil
import socket
import threading
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image

WEB = Path(__file__).parents[2] / "tony" / "serve" / "web"
CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
]
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> **bold** [a](javascript:alert(1))'
ANSWERS = {
    "27 + 48": "75",
    "hostile": HOSTILE,
    "markdown": "**Bold**, *italic*, 2*3*4 and `code`:\n\n- one\n- two\n\n```\nx < y\n```\n[site](https://example.com)",
    "digit": "7",
    "moves": "the red circle moves right three times",
    "Describe": "a yellow circle left of a blue square",
}


def tone(seconds: float, rate: int = 24000) -> np.ndarray:
    """Int16 samples of a tone that swells and fades a few times, like syllables."""
    time_ = np.arange(int(seconds * rate)) / rate
    loud = np.abs(np.sin(2 * np.pi * 1.3 * time_)) * (0.55 + 0.45 * np.sin(2 * np.pi * 0.4 * time_ + 1))
    return np.int16(9000 * loud * np.sin(2 * np.pi * 220 * time_))


def wav(samples: np.ndarray, rate: int) -> bytes:
    """A mono 16-bit WAV file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(samples.astype("<i2").tobytes())
    return file.getvalue()


def seven() -> str:
    """A 32x32 PNG of a seven, in base64."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:10, 9:23] = 255
    for row in range(10, 25):
        middle = 22 - int((row - 9) * 0.6)
        pixels[row, middle - 1 : middle + 2] = 230
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def text_of(content) -> str:
    """The words in the content of a message."""
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def error(status: int, message: str, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's shape."""
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    return JSONResponse(body, status)


def application() -> FastAPI:
    """The server; `app.state` holds what it received and which streams were broken off."""
    app = FastAPI()
    app.state.received = []
    app.state.aborted = 0
    app.state.failures = 0
    app.state.card = {}  # what the model's entry in the list has besides

    @app.get("/v1/models")
    def models():
        card = {"id": "tony-demo", "object": "model", "created": 1, "owned_by": "tony", **app.state.card}
        return {"object": "list", "data": [card]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request):
        body = await request.json()
        app.state.received.append({"path": "chat", "key": request.headers.get("authorization"), **body})
        asked = text_of(body["messages"][-1]["content"])
        if "fail" in asked:
            app.state.failures += 1
            if app.state.failures == 1:
                return error(400, "The request has 2000 tokens; at most 1024 fit.", "context_length_exceeded")
        return StreamingResponse(stream(body, asked), media_type="text/event-stream")

    async def stream(body, asked):
        def event(delta, finish=None):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            chunk = {
                "id": "c",
                "object": "chat.completion.chunk",
                "created": 1,
                "model": "tony-demo",
                "choices": [choice],
            }
            return f"data: {json.dumps(chunk)}\n\n"

        reply = next((answer for word, answer in ANSWERS.items() if word in asked), "hello there, nice to meet you")
        yield event({"role": "assistant", "content": ""})
        if "slow" in asked:
            try:
                for number in range(600):
                    yield event({"content": f"{number} "})
                    await asyncio.sleep(0.05)
            except (asyncio.CancelledError, GeneratorExit):
                app.state.aborted += 1
                raise
        if "27 + 48" in asked:
            for piece in (
                "27+48: 7+8=15, ",
                "5 carry 1; 2+4+1=7. 75",
            ):
                yield event({"reasoning_content": piece})
                await asyncio.sleep(0.1)
        if "Draw" in asked:
            url = f"data:image/png;base64,{seven()}"
            yield event({"images": [{"type": "image_url", "image_url": {"url": url}}]})
        elif "audio" in body.get("modalities", []):
            yield event({"audio": {"id": "audio_1"}})
            for word in reply.split(" "):
                yield event({"audio": {"transcript": word + " "}})
            samples = tone(1.2)
            for start in range(0, len(samples), 4800):
                data = base64.b64encode(samples[start : start + 4800].tobytes()).decode()
                yield event({"audio": {"data": data}})
                await asyncio.sleep(0.02)
            yield event({"audio": {"expires_at": int(time.time()) + 3600}})
        else:
            for at in range(0, len(reply), 5):
                yield event({"content": reply[at : at + 5]})
                await asyncio.sleep(0.005)
        yield event({}, "stop")
        yield f"data: {json.dumps({'id': 'c', 'choices': [], 'usage': {'completion_tokens': 23}})}\n\n"
        yield "data: [DONE]\n\n"

    @app.post("/v1/images/generations")
    async def images(request: Request):
        app.state.received.append({"path": "images", **await request.json()})
        return {"created": 1, "data": [{"b64_json": seven()}], "output_format": "png"}

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request):
        form = await request.form()
        app.state.received.append({"path": "transcriptions", "file": await form["file"].read(), "model": form["model"]})
        return {"text": "draw a seven"}

    @app.post("/v1/audio/speech")
    async def speech(request: Request):
        app.state.received.append({"path": "speech", **await request.json()})
        return Response(wav(tone(1.0), 24000), media_type="audio/wav")

    app.mount("/", StaticFiles(directory=WEB, html=True))
    return app


class Server:
    """An application on a free port, in a thread."""

    def __init__(self, app: FastAPI):
        self.app = app

    def __enter__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"
        config = uvicorn.Config(self.app, log_level="warning", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(5)


# ---------------------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="session")
def tone_file():
    """Makes a WAV file of a tone from (seconds, rate)."""
    return lambda seconds, rate: wav(tone(seconds, rate), rate)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Headless Chromium whose microphone plays a tone."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is missing: pip install 'tony-lm[dev]'")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is missing: apt-get install chromium")
    heard = tmp_path_factory.mktemp("microphone") / "tone.wav"
    heard.write_bytes(wav(np.int16(9000 * np.sin(2 * np.pi * 220 * np.arange(32000) / 16000)), 16000))
    options = [*CHROMIUM_OPTIONS, f"--use-file-for-fake-audio-capture={heard}"]
    playwright.expect.set_options(timeout=15_000)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=options)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def running():
    """The stub, running."""
    with Server(application()) as started:
        yield started


@pytest.fixture
def server(running):
    """The stub with nothing received yet."""
    running.app.state.received.clear()
    running.app.state.aborted = running.app.state.failures = 0
    running.app.state.card = {}
    return running


@pytest.fixture(scope="session")
def real(omni):
    """The real service over the tiny random model."""
    from tony.serve.app import Settings, create_app

    with Server(create_app(omni, Settings("tiny"))) as started:
        yield started


@pytest.fixture
def open_page(browser, server):
    """Opens the page in a fresh profile; the test fails when the page complains on its console."""
    complaints, contexts = [], []

    def open_(url=server.url, **options):
        context = browser.new_context(permissions=["microphone"], reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.failures_expected = False
        page.set_default_timeout(10_000)

        def listen(message):
            refused = page.failures_expected and message.text.startswith("Failed to load resource")
            if message.type in ("error", "warning") and not refused:
                complaints.append(message.text)

        page.on("console", listen)
        page.on("pageerror", lambda problem: complaints.append(str(problem)))
        page.goto(url)
        page.locator("#model-name:not(:empty)").wait_for()
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(open_page):
    """The page on a desk."""
    return open_page(viewport={"width": 1100, "height": 820})
