"""A grammar of short English sentences: what the laptop world talks about.

The sentences are spoken by the corpus voices (`scripts/build_corpus.py`), so their vocabulary is closed (about 330
words) and every word is written out, digits included. A sentence is held out by a hash of its own text, so that no
split ever depends on the order in which sentences were drawn.
"""

import hashlib
import random
import re
from collections.abc import Callable

COLORS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "pink")
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
RELATIONS = ("left of", "right of", "above", "below")
DIRECTIONS = ("left", "right", "up", "down")
TIMES = ("once", "twice", "three times")
ONES = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

_PEOPLE = (
    "my brother",
    "my sister",
    "the teacher",
    "our friend",
    "the doctor",
    "a farmer",
    "the old man",
    "a young woman",
    "the child",
    "my mother",
    "your father",
    "the driver",
    "the captain",
    "our neighbor",
)
_VERBS = ("bought", "found", "wanted", "carried", "painted", "sold", "lost", "needed", "brought", "saw", "made", "kept")
_THINGS = (
    "apple",
    "book",
    "chair",
    "letter",
    "bottle",
    "basket",
    "hat",
    "lamp",
    "coat",
    "box",
    "ticket",
    "cake",
    "guitar",
    "mirror",
    "blanket",
    "key",
    "map",
    "clock",
)
_ADJECTIVES = ("small", "large", "new", "old", "heavy", "beautiful", "broken", "simple", "warm", "strange")
_PLACES = (
    "at the market",
    "in the garden",
    "near the river",
    "behind the house",
    "at the station",
    "in the kitchen",
    "on the table",
    "under the bridge",
    "by the window",
    "in the city",
    "at the beach",
    "in the forest",
)
_WHENS = (
    "today",
    "yesterday",
    "this morning",
    "last night",
    "every day",
    "on monday",
    "on friday",
    "last week",
    "in the summer",
    "after dinner",
    "before lunch",
    "last winter",
)
_ANIMALS = ("dog", "cat", "horse", "bird", "fish", "mouse", "rabbit", "sheep")
_MOTIONS = ("ran", "walked", "slept", "jumped", "waited", "played", "sang", "looked")
_MANNERS = ("slowly", "quickly", "quietly", "happily", "again", "alone")
_WEATHER = ("cold", "hot", "rainy", "windy", "sunny", "dark")
_ADVICE = (
    "open the door",
    "close the window",
    "turn on the light",
    "bring some water",
    "wash your hands",
    "call me later",
    "write it down",
    "wait for the train",
    "take the next street",
    "read the first page",
    "listen to the music",
    "help your friend",
)


_CHAT = (
    "hello how are you",
    "I am well thank you",
    "my name is Tony",
    "what is your name",
    "good morning",
    "goodbye",
    "thank you",
    "you are welcome",
    "I can see the picture",
    "I can hear you",
    "I do not know",
    "yes it is",
    "no it is not",
    "hello my name is Tony",
    "nice to meet you",
    "how can I help you",
    "please say it again",
    "what can you do",
    "I can read and speak and draw",
    "are you there",
    "I am here",
    "see you later",
)


