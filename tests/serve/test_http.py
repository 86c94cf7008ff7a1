"""The service, driven by the official client, unmodified, over a real socket."""

import asyncio
import base64
import io
import json
import threading
import time
from dataclasses import replace

import httpx
import jax
import numpy as np
import openai
import pytest
import soundfile
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from tests.tiny import make_release
from tony.errors import TonyError
from tony.generate.engine import Request as Generation
from tony.generate.omni import Omni
from tony.serve.app import Settings, create_app
from tony.serve.main import listen, serve
from tony.tokens.chat import Message, Text


@pytest.fixture(scope="module")
def url(omni):
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(omni, Settings("tiny")), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def wav(seconds=0.4, rate=16_000) -> bytes:
    buffer = io.BytesIO()
    tone = 0.3 * np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 150 / rate)
    soundfile.write(buffer, tone, rate, format="WAV")
    return buffer.getvalue()


def png(size=(28, 28)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


ASK = [{"role": "user", "content": "hello"}]


def lean(omni, **follows: str) -> dict:
    """Make one control token likely after another, as in `lean(omni, think="mod_text")`; returns the old weights."""
    before, special = omni.engine.params, omni.tokenizer.vocabulary.special
    embedding = np.array(before["embedding"])
    for name, after in follows.items():  # a random network's state is mostly the embedding of its last token
        embedding[special(name)] = 3 * embedding[special(after)]
    omni.engine.update({**before, "embedding": embedding})
    return before


def soon(condition, seconds=10):
    """Wait until it holds."""
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline
        time.sleep(0.02)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    tiny = client.models.retrieve("tiny")
    assert tiny.owned_by == "tony" and tiny.voices == ["heart", "michael"]
    assert tiny.modalities == {"input": ["text", "image", "audio", "video"], "output": ["text", "audio", "image"]}
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


def test_chat_is_deterministic_and_streams_the_same(client):
    options = {"model": "tiny", "messages": ASK, "max_tokens": 12, "modalities": ["text"], "temperature": 1, "seed": 5}
    whole = client.chat.completions.create(**options)
    again = client.chat.completions.create(**options)
    assert whole.choices[0].message.content == again.choices[0].message.content
    assert whole.usage.completion_tokens <= 12
    assert whole.choices[0].finish_reason in ("length", "stop")
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    content = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    thinking = "".join(getattr(c.choices[0].delta, "reasoning_content", None) or "" for c in chunks if c.choices)
    assert content == whole.choices[0].message.content
    assert thinking.strip() == (getattr(whole.choices[0].message, "reasoning_content", None) or "")
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_n_gives_different_answers(client):
    made = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=16, n=3, temperature=2, seed=1, modalities=["text"], logprobs=True
    )
    assert len({json.dumps([t.token for t in choice.logprobs.content]) for choice in made.choices}) == 3


def test_several_answers_stream_whole(client):
    options = {"model": "tiny", "messages": ASK, "max_tokens": 20, "modalities": ["text"], "temperature": 1, "seed": 5}
    whole = client.chat.completions.create(**options, n=3)
    said = ["", "", ""]
    for chunk in client.chat.completions.create(**options, n=3, stream=True):
        said[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert said == [choice.message.content for choice in whole.choices]
    assert any(said)


def test_logprobs(client):
    made = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=5, logprobs=True, top_logprobs=3, modalities=["text"]
    )
    for entry in made.choices[0].logprobs.content:
        assert entry.logprob <= 0
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob, abs=1e-5)  # greedy
        assert len(entry.top_logprobs) == 3


def test_all_roles_and_parts(client):
    content = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": png()}},
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav()).decode(), "format": "wav"}},
        {"type": "video_url", "video_url": {"frames": [png(), png()], "interval": 0.5}},
    ]
    messages = [
        {"role": "system", "content": "be kind"},
        {"role": "developer", "content": "be short"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "and <end> or <|im_end|> stay text"},
    ]
    made = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
    details = made.usage.prompt_tokens_details
    assert details.audio_tokens == 10
    assert made.usage.model_dump()["prompt_tokens_details"]["image_tokens"] == 16 * 3


