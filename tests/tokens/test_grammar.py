import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tony.errors import TonyError
from tony.tokens.chat import Audio, Image, Message, Speech, Text, ToolCall, Video, decode_reply, encode_messages
from tony.tokens.grammar import DONE, MODALITIES, Grammar
from tony.tokens.text import TextTokenizer
from tony.tokens.tokenizer import example
from tony.tokens.vocabulary import Vocabulary

TOK = TextTokenizer.train(["a question and an answer", "what is 1 + 2"] * 3, 280)
VOCAB = Vocabulary(TOK.size, 50, 90)
GRAMMAR = Grammar(VOCAB, voices=(1, 2))
OPENED = encode_messages([], VOCAB, TOK, open_reply=True)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
picture = st.sampled_from([16, 64]).map(lambda n: Image((3,) * n))
speech = st.one_of(
    st.builds(Speech, text, st.lists(st.integers(0, 89), min_size=1, max_size=4).map(tuple), st.just(2)),
    st.just(Speech("a b", (1, 2, 3), 2, ((2, 1), (1, 2)))),
)
part = st.one_of(st.builds(Text, text), picture, speech, st.builds(ToolCall, text.filter(len), text))
reply = st.builds(Message, st.just("assistant"), st.lists(part, max_size=5).map(tuple), st.none() | text)


def tokens_of(message: Message) -> list[int]:
    return encode_messages([message], VOCAB, TOK)[len(OPENED) :]


def needs(message: Message) -> set[str]:
    names = {Text: "text", Image: "image", Speech: "audio", ToolCall: "tools"}
    return {names[type(part)] for part in message.content} | ({"think"} if message.thinking is not None else set())


def walk(rng: np.random.Generator, state: int, most: int = 400) -> list[int]:
    """Tokens sampled at random, but for a pull towards the rarer token classes, which would hardly be drawn."""
    tokens = []
    while state != DONE and len(tokens) < most:
        allowed = np.flatnonzero(GRAMMAR.mask(state))
        classes = np.unique(GRAMMAR.class_of[allowed])
        of_class = allowed[GRAMMAR.class_of[allowed] == rng.choice(classes)]
        tokens.append(int(rng.choice(of_class)))
        state = GRAMMAR.advance(state, tokens[-1])
    return tokens


@given(reply)
@settings(max_examples=200, deadline=None)
def test_every_encoded_reply_is_accepted(message):
    everything = GRAMMAR.start_state(MODALITIES, voice=2)
    assert GRAMMAR.accepts(tokens_of(message), everything)
    least = needs(message) | {"text"}
    assert GRAMMAR.accepts(tokens_of(message), GRAMMAR.start_state(least, voice=2))
    for missing in needs(message):
        left = set(MODALITIES) - {missing}
        assert not GRAMMAR.accepts(tokens_of(message), GRAMMAR.start_state(left, voice=2))


@given(
    st.sets(st.sampled_from(MODALITIES)).filter(lambda s: s - {"think"}),
    st.integers(0, 2**32),
    st.sampled_from([32, 64]),
)
@settings(max_examples=200, deadline=None)
def test_random_walks_decode_strictly_and_hold_only_what_was_asked_for(asked, seed, size):
    tokens = walk(np.random.default_rng(seed), GRAMMAR.start_state(asked, voice=1, image_size=size))
    if tokens[-1] == VOCAB.special("end"):
        message = decode_reply(tokens, VOCAB, TOK, strict=True)
    else:
        message = decode_reply(tokens, VOCAB, TOK)
        assert len(tokens) == 400
    assert needs(message) <= asked | ({"text"} if "audio" in asked else set())  # speech cut off is its text
    for each in message.content:
        assert not isinstance(each, Audio | Video)
        assert not isinstance(each, Speech) or each.voice == 1
        assert not isinstance(each, Image) or len(each.codes) == {32: 16, 64: 64}[size]
    if asked == {"image"}:
        assert len(message.content) == 1 and isinstance(message.content[0], Image)
    if "text" not in asked and tokens[-1] == VOCAB.special("end"):
        assert message.content


