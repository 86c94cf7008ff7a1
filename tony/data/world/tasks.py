"""The laptop world's tasks: each makes conversations out of pictures, films, sounds and text.

An `Item` is a conversation with raw media in it; its last message is the answer to learn, or to be measured against.
`items` draws training items, `held_out` items made only of writers, voices, sentences, pictures and numbers that no
training item contains. `encode_items` turns raw media into codes, many at a time.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from tony.data.corpus import Utterance
from tony.data.world import pictures, reasoning, videos
from tony.data.world.sentences import (
    ONES,
    color_question,
    digit_question,
    is_held_out,
    number_words,
    punctuate,
    shape_question,
)
from tony.data.world.splicing import Inventory, splice
from tony.tokens.audio import another_speaker
from tony.tokens.chat import Audio, Image, Message, Speech, Text, Video, interleaved
from tony.tokens.codec import SAMPLE_RATE, TOKENS_PER_SECOND

ASSISTANT_VOICES = {"af_heart": 1, "am_michael": 2}  # corpus voice -> row of the codec's voice table
FRAME_TIME = 2  # quarter seconds between the frames of a film


@dataclass(frozen=True, eq=False)
class Picture:
    """A raw picture, uint8 [h, w, 3]."""

    pixels: np.ndarray


@dataclass(frozen=True, eq=False)
class Film:
    """Raw frames, uint8 [n, h, w, 3], FRAME_TIME apart."""

    frames: np.ndarray


@dataclass(frozen=True, eq=False)
class Sound:
    """Raw speech that is heard, float32 [n] at 16 kHz."""

    samples: np.ndarray


@dataclass(frozen=True, eq=False)
class Said:
    """Raw speech that the assistant says: its text, its sound, the registered voice, the second at which each word
    ends."""

    text: str
    samples: np.ndarray
    voice: int
    word_ends: tuple[float, ...] = ()


@dataclass(frozen=True)
class Item:
    """A conversation whose last message is the answer; `facts` are what an evaluation needs to judge or to show."""

    task: str
    messages: tuple[Message, ...]
    modality: str = "text"
    answer: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> list[Message]:
        """All but the answer."""
        return list(self.messages[:-1])


def _ask(task: str, *parts, reply, answer: str, modality="text", thinking=None, **facts) -> Item:
    wrap = [Text(part) if isinstance(part, str) else part for part in parts]
    said = (Text(reply),) if isinstance(reply, str) else (reply,)
    messages = (Message("user", tuple(wrap)), Message("assistant", said, thinking=thinking))
    return Item(task, messages, modality, answer, facts)


# ------------------------------------------------------------------------------------------------- tasks


class World:
    """The corpus and one side of its split, as the tasks draw from it."""

    def __init__(self, corpus, held_out: bool):
        self.corpus, self.held_out = corpus, held_out
        self.digits, self.labels = corpus.digits("test" if held_out else "train")
        self.emoji = corpus.emoji("test" if held_out else "train")
        self.spoken = corpus.speech("spoken") if held_out else self._spoken_by_assistant("train")
        self.heard = corpus.speech("heard") if held_out else corpus.speech("train")
        self.asked = _grouped(corpus.speech("asked" if held_out else "train"), "text")
        self.answers = _grouped(self._spoken_by_assistant("train"), "text")
        voices = {} if held_out else _grouped(corpus.speech("train"), "voice")  # nothing held out is put together
        self.inventories = {voice: Inventory(group) for voice, group in voices.items()}
        self.voices = sorted(self.inventories)
        self.dialogues = corpus.dialogues("test" if held_out else "train")

    def _spoken_by_assistant(self, split):
        return [u for u in self.corpus.speech(split) if u.voice in ASSISTANT_VOICES]

    def sound(self, utterance) -> np.ndarray:
        """Samples of an utterance, float32 [n]."""
        return self.corpus.samples(utterance)

    def scene(self, rng: random.Random, things: int | None = None) -> pictures.Scene:
        """A scene from this side of the split."""
        return pictures.random_scene(rng, self.held_out, things)


def _grouped(utterances: list[Utterance], key: str) -> dict[str, list[Utterance]]:
    """Utterances by their text or their voice, in order."""
    groups: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        groups.setdefault(getattr(utterance, key), []).append(utterance)
    return groups


def _pick(rng: random.Random, values):
    return values[rng.randrange(len(values))]


def _written_digit(world: World, at: int, rng: random.Random) -> tuple[np.ndarray, int]:
    """A handwritten digit, for training moved a little: (pixels, which it is)."""
    pixels = world.digits[at] if world.held_out else _shifted(world.digits[at], rng)
    return pixels, int(world.labels[at])


def _shifted(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    return np.roll(pixels, (rng.randint(-1, 1), rng.randint(-1, 1)), axis=(0, 1))


def arithmetic(world: World, rng: random.Random, index: int) -> Item:
    """Sums, differences and products below a thousand, with the working as thinking."""
    made = reasoning.problem(rng, "arithmetic", world.held_out)
    return _ask("arithmetic", made.question, reply=made.answer, answer=made.answer, thinking=made.thinking)


def logic(world: World, rng: random.Random, index: int) -> Item:
    """Who is first, who is last."""
    made = reasoning.problem(rng, "comparison", world.held_out)
    return _ask("logic", made.question, reply=made.answer, answer=made.answer, thinking=made.thinking)


DIGIT_QUESTIONS = ("What digit is this?", "Which number is written here?", "Read the digit.", "What number do you see?")


def digits(world: World, rng: random.Random, index: int) -> Item:
    """Which digit did somebody write?"""
    pixels, digit = _written_digit(world, index % len(world.digits), rng)
    label = str(digit)
    return _ask("digits", Picture(pixels), _pick(rng, DIGIT_QUESTIONS), reply=label, answer=label, pixels=pixels)


CAPTION_REQUESTS = ("Describe the picture.", "What is in the picture?", "What do you see?", "Caption this picture.")


def captions(world: World, rng: random.Random, index: int) -> Item:
    """The canonical caption of a rendered scene."""
    scene = world.scene(rng)
    pixels, text = pictures.render(scene, 32), pictures.caption(scene)
    return _ask("captions", Picture(pixels), _pick(rng, CAPTION_REQUESTS), reply=text, answer=text, pixels=pixels)


def questions(world: World, rng: random.Random, index: int) -> Item:
    """A written question about a scene, answered in a few words."""
    scene = world.scene(rng, things=2)
    asked, reply, *_ = _scene_question(scene, rng)
    pixels = pictures.render(scene, 32)
    return _ask("questions", Picture(pixels), punctuate(asked), reply=reply, answer=reply, pixels=pixels)


def _scene_question(scene: pictures.Scene, rng: random.Random) -> tuple[str, str, str, str]:
    """(question, answer sentence, the word that makes it right, what is known) about one thing's colour or shape."""
    asked = rng.choice([question for question in pictures.questions(scene) if question.kind != "count"])
    if asked.kind == "color":
        return color_question(rng, asked.about), f"the {asked.about} is {asked.answer}", asked.answer, asked.about
    return shape_question(rng, asked.about), f"it is {_article(asked.about)} {asked.answer}", asked.answer, asked.about


