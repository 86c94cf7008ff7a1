"""Continuous batching against one slow pass over the finished sequence: float64 NumPy, no cache, no batch."""

import threading
from itertools import pairwise

import jax
import numpy as np
import pytest

from tests.model.test_forward import slow_forward
from tony.errors import TonyError
from tony.generate.engine import Engine, Request
from tony.tokens.grammar import DONE


def lively(params: dict, seed: int) -> dict:
    """Parameters of which the blocks outweigh the embedding, or a random network only repeats its last token."""
    leaves, tree = jax.tree.flatten(params["blocks"])
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    random = [4 * x.shape[0] ** -0.5 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    blocks = [new if new.ndim == 2 else old for new, old in zip(random, leaves, strict=True)]
    return {**params, "blocks": jax.tree.unflatten(tree, blocks)}


@pytest.fixture(scope="module")
def engine(omni):
    original = omni.engine.params
    omni.engine.update(lively(original, 5))
    yield omni.engine
    omni.engine.update(original)


def log_softmax(logits):
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def expected(engine, tokens, params=None):
    """Logits [len(tokens), vocabulary] after each token, computed slowly."""
    params = engine.params if params is None else params
    return slow_forward(params, engine.config, tokens) @ np.asarray(params["embedding"], np.float64).T


def check_greedy(engine, request, completion):
    """Every token is the likeliest that the grammar allows after those before it, and so are the log-probabilities."""
    logits = expected(engine, [*request.prompt, *completion.tokens])[len(request.prompt) - 1 :]
    state = engine.grammar.start_state(request.modalities, request.voice, request.image_size)
    for at, token in enumerate(completion.tokens):
        assert state != DONE
        logprobs = log_softmax(np.where(engine.grammar.mask(state), logits[at], -np.inf))
        assert token == logprobs.argmax()
        assert completion.logprobs[at] == pytest.approx(logprobs[token], abs=1e-4)
        told, best = completion.top[at], np.sort(logprobs)[::-1][: request.logprobs]
        assert list(told.values()) == pytest.approx(best[np.isfinite(best)].tolist(), abs=1e-4)
        assert [logprobs[t] for t in told] == pytest.approx(list(told.values()), abs=1e-4)
        state = engine.grammar.advance(state, token)
    assert (completion.finish_reason == "stop") == (state == DONE)
    assert completion.finish_reason == "stop" or len(completion.tokens) == request.max_tokens


def prompt(engine, length, seed=0):
    vocab = engine.tokenizer.vocabulary
    return np.random.default_rng([length, seed]).integers(vocab.size, size=length).tolist()


@pytest.mark.parametrize(
    ("length", "modalities"),
    [
        (1, {"text"}),
        (2, {"think", "text"}),
        (17, {"audio"}),
        (40, {"image"}),
        (150, {"think", "text", "audio", "image", "tools"}),  # read in two chunks
    ],
)
def test_greedy_is_the_likeliest_token_that_the_grammar_allows(engine, length, modalities):
    asked = {"modalities": frozenset(modalities), "voice": 2, "image_size": 32}
    request = Request(prompt(engine, length), 40, logprobs=5, **asked)
    (completion,) = engine.generate([request])
    check_greedy(engine, request, completion)
    if modalities == {"image"}:
        assert completion.finish_reason == "stop"


def test_a_free_continuation_is_text_alone(engine):
    vocab = engine.tokenizer.vocabulary
    request = Request(prompt(engine, 9), 30, free=True)
    (completion,) = engine.generate([request])
    logits = expected(engine, [*request.prompt, *completion.tokens])[8:]
    allowed = np.full(vocab.padded_size, -np.inf)
    allowed[[*vocab.text, vocab.special("end")]] = 0
    for at, token in enumerate(completion.tokens):
        assert token == (logits[at] + allowed).argmax()


def various(engine) -> list[Request]:
    """More requests than there are slots, no two alike."""
    audio, text = frozenset({"audio"}), frozenset({"think", "text"})
    settings = [
        {"temperature": 0.0, "modalities": text},
        {"temperature": 1.0, "modalities": text},
        {"temperature": 1.5, "modalities": audio, "voice": 2},
        {"temperature": 1.0, "top_p": 0.8, "modalities": text},
        {"temperature": 2.0, "top_k": 5, "modalities": frozenset({"image"})},
        {"temperature": 1.0, "free": True},
        {"temperature": 1.0, "modalities": audio},
        {"temperature": 0.7, "modalities": text, "stop": ("zz",)},
        {"temperature": 0.0, "modalities": frozenset({"image", "text", "tools"})},
    ]
    lengths = (1, 30, 2, 150, 17, 5, 129, 60, 8)
    return [
        Request(prompt(engine, length, 1), 12 + 3 * number, seed=number, **setting)
        for number, (length, setting) in enumerate(zip(lengths, settings, strict=True))
    ]


@pytest.fixture(scope="module")
def alone(engine):
    """What each of the various requests gets with the engine to itself."""
    return [engine.generate([request])[0] for request in various(engine)]


def same(completions, alone):
    for completion, single in zip(completions, alone, strict=True):
        assert completion.tokens == single.tokens
        assert completion.finish_reason == single.finish_reason in ("stop", "length")
        assert completion.logprobs == pytest.approx(single.logprobs, abs=1e-4)


def test_neighbours_change_nothing(engine, alone):
    assert len(alone) > 2 * engine.slots
    same(engine.generate(various(engine)), alone)
    same(engine.generate(various(engine)[::-1])[::-1], alone)


def test_joining_late_changes_nothing(engine, alone):
    handles = []
    for request in various(engine):
        handles.append(engine.submit(request))
        stream = iter(handles[-1])
        for _ in range(3):  # the next joins when this one has said three tokens
            next(stream)
    same([handle.result(30) for handle in handles], alone)


def test_the_seed_decides(engine):
    def drawn(seed):
        return engine.generate([Request(prompt(engine, 4), 12, temperature=1.5, seed=seed)])[0].tokens

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize("restricted", [{"top_k": 1}, {"top_p": 1e-6}])
def test_the_narrowest_choice_is_the_greedy_one(engine, restricted):
    modalities = frozenset({"think", "text", "image"})
    (greedy,) = engine.generate([Request(prompt(engine, 6), 30, modalities=modalities)])
    hot = Request(prompt(engine, 6), 30, temperature=2, seed=3, modalities=modalities, **restricted)
    assert engine.generate([hot])[0].tokens == greedy.tokens


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("asked", ["text", "audio", "image"])
def test_what_was_not_asked_for_is_never_said_however_hot(engine, asked, seed):
    vocab = engine.tokenizer.vocabulary
    request = Request(prompt(engine, 5), 100, 5.0, seed=seed, modalities=frozenset({asked}), voice=2, image_size=32)
    (completion,) = engine.generate([request])
    marks = {
        "text": ("next", "end"),
        "audio": ("speech", "voice2", "audio", "audio_end", "end"),
        "image": ("image32", "image_end", "end"),
    }
    codes = {"text": [vocab.text], "audio": [vocab.text, vocab.audio], "image": [vocab.image]}
    legal = {vocab.special(name) for name in marks[asked]}.union(*codes[asked])
    assert set(completion.tokens) <= legal
    if asked == "image":
        names = [vocab.name(token).split(":")[0] for token in completion.tokens]
        assert names == ["<image32>", *["image"] * 16, "<image_end>", "<end>"]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_a_script_is_said_word_for_word_each_before_sound_of_its_own(omni, engine, temperature):
    vocab, texts = engine.tokenizer.vocabulary, ["what is the number", "seven", "I am the circle"]
    requests = [omni.speaking(text, 2, temperature, seed) for seed, text in enumerate(texts)]
    for request in requests:
        request.max_tokens = 100
    for text, request, made in zip(texts, requests, engine.generate(requests), strict=True):
        opened = made.tokens[: 2 + len(request.script[0]) + 1]
        assert opened == [vocab.special("speech"), vocab.special("voice2"), *request.script[0], vocab.special("audio")]
        said = [token for token in made.tokens if token in vocab.text]
        assert said == [token for run in request.script for token in run][: len(said)]
        if vocab.special("audio_end") in made.tokens:  # before the limit
            runs = omni.message(made.tokens).content[0].runs
            assert omni.message(made.tokens).content[0].text == text
            assert len(runs) == (len(request.script) if len(request.script) > 1 else 0)


def test_a_script_leaves_its_neighbours_alone(omni, engine):
    alone, said = Request(prompt(engine, 4), 30, seed=1, temperature=1.0), omni.speaking("the number is seven", 1)
    (expected,) = engine.generate([alone])
    assert engine.generate([said, alone])[1].tokens == expected.tokens


def test_a_script_too_long_for_one_breath_is_refused(omni):
    with pytest.raises(TonyError, match="say it in pieces"):
        omni.speaking("seven " * 200)


def test_a_stop_string_ends_the_text_where_it_appears(engine):
    vocab = engine.tokenizer.vocabulary

    def pieces(tokens):
        return [engine.tokenizer.text.decode([token - vocab.text.start]) for token in tokens if token in vocab.text]

    def borders(tokens):
        """(the last letter of a token and the first of the next, where they are)"""
        said = pieces(tokens)
        pairs = [(a[-1] + b[0], at) for at, (a, b) in enumerate(pairwise(said), start=1)]
        return [(pair, at) for pair, at in pairs if pair.isascii() and pair not in "".join(said[:at])]

    request = {"prompt": prompt(engine, 3), "max_tokens": 40, "temperature": 1.0, "free": True}
    wholes = engine.generate([Request(**request, seed=seed) for seed in range(20)])
    found = [(seed, whole, *border) for seed, whole in enumerate(wholes) for border in borders(whole.tokens)]
    assert len(found) > 5
    for seed, whole, stop, at in found[:5]:
        (cut,) = engine.generate([Request(**request, seed=seed, stop=("never said", stop))])
        assert cut.finish_reason == "stop"
        assert cut.tokens == whole.tokens[: at + 1]


def begun(engine, name: str, **options):
    """A submitted request whose reply has begun already with a control token, which ends its prompt."""
    token = engine.tokenizer.vocabulary.special(name)
    with engine._wake:
        handle = engine.submit(Request([*prompt(engine, 5), token], **options))
        handle.state = engine.grammar.advance(handle.state, token)
    return handle


def test_a_stop_string_ends_the_answer_but_not_the_thinking(engine):
    vocab, text = engine.tokenizer.vocabulary, engine.tokenizer.text
    options = {"max_tokens": 120, "temperature": 5.0}

    def words(tokens):
        return text.decode([token - vocab.text.start for token in tokens if token in vocab.text])

    handles = [begun(engine, "think", seed=seed, **options) for seed in range(24)]
    found = 0
    for seed, tokens in enumerate(handle.result(60).tokens for handle in handles):
        if vocab.special("think_end") not in tokens:
            continue
        thought = tokens.index(vocab.special("think_end")) + 1
        said = words(tokens[thought:])
        stop = next((letter for letter in words(tokens[:thought]) if letter.isalpha() and letter in said), None)
        if stop is not None:
            cut = begun(engine, "think", seed=seed, stop=(stop,), **options).result(60)
            ends = next(at for at in range(thought, len(tokens)) if stop in words(tokens[thought : at + 1]))
            assert (cut.tokens, cut.finish_reason) == (tokens[: ends + 1], "stop")
            found += 1
    assert found >= 2


def test_pictures_have_a_temperature_of_their_own(engine):
    options = {"max_tokens": 30, "modalities": frozenset({"image", "text"}), "image_size": 32, "seed": 2}

    def drawn(temperature, image_temperature=None, listened=False):
        both = {"temperature": temperature, "image_temperature": image_temperature}
        handle = begun(engine, "image32", **options, **both)
        if listened:  # then tokens are drawn one by one and not in bursts
            handle.listen(lambda token: None)
        return handle.result(30).tokens

    end = 16  # codes, before <image_end> and text
    greedy, hot = drawn(0.0), drawn(3.0)
    assert greedy[:end] != hot[:end] and greedy[end + 1 :] != hot[end + 1 :]
    assert drawn(3.0, 0.0)[:end] == greedy[:end] and drawn(3.0, 0.0)[end + 1 :] != greedy[end + 1 :]
    assert drawn(3.0, 0.0, listened=True) == drawn(3.0, 0.0)
    mixed = drawn(0.0, 3.0)
    assert mixed[:end] == hot[:end]
    assert drawn(0.0, 3.0, listened=True) == mixed
    start = [*prompt(engine, 5), engine.tokenizer.vocabulary.special("image32")]
    logits = expected(engine, [*start, *mixed])[len(start) - 1 :]
    state = engine.grammar.start_state({"image", "text"}, None, 32)
    for at, token in enumerate([start[-1], *mixed]):
        if at > end:  # after the picture the likeliest token is taken again
            assert token == np.where(engine.grammar.mask(state), logits[at - 1], -np.inf).argmax()
        state = engine.grammar.advance(state, token)


def test_speech_has_a_temperature_of_its_own(omni, engine):
    vocab = engine.tokenizer.vocabulary

    def said(seed, temperature):
        request = omni.speaking("the number is seven", 1, temperature, seed)
        request.max_tokens = 60
        (completion,) = engine.generate([request])
        return request, completion.tokens

    greedy = said(0, 0.0)[1]
    assert greedy == said(1, 0.0)[1]
    request, drawn = next(one for one in (said(seed, None) for seed in range(20)) if one[1] != greedy)
    logits = expected(engine, [*request.prompt, *drawn])[len(request.prompt) - 1 :]
    likeliest = logits[:, vocab.audio.start : vocab.audio.stop].argmax(1) + vocab.audio.start
    assert any(token in vocab.audio and token != likeliest[at] for at, token in enumerate(drawn))

    options = {"max_tokens": 60, "modalities": frozenset({"think", "audio"}), "voice": 1}  # it never gets to any sound
    written = [
        engine.generate([Request(prompt(engine, 5), seed=seed, speech_temperature=heat, **options)])[0].tokens
        for seed, heat in ((0, None), (1, 2.0))
    ]
    assert written[0] == written[1] and not any(token in vocab.audio for token in written[0])


def test_a_listener_that_fails_harms_only_its_own_request(engine):
    asked = {"max_tokens": 60, "modalities": frozenset({"image"}), "image_size": 64}
    heard = []

    def broken(token):
        heard.append(token)
        if len(heard) == 3:
            raise RuntimeError("Event loop is closed")

    with engine._wake:
        failing, other = (engine.submit(Request(prompt(engine, 4), **asked)) for _ in range(2))
        failing.listen(broken)
    assert failing.result(30).finish_reason == "cancelled"
    assert len(heard) == 3
    assert len(other.result(30).tokens) == 60
    assert engine.generate([Request([1, 2], 3)])[0].finish_reason


def test_a_prompt_must_leave_room(engine):
    (last,) = engine.generate([Request(prompt(engine, engine.max_length - 1), 50)])
    assert (len(last.tokens), last.finish_reason) == (1, "length")
    with pytest.raises(TonyError, match=f"has {engine.max_length} tokens; this model holds {engine.max_length}"):
        engine.submit(Request(prompt(engine, engine.max_length)))
    with pytest.raises(TonyError, match="empty"):
        engine.submit(Request([]))


@pytest.mark.parametrize("wrong", [{"modalities": frozenset()}, {"modalities": frozenset({"audio"}), "voice": 9}])
def test_a_request_that_no_grammar_has_harms_nobody(engine, wrong):
    with pytest.raises(TonyError, match="expected one"):
        engine.submit(Request([1, 2], **wrong))
    assert engine.submit(Request([1, 2], 3)).result(30).finish_reason


def test_cancelling_frees_the_slot_between_two_steps(engine):
    long = {"max_tokens": 100, "modalities": frozenset({"image"}), "image_size": 64}  # 67 tokens, whatever is drawn
    events = []

    def follow(name, handle):
        def listener(token):
            events.append(name)
            if name == "cancelled" and events.count(name) == 3:
                handle.cancel()

        handle.listen(listener)
        return handle

    with engine._wake:  # nobody is admitted until all of them wait
        running = [engine.submit(Request(prompt(engine, 4, n), **long)) for n in range(engine.slots)]
        queued = engine.submit(Request(prompt(engine, 4), **long))
        never = engine.submit(Request(prompt(engine, 4), **long))
        never.cancel()
        follow("cancelled", running[0])
        follow("running", running[1])
        follow("queued", queued)
    assert running[0].result(30).finish_reason == "cancelled"
    assert len(running[0].completion.tokens) == 3
    assert len(queued.result(30).tokens) == len(running[1].result(30).tokens) == 67
    assert events.index("queued") < 12  # right after the third step of the others
    assert (never.result(30).tokens, never.completion.finish_reason) == ([], "cancelled")


def test_who_is_cancelled_while_waiting_waits_no_longer(engine):
    long = {"max_tokens": 150, "modalities": frozenset({"audio"}), "temperature": 1.0}
    with engine._wake:
        running = [engine.submit(Request(prompt(engine, 4, n), **long)) for n in range(engine.slots)]
        queued = engine.submit(Request(prompt(engine, 4), **long))
        queued.cancel()
    assert queued.result(30).finish_reason == "cancelled"
    assert not all(handle._over.is_set() for handle in running)
    for handle in running:
        handle.cancel()


def test_a_late_listener_hears_everything(engine):
    handle = engine.submit(Request(prompt(engine, 4), 9, temperature=1, free=True, seed=4))
    tokens = handle.result(30).tokens
    heard = []
    handle.listen(heard.append)
    assert heard == [*tokens, None]
    assert list(handle) == tokens


def test_updated_weights_are_the_ones_that_speak(engine):
    before = engine.params
    request = Request(prompt(engine, 12), 20, logprobs=3)
    (old,) = engine.generate([request])
    try:
        engine.update(lively(before, 6))
        (new,) = engine.generate([request])
        assert new.tokens != old.tokens
        check_greedy(engine, request, new)
    finally:
        engine.update(before)
    assert engine.generate([request])[0].tokens == old.tokens


@pytest.mark.parametrize("length", [2, 128, 129, 130, 192])  # a chunk has 128 tokens
def test_score_is_the_whole_forward_pass(engine, length):
    tokens = prompt(engine, length)
    logprobs = log_softmax(expected(engine, tokens))[:-1]
    own, best = engine.score(tokens, 4)
    np.testing.assert_allclose(own, logprobs[np.arange(length - 1), tokens[1:]], atol=1e-4)
    np.testing.assert_allclose([list(each.values()) for each in best], -np.sort(-logprobs)[:, :4], atol=1e-4)
    np.testing.assert_allclose(
        [[row[token] for token in each] for row, each in zip(logprobs, best, strict=True)],
        [list(each.values()) for each in best],
        atol=1e-4,
    )


def test_score_of_too_little_and_too_much(engine):
    assert engine.score([1]) == ([], [])
    assert engine.score([1, 2, 3])[1] == [{}, {}]
    with pytest.raises(TonyError, match="193 tokens were given; this model holds 192"):
        engine.score(prompt(engine, 193))
    with pytest.raises(TonyError, match="at most 20"):
        engine.score([1, 2], 21)


def test_nothing_is_compiled_for_a_request_and_a_closed_engine_says_so(engine):
    # Its own length, so that no other test can have compiled its shapes.
    own = Engine(engine.config, engine.params, engine.tokenizer, slots=2, max_length=150)
    compiled = []

    def notice(event, seconds, **more):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(notice)
    try:
        for length in (1, 5, 17, 140):
            own.generate([Request(prompt(own, length), 5, temperature=1, logprobs=3)] * 3)
            own.score(prompt(own, length + 1), 2)
        own.update(lively(own.params, 7))
        own.generate([Request([1], 5, free=True, stop=("x",))])
        assert compiled == []
        jax.jit(lambda x: x + 1)(np.zeros(own.max_length + 7))
        assert compiled  # or nothing was ever noticed
    finally:
        jax.monitoring.unregister_event_duration_listener(notice)
    running = own.submit(Request([1], 140, modalities=frozenset({"image"}), image_size=64))
    own.close()
    assert running.result(30).finish_reason in ("cancelled", "stop")
    with pytest.raises(TonyError, match="closed"):
        own.submit(Request([1]))
    assert "tony-engine" in {thread.name for thread in threading.enumerate()}  # the other one goes on
