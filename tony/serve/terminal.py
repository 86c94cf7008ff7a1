"""`tony chat`: a conversation in the terminal, its answers shown as they come."""

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.text import Text as Line

from tony.errors import TonyError
from tony.generate.omni import Omni
from tony.serve.conversation import ReplyStream
from tony.tokens.chat import Image, Message, Text

HELP = (
    "Type, and press Enter. /new begins another conversation; Ctrl-C ends an answer, Ctrl-D or an empty line the chat."
)


def chat(run: Path, temperature: float | None = None, max_tokens: int = 512) -> None:
    """Talk to the model of a run or release folder until the input ends. TonyError if there is none."""
    console = Console(highlight=False)
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
                messages.append(answer(console, omni, messages, temperature, max_tokens))
            except TonyError as error:  # too long, mostly; what was said before is kept
                messages.pop()
                console.print(f"error: {error}, or begin again with /new", style="red", markup=False)
    finally:
        omni.close()


def _asked(console: Console) -> str:
    """A line of the user's; "" at the end of the input."""
    try:
        return console.input("[bold]you[/] ").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return ""


def answer(
    console: Console, omni: Omni, messages: list[Message], temperature: float | None, max_tokens: int
) -> Message:
    """The answer, printed while it is made; Ctrl-C ends it where it is. TonyError if the conversation is too long."""
    handle = omni.engine.submit(omni.request(messages, temperature=temperature, max_tokens=max_tokens))
    reader = ReplyStream(omni)
    console.print("tony ", style="bold", end="")
    try:
        for token in handle:
            _show(console, omni, reader.push(token))
    except KeyboardInterrupt:
        handle.cancel()
        handle.result()
    _show(console, omni, reader.finish())
    console.print()
    return omni.message(handle.completion.tokens)


def _show(console: Console, omni: Omni, events: list) -> None:
    for kind, value in events:
        if kind == "image":
            console.print("\n", drawn(omni.pixels(Image(value))), sep="", end="")
        elif kind != "audio":
            style = "dim" if kind == "thinking" else None
            console.print(value, style=style, end="", markup=False, soft_wrap=True)


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