def _article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


DRAW_REQUESTS = ("Draw {}.", "Draw {}, please.", "Make a picture of {}.", "Show me {}.")


def draw(world: World, rng: random.Random, index: int) -> Item:
    """Draw a handwritten digit, or a scene; scenes are harder and twice as many to learn from, but not to be judged."""
    if index % (2 if world.held_out else 3) == 0:
        at = rng.randrange(len(world.digits))
        label = int(world.labels[at])
        what = f"{_article('eight') if label == 8 else 'a ' + ONES[label]}"
        if rng.random() < 0.3:
            what = f"the digit {label}"
        return _ask("draw", _pick(rng, DRAW_REQUESTS).format(what), reply=Picture(world.digits[at]), modality="image",
                    answer=str(label), kind="digit", pixels=world.digits[at])  # fmt: skip
    scene = world.scene(rng)
    pixels, text = pictures.render(scene, 32), pictures.caption(scene)
    return _ask("draw", _pick(rng, DRAW_REQUESTS).format(text), reply=Picture(pixels), modality="image", answer=text,
                kind="scene", pixels=pixels, scene=scene)  # fmt: skip


def emoji(world: World, rng: random.Random, index: int) -> Item:
    """Name an emoji, or draw it."""
    name, pixels = world.emoji[index % len(world.emoji)]
    small = pixels[::2, ::2] // 2 + pixels[1::2, 1::2] // 2
    if rng.random() < 0.5:
        return _ask("emoji", Picture(small), _pick(rng, CAPTION_REQUESTS), reply=name, answer=name, pixels=small)
    return _ask("emoji", _pick(rng, DRAW_REQUESTS).format(name), reply=Picture(small), modality="image", answer=name,
                pixels=small)  # fmt: skip


