"""The HTTP service: OpenAI's endpoints over one engine, and the web page at /."""

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from tony.data.world.sentences import spoken_form
from tony.data.world.tasks import TRANSCRIBE
from tony.errors import TonyError
from tony.generate.engine import Completion, Handle
from tony.generate.engine import Request as Generation
from tony.generate.omni import Omni
from tony.serve.conversation import ReplyStream, count_thinking, to_messages, voice_of
from tony.serve.errors import ApiError, error_response, handle_api_error, handle_http, handle_invalid, handle_user_error
from tony.serve.media import MIME, PCM_RATE, base64_of, read_sound, to_pcm, write_picture, write_sound
from tony.serve.schema import (
    ChatBody,
    CompletionBody,
    ImageBody,
    Sampled,
    SpeechBody,
    refuse_what_is_not_offered,
)
from tony.tokens.chat import Image, Message, Text
from tony.tokens.codec import SAMPLE_RATE

if TYPE_CHECKING:
    import soxr

MAX_BODY_BYTES = 25_000_000
MAX_WAITING = 64
WEB = Path(__file__).parent / "web"
SPOKEN_PIECE = 90  # characters that are spoken in one go; a longer text is cut between words
SIZES = {"auto": 256, "32x32": 32, "64x64": 64, "256x256": 256, "512x512": 512, "1024x1024": 1024}


@dataclass(frozen=True)
class Settings:
    """What the service is told at start; without a key it must only be reached from this machine."""

    model: str = "tony"
    api_key: str | None = None


class Meters:
    """Prometheus metrics of one service."""

    def __init__(self, omni: Omni):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tony_requests", "Requests by path and status.", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "tony_request_seconds", "Time to the end of the head.", ("path",), registry=self.registry
        )
        self.tokens = Counter("tony_tokens", "Tokens by direction.", ("direction",), registry=self.registry)
        running = Gauge("tony_running", "Generations running.", registry=self.registry)
        running.set_function(lambda: omni.engine.load[0])
        waiting = Gauge("tony_waiting", "Generations waiting.", registry=self.registry)
        waiting.set_function(lambda: omni.engine.load[1])


def create_app(omni: Omni, settings: Settings | None = None) -> FastAPI:
    """The application over a loaded model."""
    settings = settings or Settings()
    app = FastAPI(title="Tony", docs_url=None, redoc_url=None, openapi_url="/openapi.json")
    service = Service(omni, settings)
    app.add_exception_handler(ApiError, handle_api_error)
    app.add_exception_handler(TonyError, handle_user_error)
    app.add_exception_handler(RequestValidationError, handle_invalid)
    app.add_exception_handler(HTTPException, handle_http)
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=MAX_BODY_BYTES)  # bodies that don't say their size
    app.middleware("http")(service.guard)
    app.get("/health")(service.health)
    app.get("/metrics")(service.metrics)
    app.get("/v1/models")(service.models)
    app.get("/v1/models/{name:path}")(service.model)
    app.post("/v1/chat/completions", response_model=None)(service.chat)
    app.post("/v1/completions", response_model=None)(service.completions)
    app.post("/v1/audio/speech", response_model=None)(service.speech)
    app.post("/v1/audio/transcriptions", response_model=None)(service.transcriptions)
    app.post("/v1/images/generations", response_model=None)(service.images)
    if WEB.is_dir():
        app.router.default = Page(directory=WEB, html=True)  # a mount would match every path, with every method
    return app


class Page(StaticFiles):
    """The files of the web page, which are there for reading; every other path is unknown, whatever the method."""

    async def get_response(self, path: str, scope) -> Response:
        """The file; HTTPException 404 or 405."""
        response = await super().get_response(path, {**scope, "method": "GET"})
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        return response


class Streamed(StreamingResponse):
    """A response that is made while it is sent, within a context that ends with it, sent whole or not."""

    def __init__(self, content: AsyncIterator, media_type: str, ending: AbstractContextManager):
        super().__init__(content, media_type=media_type)
        self.ending = ending

    async def __call__(self, scope, receive, send) -> None:
        """Send it."""
        with self.ending:
            await super().__call__(scope, receive, send)


