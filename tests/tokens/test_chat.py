import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tony.errors import TonyError
from tony.tokens.chat import (
    Audio,
    Image,
    Message,
    Speech,
    Text,
    ToolCall,
    ToolResult,
    Video,
    decode_reply,
    decode_stream,
    encode_messages,
    interleaved,
    spans,
    words_of,
)
from tony.tokens.text import TextTokenizer
from tony.tokens.vocabulary import ROLES, Vocabulary

TOK = TextTokenizer.train(["a question and an answer", "what is 1 + 2"] * 3, 280)
VOCAB = Vocabulary(TOK.size, 50, 90)

spelled = st.sampled_from([f"<{name}>" for name in VOCAB.names] + ["<|im_end|>", "<|endoftext|>", "</s>"])
text = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), spelled)
picture = st.sampled_from([16, 64]).flatmap(lambda n: st.tuples(*[st.integers(0, 49)] * n))
sound = st.lists(st.integers(0, 89), min_size=1, max_size=8).map(tuple)


@st.composite
def talk(draw):
    """Speech whose text and sound alternate."""
    pieces = draw(st.lists(st.tuples(text.filter(len), sound), min_size=2, max_size=4))
    codes = tuple(code for _, piece in pieces for code in piece)
    runs = tuple((len(words), len(piece)) for words, piece in pieces)
    return Speech("".join(words for words, _ in pieces), codes, draw(st.integers(0, 15)), runs)


frame = st.tuples(st.tuples(*[st.integers(0, 49)] * 16), st.integers(0, 31))
part = st.one_of(
    st.builds(Text, text),
    st.builds(Image, picture),
    st.builds(Audio, sound),
    st.builds(Speech, text, sound, st.integers(0, 15)),
    talk(),
    st.lists(frame, min_size=1, max_size=3).map(
        lambda pairs: Video(*(tuple(each) for each in zip(*pairs, strict=True)))
    ),
    st.builds(ToolCall, text, text),
    st.builds(ToolResult, text, text),
)
content = st.lists(part, max_size=6).map(tuple)
message = st.one_of(
    st.builds(Message, st.sampled_from([role for role in ROLES if role != "assistant"]), content),
    st.builds(Message, st.just("assistant"), content, st.none() | text),
)
conversation = st.lists(message, max_size=5)
modality = st.sampled_from([None, "text", "audio", "image"])


@given(conversation)
@settings(max_examples=300, deadline=None)
def test_any_conversation_comes_back_exactly(messages):
    ids = encode_messages(messages, VOCAB, TOK)
    assert decode_stream(ids, VOCAB, TOK) == messages
    assert decode_stream(ids, VOCAB, TOK, strict=False) == messages
    assert all(0 <= token < VOCAB.size for token in ids)


@given(conversation, message.filter(lambda m: m.role == "assistant"), modality)
@settings(deadline=None)
def test_a_reply_comes_back_from_the_tokens_after_the_opened_reply(messages, reply, asked):
    prompt = encode_messages(messages, VOCAB, TOK, open_reply=True, modality=asked)
    whole = encode_messages([*messages, reply], VOCAB, TOK, modality=asked)
    assert whole[: len(prompt)] == prompt
    assert decode_reply(whole[len(prompt) :], VOCAB, TOK, strict=True) == reply
    assert decode_stream(whole, VOCAB, TOK) == [*messages, reply]


@given(conversation, st.data())
@settings(deadline=None)
def test_cut_off_streams_keep_what_was_finished(messages, data):
    ids = encode_messages(messages, VOCAB, TOK)
    cut = data.draw(st.integers(0, len(ids)))
    read = decode_stream(ids[:cut], VOCAB, TOK, strict=False)
    ended = ids[:cut].count(VOCAB.special("end"))
    assert read[:ended] == messages[:ended] and len(read) <= ended + 1
    encode_messages(read, VOCAB, TOK)  # whatever was read is a valid conversation
    last_is_whole = cut > 0 and (cut == 1 or ids[cut - 1] == VOCAB.special("end"))
    if cut and not last_is_whole:
        with pytest.raises(TonyError, match="malformed stream"):
            decode_stream(ids[:cut], VOCAB, TOK)


@given(st.lists(st.integers(0, VOCAB.padded_size - 1), max_size=40))
@settings(max_examples=300)
def test_any_tokens_are_read_or_refused_clearly(ids):
    read = decode_stream(ids, VOCAB, TOK, strict=False)
    again = decode_stream(encode_messages(read, VOCAB, TOK), VOCAB, TOK)
    assert [message.role for message in again] == [message.role for message in read]
    decode_reply(ids, VOCAB, TOK)
    try:
        decode_stream(ids, VOCAB, TOK)
    except TonyError as error:
        assert str(error).startswith("malformed stream: token ")


def test_the_stream_is_the_documented_one():
    messages = [
        Message("user", (Text("a"), Image((1,) * 16), Audio((5, 6)))),
        Message("assistant", (Speech("b", (7,), 3),), thinking="c"),
    ]
    named = [VOCAB.name(token) for token in encode_messages(messages, VOCAB, TOK, modality="audio")]
    a, b, c = (f"text:{TOK.encode(letter)[0]}" for letter in "abc")
    assert named == [
        *("<bos>", "<user>", a, "<image32>", *["image:1"] * 16, "<image_end>", "<audio>", "audio:5", "audio:6"),
        *("<audio_end>", "<end>", "<assistant>", "<mod_audio>", "<think>", c, "<think_end>", "<speech>", "<voice3>", b),
        *("<audio>", "audio:7", "<audio_end>", "<end>"),
    ]


