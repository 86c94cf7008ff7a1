"""An imported model is served, talked to and tuned like one of Tony's own."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.exchange.test_import import folder
from tony.cli import main
from tony.errors import TonyError
from tony.exchange.imported import ImportedModel
from tony.generate.engine import Request
from tony.generate.omni import Omni
from tony.model.files import load_model
from tony.model.forward import decode, init_cache, unembed
from tony.serve.app import Settings, create_app
from tony.tokens.chat import Message, Text

ASKED = [{"role": "user", "content": "the fox"}]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    out = tmp_path_factory.mktemp("imported")
    main(["import", str(folder("qwen3", out / "source")), str(out / "model")])
    return out / "model"


@pytest.fixture(scope="module")
def omni(release):
    loaded = Omni.load(release, slots=2, max_length=96, warm=False)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def client(omni):
    return TestClient(create_app(omni, Settings("fox")))


def greedy(release, prompt, count, ends):
    """By whole passes over everything so far."""
    config, params = load_model(release)
    tokens = list(prompt)
    for _ in range(count):
        padded = jnp.zeros((1, 96), jnp.int32).at[0, : len(tokens)].set(jnp.asarray(tokens))
        at = jnp.where(jnp.arange(96) < len(tokens), jnp.arange(96), -1)[None]
        hidden, _ = decode(params, config, init_cache(config, 1, 96), padded, at)
        tokens.append(int(jnp.argmax(unembed(params, config, hidden[0, len(tokens) - 1]))))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


def test_a_chat_is_answered_greedily_by_the_models_own_template(omni, release, client):
    assert isinstance(omni, ImportedModel)
    prompt = omni.prompt([Message("user", (Text("the fox"),))])
    expected = greedy(release, prompt, 8, omni.tokenizer.vocabulary.ends)
    answer = client.post("/v1/chat/completions", json={"messages": ASKED, "max_tokens": 8, "temperature": 0}).json()
    assert answer["choices"][0]["message"]["content"] == omni.tokenizer.text.decode(expected)
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    (reply,) = omni.answer([[Message("user", (Text("the fox"),))]], max_tokens=8)
    assert reply.content[0].text == omni.tokenizer.text.decode(expected)


def test_a_stream_says_the_same(client):
    body = {"messages": ASKED, "max_tokens": 8, "temperature": 0}
    whole = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    lines = client.post("/v1/chat/completions", json={**body, "stream": True}).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole


def test_a_text_is_continued_and_scored(omni, client):
    body = {"prompt": "the quick", "max_tokens": 3, "temperature": 0, "echo": True, "logprobs": 1}
    choice = client.post("/v1/completions", json=body).json()["choices"][0]
    assert choice["text"].startswith("the quick")
    assert len(choice["logprobs"]["tokens"]) == len(omni.tokenizer.document("the quick")) + 3


def test_what_it_cannot_do_is_an_error_of_the_clients(client):
    spoken = client.post("/v1/chat/completions", json={"messages": ASKED, "modalities": ["text", "audio"]})
    picture = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}
    drawn = client.post("/v1/images/generations", json={"prompt": "a cat"})
    seen = client.post("/v1/chat/completions", json={"messages": [picture]})
    assert [spoken.status_code, drawn.status_code, seen.status_code] == [400] * 3
    assert "writes text alone" in spoken.json()["error"]["message"]


def test_pictures_and_sounds_are_refused(omni):
    with pytest.raises(TonyError, match="reads text alone; it was given image"):
        omni.image_part(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(TonyError, match="reads text alone; it was given audio"):
        omni.audio_part(np.zeros(100, np.float32))


def test_it_says_that_it_is_of_text_alone(client):
    (card,) = client.get("/v1/models").json()["data"]
    assert card["modalities"] == {"input": ["text"], "output": ["text"]}
    assert card["voices"] == []


def test_a_recipe_tunes_it_and_the_result_is_served(release, tmp_path, monkeypatch):
    (tmp_path / "own.jsonl").write_text(
        "\n".join(
            json.dumps(
                {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": "foxes"}]}
            )
            for n in range(8)
        )
    )
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "the quick brown fox " * 30}))
    recipe = f"""
        [model]
        base = "{release}"
        [data.sources.own]
        path = "{tmp_path}/own.jsonl"
        [data.sources.texts]
        path = "{tmp_path}/texts.jsonl"
        [tune]
        steps = 60
        rows = 4
        length = 64
        warmup = 2
        learning_rate = 3e-2
        mixture = {{own = 4, texts = 1}}
        """
    (tmp_path / "fox.toml").write_text(recipe)
    main(["run", str(tmp_path / "fox.toml"), "--out", str(tmp_path / "runs")])
    config, params = load_model(tmp_path / "runs/fox/model")
    assert not config.stacked
    card = (tmp_path / "runs/fox/card.html").read_text()
    assert "Time and energy" in card and "floating-point operations" in card and "Any to any" not in card
    _, before = load_model(release)
    assert not np.array_equal(
        params["blocks"][1]["feed_forward"]["up"]["weight"], before["blocks"][1]["feed_forward"]["up"]["weight"]
    )
    tuned = Omni.load(tmp_path / "runs/fox", slots=1, max_length=96, warm=False)
    (reply,) = tuned.answer([[Message("user", (Text("say 3"),))]], max_tokens=12)
    tuned.close()
    assert reply.content[0].text.strip() == "foxes"


def test_a_base_needs_data_and_must_be_imported(release, tmp_path):
    from tony.recipe import load

    (tmp_path / "a.toml").write_text(f'[model]\nbase = "{release}"\n')
    with pytest.raises(TonyError, match=r"add \[data.sources.NAME\]"):
        load(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text(
        f'[model]\nbase = "{release}"\n[data.sources.x]\npath = "x"\n[tune.mixture]\ndraw = 1\n'
    )
    with pytest.raises(TonyError, match=r"tune.mixture.draw"):
        load(tmp_path / "b.toml")


def test_a_free_continuation_draws_only_tokens_that_there_are(omni):
    known = set(omni.tokenizer.text.known)
    requests = [Request([5], 40, temperature=5.0, seed=seed, free=True) for seed in range(4)]
    for completion in omni.engine.generate(requests):
        assert set(completion.tokens) <= known
