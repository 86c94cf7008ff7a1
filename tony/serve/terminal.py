"""`tony chat`: a conversation in the terminal, its answers shown as they come."""

import re
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.text import Text as Line

from tony.errors import TonyError
from tony.generate.engine import Handle
from tony.generate.omni import Omni
from tony.serve.conversation import ReplyStream
from tony.tokens.chat import Image, Message, Text

CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # with which a model could steer the terminal
COMMAND = re.compile(r"/\w*(\s|$)")  # what begins so is meant for the terminal, not for the model
HELP = (
    "Type, and press Enter. /new begins another conversation, /help shows this; Ctrl-C ends an answer, "
    "Ctrl-D or /quit the chat."
)


def chat(run: Path, temperature: float | None = None, max_tokens: int = 512) -> None:
    """Talk to the model of a run or release folder until the input ends. TonyError if there is none, or it stops.

    Where input or output is no terminal, the words and pictures of answers alone go to the output.
    """
    talks = _at_terminal()
    console, aside = _console(), _console(stderr=True)
    with aside.status("loading the model"):
        omni = Omni.load(run, slots=1)
    try:
        if talks:
            console.print(HELP, style="dim")
        messages: list[Message] = []
        while (text := _asked(console, talks)) not in (None, "/quit"):
            if not text:
                continue
            if COMMAND.match(text):
                _obey(text, messages, aside)
                continue
            messages.append(Message("user", (Text(text),)))
            try:
                request = omni.request(messages, temperature=temperature, max_tokens=max_tokens)
                handle = omni.engine.submit(request)
            except TonyError as error:  # it is too long; what was said before is kept
                messages.pop()
                aside.print(f"error: {error}, or begin again with /new", style="red")
            else:
                messages.append(answer(console, omni, handle, talks))
    finally:
        omni.close()


def _at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _console(stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, emoji=False, markup=False, soft_wrap=stderr)


def _asked(console: Console, talks: bool) -> str | None:
    """A line of the user's; None at the end of the input."""
    try:
        return (console.input(Line("you ", "bold")) if talks else input()).strip()
    except EOFError:
        if talks:
            console.print()
        return None
    except KeyboardInterrupt:
        if not talks:
            raise
        console.print("\nCtrl-D or /quit ends the chat", style="dim")
        return ""


def _obey(command: str, messages: list[Message], aside: Console) -> None:
    """Do what a line that begins with / says; /quit is its caller's."""
    if command == "/new":
        messages.clear()
    elif command == "/help":
        aside.print(HELP, style="dim")
    else:
        aside.print(f"error: there is no command {command.split()[0]}; /help shows those there are", style="red")


def answer(console: Console, omni: Omni, handle: Handle, talks: bool = True) -> Message:
    """The answer, printed while it is made; Ctrl-C ends it where it is."""
    if talks:
        console.print("tony ", style="bold", end="")
    screen, reader = _Screen(console, omni, talks), ReplyStream(omni)
    try:
        for token in handle:
            screen.show(reader.push(token))
    except KeyboardInterrupt:
        handle.cancel()
        if not talks:
            raise
        handle.result()
    screen.show(reader.finish())
    console.print()
    return omni.message(handle.completion.tokens)


class _Screen:
    """Shows the parts of an answer, each kind on lines of its own; thoughts, which are dimmed, only at a terminal."""

    def __init__(self, console: Console, omni: Omni, talks: bool = True):
        self.console, self.omni, self.kind = console, omni, ""
        self.hidden = ("audio",) if talks else ("audio", "thinking")

    def show(self, events: list) -> None:
        """Print what has come."""
        for kind, value in events:
            if kind in self.hidden:
                continue
            if self.kind not in ("", kind) or kind == "image":
                self.console.print()
            self.kind = kind
            if kind == "image":
                self.console.print(drawn(self.omni.pixels(Image(value))), end="")
            else:
                style = "dim" if kind == "thinking" else None
                self.console.print(CONTROLS.sub("", value), style=style, end="", soft_wrap=True)


def drawn(pixels: np.ndarray) -> Line:
    """A picture, uint8 [h, w, 3], in characters of two pixels, one above the other."""
    lines = []
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=False):
        line = Line()
        for above, below in zip(upper, lower, strict=True):
            line.append("▀", Style(color=_colour(above), bgcolor=_colour(below)))
        lines.append(line)
    return Line("\n").join(lines)


def _colour(pixel: np.ndarray) -> str:
    return f"rgb({','.join(map(str, pixel.tolist()))})"