def _sse(data: Any) -> str:
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n"


def _error_event(error: ApiError) -> str:
    return _sse({"error": {"message": error.message, "type": "server_error", "param": None, "code": None}})


async def _tokens(handle: Handle) -> AsyncIterator[int]:
    """The tokens of a generation as they come; leaving early cancels it."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[int | None] = asyncio.Queue()

    def tell(token):
        loop.call_soon_threadsafe(arrived.put_nowait, token)

    handle.listen(tell)
    seen = 0
    try:
        while (token := await arrived.get()) is not None:
            seen += 1
            yield token
        if handle.error is not None:
            raise ApiError(500, f"generation failed: {handle.error}")
    finally:
        handle.cancel()


class Service:
    """The endpoints."""

    def __init__(self, omni: Omni, settings: Settings):
        self.omni, self.settings, self.meters = omni, settings, Meters(omni)
        self.started = int(time.time())

    # ------------------------------------------------------------------------------------------- general

    async def guard(self, request: Request, call_next) -> Response:
        """Request ids, the key, the size of bodies, metrics."""
        began, path = time.perf_counter(), request.url.path
        response = await self._guarded(request, call_next)
        response.headers["x-request-id"] = request.headers.get("x-request-id") or f"req_{uuid.uuid4().hex}"
        label = path if path.startswith("/v1/") and response.status_code != 404 else "other"
        self.meters.requests.labels(label, str(response.status_code)).inc()
        self.meters.seconds.labels(label).observe(time.perf_counter() - began)
        return response

    async def _guarded(self, request: Request, call_next) -> Response:
        if request.url.path.startswith("/v1/") and self.settings.api_key:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode(), self.settings.api_key.encode()):
                return error_response(
                    401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
                )
        size = request.headers.get("content-length", "0")
        if not size.isdigit() or int(size) > MAX_BODY_BYTES:
            return error_response(413, f"the request has {size} bytes; at most {MAX_BODY_BYTES} are taken")
        try:
            return await call_next(request)
        except Exception as error:
            return error_response(500, f"the service failed: {type(error).__name__}: {error}")

    async def health(self) -> dict:
        """Alive, and how busy."""
        running, waiting = self.omni.engine.load
        return {"status": "ok", "running": running, "waiting": waiting}

    async def metrics(self) -> PlainTextResponse:
        """Prometheus text."""
        return PlainTextResponse(generate_latest(self.meters.registry), media_type="text/plain; version=0.0.4")

    def _card(self) -> dict:
        return {"id": self.settings.model, "object": "model", "created": self.started, "owned_by": "tony",
                "modalities": self.omni.modalities, "voices": list(self.omni.voices)}  # fmt: skip

    async def models(self) -> dict:
        """The one model there is."""
        return {"object": "list", "data": [self._card()]}

    async def model(self, name: str) -> dict:
        """The model by its name."""
        if name != self.settings.model:
            raise ApiError(
                404, f"there is no model {name!r}; this service has {self.settings.model}", "model", "model_not_found"
            )
        return self._card()

    def _submit(self, generations: Sequence[Generation]) -> list[Handle]:
        """All of them, or none if one can't be taken."""
        for generation in generations:
            if len(generation.prompt) >= self.omni.engine.max_length:
                raise ApiError(
                    400,
                    f"the request has {len(generation.prompt)} tokens; this model holds "
                    f"{self.omni.engine.max_length} with its answer: shorten it",
                    "messages",
                    "context_length_exceeded",
                )
        handles: list[Handle] = []
        try:
            for generation in generations:
                if self.omni.engine.load[1] >= MAX_WAITING:
                    said = f"{MAX_WAITING} requests are waiting already; try again later"
                    raise ApiError(429, said, code="queue_full")
                handles.append(self.omni.engine.submit(generation))
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    @contextmanager
    def _ending(self, handles: Sequence[Handle], read: int) -> Iterator[None]:
        """However it ends, afterwards the generations are over, and counted; `read` is the tokens of their prompts."""
        try:
            yield
        finally:
            for handle in handles:
                handle.cancel()
            self.meters.tokens.labels("in").inc(read)
            self.meters.tokens.labels("out").inc(sum(len(handle.completion.tokens) for handle in handles))

    async def _wait(self, request: Request, handles: list[Handle], read: int) -> list[Completion]:
        """The completions, or none of them if the client goes away: then their slots are freed."""
        with self._ending(handles, read):
            for handle in handles:
                while not handle._over.is_set():
                    if await request.is_disconnected():
                        raise ApiError(499, "the client went away")
                    await asyncio.to_thread(handle._over.wait, 0.05)
            try:
                return [handle.result() for handle in handles]
            except TonyError as error:
                raise ApiError(500, str(error)) from None

    def _sampling(self, body: Sampled) -> dict:
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        return {
            "temperature": body.temperature,
            "top_p": body.top_p or 1.0,
            "top_k": body.top_k or 0,
            "seed": secrets.randbits(31) if body.seed is None else body.seed,
            "stop": tuple(text for text in stop if text),
        }

    # ---------------------------------------------------------------------------------------------- chat

    async def chat(self, request: Request, body: ChatBody):
        """POST /v1/chat/completions."""
        _refuse_tools_and_formats(body)
        refuse_what_is_not_offered(body)
        first = await asyncio.to_thread(self._chat_request, body)
        identity = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.settings.model}
        handles = self._submit([replace(first, seed=first.seed + index) for index in range(body.n)])
        if body.stream:
            stream = self._chat_stream(body, handles, identity)
            return Streamed(stream, "text/event-stream", self._ending(handles, len(first.prompt)))
        completions = await self._wait(request, handles, len(first.prompt))
        choices = []
        for index, completion in enumerate(completions):
            message = await asyncio.to_thread(self._chat_message, completion, body)
            logprobs = {"content": self._logprobs(completion, body.top_logprobs or 0)} if body.logprobs else None
            choices.append({"index": index, "message": message, "logprobs": logprobs,
                            "finish_reason": completion.finish_reason})  # fmt: skip
        return {**identity, "object": "chat.completion", "choices": choices,
                "usage": self._usage(first.prompt, [c.tokens for c in completions])}  # fmt: skip

    def _chat_request(self, body: ChatBody) -> Generation:
        """The generation of the first choice."""
        wanted, audio = body.modalities, body.audio
        modality = None if wanted is None else next((m for m in ("audio", "image") if m in wanted), "text")
        voice = voice_of(audio.voice) if audio else 1
        if modality == "audio" and audio and not body.stream:
            write_sound(np.zeros(160, np.float32), audio.format)  # an unknown format is told before any work is done
        messages = to_messages(body.messages, self.omni)
        sampling = self._sampling(body)
        most = body.max_completion_tokens or body.max_tokens or 512
        logprobs = (body.top_logprobs or 1) if body.logprobs else 0
        return self.omni.request(
            messages, modality, voice, body.reasoning_effort != "none", max_tokens=most, logprobs=logprobs, **sampling
        )

    def _chat_message(self, completion: Completion, body: ChatBody) -> dict:
        reader = ReplyStream(self.omni)
        events = [event for token in completion.tokens for event in reader.push(token)] + reader.finish()
        told = {kind: "".join(piece for k, piece in events if k == kind) for kind in ("thinking", "text", "transcript")}
        content = _cut_at_stop(told["text"], body.stop)
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if told["thinking"]:
            message["reasoning_content"] = told["thinking"].strip()
        sounds = [piece for kind, piece in events if kind == "audio"]
        if sounds:
            form = body.audio.format if body.audio else "wav"
            message["content"] = content or None
            message["audio"] = {"id": f"audio_{uuid.uuid4().hex}", "expires_at": int(time.time()) + 3600,
                                "transcript": told["transcript"],
                                "data": base64_of(write_sound(np.concatenate(sounds), form))}  # fmt: skip
        pictures = [piece for kind, piece in events if kind == "image"]
        if pictures:  # not in OpenAI's API, whose chat never draws
            message["images"] = [self._image_url(codes) for codes in pictures]
        return message

    def _image_url(self, codes) -> dict:
        pixels = self.omni.pixels(Image(codes))
        url = f"data:image/png;base64,{base64_of(write_picture(pixels, pixels.shape[0]))}"
        return {"type": "image_url", "image_url": {"url": url}}

    async def _chat_stream(self, body: ChatBody, handles: list[Handle], identity: dict) -> AsyncIterator[str]:
        made: list[list[int]] = []

        def chunk(index, delta, reason=None, logprobs=None):
            choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
            return _sse({**identity, "object": "chat.completion.chunk", "choices": [choice]})

        try:
            for index, handle in enumerate(handles):
                yield chunk(index, {"role": "assistant", "content": ""})
                stream, tokens = _Deltas(self.omni, body), []
                async for token in _tokens(handle):
                    tokens.append(token)
                    for delta in stream.push(token):
                        yield chunk(index, delta, logprobs=self._delta_logprobs(handle, len(tokens) - 1, body))
                for delta in stream.finish():
                    yield chunk(index, delta)
                yield chunk(index, {}, handle.completion.finish_reason)
                made.append(tokens)
            if body.stream_options and body.stream_options.include_usage:
                usage = self._usage(handles[0].request.prompt, made)
                yield _sse({**identity, "object": "chat.completion.chunk", "choices": [], "usage": usage})
            yield _sse("[DONE]")
        except ApiError as error:
            yield _error_event(error)

    def _delta_logprobs(self, handle: Handle, at: int, body: ChatBody) -> dict | None:
        if not body.logprobs:
            return None
        whole = handle.completion
        one = Completion([whole.tokens[at]], [whole.logprobs[at]], whole.top[at : at + 1])
        return {"content": self._logprobs(one, body.top_logprobs or 0)}

    def _token_text(self, token: int) -> tuple[str, list[int]]:
        vocab = self.omni.tokenizer.vocabulary
        if token not in vocab.text:
            return vocab.name(token), list(vocab.name(token).encode())
        data = self.omni.tokenizer.text.decode_bytes([token - vocab.text.start])
        return data.decode(errors="replace"), list(data)

    def _logprobs(self, completion: Completion, top: int) -> list[dict]:
        entries = []
        for at, (token, logprob) in enumerate(zip(completion.tokens, completion.logprobs, strict=True)):
            text, data = self._token_text(token)
            best = list(completion.top[at].items())[:top] if at < len(completion.top) else []
            others = [(*self._token_text(other), value) for other, value in best]
            entries.append({"token": text, "bytes": data, "logprob": logprob, "top_logprobs": [
                {"token": name, "bytes": raw, "logprob": value} for name, raw, value in others]})  # fmt: skip
        return entries

    def _usage(self, prompt: list[int], made: list[list[int]]) -> dict:
        vocab = self.omni.tokenizer.vocabulary
        produced = [token for tokens in made for token in tokens]
        thought = sum(count_thinking(tokens, vocab) for tokens in made)

        def details(tokens):
            sound, image = (sum(t in kind for t in tokens) for kind in (vocab.audio, vocab.image))
            return {"audio_tokens": sound, "image_tokens": image, "text_tokens": len(tokens) - sound - image}

        return {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(produced),
            "total_tokens": len(prompt) + len(produced),
            "prompt_tokens_details": {**details(prompt), "cached_tokens": 0},
            "completion_tokens_details": {**details(produced), "reasoning_tokens": thought},
        }

    # --------------------------------------------------------------------------------------- completions

    async def completions(self, request: Request, body: CompletionBody):
        """POST /v1/completions: plain continuation, as evaluation harnesses call it."""
        refuse_what_is_not_offered(body)
        prompts = self._prompts(body.prompt)
        identity = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time()),
                    "model": self.settings.model}  # fmt: skip
        if body.stream and not body.max_tokens:
            raise ApiError(400, "max_tokens is 0: there is nothing to stream", "max_tokens")
        generations = self._continuations(prompts, body)
        if body.max_tokens and len(generations) > MAX_WAITING:
            asked = f"{len(prompts)} prompts with n {body.n} ask for {len(generations)} answers"
            raise ApiError(400, f"{asked}; at most {MAX_WAITING} are taken at once: send them in parts", "prompt")
        handles = self._submit(generations) if body.max_tokens else []
        read = sum(map(len, prompts))
        if body.stream:
            stream = self._completion_stream(body, handles, identity, [token for prompt in prompts for token in prompt])
            return Streamed(stream, "text/event-stream", self._ending(handles, read))
        done = await self._wait(request, handles, read)
        choices = []
        for index, generation in enumerate(generations):
            completion = done[index] if done else Completion(finish_reason="length")
            choices.append(await asyncio.to_thread(self._completion_choice, index, generation.prompt, completion, body))
        usage = self._usage([token for prompt in prompts for token in prompt], [c.tokens for c in done])
        return {**identity, "choices": choices, "usage": usage}

    def _continuations(self, prompts: list[list[int]], body: CompletionBody) -> list[Generation]:
        for prompt in prompts:
            if len(prompt) + body.max_tokens > self.omni.engine.max_length:
                raise ApiError(
                    400,
                    f"the prompt has {len(prompt)} tokens and {body.max_tokens} are asked for; this model holds "
                    f"{self.omni.engine.max_length}",
                    "prompt",
                    "context_length_exceeded",
                )
        sampling = self._sampling(body) | {"temperature": body.temperature or 0.0}
        options = {"max_tokens": body.max_tokens, "free": True, "logprobs": body.logprobs or 0}
        return [
            Generation(prompt, **{**sampling, **options, "seed": sampling["seed"] + index})
            for prompt in prompts
            for index in range(body.n)
        ]

    def _prompts(self, prompt) -> list[list[int]]:
        vocab = self.omni.tokenizer.vocabulary
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            prompt = [prompt]
        made = []
        for one in prompt:
            if isinstance(one, str):
                made.append(self.omni.tokenizer.document(one))
            elif one and all(0 <= token < vocab.size for token in one):
                made.append(list(one))
            else:
                raise ApiError(400, f"prompt has token ids outside 0..{vocab.size - 1}, or none", "prompt")
        if not made:
            raise ApiError(400, "prompt is empty", "prompt")
        return made

    def _completion_choice(self, index: int, prompt: list[int], completion: Completion, body: CompletionBody) -> dict:
        vocab = self.omni.tokenizer.vocabulary
        bos = vocab.special("bos")
        tokens = [token for token in completion.tokens if token != vocab.special("end")]
        echoed = [token for token in prompt if token != bos] if body.echo else []
        text = self._plain(echoed) + _cut_at_stop(self._plain(tokens), body.stop)
        logprobs = None
        if body.logprobs is not None:
            shown = echoed + tokens
            values: list[float | None] = list(completion.logprobs[: len(tokens)])
            tops: list[dict | None] = [
                {self._token_text(t)[0]: p for t, p in top.items()} for top in completion.top[: len(tokens)]
            ]
            if body.echo:
                own, best = self.omni.engine.score(prompt, body.logprobs or 0)
                named = [{self._token_text(t)[0]: p for t, p in top.items()} for top in best]
                first = [None] if prompt[0] != bos else []  # nothing comes before it
                values, tops = [*first, *own, *values], [*first, *named, *tops]
            texts = [self._token_text(token)[0] for token in shown]
            offsets = np.cumsum([0, *(len(piece) for piece in texts)])[:-1].tolist()
            logprobs = {"tokens": texts, "token_logprobs": values, "top_logprobs": tops if body.logprobs else None,
                        "text_offset": offsets}  # fmt: skip
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": completion.finish_reason}

    def _plain(self, tokens: list[int]) -> str:
        vocab = self.omni.tokenizer.vocabulary
        return self.omni.tokenizer.text.decode([token - vocab.text.start for token in tokens if token in vocab.text])

    async def _completion_stream(self, body: CompletionBody, handles, identity: dict, read) -> AsyncIterator[str]:
        vocab = self.omni.tokenizer.vocabulary

        def chunk(index, text, reason=None):
            choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
            return _sse({**identity, "choices": [choice]})

        made: list[list[int]] = []
        try:
            for index, handle in enumerate(handles):
                decoder = self.omni.tokenizer.text.stream()
                made.append([])
                async for token in _tokens(handle):
                    made[-1].append(token)
                    piece = decoder.push(token - vocab.text.start) if token in vocab.text else ""
                    if piece:
                        yield chunk(index, piece)
                yield chunk(index, decoder.flush(), handle.completion.finish_reason)
            if body.stream_options and body.stream_options.include_usage:
                yield _sse({**identity, "choices": [], "usage": self._usage(read, made)})
            yield _sse("[DONE]")
        except ApiError as error:
            yield _error_event(error)

    # --------------------------------------------------------------------------------------------- sound

    async def speech(self, request: Request, body: SpeechBody):
        """POST /v1/audio/speech: a text read aloud; "pcm" is streamed while it is made."""
        refuse_what_is_not_offered(body)
        voice = voice_of(body.voice)
        kind = body.response_format
        write_sound(np.zeros(160, np.float32), kind)
        said = spoken_form(body.input)
        if not said:
            raise ApiError(400, "input has no words to say", "input")
        pieces = _pieces(said)
        if len(pieces) > MAX_WAITING:
            spoken = f"at most {MAX_WAITING * SPOKEN_PIECE} characters are spoken at once"
            raise ApiError(400, f"input has {len(said)} characters when it is put into words; {spoken}", "input")
        generations = [self.omni.speaking(piece, voice, body.temperature, body.seed) for piece in pieces]
        read = sum(len(generation.prompt) for generation in generations)
        handles = self._submit(generations)
        if kind == "pcm":
            return Streamed(self._pcm_stream(handles), MIME["pcm"], self._ending(handles, read))
        completions = await self._wait(request, handles, read)

        def sound() -> bytes:
            return write_sound(np.concatenate([self._heard(completion.tokens) for completion in completions]), kind)

        return Response(await asyncio.to_thread(sound), media_type=MIME.get(kind, "application/octet-stream"))

    def _heard(self, tokens: list[int]) -> np.ndarray:
        reader = ReplyStream(self.omni)
        events = [event for token in tokens for event in reader.push(token)] + reader.finish()
        return np.concatenate([np.zeros(1, np.float32), *(piece for kind, piece in events if kind == "audio")])

    async def _pcm_stream(self, handles: list[Handle]) -> AsyncIterator[bytes]:
        import soxr

        resampler = soxr.ResampleStream(SAMPLE_RATE, PCM_RATE, 1, dtype="float32")
        for handle in handles:
            reader = ReplyStream(self.omni)
            async for token in _tokens(handle):
                for kind, piece in reader.push(token):
                    if kind == "audio" and len(piece):
                        yield to_pcm(resampler.resample_chunk(piece))
            for kind, piece in reader.finish():
                if kind == "audio":
                    yield to_pcm(resampler.resample_chunk(piece))
        yield to_pcm(resampler.resample_chunk(np.zeros(0, np.float32), last=True))

    async def transcriptions(
        self,
        request: Request,
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()] = "",
        response_format: Annotated[str, Form()] = "json",
        temperature: Annotated[float, Form(ge=0, le=2)] = 0.0,
        stream: Annotated[bool, Form()] = False,
    ):
        """POST /v1/audio/transcriptions: what is said in a sound file."""
        formats = ("json", "text", "verbose_json", "srt", "vtt")
        if response_format not in formats:
            raise ApiError(
                400,
                f"response_format {response_format!r} is not offered; choose from {', '.join(formats)}",
                "response_format",
            )
        if stream:
            raise ApiError(400, "stream is not offered here; leave it out", "stream", "unsupported_parameter")
        samples = await asyncio.to_thread(read_sound, await file.read(), "file")
        part = await asyncio.to_thread(self.omni.audio_part, samples)
        messages = [Message("user", (part, Text(TRANSCRIBE)))]
        generation = self.omni.request(messages, "text", thinking=False, max_tokens=256, temperature=temperature)
        (completion,) = await self._wait(request, self._submit([generation]), len(generation.prompt))
        text = self._plain(list(completion.tokens)).strip()
        return _transcript(text, len(samples) / SAMPLE_RATE, response_format)

    # ------------------------------------------------------------------------------------------ pictures

    async def images(self, request: Request, body: ImageBody):
        """POST /v1/images/generations."""
        refuse_what_is_not_offered(body)
        if body.size not in SIZES:
            raise ApiError(400, f"size {body.size!r} is not offered; choose from {', '.join(SIZES)}", "size")
        seed = secrets.randbits(31) if body.seed is None else body.seed
        asks = body.prompt.lower().startswith(("draw", "make", "show", "paint"))
        messages = [Message("user", (Text(body.prompt if asks else f"Draw {body.prompt.rstrip('.')}."),))]
        generations = [
            self.omni.request(messages, "image", max_tokens=80, temperature=body.temperature, seed=seed + index)
            for index in range(body.n)
        ]
        completions = await self._wait(request, self._submit(generations), len(generations[0].prompt))

        def picture(completion: Completion) -> dict:
            drawn = next((p for p in self.omni.message(completion.tokens).content if isinstance(p, Image)), None)
            if drawn is None:
                raise ApiError(500, "the model drew no whole picture; try again")
            pixels = self.omni.pixels(drawn)
            return {"b64_json": base64_of(write_picture(pixels, SIZES[body.size], body.output_format)),
                    "native_size": f"{pixels.shape[1]}x{pixels.shape[0]}"}  # fmt: skip

        data = [await asyncio.to_thread(picture, completion) for completion in completions]
        usage = self._usage(generations[0].prompt, [completion.tokens for completion in completions])
        side = SIZES[body.size]
        return {
            "created": int(time.time()),
            "data": data,
            "size": f"{side}x{side}",
            "output_format": body.output_format,
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "output_tokens": usage["completion_tokens"],
                "total_tokens": usage["total_tokens"],
                "input_tokens_details": {"text_tokens": usage["prompt_tokens"], "image_tokens": 0},
            },
        }