@pytest.mark.parametrize("modality", ["text", "audio"])
def test_effort_none_keeps_it_from_thinking(client, omni, modality):
    before = lean(omni, mod_text="think", mod_audio="think")
    options = {"model": "tiny", "messages": ASK, "max_tokens": 8, "modalities": [modality], "temperature": 0}
    try:
        thought = client.chat.completions.create(**options).choices[0].message
        quick = client.chat.completions.create(**options, reasoning_effort="none").choices[0].message
    finally:
        omni.engine.update(before)
    assert thought.reasoning_content and not getattr(quick, "reasoning_content", None)


def test_thinking_is_counted(client, omni):
    before = lean(omni, think="mod_text")
    try:
        options = {"model": "tiny", "messages": ASK, "max_tokens": 40, "temperature": 1.5, "seed": 2, "n": 8}
        made = client.chat.completions.create(**options, modalities=["text"], logprobs=True)
        *_, last = client.chat.completions.create(
            **options, modalities=["text"], stream=True, stream_options={"include_usage": True}
        )
    finally:
        omni.engine.update(before)
    thoughts = 0
    for choice in made.choices:
        names = [entry.token for entry in choice.logprobs.content]
        if "<think>" in names:
            rest = names[names.index("<think>") + 1 :]
            thoughts += rest.index("<think_end>") if "<think_end>" in rest else len(rest)
    assert thoughts > 20
    assert made.usage.completion_tokens_details.reasoning_tokens == thoughts
    assert last.usage == made.usage


def test_a_drawing_that_the_model_chose_is_not_greedy(client, omni):
    def drawn(**options):
        made = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=30, **options)
        return made.choices[0].message.images[0]["image_url"]["url"]

    before = lean(omni, image32="assistant")
    try:
        assert len({drawn(seed=seed) for seed in range(4)}) > 1
        assert len({drawn(seed=seed, temperature=0) for seed in range(4)}) == 1
        assert drawn(seed=3) == drawn(seed=3)
    finally:
        omni.engine.update(before)


def test_spoken_answer_has_sound_of_a_registered_voice_only(client, omni):
    for voice in ("heart", "onyx"):
        made = client.chat.completions.create(
            model="tiny", messages=ASK, max_tokens=120, temperature=1, seed=3, modalities=["text", "audio"],
            audio={"voice": voice, "format": "wav"},
        )  # fmt: skip
        audio = made.choices[0].message.audio
        if audio:  # a random network may say no sound before its limit
            samples, rate = soundfile.read(io.BytesIO(base64.b64decode(audio.data)))
            assert rate == 16_000
            assert len(samples) % 640 == 0
    with pytest.raises(openai.BadRequestError, match="voice 'darth' is not registered"):
        client.chat.completions.create(
            model="tiny", messages=ASK, modalities=["text", "audio"], audio={"voice": "darth", "format": "wav"}
        )


def test_completions_echo_logprobs(client, omni):
    made = client.completions.create(model="tiny", prompt="draw a seven", max_tokens=0, echo=True, logprobs=2)
    choice = made.choices[0]
    assert choice.text == "draw a seven"
    vocab, text = omni.tokenizer.vocabulary, omni.tokenizer.text
    prompt = [vocab.special("bos"), *(vocab.text.start + t for t in text.encode("draw a seven"))]
    np.testing.assert_allclose(choice.logprobs.token_logprobs, omni.engine.score(prompt)[0], atol=1e-5)
    assert "".join(choice.logprobs.tokens) == "draw a seven"
    assert choice.logprobs.text_offset[0] == 0
    many = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=3, n=2, temperature=1)
    assert len(many.choices) == 4
    streamed = client.completions.create(model="tiny", prompt="the", max_tokens=6, stream=True)
    single = client.completions.create(model="tiny", prompt="the", max_tokens=6)
    assert "".join(chunk.choices[0].text for chunk in streamed) == single.choices[0].text


