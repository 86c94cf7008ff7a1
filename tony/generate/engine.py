"""Continuous batching: requests join and leave a fixed set of slots between steps; every shape is compiled at start.

One thread owns the model. A request's prompt is read in chunks of PREFILL tokens into its own slot, then it takes part
in the decoding steps of all running requests until its grammar ends, a limit or a stop string is reached, or it is
cancelled. Positions are data, so a slot is freed by forgetting it.
"""

import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tony.errors import TonyError
from tony.generate import script
from tony.generate.sampler import TOP, Sampling, sample, words_apart
from tony.model.config import ModelConfig
from tony.model.forward import decode, init_cache, unembed
from tony.tokens.grammar import DONE, NEVER
from tony.tokens.tokenizer import Tokenizer

LOG = logging.getLogger("tony.generate")
PREFILL = (16, 128)  # lengths of compiled prompt chunks
SPANS = (256,)  # slots of the cache that are looked at while all running sequences are short; else all
BURST = 8  # decoding steps of one call when nobody waits for single tokens
SCORED = 128  # tokens scored at once, so that only their logits exist


@dataclass
class Request:
    """What to generate. `prompt` ends with an opened reply, if it is not to be continued freely."""

    prompt: list[int]
    max_tokens: int = 256
    temperature: float = 0.0
    speech_temperature: float | None = None  # of the codes of speech; None: as everything else
    image_temperature: float | None = None  # of the codes of pictures; None: as everything else
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop: Sequence[str] = ()
    modalities: frozenset[str] = frozenset({"think", "text"})
    voice: int | None = None
    image_size: int | None = None
    script: Sequence[Sequence[int]] = ()  # words to say, `script.runs_of` them; () leaves them to the model
    logprobs: int = 0
    free: bool = False  # plain continuation: any text token or <end>, no grammar of a reply


@dataclass
class Completion:
    """What was generated so far; `finish_reason` is "stop", "length" or "cancelled" once it is over."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[dict[int, float]] = field(default_factory=list)
    finish_reason: str | None = None


class Handle:
    """A submitted request: iterate over its tokens as they come, or wait for `result()`; `cancel()` frees its slot."""

    def __init__(self, request: Request, state: int):
        self.request, self.state, self.completion = request, state, Completion()
        self.cancelled = False
        self._events: queue.SimpleQueue = queue.SimpleQueue()
        self._told: list[int | None] = []
        self._listeners: list[Any] = []
        self._telling = threading.RLock()
        self._over = threading.Event()
        self.error: BaseException | None = None

    def cancel(self) -> None:
        """Stop before the next step."""
        self.cancelled = True

    def listen(self, listener) -> None:
        """Call `listener(token | None)` for each token, and None at the end: now for those that came already, and
        from the engine's thread for those to come."""
        with self._telling:
            for token in self._told:
                listener(token)
            self._listeners.append(listener)

    def __iter__(self) -> Iterator[int]:
        while (token := self._events.get()) is not None:
            yield token
        self._raise()

    def result(self, timeout: float | None = None) -> Completion:
        """The whole completion; raises what the engine died of."""
        if not self._over.wait(timeout):
            raise TimeoutError("the request is not finished")
        self._raise()
        return self.completion

    def _raise(self) -> None:
        if self.error is not None:
            raise TonyError(f"generation failed: {self.error}; see the log of the service") from self.error

    def _emit(self, token: int | None) -> None:
        if token is None:
            self._over.set()
        self._events.put(token)
        with self._telling:
            self._told.append(token)
            for listener in list(self._listeners):
                self._tell(listener, token)

    def _tell(self, listener, token: int | None) -> None:
        """A listener that fails, because its event loop is closed for example, harms only its own request."""
        try:
            listener(token)
        except Exception as error:
            LOG.warning("a listener failed (%r); its request is cancelled", error)
            self._listeners.remove(listener)
            self.cancel()