VIDEO_QUESTIONS = ("What moves?", "What happens in the video?", "Describe the video.", "What moved, and how often?")


def video(world: World, rng: random.Random, index: int) -> Item:
    """What moves, which way, how often; with where it was in each frame as thinking."""
    motion = videos.random_motion(rng, world.held_out)
    frames, text = videos.frames(motion), videos.sentence(motion)
    return _ask("video", Film(frames), _pick(rng, VIDEO_QUESTIONS), reply=text, answer=text,
                thinking=videos.places(motion), frames=frames)  # fmt: skip


TRANSCRIBE = "Transcribe."


def transcribe(world: World, rng: random.Random, index: int) -> Item:
    """Write down what is said."""
    utterance = world.heard[index % len(world.heard)]
    text, samples, _ = _recorded(world, utterance, rng)
    if not world.held_out:
        samples = _varied(samples, rng)
    return _ask("transcribe", Sound(samples), TRANSCRIBE, reply=text, answer=text, voice=utterance.voice,
                samples=samples)  # fmt: skip


class Recording(NamedTuple):
    """A text, its sound [n], and the second at which each word ends."""

    text: str
    samples: np.ndarray
    word_ends: tuple[float, ...]


def _recorded(world: World, utterance: Utterance, rng: random.Random) -> Recording:
    """An utterance; to learn from, every other time another sentence put together from that voice's recordings."""
    if not world.held_out and rng.random() < 0.5:
        text = world.inventories[utterance.voice].sentence(rng)
        if text:
            return _spliced(world, utterance.voice, text, rng)
    return _whole(world, utterance)


def _whole(world: World, utterance: Utterance) -> Recording:
    return Recording(utterance.text, world.sound(utterance), tuple(frame / 100 for frame in utterance.word_ends))


def _spliced(world: World, voice: str, text: str, rng: random.Random) -> Recording:
    return Recording(text, *splice(world.inventories[voice].pieces(text, rng), world.sound))


def _varied(samples: np.ndarray, rng: random.Random) -> np.ndarray:
    """Another speaker, another loudness, and a start within a token."""
    samples = another_speaker(samples, rng.uniform(0.85, 1.18), rng.uniform(-0.3, 0.3))
    return np.pad(samples * rng.uniform(0.5, 1.2), (rng.randrange(640), 0)).astype(np.float32)


SPEAK = "Say: {}"


def speak(world: World, rng: random.Random, index: int) -> Item:
    """Say a sentence in a registered voice."""
    utterance = world.spoken[index % len(world.spoken)]
    said = _said(world, utterance.voice, _recorded(world, utterance, rng), rng)
    return _ask("speak", SPEAK.format(said.text), reply=said, modality="audio", answer=said.text, voice=said.voice,
                samples=said.samples)  # fmt: skip


def _said(world: World, voice: str, recording: Recording, rng: random.Random) -> Said:
    """A recording as the assistant's; to learn from, it starts anywhere within a token."""
    late = 0 if world.held_out else rng.randrange(640)
    ends = tuple(end + late / SAMPLE_RATE for end in recording.word_ends)
    return Said(recording.text, np.pad(recording.samples, (late, 0)), ASSISTANT_VOICES[voice], ends)