def test_stop_string_is_not_part_of_the_text(client):
    whole = client.completions.create(model="tiny", prompt="the", max_tokens=24).choices[0].text
    stop = whole[3:5]
    cut = client.completions.create(model="tiny", prompt="the", max_tokens=24, stop=stop).choices[0]
    assert cut.text == whole[: whole.find(stop)]
    assert cut.finish_reason == "stop"


@pytest.mark.parametrize("kind", ["wav", "mp3", "flac", "opus", "pcm"])
def test_speech_formats(client, kind):
    data = client.audio.speech.create(model="tiny", voice="alloy", input="Hi, 42!", response_format=kind).content
    if kind not in ("pcm",):
        assert soundfile.info(io.BytesIO(data)).frames > 0


@pytest.mark.parametrize("kind", ["json", "text", "verbose_json", "srt", "vtt"])
def test_transcriptions(client, kind):
    made = client.audio.transcriptions.create(model="tiny", file=("a.wav", wav()), response_format=kind)
    text = made if isinstance(made, str) else made.text
    assert isinstance(text, str)


def test_images(client):
    made = client.images.generate(model="tiny", prompt="a seven", n=2, size="256x256")
    for data in made.data:
        picture = Image.open(io.BytesIO(base64.b64decode(data.b64_json)))
        assert picture.size == (256, 256)
        small = picture.resize((32, 32), Image.Resampling.NEAREST)
        assert np.array_equal(np.asarray(small.resize((256, 256), Image.Resampling.NEAREST)), np.asarray(picture))
    assert made.data[0].model_dump()["native_size"] == "32x32"


def show(part: dict) -> dict:
    """Messages with one part that is not text."""
    return {"messages": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": [{"role": "pirate", "content": "arr"}]}, "role"),
        ({"messages": []}, "messages is empty"),
        ({"stop": {}}, "^stop: input should be a valid string$"),
        ({"messages": [5]}, "^messages.0 must be a JSON object .got '5'.$"),
        ({"messages": [{"role": "user", "content": [5]}]}, "^messages.0.content.0 must be a JSON object"),
        ({"temperature": 9}, "temperature"),
        ({"messages": [{"role": "user", "content": [{"type": "smell", "smell": "rose"}]}]}, "'smell'"),
        (show({"type": "image_url", "image_url": {"url": "http://a/b.png"}}), "data: URL"),
        (show({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}), "cannot be read; send a PNG"),
        (show({"type": "input_audio", "input_audio": {"data": "!!", "format": "wav"}}), "base64"),
        (show({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}), "can't be read"),
        ({"messages": [{"role": "user", "content": "word " * 500}]}, "shorten"),
        ({"tools": [{"type": "function", "function": {"name": "look_up"}}]}, "calls no tools"),
        ({"functions": [{"name": "look_up"}]}, "calls no tools; leave functions out"),
        ({"tool_choice": "required"}, "calls no tools"),
        ({"response_format": {"type": "json_object"}}, "no response_format but text .got 'json_object'."),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}}, "response_format"),
    ],
)  # fmt: skip
def test_bad_requests_say_what_is_wrong(url, change, message):
    import re

    response = httpx.post(f"{url}/v1/chat/completions", json={"model": "tiny", "messages": ASK, **change}, timeout=30)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert re.search(message, error["message"])
    assert "\n" not in error["message"]


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("chat/completions", "presence_penalty", 0.5),
        ("chat/completions", "frequency_penalty", -1),
        ("chat/completions", "logit_bias", {"50": -100}),
        ("completions", "logit_bias", {"50": -100}),
        ("completions", "best_of", 2),
        ("completions", "suffix", "the end"),
        ("audio/speech", "stream_format", "sse"),
        ("audio/speech", "speed", 1.5),
        ("images/generations", "stream", True),
    ],
)
def test_fields_that_would_change_an_answer_are_refused(url, path, field, value):
    body = {"messages": ASK, "prompt": "the", "input": "the", field: value}
    response = httpx.post(f"{url}/v1/{path}", json=body, timeout=30)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", field)
    assert f"{field} is not offered" in error["message"]


