"""`tony chat` at a terminal, its input typed by the test."""

import io

import numpy as np
import pytest
from rich.console import Console

from tony.errors import TonyError
from tony.serve import terminal
from tony.tokens.chat import Message, Text


@pytest.fixture
def typed(omni, monkeypatch, capsys):
    """Type lines, then Ctrl-D; what stands on the terminal afterwards, or (output, errors) where there is none."""

    def typed(*lines, piped=False, **options):
        waiting = iter(lines)

        def read():
            line = next(waiting, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setattr(terminal, "_at_terminal", lambda: not piped)
        terminal.chat("runs/tiny", max_tokens=12, **options)
        out, err = capsys.readouterr()
        return (out, err) if piped else out + err

    monkeypatch.setattr(terminal.Omni, "load", lambda run, slots: omni)
    monkeypatch.setattr(omni, "close", lambda: None)
    return typed


def listened(omni, monkeypatch):
    """The conversations that answers are asked for, as they will have been."""
    asked, request = [], omni.request

    def heard(messages, **more):
        asked.append(list(messages))
        return request(messages, **more)

    monkeypatch.setattr(omni, "request", heard)
    return asked


def test_an_answer_is_the_models_and_the_end_of_the_input_ends_the_chat(omni, typed):
    seen = ""
    for question in ("three words", "a", "b c", "say it"):
        completion = omni.engine.submit(omni.request([Message("user", (Text(question),))], max_tokens=12)).result()
        said = omni.message(completion.tokens)
        texts = [said.thinking or "", *(part.text for part in said.content if isinstance(part, Text))]
        shown = typed(question)
        assert shown.count("you") == 2 and shown.count("tony") == 1
        for text in (terminal.CONTROLS.sub("", text).strip() for text in texts):
            assert text in shown
            seen += text
    assert seen  # of a random network not every answer can be seen


def test_what_was_said_is_remembered_until_a_new_conversation(omni, typed, monkeypatch):
    asked = listened(omni, monkeypatch)
    typed("one", "two", "/new", "three")
    assert [len(messages) for messages in asked] == [1, 3, 1]
    assert asked[1][0] == asked[0][0] and asked[1][1].role == "assistant"


def test_a_conversation_that_is_too_long_is_an_error_that_loses_nothing(omni, typed, monkeypatch):
    asked = listened(omni, monkeypatch)
    shown = typed("one", "long " * omni.engine.max_length, "two")
    assert "shorten it, or begin again with /new" in " ".join(shown.split())
    assert [message.role for message in asked[-1]] == ["user", "assistant", "user"]
    assert asked[-1][0] == asked[0][0]


def test_an_empty_line_asks_again_and_quit_ends(omni, typed, monkeypatch):
    asked = listened(omni, monkeypatch)
    shown = typed("one", "", "  ", "two", "/quit", "three")
    assert [len(messages) for messages in asked] == [1, 3]
    assert shown.count("you ") == 5


def test_ctrl_c_while_asked_keeps_the_conversation(omni, typed, monkeypatch):
    asked = listened(omni, monkeypatch)
    shown = typed("one", KeyboardInterrupt(), "two")
    assert [len(messages) for messages in asked] == [1, 3]
    assert "Ctrl-D or /quit ends the chat" in shown


def test_commands_are_not_said_to_the_model(omni, typed, monkeypatch):
    asked = listened(omni, monkeypatch)
    shown = typed("/help", "/nwe", "/quit now", "/usr/bin is what?")
    assert shown.count("/new begins another conversation") == 2  # at the beginning, and when asked
    assert "there is no command /nwe; /help shows" in shown and "there is no command /quit; /help shows" in shown
    assert [messages[0].content for messages in asked] == [(Text("/usr/bin is what?"),)]


def test_without_a_terminal_answers_alone_go_out(omni, typed, monkeypatch):
    monkeypatch.setattr(
        terminal, "answer", lambda console, *_: console.print("so") or Message("assistant", (Text("so"),))
    )
    out, err = typed("one", "", "/x", "/help", "two", piped=True)
    assert out == "so\nso\n"
    assert "there is no command /x" in err and "/new begins" in err


def test_without_a_terminal_no_label_and_no_thoughts(omni, typed):
    shown = io.StringIO()
    screen = terminal._Screen(Console(file=shown), omni, talks=False)
    screen.show([("thinking", "hm"), ("text", "a"), ("text", "b")])
    assert shown.getvalue() == "ab"
    out, err = typed("say it", piped=True)
    assert "you" not in out and "tony" not in out and err == ""
    with pytest.raises(KeyboardInterrupt):
        typed("one", KeyboardInterrupt(), piped=True)


def test_ctrl_c_ends_an_answer_and_keeps_what_came(omni, monkeypatch):
    def interrupted(self, events):
        monkeypatch.setattr(terminal._Screen, "show", lambda *_: None)
        raise KeyboardInterrupt

    monkeypatch.setattr(terminal._Screen, "show", interrupted)
    console = Console(file=io.StringIO())
    handle = omni.engine.submit(omni.request([Message("user", (Text("one"),))], max_tokens=10_000))
    said = terminal.answer(console, omni, handle)
    assert said.role == "assistant" and omni.engine.load == (0, 0)


def test_words_come_as_they_are_and_steer_nothing(omni):
    console = Console(file=io.StringIO(), force_terminal=False, highlight=False, emoji=False, markup=False)
    screen = terminal._Screen(console, omni)
    screen.show([("thinking", "a [bold]b :smile:"), ("text", "c\x1b]0;title\x07 \x9bd"), ("text", "\n e")])
    screen.show([("image", (*range(15), 0)), ("text", "f")])
    shown = console.file.getvalue()
    assert shown.startswith("a [bold]b :smile:\nc]0;title d\n e\n▀") and shown.endswith("▀\nf")
    assert shown.count("▀" * 32) == 16


def test_a_picture_is_drawn_two_pixels_a_character():
    pixels = np.arange(4 * 3 * 3, dtype=np.uint8).reshape(4, 3, 3)
    line = terminal.drawn(pixels)
    assert line.plain == "▀▀▀\n▀▀▀"
    first = line.spans[0].style
    assert tuple(first.color.triplet) == tuple(pixels[0, 0]) and tuple(first.bgcolor.triplet) == tuple(pixels[1, 0])


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(TonyError, match="there is no model in"):
        terminal.chat(tmp_path / "none")