def test_nothing_but_known_tokens_is_ever_allowed():
    banned = [
        "pad",
        "bos",
        "null",
        "user",
        "system",
        "assistant",
        "mod_text",
        "video",
        "frame",
        "result",
        "voice0",
        "cut",
    ]
    ever = GRAMMAR.masks.any(0)
    assert not ever[VOCAB.size :].any()
    assert not any(ever[VOCAB.special(name)] for name in banned)
    assert GRAMMAR.allowed.any(1).all()  # sampling always has a choice


def test_only_the_forced_voice_is_allowed():
    state = GRAMMAR.advance(GRAMMAR.start_state({"audio"}, voice=2), VOCAB.special("speech"))
    assert np.flatnonzero(GRAMMAR.mask(state)).tolist() == [VOCAB.special("voice2")]
    other = GRAMMAR.advance(GRAMMAR.start_state({"audio"}), VOCAB.special("speech"))
    assert np.flatnonzero(GRAMMAR.mask(other)).tolist() == [VOCAB.special("voice1")]


def test_a_sound_has_at_least_one_code():
    state = GRAMMAR.start_state({"audio"}, voice=1)
    for name in ("speech", "voice1", "audio"):
        state = GRAMMAR.advance(state, VOCAB.special(name))
    assert not GRAMMAR.mask(state)[VOCAB.special("audio_end")]
    assert GRAMMAR.mask(GRAMMAR.advance(state, VOCAB.audio.start))[VOCAB.special("audio_end")]


@pytest.mark.parametrize(("size", "count"), [(32, 16), (64, 64)])
def test_a_requested_picture_is_fully_determined_but_for_its_codes(size, count):
    state = GRAMMAR.start_state({"image"}, image_size=size)
    kinds = []
    while state != DONE:
        allowed = np.flatnonzero(GRAMMAR.mask(state))
        kinds.append("code" if len(allowed) == 50 else VOCAB.name(int(allowed[0])))
        assert len(allowed) in (1, 50)
        state = GRAMMAR.advance(state, int(allowed[0]))
    assert kinds == [f"<image{size}>", *["code"] * count, "<image_end>", "<end>"]


def test_the_tables_work_inside_jit():
    class_of, allowed, next_state = (jnp.asarray(x) for x in (GRAMMAR.class_of, GRAMMAR.allowed, GRAMMAR.next_state))
    masks, mask_of = jnp.asarray(GRAMMAR.masks), jnp.asarray(GRAMMAR.mask_of)

    @jax.jit
    def step(state, token):
        return allowed[state][:, class_of], masks[mask_of[state]], next_state[state, class_of[token]]

    states = [GRAMMAR.start_state({"text"}), GRAMMAR.start_state({"think", "image"})]
    tokens = [VOCAB.text.start, VOCAB.special("think")]
    mask, same, after = step(jnp.array(states), jnp.array(tokens))
    assert np.array_equal(mask, [GRAMMAR.mask(state) for state in states]) and np.array_equal(mask, same)
    assert after.tolist() == [GRAMMAR.advance(*pair) for pair in zip(states, tokens, strict=True)]


def test_forbidden_tokens_and_unknown_requests_are_told():
    start = GRAMMAR.start_state({"text"})
    with pytest.raises(TonyError, match="image32"):
        GRAMMAR.advance(start, VOCAB.special("image32"))
    assert not GRAMMAR.accepts([VOCAB.special("pad")], start)
    assert not GRAMMAR.accepts([VOCAB.special("end")] * 2, start)
    for asked, told in ((set(), "nothing"), ({"think"}, "think"), ({"smell", "text"}, "smell")):
        with pytest.raises(TonyError, match=told):
            GRAMMAR.start_state(asked)
    with pytest.raises(TonyError, match="voice 3"):
        GRAMMAR.start_state({"audio"}, voice=3)
    with pytest.raises(TonyError, match="size 48"):
        GRAMMAR.start_state({"image"}, image_size=48)


@given(reply)
@settings(max_examples=60, deadline=None)
def test_tokens_without_weight_are_just_those_that_the_grammar_forces(message):
    made = example([message], VOCAB, TOK)
    state = GRAMMAR.start_state(MODALITIES, voice=2)
    for token, weight in zip(made.tokens[len(OPENED) :].tolist(), made.weights[len(OPENED) :], strict=True):
        forced = GRAMMAR.mask(state).sum() == 1
        assert (weight == 0) == forced, VOCAB.name(token)
        state = GRAMMAR.advance(state, token)