@pytest.mark.parametrize("neutral", [False, True])
def test_such_fields_are_taken_where_they_change_nothing(url, neutral):
    fields = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1, "suffix": "",
              "stream_format": "audio", "speed": 1.0}  # fmt: skip
    body = {"prompt": "the", "max_tokens": 2, **(fields if neutral else dict.fromkeys(fields))}
    assert httpx.post(f"{url}/v1/completions", json=body, timeout=30).status_code == 200


def test_fields_that_change_nothing_are_taken(client):
    made = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=2, tools=[], tool_choice="auto", parallel_tool_calls=True, user="me",
        store=False, metadata={"a": "b"}, response_format={"type": "text"}, service_tier="auto",
    )  # fmt: skip
    assert made.usage.completion_tokens <= 2
    response = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=2, tool_choice="none")
    assert response.choices


def test_too_long_a_sound_and_a_huge_body(url):
    long = base64.b64encode(wav(seconds=25)).decode()
    part = {"type": "input_audio", "input_audio": {"data": long, "format": "wav"}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
    assert "at most 20 s" in httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).json()["error"]["message"]
    assert httpx.post(f"{url}/v1/chat/completions", content=b"x" * 26_000_000, timeout=30).status_code == 413


@pytest.mark.parametrize("path", ["chat/completions", "audio/transcriptions"])
def test_a_huge_body_that_does_not_say_its_size(url, path):
    kind = {"chat/completions": "application/json", "audio/transcriptions": "multipart/form-data; boundary=x"}[path]
    head = (
        b""
        if path == "chat/completions"
        else b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )

    def body(count):
        yield head
        for _ in range(count):
            yield b" " * 1_000_000

    response = httpx.post(f"{url}/v1/{path}", content=body(26), headers={"content-type": kind}, timeout=30)
    assert response.status_code == 413
    assert "too large" in response.json()["error"]["message"]
    response = httpx.post(f"{url}/v1/{path}", content=body(1), headers={"content-type": kind}, timeout=30)
    assert response.status_code == 400


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON: expecting property name"),
        (b"", "the body must be a JSON object"),
        (b"[1]", "the body must be a JSON object"),
        (b"{}", "messages is missing"),
    ],
)
def test_bodies_that_are_none(url, body, message):
    response = httpx.post(f"{url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    ("files", "data", "message"),
    [
        ({}, {"file": "hello"}, "file must be a file, sent as multipart/form-data"),
        ({}, {"model": "tiny"}, "file is missing"),
        ({"file": wav(0)}, {}, "file: the sound is empty"),
        ({"file": wav()}, {"temperature": "9"}, "temperature: input should be less than or equal to 2"),
        ({"file": wav()}, {"stream": "true"}, "stream is not offered here"),
    ],
)
def test_bad_transcriptions_say_what_is_wrong(url, files, data, message):
    response = httpx.post(f"{url}/v1/audio/transcriptions", files=files, data=data, timeout=30)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/nothing", "/web/app.js", "/%00"])
def test_unknown_paths(url, method, path):
    response = httpx.request(method, f"{url}{path}")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"
    assert "there is no such path" in response.json()["error"]["message"]
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("PUT", "/v1/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("POST", "/app.js", "GET, HEAD"),
        ("POST", "/", "GET, HEAD"),
    ],
)
def test_known_paths_with_other_methods(url, method, path, allowed):
    response = httpx.request(method, f"{url}{path}")
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"] == f"{method} {path}: this path takes {allowed} only"


def test_more_than_may_wait_is_no_reason_to_try_again(url):
    body = {"prompt": ["a"] * 40, "n": 2, "max_tokens": 2}
    response = httpx.post(f"{url}/v1/completions", json=body, timeout=30)
    assert response.status_code == 400
    said = "40 prompts with n 2 ask for 80 answers; at most 64 are taken at once: send them in parts"
    assert response.json()["error"]["message"] == said
    body = {"prompt": ["a"] * 64, "max_tokens": 2}
    assert len(httpx.post(f"{url}/v1/completions", json=body, timeout=30).json()["choices"]) == 64


