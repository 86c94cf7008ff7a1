"""What the small networks of the experiments learn from: English chats, written-out sums, logic, scenes; and junk.

Everything is a pure function of a seed; what is held out is held out as everywhere in Tony: by conversation, by the
numbers of a sum, by the order of people, by the scene.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from tony.data.corpus import Corpus
from tony.data.mixture import key
from tony.data.packing import whole_rows
from tony.data.world import pictures, reasoning
from tony.tokens.text import TextTokenizer

VOCABULARY = 1024
KINDS = {"chat": 0.4, "sums": 0.3, "logic": 0.15, "scenes": 0.15}  # shares of the documents' tokens, about
NATURAL = "chat"  # the kind that people speak; the others are made by rules, and learned in leaps
END = "\n\n"  # between documents


def documents(kind: str, split: str, count: int, seed: int = 0) -> list[str]:
    """`count` texts of a kind from one side ("train" or "test") of its split; of chats at most as many as there are."""
    rng = random.Random(key(seed, "experiments", kind, split))
    held_out = split == "test"
    if kind == "chat":
        return ["\n".join(turns) for turns in Corpus.builtin().dialogues(split)[:count]]
    if kind == "scenes":
        scenes = (pictures.random_scene(rng, held_out, count=2) for _ in range(count))
        return ["A picture. " + ". ".join(pictures.captions(scene)) + "." for scene in scenes]
    name = {"sums": "arithmetic", "logic": "comparison"}[kind]
    made = (reasoning.problem(rng, name, held_out) for _ in range(count))
    return [f"{problem.question}\n{problem.thinking}" for problem in made]


@cache
def tokenizer() -> TextTokenizer:
    """The one tokeniser of all experiments, trained on what they train on."""
    texts = [text for kind in KINDS for text in documents(kind, "train", 1500)]
    return TextTokenizer.train(texts, VOCABULARY)


@dataclass(frozen=True)
class Stream:
    """Documents one after another, int32 [n] tokens; a batch is windows of it."""

    tokens: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str], seed: int = 0) -> "Stream":
        """The texts in an order by `seed`."""
        order = np.random.default_rng(seed).permutation(len(texts))
        encoded = tokenizer().encode_many([texts[i] + END for i in order])
        return cls(np.array([token for tokens in encoded for token in tokens], np.int32))

    def windows(self, rows: int, length: int, seed: int, step: int) -> np.ndarray:
        """Windows [rows, length + 1] at random places, a pure function of the arguments."""
        starts = np.random.default_rng((seed, step)).integers(len(self.tokens) - length, size=rows)
        return self.tokens[starts[:, None] + np.arange(length + 1)]


@dataclass(frozen=True)
class Mixed:
    """Streams mixed by weight: each row of a batch is of one stream, drawn anew."""

    streams: dict[str, Stream]
    weights: dict[str, float]

    def batch(self, rows: int, length: int, seed: int, step: int) -> dict[str, np.ndarray]:
        """A batch as the train step takes it."""
        names, weights = list(self.streams), np.array([self.weights[name] for name in self.streams])
        drawn = np.random.default_rng((seed, step, 1)).choice(len(names), size=rows, p=weights / weights.sum())
        taken = [
            self.streams[name].windows(int((drawn == number).sum()), length, seed + 1000 * number, step)
            for number, name in enumerate(names)
        ]
        return whole_rows(np.concatenate(taken))


@cache
def mixed() -> Mixed:
    """The usual mixture to learn from."""
    counts = {"chat": 10_000, "sums": 12_000, "logic": 8_000, "scenes": 12_000}
    return Mixed({kind: Stream.of(documents(kind, "train", counts[kind])) for kind in KINDS}, KINDS)


@cache
def held_out(rows: int, length: int, count: int = 4) -> dict[str, list[dict[str, np.ndarray]]]:
    """`count` batches of each kind that nobody has trained on."""
    streams = {kind: Stream.of(documents(kind, "test", 1000)) for kind in KINDS}
    return {
        kind: [whole_rows(stream.windows(rows, length, 0, number)) for number in range(count)]
        for kind, stream in streams.items()
    }


# ------------------------------------------------------------------------------------------------------ low quality


_NAVIGATION = (
    "Home",
    "About",
    "Contact",
    "Login",
    "Register",
    "Cart",
    "Search",
    "Next",
    "Previous",
    "Terms",
    "Privacy",
)
_SELLING = ("cheap", "buy", "best", "price", "online", "free", "shipping", "deal", "discount", "sale", "order", "now")


def _navigation(rng: random.Random, text: str) -> str:
    bar = " | ".join(rng.choices(_NAVIGATION, k=rng.randint(6, 14)))
    return f"{bar}\nCopyright {rng.randrange(1998, 2024)} All rights reserved. " + " ".join(
        rng.choices(_NAVIGATION, k=6)
    )


def _keywords(rng: random.Random, text: str) -> str:
    subject = rng.sample(text.split(), min(3, len(text.split())))
    return " ".join(word for _ in range(rng.randint(8, 20)) for word in (rng.choice(_SELLING), rng.choice(subject)))


def _shuffled(rng: random.Random, text: str) -> str:
    words = text.split()
    rng.shuffle(words)
    return " ".join(words)


def _markup(rng: random.Random, text: str) -> str:
    tags = (f"<div class=c{rng.randrange(99)} id=n{rng.randrange(999)}>{word}</div>" for word in text.split()[:24])
    return "".join(tags)


def _garbled(rng: random.Random, text: str) -> str:
    return "".join(rng.choice("\u00e2\u20ac\u2122\ufffd\u00c3#") if rng.random() < 0.25 else letter for letter in text)


def _repeated(rng: random.Random, text: str) -> str:
    words = text.split()
    start = rng.randrange(max(1, len(words) - 6))
    return " ".join(words[start : start + 6] * rng.randint(4, 9))


SPOILERS: tuple[Callable[[random.Random, str], str], ...] = (
    _navigation, _keywords, _shuffled, _markup, _garbled, _repeated,
)  # fmt: skip


def raw(good: Sequence[str], seed: int, spoilt_for_one: float = 2.0) -> list[str]:
    """The good documents among so many times as many spoilt ones: a crawl as it comes."""
    rng = random.Random(key(seed, "experiments", "raw"))
    spoilt = [rng.choice(SPOILERS)(rng, rng.choice(good)) for _ in range(round(spoilt_for_one * len(good)))]
    return [*good, *spoilt]
