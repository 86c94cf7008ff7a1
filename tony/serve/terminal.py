"""`tony chat`: a conversation in the terminal, its answers shown as they come."""

import re
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
HELP = (
    "Type, and press Enter. /new begins another conversation; Ctrl-C ends an answer, Ctrl-D or an empty line the chat."
)


def chat(run: Path, temperature: float | None = None, max_tokens: int = 512) -> None:
    """Talk to the model of a run or release folder until the input ends. TonyError if there is none, or it stops."""
    console = Console(highlight=False, emoji=False, markup=False)
    with console.status("loading the model"):
        omni = Omni.load(run, slots=1)
    try:
        console.print(HELP, style="dim")
        messages: list[Message] = []
        while text := _asked(console):
            if text == "/new":
                messages.clear()
                continue
            messages.append(Message("user", (Text(text),)))
            try:
                request = omni.request(messages, temperature=temperature, max_tokens=max_tokens)
                handle = omni.engine.submit(request)
            except TonyError as error:  # it is too long; what was said before is kept
                messages.pop()
                console.print(f"error: {error}, or begin again with /new", style="red")
            else:
                messages.append(answer(console, omni, handle))
    finally:
        omni.close()


def _asked(console: Console) -> str:
    """A line of the user's; "" at the end of the input."""
    try:
        return console.input(Line("you ", "bold")).strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return ""


def answer(console: Console, omni: Omni, handle: Handle) -> Message:
    """The answer, printed while it is made; Ctrl-C ends it where it is."""
    console.print("tony ", style="bold", end="")
    screen, reader = _Screen(console, omni), ReplyStream(omni)
    try:
        for token in handle:
            screen.show(reader.push(token))
    except KeyboardInterrupt:
        handle.cancel()
        handle.result()
    screen.show(reader.finish())
    console.print()
    return omni.message(handle.completion.tokens)


class _Screen:
    """Shows the parts of an answer, each kind on lines of its own."""

    def __init__(self, console: Console, omni: Omni):
        self.console, self.omni, self.kind = console, omni, ""

    def show(self, events: list) -> None:
        """Print what has come."""
        for kind, value in events:
            if kind == "audio":
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