def test_a_client_that_vanishes_frees_its_slot(url, omni):
    body = {"model": "tiny", "messages": ASK, "max_tokens": 170, "stream": True, "modalities": ["text"], "seed": 1,
            "temperature": 2}  # fmt: skip
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
        next(response.iter_lines())
    soon(lambda: omni.engine.load == (0, 0))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": ASK, "n": 3}),
        ("chat/completions", {"messages": ASK, "n": 3, "stream": True}),
        ("completions", {"prompt": ["a", "b", "c"], "stream": True}),
        ("images/generations", {"prompt": "a seven", "n": 3}),
        ("audio/speech", {"input": "one two three four " * 12, "response_format": "pcm"}),
    ],
)
def test_a_request_that_is_taken_in_part_is_not_taken_at_all(url, omni, monkeypatch, path, body):
    monkeypatch.setattr("tony.serve.app.MAX_WAITING", 3)
    long = Generation([1, 2], modalities=frozenset({"image"}), image_size=64)  # 67 tokens, whatever is drawn
    busy = [omni.engine.submit(replace(long)) for _ in range(omni.engine.slots + 1)]
    busy[0].listen(lambda token: time.sleep(0.05))
    try:
        soon(lambda: omni.engine.load[1] == 1)
        response = httpx.post(f"{url}/v1/{path}", json=body, timeout=30)
        assert response.status_code == 429
        assert response.json()["error"]["code"] == "queue_full"
        soon(lambda: omni.engine.load[1] == 1, seconds=1)
        assert not any(handle._over.is_set() for handle in busy)
    finally:
        for handle in busy:
            handle.cancel()
            handle.result(10)


def test_every_token_is_metered(url, client):
    def told():
        lines = httpx.get(f"{url}/metrics").text.splitlines()
        return [float(line.split()[1]) for line in sorted(lines) if line.startswith("tony_tokens_total")]

    def metered(call):
        before = told()
        usage = call()
        soon(lambda: usage is None or told() != before)  # a stream is counted when it has ended, on the other side
        return usage, [int(now - then) for now, then in zip(told(), before, strict=True)]

    options = {"model": "tiny", "messages": ASK, "max_tokens": 9, "modalities": ["text"], "temperature": 1, "seed": 5}
    usage, counted = metered(lambda: client.chat.completions.create(**options, n=2).usage)
    assert counted == [usage.prompt_tokens, usage.completion_tokens]
    assert metered(lambda: list(client.chat.completions.create(**options, n=2, stream=True)))[1] == counted
    plain = {"model": "tiny", "prompt": ["the", "a b"], "max_tokens": 6, "seed": 3}
    usage, counted = metered(lambda: client.completions.create(**plain).usage)
    assert counted == [usage.prompt_tokens, usage.completion_tokens]
    assert metered(lambda: list(client.completions.create(**plain, stream=True)))[1] == counted
    *_, last = client.completions.create(**plain, stream=True, stream_options={"include_usage": True})
    assert [last.usage.prompt_tokens, last.usage.completion_tokens] == counted
    scored = metered(lambda: client.completions.create(model="tiny", prompt="the", max_tokens=0, echo=True).usage)
    assert scored[1] == [scored[0].prompt_tokens, 0]
    for kind in ("wav", "pcm"):
        speech = {"model": "tiny", "voice": "alloy", "input": "hello", "response_format": kind}
        assert min(metered(lambda: client.audio.speech.create(**speech).content or b"none")[1]) > 2  # noqa: B023
    _, (read, made) = metered(lambda: client.audio.transcriptions.create(model="tiny", file=("a.wav", wav())))
    assert read > 10 and made > 0
    _, (read, made) = metered(lambda: client.images.generate(model="tiny", prompt="a seven", n=2))
    assert read > 2 and made == 2 * 19