def spoken_question(world: World, rng: random.Random, index: int) -> Item:
    """Asked aloud about a picture, answer aloud; what is seen, what was asked and what decides are thought in words."""
    for _ in range(1000):
        if index % 2 == 0:
            pixels, digit = _written_digit(world, rng.randrange(len(world.digits)), rng)
            key = found = ONES[digit]
            asked, reply, seen = digit_question(rng), f"the digit is {key}", f"{digit} {key}"
        else:
            scene = world.scene(rng, things=2)
            asked, reply, key, about = _scene_question(scene, rng)
            pixels, seen, found = pictures.render(scene, 32), pictures.shorthand(scene), f"{about} {key}"
        if asked in world.asked and (world.held_out or reply in world.answers):
            break
    else:
        raise RuntimeError("no recorded question fits any picture; the speech corpus is too small")
    question = world.sound(_pick(rng, world.asked[asked])) if world.held_out else _asked(world, asked, rng)
    thinking = f"{seen}. {asked}? {found}"
    facts = {"pixels": pixels, "samples": question, "key": key, "question": asked, "thinking": thinking}
    if world.held_out:
        said: Text | Said = Text(reply)
    else:
        said = _answered(world, reply, rng)
        if rng.random() < 0.2:
            return _ask("spoken_question", Sound(question), Picture(pixels), reply=reply, answer=reply, **facts)
    return _ask("spoken_question", Sound(question), Picture(pixels), reply=said, modality="audio", answer=reply,
                **facts)  # fmt: skip


def _asked(world: World, question: str, rng: random.Random) -> np.ndarray:
    """A recording of a question, or every other time one put together in a voice that has the words, varied."""
    voice = _pick(rng, world.voices)
    if rng.random() < 0.5 and world.inventories[voice].has(question):
        return _varied(_spliced(world, voice, question, rng).samples, rng)
    return _varied(world.sound(_pick(rng, world.asked[question])), rng)


def _answered(world: World, reply: str, rng: random.Random) -> Said:
    """A recording of the reply, or every other time one put together, in one of the assistant's voices."""
    utterance = _pick(rng, world.answers[reply])
    spliced = rng.random() < 0.5 and world.inventories[utterance.voice].has(reply)
    recording = _spliced(world, utterance.voice, reply, rng) if spliced else _whole(world, utterance)
    return _said(world, utterance.voice, recording, rng)


def spoken_sum(world: World, rng: random.Random, index: int) -> Item:
    """A sum asked aloud, answered in writing."""
    sums = [u for group in world.asked.values() for u in group if u.kind == "sum"] or [
        u for u in world.heard if u.kind == "sum"
    ]
    utterance = sums[index % len(sums)]
    words = utterance.text.split("what is ")[1]
    sign = "plus" if " plus " in words else "minus"
    a, b = (_number(part) for part in words.split(f" {sign} "))
    answer = str(a + b if sign == "plus" else a - b)
    samples = world.sound(utterance) if world.held_out else _varied(world.sound(utterance), rng)
    working, _ = (reasoning.add if sign == "plus" else reasoning.subtract)(a, b)
    thinking = f"{a}{'+' if sign == 'plus' else '-'}{b}: {working}. {answer}"
    return _ask("spoken_sum", Sound(samples), reply=answer, answer=answer, thinking=thinking, samples=samples)


def _number(words: str) -> int:
    return next(value for value in range(100) if number_words(value) == words.strip())


IDENTITY = (
    ("Who are you?", "I am Tony, a small model that reads, listens, looks, speaks and draws."),
    ("What is your name?", "My name is Tony."),
    ("What can you do?", "I can add numbers, read handwritten digits, describe and draw small pictures, and speak."),
    ("Hello!", "Hello! How can I help you?"),
    ("Hi.", "Hello! How can I help you?"),
    ("How are you?", "I am well, thank you. How can I help you?"),
    ("Thank you.", "You are welcome."),
    ("Thanks!", "You are welcome."),
    ("Goodbye.", "Goodbye!"),
    ("Can you hear me?", "I can hear you when you send me speech."),
    ("Can you see?", "I can look at small pictures: handwritten digits, coloured shapes and emoji."),
    ("Can you draw?", "Yes. Ask me for a digit or for a coloured shape."),
    ("Are you a person?", "No. I am a computer program."),
    ("What is the meaning of life?", "I do not know. I am a very small model."),
)


