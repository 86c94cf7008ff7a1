"""The network against an independent forward pass: float64 NumPy, one token at a time, loops instead of tricks."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tony.model.attention import t5_bucket
from tony.model.config import ModelConfig
from tony.model.count import flops_per_token, parameter_count
from tony.model.forward import decode, forward, init_cache, unembed
from tony.model.params import declare, init, is_spec

BASE = {
    "vocab_size": 64,
    "layers": 2,
    "width": 32,
    "heads": 4,
    "kv_heads": 4,
    "head_dim": 8,
    "hidden": 48,
    "max_length": 64,
}
VARIANTS = {
    "llama": {"kv_heads": 2, "qk_norm": False},
    "palm": {"parallel_block": True, "kv_heads": 1, "norm": "layernorm", "qk_norm": False},
    "glam": {
        "activation": "geglu",
        "position": "t5",
        "norm": "rmsnorm",
        "qk_norm": False,
        "experts": 4,
        "expert_every": 2,
        "expert_hidden": 40,
        "expert_activation": "gelu",
        "capacity_factor": 4.0,
    },
    "mixtral": {"kv_heads": 2, "qk_norm": False, "experts": 4, "expert_hidden": 24, "dispatch": "sorted"},
    "deepseek": {
        "experts": 6,
        "experts_per_token": 3,
        "expert_hidden": 16,
        "shared_hidden": 24,
        "dispatch": "sorted",
        "balance": "bias",
    },
    "gpt": {"activation": "gelu", "norm": "layernorm", "biases": True, "tied": False, "qk_norm": False},
    "tony": {},
}


def make(name: str):
    config = ModelConfig(**{**BASE, **VARIANTS[name]})
    params = init(declare(config), jax.random.key(0))
    # Everything that starts as one or zero is moved off it, or a forgotten gain or bias would not be seen.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return config, jax.tree.unflatten(
        tree, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    )


def slow_forward(params, config, tokens):
    """Hidden states [l, d] of one document, obviously."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    h, g, k = config.heads, config.kv_heads, config.head_dim

    def norm(q, x):
        if config.norm == "layernorm":
            x = x - x.mean()
        y = x / math.sqrt((x**2).mean() + 1e-6) * q["gain"]
        return y + q.get("bias", 0)

    def linear(q, x):
        return x @ q["weight"] + q.get("bias", 0)

    def rope(x, position):
        out = np.empty_like(x)
        for i in range(k // 2):
            angle = position * config.rope_base ** (-i / (k // 2))
            a, b = x[i], x[i + k // 2]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[i + k // 2] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def head(q, name, x, count, position):
        y = linear(q[name], x).reshape(count, k)
        if name != "value" and config.qk_norm:
            y = np.stack([row / math.sqrt((row**2).mean() + 1e-6) * q[f"{name}_norm"] for row in y])
        if name != "value" and config.position == "rope":
            y = np.stack([rope(row, position) for row in y])
        return y

    def bucket(distance):
        if distance < 16:
            return distance
        return min(31, 16 + int(math.log(distance / 16) / math.log(128 / 16) * 16))

    def activate(name, gate, up):
        if name == "gelu":
            return gelu(up)
        return (gate / (1 + np.exp(-gate)) if name == "swiglu" else gelu(gate)) * up

    def experts(q, x):
        scores = x @ q["router"]["weight"]
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        chosen = np.argsort(-(probabilities + q["router"].get("bias", 0)))[: config.experts_per_token]
        total = 0
        for e in chosen:
            hidden = activate(config.expert_activation, x @ q["gate"][e] if "gate" in q else None, x @ q["up"][e])
            total = total + probabilities[e] / probabilities[chosen].sum() * (hidden @ q["down"][e])
        return total + (feed_forward(q["shared"], x) if "shared" in q else 0)

    def feed_forward(q, x):
        if "router" in q:
            return experts(q, x)
        up = linear(q["up"], x)
        gate = linear(q["gate"], x) if "gate" in q else None
        return linear(q["down"], activate(config.activation, gate, up))

    xs = [p["embedding"][t] * math.sqrt(config.width) for t in tokens]
    for block in p["blocks"]:
        normed = [norm(block["norm"], x) for x in xs]
        q = [head(block["attention"], "query", x, h, i) for i, x in enumerate(normed)]
        keys = [head(block["attention"], "key", x, g, i) for i, x in enumerate(normed)]
        values = [head(block["attention"], "value", x, g, i) for i, x in enumerate(normed)]
        new = []
        for i, x in enumerate(xs):
            outs = []
            for head_index in range(h):
                group = head_index // (h // g)
                scores = [q[i][head_index] @ keys[j][group] / math.sqrt(k) for j in range(i + 1)]
                if config.position == "t5":
                    bias = block["attention"]["relative_bias"]
                    scores = [s + bias[bucket(i - j)][head_index] for j, s in enumerate(scores)]
                weights = np.exp(np.array(scores) - max(scores))
                weights /= weights.sum()
                outs.append(sum(w * values[j][group] for j, w in enumerate(weights)))
            attended = linear(block["attention"]["out"], np.concatenate(outs))
            if config.parallel_block:
                new.append(x + attended + feed_forward(block["feed_forward"], normed[i]))
            else:
                middle = x + attended
                new.append(middle + feed_forward(block["feed_forward"], norm(block["feed_forward_norm"], middle)))
        xs = new
    return np.stack([norm(p["norm"], x) for x in xs])


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return make(request.param)


def test_decode_equals_the_slow_reference(variant):
    config, params = variant
    tokens = np.random.default_rng(0).integers(64, size=21)
    expected = slow_forward(params, config, tokens)
    cache = init_cache(config, 2, 32)
    # Two rows: ours in pieces of 13, 1 and 7 tokens, and a neighbour that is idle in between.
    got = []
    for start, stop in ((0, 13), (13, 14), (14, 21)):
        rows = np.stack([tokens[start:stop], np.zeros(stop - start, int)])
        positions = np.stack([np.arange(start, stop), np.full(stop - start, -1)])
        hidden, cache = decode(params, config, cache, jnp.asarray(rows), jnp.asarray(positions))
        got.append(np.asarray(hidden[0]))
    np.testing.assert_allclose(np.concatenate(got), expected, atol=2e-4)


def test_packed_forward_equals_the_slow_reference_document_by_document(variant):
    config, params = variant
    rng = np.random.default_rng(1)
    documents = [rng.integers(64, size=n) for n in (17, 5, 30)]
    tokens = np.concatenate([*documents, [0, 0]])[None]
    segments = np.concatenate([*(np.full(len(d), i + 1) for i, d in enumerate(documents)), [0, 0]])[None]
    positions = np.concatenate([*(np.arange(len(d)) for d in documents), [0, 0]])[None]
    hidden = np.asarray(forward(params, config, tokens, positions, segments)[0])[0]
    expected = np.concatenate([slow_forward(params, config, d) for d in documents])
    # The training path multiplies in bfloat16, of 8 bits.
    error = np.abs(hidden[: len(expected)] - expected).mean() / np.abs(expected).mean()
    assert error < 0.02


def test_blocks_of_queries_change_nothing(monkeypatch):
    from tony.model import attention

    config, params = make("tony")
    tokens = np.random.default_rng(2).integers(64, size=(2, 50))
    positions, segments = np.tile(np.arange(50), (2, 1)), np.ones((2, 50), int)

    def loss(p):
        return jnp.square(forward(p, config, tokens, positions, segments)[0]).mean()

    whole, whole_gradient = jax.value_and_grad(loss)(params)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    parts, parts_gradient = jax.value_and_grad(loss)(params)
    assert float(parts) == pytest.approx(float(whole), rel=1e-3)
    for a, b in zip(jax.tree.leaves(whole_gradient), jax.tree.leaves(parts_gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-2 * np.abs(a).max() + 1e-7)


@pytest.mark.parametrize("name", ["tony", "glam"])
@pytest.mark.parametrize("remat", ["none", "products", "blocks"])
def test_stacked_and_rematerialised_blocks_are_the_same_network(name, remat):
    config, params = make(name)
    other = replace(config, stacked=True, remat=remat)
    period = other.period
    blocks = [jax.tree.map(lambda *x: jnp.stack(x), *params["blocks"][kind::period]) for kind in range(period)]
    stacked = {**params, "blocks": blocks}
    expected = jax.tree.map(lambda spec: spec.shape, declare(other), is_leaf=is_spec)
    assert jax.tree.map(jnp.shape, stacked) == expected and parameter_count(other) == parameter_count(config)
    tokens = np.random.default_rng(5).integers(64, size=(2, 24))
    positions, segments = np.tile(np.arange(24), (2, 1)), np.ones((2, 24), int)

    def loss(config, p):
        hidden, losses, measures = forward(p, config, tokens, positions, segments)
        return jnp.square(hidden).mean() + sum(losses.values()), measures

    (whole, measures), gradient = jax.value_and_grad(partial(loss, config), has_aux=True)(params)
    (again, others), looped = jax.value_and_grad(partial(loss, other), has_aux=True)(stacked)
    assert float(again) == pytest.approx(float(whole), rel=1e-4) and measures.keys() == others.keys()
    parts = [jax.tree.map(lambda x, i=i: x[i // period], looped["blocks"][i % period]) for i in range(config.layers)]
    for a, b in zip(jax.tree.leaves(gradient["blocks"]), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-2 * np.abs(a).max() + 1e-6)
    start = decode(params, config, init_cache(config, 2, 32), tokens, positions)[0]
    np.testing.assert_allclose(decode(stacked, other, init_cache(other, 2, 32), tokens, positions)[0], start, atol=1e-5)


def test_documents_do_not_see_each_other():
    config, params = make("tony")
    segments = np.array([[1] * 8 + [2] * 8])
    positions = np.concatenate([np.arange(8)] * 2)[None]
    tokens = np.random.default_rng(3).integers(64, size=(1, 16))
    changed = tokens.copy()
    changed[0, :8] = (changed[0, :8] + 1) % 64
    first, second = (np.asarray(forward(params, config, t, positions, segments)[0]) for t in (tokens, changed))
    np.testing.assert_array_equal(first[0, 8:], second[0, 8:])
    assert np.abs(first[0, :8] - second[0, :8]).max() > 0.1


def test_going_back_and_on_again_forgets_what_was_dropped():
    config, params = make("tony")
    rng = np.random.default_rng(4)
    start, dropped, kept = (rng.integers(64, size=(1, n)) for n in (6, 4, 3))

    def run(*pieces):
        cache = init_cache(config, 1, 32)
        for at, piece in pieces:
            hidden, cache = decode(params, config, cache, piece, np.arange(at, at + piece.shape[1])[None])
        return np.asarray(hidden)

    np.testing.assert_allclose(run((0, start), (6, dropped), (6, kept)), run((0, start), (6, kept)), atol=1e-5)


def test_t5_buckets_against_the_definition():
    def slow(distance):
        if distance < 16:
            return distance
        return min(31, 16 + math.floor(math.log(distance / 16) / math.log(8) * 16 + 1e-9))

    assert [int(t5_bucket(jnp.asarray(d))) for d in range(300)] == [slow(d) for d in range(300)]


def test_counts():
    config = ModelConfig(**BASE)
    params = init(declare(config), jax.random.key(0))
    assert parameter_count(config) == sum(x.size for x in jax.tree.leaves(params))
    products = parameter_count(config) - 64 * 32 + 64 * 32
    assert flops_per_token(config, 16) == 6 * products + 12 * 2 * 32 * 16


def test_features_bring_like_tokens_together():
    config = ModelConfig(**BASE)
    features = np.zeros((64, 3), np.float32)
    features[10:20] = [1, 0.5, 0]
    features[20:30] = [-1, 0.2, 1]
    table = np.asarray(init(declare(config), jax.random.key(0), embedding_features=features)["embedding"])

    def likeness(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    assert likeness(table[10], table[11]) > 0.5 > likeness(table[10], table[25])
    assert 0.7 < table[10:30].std() / table[40:].std() < 1.4
    assert unembed({"embedding": table}, config, np.ones((1, 32))).shape == (1, 64)