def test_each_word_comes_before_its_sound():
    assert words_of("what is  the number") == ["what", " is", "  the", " number"]
    assert [words_of(text) for text in ("", " ", "hello", " oh no ")] == [[""], [" "], ["hello"], [" oh", " no "]]
    runs = interleaved("a b c", [2, 5, 9], 9)
    assert runs == ((1, 2), (2, 3), (2, 4))
    messages = [Message("assistant", (Speech("a b c", tuple(range(9)), 1, runs),))]
    named = [VOCAB.name(token) for token in encode_messages(messages, VOCAB, TOK)][4:-2]
    a, b, c = (tuple(f"text:{token}" for token in TOK.encode(word)) for word in ("a", " b", " c"))
    codes = [f"audio:{code}" for code in range(9)]
    assert named == [*a, "<audio>", *codes[:2], *b, *codes[2:5], *c, *codes[5:]]


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=6), st.data())
def test_any_word_ends_make_runs_that_add_up(words, data):
    said, count = " ".join(words), data.draw(st.integers(1, 12))
    ends = sorted(data.draw(st.lists(st.integers(0, 14), min_size=len(words), max_size=len(words))))
    assert "".join(words_of(said)) == said
    runs = interleaved(said, ends, count)
    spoken = [Message("assistant", (Speech(said, tuple(range(count)), 1, runs),))]
    assert decode_stream(encode_messages(spoken, VOCAB, TOK), VOCAB, TOK) == spoken
    assert interleaved(said, ends[1:], count) == ()


def test_text_that_spells_special_tokens_stays_text():
    for name in VOCAB.names:
        ids = encode_messages([Message("user", (Text(f"x<{name}>"),))], VOCAB, TOK)
        assert all(token in VOCAB.text for token in ids[2:-1])


def test_spans_make_up_the_stream_and_carry_role_and_kind():
    messages = [
        Message("user", (Text("a"), Audio((1,)))),
        Message("assistant", (Image((2,) * 16), Text("b")), thinking="c"),
    ]
    made = spans(messages, VOCAB, TOK)
    assert [token for span in made for token in span.ids] == encode_messages(messages, VOCAB, TOK)
    kinds = {(span.role, span.kind) for span in made}
    assert {("user", "text"), ("user", "audio"), ("assistant", "think"), ("assistant", "image")} <= kinds
    for span in made:
        if span.kind in ("text", "audio", "image"):
            assert all(token in getattr(VOCAB, span.kind) for token in span.ids)


def test_unfinished_replies_keep_their_meaning():
    def reply(*parts, cut, thinking=None):
        opened = encode_messages([], VOCAB, TOK, open_reply=True)
        whole = encode_messages([Message("assistant", parts, thinking)], VOCAB, TOK)[len(opened) :]
        return decode_reply(whole[: len(whole) - cut], VOCAB, TOK)

    assert reply(Text("ab"), cut=1).content == (Text("ab"),)
    assert reply(Text("a"), Image((1,) * 16), cut=3).content == (Text("a"),)
    assert reply(Speech("a", (1, 2), 0), cut=3).content == (Speech("a", (1,), 0),)
    assert reply(Speech("a", (1,), 0), cut=3).content == (Text("a"),)
    assert reply(thinking="a", cut=2) == Message("assistant", (), "a")
    assert reply(Text("a"), cut=0) == Message("assistant", (Text("a"),))


def test_padding_after_a_stream_is_ignored():
    ids = encode_messages([Message("user", (Text("a"),))], VOCAB, TOK)
    assert decode_stream([*ids, *[VOCAB.special("pad")] * 3], VOCAB, TOK) == decode_stream(ids, VOCAB, TOK)


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([Message("robot", ())], "robot"),
        ([Message("user", (), thinking="x")], "only the assistant"),
        ([Message("user", (Image((1,) * 17),))], "17"),
        ([Message("user", (Image((50,) * 16),))], "codebook"),
        ([Message("user", (Audio((-1,)),))], "codebook"),
        ([Message("user", (Audio(()),))], "no codes"),
        ([Message("assistant", (Speech("a", (), 0),))], "no codes"),
        ([Message("assistant", (Speech("a", (1,), 16),))], "voice 16"),
        ([Message("assistant", (Speech("ab", (1, 2), 0, ((1, 1),)),))], "add up"),
        ([Message("assistant", (Speech("ab", (1, 2), 0, ((1, 2), (1, 0))),))], "add up"),
        ([Message("user", (Video((), ()),))], "0 frames"),
        ([Message("user", (Video(((1,) * 16,), (32,)),))], "0..31"),
        ([Message("user", (Video(((1,) * 16,), (1, 2)),))], "2 times"),
        ([Message("user", ("text",))], "str"),
    ],
)
def test_what_no_stream_can_hold_is_refused(messages, told):
    with pytest.raises(TonyError, match=told):
        encode_messages(messages, VOCAB, TOK)


def test_output_modalities_are_asked_of_the_assistant_only():
    with pytest.raises(TonyError, match="smell"):
        encode_messages([], VOCAB, TOK, open_reply=True, modality="smell")
    with pytest.raises(TonyError, match="assistant"):
        encode_messages([Message("user", ())], VOCAB, TOK, modality="text")