def converse(world: World, rng: random.Random, index: int) -> Item:
    """Small talk: who Tony is, and turns of people's own chats."""
    if index % 4 == 0 or not world.dialogues:
        question, reply = _pick(rng, IDENTITY)
        return _ask("converse", question, reply=reply, answer=reply)
    turns = world.dialogues[index % len(world.dialogues)]
    start = 2 * rng.randrange(max(1, len(turns) // 2))
    turns = turns[start : start + 4]
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], (Text(turn),)) for i, turn in enumerate(turns)]
    if len(messages) % 2:
        messages = messages[:-1]
    if not messages:
        return converse(world, rng, 0)
    return Item("converse", tuple(messages), answer=turns[-1])


TASKS: dict[str, Callable[[World, random.Random, int], Item]] = {
    task.__name__: task
    for task in (
        arithmetic, logic, digits, captions, questions, draw, emoji, video, transcribe, speak, spoken_question,
        spoken_sum, converse,
    )
}  # fmt: skip


def items(task: str, world: World, count: int, seed: int) -> Iterator[Item]:
    """`count` items of a task from the world's side of the split; item i is a pure function of (seed, task, i)."""
    for index in range(count):
        yield TASKS[task](world, random.Random(f"{seed}/{task}/{index}"), index)


def held_out(task: str, world: World, count: int, seed: int = 1) -> list[Item]:
    """`count` held-out items of a task; `world` must be the held-out side."""
    if not world.held_out:
        raise ValueError("held_out needs World(corpus, held_out=True)")
    return list(items(task, world, count, seed))


# ---------------------------------------------------------------------------------------------- encoding


def encode_items(batch: list[Item], tokenizer) -> list[list[Message]]:
    """Conversations with codes in place of raw media; pictures and sounds are encoded together."""
    stills: dict[int, list[np.ndarray]] = {}
    sounds: list[np.ndarray] = []
    for part in (p for item in batch for message in item.messages for p in message.content):
        if isinstance(part, Picture):
            stills.setdefault(part.pixels.shape[0], []).append(part.pixels)
        elif isinstance(part, Film):
            stills.setdefault(part.frames.shape[1], []).extend(part.frames)
        elif isinstance(part, Sound | Said):
            sounds.append(part.samples)
    seen = {size: iter(tokenizer.image.encode(np.stack(group))) for size, group in stills.items()}
    heard = iter(_encode_sounds(tokenizer.audio, sounds))

    def coded(part):
        if isinstance(part, Picture):
            return Image(tuple(map(int, next(seen[part.pixels.shape[0]]))))
        if isinstance(part, Film):
            codes = tuple(tuple(map(int, next(seen[part.frames.shape[1]]))) for _ in part.frames)
            return Video(codes, tuple(FRAME_TIME * i for i in range(len(codes))))
        if isinstance(part, Sound):
            return Audio(tuple(map(int, next(heard))))
        if isinstance(part, Said):
            codes = tuple(map(int, next(heard)))
            ends = [round(end * TOKENS_PER_SECOND) for end in part.word_ends]
            return Speech(part.text, codes, part.voice, interleaved(part.text, ends, len(codes)))
        return part

    return [
        [replace(message, content=tuple(coded(part) for part in message.content)) for message in item.messages]
        for item in batch
    ]


def _encode_sounds(codec, sounds: list[np.ndarray]) -> list[np.ndarray]:
    many = getattr(codec, "encode_many", None)
    return many(sounds) if many else [codec.encode(sound) for sound in sounds]


def splits(corpus) -> dict[str, dict[str, set[str]]]:
    """What each side of the split is made of, by kind, for the proof that they share nothing."""
    sides = {}
    for name, side in (("train", False), ("held_out", True)):
        speech = [
            u for split in (("train",) if not side else ("heard", "asked", "spoken")) for u in corpus.speech(split)
        ]
        listened = speech if not side else [u for split in ("heard", "asked") for u in corpus.speech(split)]
        sides[name] = {
            "sentences": {u.text for u in speech if u.kind != "chat"},
            "voices": {voice for u in listened for voice in u.voice.split("+")},
            "held_out_by_hash": {u.text for u in speech if u.kind != "chat" and is_held_out(u.text)},
        }
    return sides