class _Deltas:
    """Chat deltas of a streamed reply; text that could begin a stop string is held back until it can't."""

    def __init__(self, omni: Omni, body: ChatBody):
        self.reader, self.omni = ReplyStream(omni), omni
        self.stops = [body.stop] if isinstance(body.stop, str) else list(body.stop or [])
        self.held, self.stopped = "", False
        self.audio_id: str | None = None
        self.resampler: soxr.ResampleStream | None = None

    def push(self, token: int) -> list[dict]:
        """Deltas that the token brings."""
        return [delta for event in self.reader.push(token) for delta in self._delta(*event)]

    def finish(self) -> list[dict]:
        """Deltas at the end."""
        deltas = [delta for event in self.reader.finish() for delta in self._delta(*event)]
        if self.held and not self.stopped:
            deltas.append({"content": self.held})
        if self.audio_id:
            deltas.append({"audio": {"id": self.audio_id, "expires_at": int(time.time()) + 3600}})
        return deltas

    def _delta(self, kind: str, piece: Any) -> list[dict]:
        if kind == "thinking":
            return [{"reasoning_content": piece}]
        if kind == "text":
            return self._text(piece)
        if kind == "image":
            pixels = self.omni.pixels(Image(piece))
            url = f"data:image/png;base64,{base64_of(write_picture(pixels, pixels.shape[0]))}"
            return [{"images": [{"type": "image_url", "image_url": {"url": url}}]}]
        started = [] if self.audio_id else [{"audio": {"id": self._start_audio()}}]
        if kind == "transcript":
            return [*started, {"audio": {"transcript": piece}}]
        assert self.resampler is not None  # made with the audio id
        data = to_pcm(self.resampler.resample_chunk(piece)) if len(piece) else b""
        return [*started, {"audio": {"data": base64_of(data)}}] if data else started

    def _start_audio(self) -> str:
        import soxr

        self.audio_id = f"audio_{uuid.uuid4().hex}"
        self.resampler = soxr.ResampleStream(SAMPLE_RATE, PCM_RATE, 1, dtype="float32")
        return self.audio_id

    def _text(self, piece: str) -> list[dict]:
        if self.stopped:
            return []
        text = self.held + piece
        cut = _cut_at_stop(text, self.stops)
        if len(cut) < len(text):
            self.stopped = True
            self.held = ""
            return [{"content": cut}] if cut else []
        longest = max((k for stop in self.stops for k in range(1, len(stop)) if text.endswith(stop[:k])), default=0)
        self.held = text[len(text) - longest :] if longest else ""
        shown = text[: len(text) - longest]
        return [{"content": shown}] if shown else []