def number_words(value: int) -> str:
    """English words of 0..999, without hyphens and without "and": 142 -> "one hundred forty two"."""
    if not 0 <= value < 1000:
        raise ValueError(f"number_words covers 0..999; got {value}")
    if value < 20:
        return ONES[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return TENS[tens - 2] + (f" {ONES[ones]}" if ones else "")
    hundreds, rest = divmod(value, 100)
    return f"{ONES[hundreds]} hundred" + (f" {number_words(rest)}" if rest else "")


def _article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def _shape(rng: random.Random) -> str:
    return f"{rng.choice(COLORS)} {rng.choice(SHAPES)}"


def _everyday(rng: random.Random) -> str:
    kind = rng.randrange(6)
    if kind == 0:
        thing = rng.choice((rng.choice(_THINGS), f"{rng.choice(_ADJECTIVES)} {rng.choice(_THINGS)}"))
        end = rng.choice((_PLACES, _WHENS))
        return f"{rng.choice(_PEOPLE)} {rng.choice(_VERBS)} {_article(thing)} {rng.choice(end)}"
    if kind == 1:
        return f"the {rng.choice(_ANIMALS)} {rng.choice(_MOTIONS)} {rng.choice(_MANNERS)} {rng.choice(_PLACES)}"
    if kind == 2:
        return f"it was {rng.choice(_WEATHER)} {rng.choice(_PLACES)} {rng.choice(_WHENS)}"
    if kind == 3:
        return f"please {rng.choice(_ADVICE)} {rng.choice(('now', 'today', 'again', 'after dinner', 'before lunch'))}"
    if kind == 4:
        count = number_words(rng.randrange(2, 20))
        return f"there are {count} {rng.choice(_THINGS + _ANIMALS[:3])}s {rng.choice(_PLACES)}".replace("boxs", "boxes")
    return (
        f"{rng.choice(_PEOPLE)} {rng.choice(_MOTIONS)} {rng.choice(_PLACES)} "
        f"with {rng.choice(_PEOPLE)} {rng.choice(_WHENS)}"
    )


def _scene(rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        return f"{_article(_shape(rng))} {rng.choice(RELATIONS)} {_article(_shape(rng))}"
    if kind == 1:
        return f"{_article(_shape(rng))} moves {rng.choice(DIRECTIONS)} {rng.choice(TIMES)}"
    if kind == 2:
        return f"the {rng.choice(SHAPES)} is {rng.choice(COLORS)}"
    return f"it is {_article(_shape(rng))}"


def _number(rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        return f"the digit is {ONES[rng.randrange(10)]}"
    if kind == 1:
        return f"the answer is {number_words(rng.randrange(100))}"
    a, b = rng.randrange(50), rng.randrange(50)
    if kind == 2:
        return f"{number_words(a)} plus {number_words(b)} is {number_words(a + b)}"
    a, b = max(a, b), min(a, b)
    return f"{number_words(a)} minus {number_words(b)} is {number_words(a - b)}"


_OPENERS = ("", "", "", "please tell me ", "hello ", "now tell me ", "can you tell me ", "look ")


def digit_question(rng: random.Random) -> str:
    """A question about the handwritten digit in a picture, as text to be spoken."""
    core = rng.choice(
        (
            "what digit is this",
            "which digit is this",
            "what number is this",
            "which number do you see",
            "what digit do you see",
            "what number is in the picture",
            "which digit is in the picture",
            "what digit did I write",
            "which number did I write",
            "what is this number",
        )
    )
    return rng.choice(_OPENERS) + core


def color_question(rng: random.Random, shape: str) -> str:
    """Asks for the colour of the one `shape` in a picture."""
    core = rng.choice(
        (
            f"what color is the {shape}",
            f"which color is the {shape}",
            f"what is the color of the {shape}",
            f"which color does the {shape} have",
        )
    )
    return rng.choice(_OPENERS) + core


def shape_question(rng: random.Random, color: str) -> str:
    """Asks for the shape of the one thing of that `color` in a picture."""
    core = rng.choice(
        (
            f"what shape is {color}",
            f"which shape is {color}",
            f"what is the {color} shape",
            f"which {color} shape do you see",
        )
    )
    return rng.choice(_OPENERS) + core


def sum_question(rng: random.Random) -> str:
    """Asks for a sum or a difference below one hundred."""
    a, b = rng.randrange(50), rng.randrange(50)
    if rng.randrange(2):
        a, b = max(a, b), min(a, b)
        core = f"what is {number_words(a)} minus {number_words(b)}"
    else:
        core = f"what is {number_words(a)} plus {number_words(b)}"
    return rng.choice(_OPENERS[:5]) + core


QUESTIONS: dict[str, Callable[[random.Random], str]] = {
    "digit": digit_question,
    "color": lambda rng: color_question(rng, rng.choice(SHAPES)),
    "shape": lambda rng: shape_question(rng, rng.choice(COLORS)),
    "sum": sum_question,
}
STATEMENTS: dict[str, Callable[[random.Random], str]] = {
    "everyday": _everyday,
    "scene": _scene,
    "number": _number,
    "chat": lambda rng: rng.choice(_CHAT),
}


def sentence(rng: random.Random, kind: str) -> str:
    """One random sentence of a kind in QUESTIONS or STATEMENTS: lower case, no punctuation."""
    return {**QUESTIONS, **STATEMENTS}[kind](rng)


def is_held_out(text: str, one_in: int = 8) -> bool:
    """True for the sentences that no training example may contain, spoken or written: one in `one_in`, by hash."""
    return int.from_bytes(hashlib.blake2s(text.encode(), digest_size=4).digest(), "big") % one_in == 0


def punctuate(text: str) -> str:
    """Written form of a sentence of this grammar: capital, final mark. `"what is this"` -> `"What is this?"`."""
    asks = any(word in text.split() for word in ("what", "which"))
    return text[0].upper() + text[1:] + ("?" if asks else ".")


def spoken_form(text: str) -> str:
    """Any text in the corpus' manner: lower case but for "I" and "Tony", numbers in words, no punctuation."""
    text = re.sub(r"\d+", lambda found: f" {_digits_aloud(found.group())} ", text)
    for sign, word in (("+", " plus "), ("=", " is "), ("*", " times "), ("&", " and "), ("%", " percent ")):
        text = text.replace(sign, word)
    words = re.sub(r"[^\w' ]|_", " ", text).lower().split()
    return " ".join({"i": "I", "tony": "Tony"}.get(word, word) for word in words)


def _digits_aloud(digits: str) -> str:
    return number_words(int(digits)) if len(digits) <= 3 else " ".join(ONES[int(digit)] for digit in digits)