class _Slot:
    """A running request: where it is in its prompt and in its reply."""

    def __init__(self, handle: Handle, tokenizer: Tokenizer):
        self.handle, self.state = handle, handle.state
        self.read = 0  # prompt tokens in the cache
        self.scripted = 0  # tokens of its script that were said
        self.last = handle.request.prompt[-1]
        self.text = tokenizer.text.stream()
        self.said = ""  # of the answer, not of what it thought before

    @property
    def reading(self) -> bool:
        return self.read < len(self.handle.request.prompt) - 1

    @property
    def position(self) -> int:
        return len(self.handle.request.prompt) - 1 + len(self.handle.completion.tokens)


class Engine:
    """The model, its cache of `slots` sequences of `max_length` tokens, and the thread that runs them."""

    def __init__(
        self, config: ModelConfig, params: dict, tokenizer: Tokenizer, slots: int = 8, max_length: int | None = None,
        voices: Sequence[int] = (1, 2), warm: bool = True,
    ):  # fmt: skip
        self.config, self.tokenizer, self.slots = config, tokenizer, slots
        self.max_length = max_length or config.max_length
        self._spans = (*(span for span in SPANS if span < self.max_length), self.max_length)
        self.params = jax.device_put(params)
        self.grammar = tokenizer.grammar(voices)
        self._free_state = len(self.grammar.next_state)  # one more row of the tables: plain text
        self._thinking, self._sounding, self._wording = (
            self._within(*places) for places in (("thinking",), ("sound",), ("said", "more"))
        )
        self._tables = self._grammar_tables()
        self._cache = init_cache(config, slots, self.max_length)
        self._waiting: deque[Handle] = deque()
        self._running: dict[int, _Slot] = {}
        self._wake = threading.Condition()
        self._stopped = False
        self._dead: BaseException | None = None
        self._compile()
        if warm:
            self.warm()
        self._thread = threading.Thread(target=self._work, name="tony-engine", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------------------ compiled

    def _within(self, *places: str) -> np.ndarray:
        """Which states of the tables, with that of plain text, lie in these places of a reply."""
        return np.append(self.grammar.within(*places), False)

    def _grammar_tables(self) -> dict:
        vocab = self.tokenizer.vocabulary
        kind = self.grammar.class_of
        text, end = np.zeros(vocab.padded_size, bool), kind == kind[vocab.special("end")]
        text[vocab.text.start : vocab.text.stop] = True
        text &= kind != NEVER  # rows of the embedding that no token has
        masks = np.concatenate([self.grammar.masks, (text | end)[None]])
        mask_of = np.concatenate([self.grammar.mask_of, [len(masks) - 1]])
        width = self.grammar.next_state.shape[1]
        next_state = np.concatenate([self.grammar.next_state, np.full((1, width), self._free_state, np.int32)])
        next_state[self._free_state, self.grammar.class_of[vocab.special("end")]] = DONE
        return {
            "masks": jnp.asarray(masks),
            "mask_of": jnp.asarray(mask_of, jnp.int32),
            "next_state": jnp.asarray(next_state),
            "class_of": jnp.asarray(self.grammar.class_of),
            "in_picture": jnp.asarray(self._within("image")),
            "sounding": jnp.asarray(self._sounding),
            "wording": jnp.asarray(self._wording),
            "voiced": jnp.asarray(self._within("silent", "sound", "more")),
            "kinds": {
                "text": jnp.asarray(text & ~end),
                "audio_end": jnp.arange(vocab.padded_size) == vocab.special("audio_end"),
            },
        }

    def _compile(self) -> None:
        config = self.config

        def prefill(params, cache, tokens, positions, row, span):
            """One slot's chunk of prompt: tokens and positions [1, t]."""
            return decode(params, config, cache, tokens, positions, span, row)[1]

        def steps(params, cache, tables, last, positions, states, sampling, heat, limits, scripts, row, count, span):
            """`count` tokens for each row with a position; a row stops at its limit or its grammar's end.

            With a `row`, what is given is of that slot alone.
            `heat` are the temperatures [rows] of the codes of speech and of pictures; `sampling` has that of the rest.
            """
            speech_heat, picture_heat = heat

            def one(carry, _):
                cache, last, positions, states, drawn, said = carry
                live = (positions >= 0) & (drawn < limits) & (states != DONE)
                here = jnp.where(live, positions, -1)[:, None]
                hidden, cache = decode(params, config, cache, last[:, None], here, span, row)
                logits = unembed(params, config, hidden[:, 0])
                speaking = (tables["sounding"][states], tables["wording"][states])
                allowed = tables["masks"][tables["mask_of"][states]]
                logits, allowed = script.follow(
                    scripts._replace(next=said), logits, allowed, *speaking, tables["kinds"]
                )
                voiced, text = tables["voiced"][states], tables["kinds"]["text"]
                apart = words_apart(logits, allowed & text, sampling.temperature, speech_heat)
                apart = jnp.where(voiced[:, None], apart, logits)
                temperature = jnp.where(tables["in_picture"][states], picture_heat, sampling.temperature)
                temperature = jnp.where(voiced, speech_heat, temperature)
                out = sample(logits, allowed, sampling._replace(temperature=temperature, drawn=drawn), apart)
                said += live & (speaking[0] | speaking[1]) & text[out.token]
                states = jnp.where(live, tables["next_state"][states, tables["class_of"][out.token]], states)
                carry = (cache, jnp.where(live, out.token, last), positions + live, states, drawn + live, said)
                return carry, (out, live)

            carry = (cache, last, positions, states, sampling.drawn, scripts.next)
            (cache, *_), made = jax.lax.scan(one, carry, None, length=count)
            return cache, made

        def score(params, cache, tokens, positions, targets):
            """Of a chunk [1, t]: the log-probability of each target [t], the TOP likeliest and theirs [t, TOP]."""
            hidden, cache = decode(params, config, cache, tokens, positions)
            logprobs = jax.nn.log_softmax(unembed(params, config, hidden[0]))
            own = jnp.take_along_axis(logprobs, targets[:, None], 1)[:, 0]
            best, best_tokens = jax.lax.top_k(logprobs, TOP)
            return cache, (own, best_tokens, best)

        self._prefill = jax.jit(prefill, static_argnums=5, donate_argnums=1)
        self._steps = jax.jit(steps, static_argnums=(11, 12), donate_argnums=1)
        self._score = jax.jit(score, donate_argnums=1)

    def warm(self) -> None:
        """Compile every shape, so that no request ever waits for it."""
        for span in self._spans:
            for length in PREFILL:
                nothing = np.full((1, length), -1, np.int32)
                self._cache = self._prefill(self.params, self._cache, np.zeros((1, length), np.int32), nothing, 0, span)
            for count in (1, BURST):
                self._cache, _ = self._step_call({}, None, count, span)
            self._cache, _ = self._step_call({}, 0, 1, span)
        self.score([0, 0])

    # ----------------------------------------------------------------------------------------- interface

    def submit(self, request: Request) -> Handle:
        """Queue a request; TonyError if it can never fit, or asks for what the grammar doesn't have."""
        room = self.max_length - len(request.prompt)
        if not request.prompt:
            raise TonyError("the prompt is empty; expected at least one token")
        if room < 1:
            raise TonyError(
                f"the prompt has {len(request.prompt)} tokens; this model holds {self.max_length} with the answer: "
                "shorten it"
            )
        if request.free:
            state = self._free_state
        else:
            state = self.grammar.start_state(request.modalities, request.voice, request.image_size)
        handle = Handle(request, state)
        handle.request.max_tokens = max(1, min(request.max_tokens, room))
        with self._wake:
            if self._stopped or self._dead is not None:
                raise TonyError(f"the engine stopped: {self._dead or 'it was closed'}; start the service again")
            self._waiting.append(handle)
            self._wake.notify()
        return handle

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """All completions, in order."""
        return [handle.result() for handle in [self.submit(request) for request in requests]]

    def score(self, tokens: Sequence[int], top: int = 0) -> tuple[list[float], list[dict[int, float]]]:
        """(log-probability of each token after the first given those before it, the `top` likeliest in its place)."""
        if len(tokens) > self.max_length:
            raise TonyError(f"{len(tokens)} tokens were given; this model holds {self.max_length}: shorten the text")
        if top > TOP:
            raise TonyError(f"the {top} likeliest tokens were asked for; at most {TOP} can be told")
        params, cache = self.params, init_cache(self.config, 1, self.max_length)
        own: list[float] = []
        best: list[dict[int, float]] = []
        for start in range(0, len(tokens) - 1, SCORED):
            targets = tokens[start + 1 : start + 1 + SCORED]
            count = len(targets)
            chunk, wanted = np.zeros((1, SCORED), np.int32), np.zeros(SCORED, np.int32)
            positions = np.full((1, SCORED), -1, np.int32)
            chunk[0, :count], wanted[:count] = tokens[start : start + count], targets
            positions[0, :count] = np.arange(start, start + count)
            cache, made = self._score(params, cache, chunk, positions, wanted)
            logprobs, ids, likeliest = (np.asarray(each)[:count] for each in made)
            own += logprobs.tolist()
            rows = zip(ids[:, :top].tolist(), likeliest[:, :top].tolist(), strict=True)
            best += [dict(zip(*row, strict=True)) for row in rows]
        return own, best

    def update(self, params: dict) -> None:
        """Put other weights of the same shapes in place, between two steps."""
        with self._wake:
            self.params = jax.device_put(params)

    @property
    def load(self) -> tuple[int, int]:
        """(requests running, requests waiting)."""
        return len(self._running), len(self._waiting)

    def close(self) -> None:
        """Stop the thread; requests that are not finished are cancelled."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join(timeout=10)

    # -------------------------------------------------------------------------------------------- thread

    def _work(self) -> None:
        try:
            while True:
                with self._wake:
                    while not (self._stopped or self._waiting or self._running):
                        self._wake.wait()
                    if self._stopped:
                        break
                    self._admit()
                self._advance()
        except BaseException as error:
            self._dead = error
            for handle in self._all_handles():
                handle.error = error
                handle._emit(None)
            if not isinstance(error, Exception):
                raise
        else:
            for handle in self._all_handles():
                handle.completion.finish_reason = "cancelled"
                handle._emit(None)

    def _all_handles(self) -> list[Handle]:
        with self._wake:
            handles = [slot.handle for slot in self._running.values()] + list(self._waiting)
            self._running.clear()
            self._waiting.clear()
        return handles

    def _admit(self) -> None:
        for handle in [handle for handle in self._waiting if handle.cancelled]:
            self._waiting.remove(handle)
            self._finish(handle, "cancelled")
        for row in range(self.slots):
            if self._waiting and row not in self._running:
                self._running[row] = _Slot(self._waiting.popleft(), self.tokenizer)

    def _advance(self) -> None:
        for row, slot in list(self._running.items()):
            if slot.handle.cancelled:
                self._release(row, "cancelled")
        # While somebody listens, one chunk of a prompt and one token at a time; batches that only want results have all
        # their prompts read first and get bursts.
        listened = any(slot.handle._listeners or slot.handle.request.stop for slot in self._running.values())
        reading = [(row, slot) for row, slot in self._running.items() if slot.reading]
        if listened and reading:
            self._read_chunk(*reading[0])
        for row, slot in reading:
            while slot.reading and not listened:
                self._read_chunk(row, slot)
        ready = {row: slot for row, slot in self._running.items() if not slot.reading}
        if not ready:
            return
        alone = next(iter(ready)) if len(ready) == 1 else None
        count = 1 if listened or alone is not None else BURST
        span = self._span(max(slot.position for slot in ready.values()) + count)
        self._cache, (out, live) = self._step_call(ready, alone, count, span)
        out, live = jax.device_get((out, live))
        for row, slot in ready.items():
            at = row if alone is None else 0
            for step in range(count):
                if live[step, at] and row in self._running:
                    self._take(row, slot, jax.tree.map(lambda x, s=step, at=at: x[s, at], out))

    def _read_chunk(self, row: int, slot: _Slot) -> None:
        prompt = slot.handle.request.prompt
        left = len(prompt) - 1 - slot.read
        size = next((size for size in PREFILL if size >= left), PREFILL[-1])
        taken = min(size, left)
        tokens, positions = np.zeros((1, size), np.int32), np.full((1, size), -1, np.int32)
        tokens[0, :taken] = prompt[slot.read : slot.read + taken]
        positions[0, :taken] = np.arange(slot.read, slot.read + taken)
        span = self._span(slot.read + taken)
        self._cache = self._prefill(self.params, self._cache, tokens, positions, row, span)
        slot.read += taken

    def _span(self, needed: int) -> int:
        """The smallest compiled span of `needed` slots; a burst may run past the end of the cache, but no row does."""
        return next((span for span in self._spans if span >= needed), self.max_length)

    def _step_call(self, ready: Mapping[int, _Slot], alone: int | None, count: int, span: int):
        """(cache, what was drawn [count, rows]) of all slots, or of the one that is `alone`."""
        size = self.slots if alone is None else 1
        last, states, drawn, limits, top_k = (np.zeros(size, np.int32) for _ in range(5))
        positions = np.full(size, -1, np.int32)
        temperature, speech, picture, top_p = (np.full(size, x, np.float32) for x in (0, 0, 0, 1))
        seed, scripts = np.zeros(size, np.uint32), script.Script.empty(size)
        for row, slot in ready.items():
            at, request = row if alone is None else 0, slot.handle.request
            last[at], positions[at], states[at] = slot.last, slot.position, slot.state
            drawn[at], limits[at] = len(slot.handle.completion.tokens), request.max_tokens
            temperature[at], top_p[at], top_k[at] = request.temperature, request.top_p, request.top_k
            for heat, own in ((speech, request.speech_temperature), (picture, request.image_temperature)):
                heat[at] = request.temperature if own is None else own
            seed[at] = request.seed & 0xFFFFFFFF
            if request.script:
                script.write(scripts, at, request.script, slot.scripted)
        sampling = Sampling(temperature, top_k, top_p, seed, drawn)
        rows = (last, positions, states, sampling, (speech, picture), limits, scripts)
        return self._steps(self.params, self._cache, self._tables, *rows, alone, count, span)

    def _take(self, row: int, slot: _Slot, out) -> None:
        """One drawn token into its completion; ends the request where that is due."""
        token, completion, request = int(out.token), slot.handle.completion, slot.handle.request
        vocab = self.tokenizer.vocabulary
        completion.tokens.append(token)
        completion.logprobs.append(float(out.logprob))
        if request.logprobs:
            pairs = itertools.islice(
                zip(out.top_tokens.tolist(), out.top_logprobs.tolist(), strict=True), request.logprobs
            )
            completion.top.append({t: p for t, p in pairs if p > -1e30})
        answers = token in vocab.text and not self._thinking[slot.state]
        slot.scripted += answers and bool(self._sounding[slot.state] or self._wording[slot.state])
        if slot.state != self._free_state:
            slot.state = int(self.grammar.next_state[slot.state, self.grammar.class_of[token]])
        elif self.grammar.class_of[token] == self.grammar.class_of[vocab.special("end")]:
            slot.state = DONE
        slot.last = token
        if request.stop and answers:
            slot.said += slot.text.push(token - vocab.text.start)
        slot.handle._emit(token)
        if slot.state == DONE or any(stop in slot.said for stop in request.stop):
            self._release(row, "stop")
        elif len(completion.tokens) >= request.max_tokens:
            self._release(row, "length")

    def _release(self, row: int, reason: str) -> None:
        slot = self._running.pop(row)
        self._finish(slot.handle, reason)

    def _finish(self, handle: Handle, reason: str) -> None:
        handle.completion.finish_reason = reason
        handle._emit(None)