def _refuse_tools_and_formats(body: ChatBody) -> None:
    """An answer that leaves out what was asked for would look like a bug of the client's."""
    tools = next((name for name in ("tools", "functions") if getattr(body, name)), None)
    if tools is None and body.tool_choice not in (None, "none", "auto"):
        tools = "tool_choice"
    if tools:
        raise ApiError(400, f"this model calls no tools; leave {tools} out", tools, "unsupported_parameter")
    form = body.response_format
    if form is not None and form != {"type": "text"}:
        asked = form.get("type")
        said = f"this model answers in no response_format but text (got {str(asked)[:60]!r}); leave it out"
        raise ApiError(400, said, "response_format", "unsupported_parameter")


def _cut_at_stop(text: str, stop: str | list[str] | None) -> str:
    stops = [stop] if isinstance(stop, str) else stop or []
    found = [at for one in stops if one and (at := text.find(one)) >= 0]
    return text[: min(found)] if found else text


def _pieces(text: str) -> list[str]:
    """Words in groups of at most SPOKEN_PIECE characters."""
    pieces = [""]
    for word in text.split():
        if pieces[-1] and len(pieces[-1]) + len(word) >= SPOKEN_PIECE:
            pieces.append("")
        pieces[-1] = f"{pieces[-1]} {word}".strip()
    return pieces


def _transcript(text: str, seconds: float, kind: str) -> Response:
    if kind == "text":
        return PlainTextResponse(text + "\n")
    if kind == "json":
        return JSONResponse({"text": text, "usage": {"type": "duration", "seconds": round(seconds, 2)}})
    if kind == "verbose_json":
        segment = {"id": 0, "start": 0.0, "end": round(seconds, 2), "text": text, "seek": 0, "tokens": [],
                   "temperature": 0.0, "avg_logprob": 0.0, "compression_ratio": 1.0, "no_speech_prob": 0.0}  # fmt: skip
        return JSONResponse({"task": "transcribe", "language": "english", "duration": round(seconds, 2), "text": text,
                             "segments": [segment]})  # fmt: skip
    comma = "," if kind == "srt" else "."
    minutes, rest = divmod(seconds, 60)
    end = f"00:{int(minutes):02d}:{rest:06.3f}".replace(".", comma)
    head = "1\n" if kind == "srt" else "WEBVTT\n\n"
    return PlainTextResponse(f"{head}00:00:00{comma}000 --> {end}\n{text}\n")