def test_rows_of_the_embedding_that_no_token_has_are_left_out(tmp_path):
    plain, padded = (make_release(tmp_path / name, unused=unused) for name, unused in (("a", 0), ("b", 128)))
    for file in ("model.safetensors", "config.json"):
        assert (plain / file).read_bytes() != (padded / file).read_bytes()
    omni = Omni.load(padded, slots=1, max_length=180, warm=False)
    try:
        assert omni.config.vocab_size == omni.tokenizer.vocabulary.padded_size
        assert omni.answer([[Message("user", (Text("hello"),))]], "text", max_tokens=4)
    finally:
        omni.close()


def test_no_request_waits_for_a_compiler(tmp_path):
    # Codecs and an engine of their own sizes, so that no other test can have compiled their shapes.
    omni = Omni.load(make_release(tmp_path, codec_width=24), slots=3, max_length=180)
    omni.warm()
    lean(omni, audio="voice1")
    compiled = []

    def notice(event, seconds, **more):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(notice)
    content = [
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(1.5)).decode(), "format": "wav"}},
        {"type": "image_url", "image_url": {"url": png()}},
        {"type": "video_url", "video_url": {"frames": [png(), png()]}},
    ]
    body = {"messages": [{"role": "user", "content": content}], "modalities": ["text", "audio"], "max_tokens": 60,
            "reasoning_effort": "none"}  # fmt: skip
    try:
        app = TestClient(create_app(omni, Settings("tiny")))
        (choice,) = app.post("/v1/chat/completions", json=body).json()["choices"]
        assert len(base64.b64decode(choice["message"]["audio"]["data"])) > 1000
        assert '"audio": {"data":' in app.post("/v1/chat/completions", json={**body, "stream": True}).text
        assert app.post("/v1/images/generations", json={"prompt": "a seven", "n": 2}).json()["data"]
        assert app.post("/v1/audio/transcriptions", files={"file": wav()}).status_code == 200
        assert app.post("/v1/audio/speech", json={"input": "hello"}).status_code == 200
        omni.pixels(omni.image_part(Image.new("RGB", (64, 64)), 64))
        assert compiled == []
        jax.jit(lambda x: x + 1)(np.zeros(1234))
        assert compiled  # or nothing was ever noticed
    finally:
        jax.monitoring.unregister_event_duration_listener(notice)
        omni.close()


def test_many_clients_at_once(url):
    async def everyone():
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        calls = [client.chat.completions.create(model="tiny", messages=ASK, max_tokens=10, seed=1, temperature=1,
                                                modalities=["text"]) for _ in range(12)]  # fmt: skip
        return await asyncio.gather(*calls)

    contents = {made.choices[0].message.content for made in asyncio.run(everyone())}
    assert len(contents) == 1  # the same seed gives the same answer whatever the neighbours


def test_key_metrics_health_and_page(omni):
    app = TestClient(create_app(omni, Settings("tiny", api_key="secret")))
    assert app.get("/v1/models").status_code == 401
    assert app.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert app.get("/health").json()["status"] == "ok"
    assert "tony_requests_total" in app.get("/metrics").text
    assert "<html" in app.get("/").text.lower()
    assert app.head("/app.js").headers["content-type"].startswith("text/javascript")


def test_taken_port_and_missing_model(tmp_path):
    taken = listen("127.0.0.1", 0)
    with pytest.raises(TonyError, match="can't be used"):
        serve(tmp_path, port=taken.getsockname()[1])
    for host in ("nosuchhost.invalid", "x" * 70):
        with pytest.raises(TonyError, match="is not known; give a name"):
            serve(tmp_path, host, api_key="secret")
    with pytest.raises(TonyError, match="no address of this machine"):
        serve(tmp_path, "192.0.2.1", api_key="secret")
    with pytest.raises(TonyError, match="expected 0 to 65535"):
        serve(tmp_path, port=99999)
    with pytest.raises(TonyError, match="no model in"):
        serve(tmp_path, port=0)
