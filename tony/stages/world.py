"""Stages that turn the world into tokens: the text tokeniser, and every task's conversations as encoded examples."""

import random
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from tony.data.messages import texts_of
from tony.data.records import open_records, open_source
from tony.data.source import write_encoded
from tony.data.world import tasks
from tony.data.world.sentences import QUESTIONS, STATEMENTS, sentence
from tony.recipe import CODECS
from tony.stages.codecs import corpus_of
from tony.tokens.chat import Message, Text
from tony.tokens.text import TextTokenizer
from tony.tokens.tokenizer import Example, Tokenizer, example, load_codec
from tony.tokens.vocabulary import Vocabulary

TEXT_TASKS = ("arithmetic", "logic", "digits", "captions", "questions", "draw", "video", "converse")
GROUP = 512  # conversations encoded at once
OWN_TEXTS = 20_000  # records of each of the user's sources that the tokeniser learns from


def train_text_tokenizer(context) -> dict:
    """Byte-level BPE over what the world says and what people chat."""
    corpus = corpus_of(context)
    texts = chain(_texts(tasks.World(corpus, held_out=False)), _own_texts(context.recipe))
    tokenizer = TextTokenizer.train(texts, context.recipe.text.vocab_size)
    tokenizer.save(context.stage_directory("text"))
    return {"tokens": tokenizer.size}


def _texts(world: tasks.World) -> Iterator[str]:
    rng = random.Random(0)
    for kind in (*QUESTIONS, *STATEMENTS):
        yield from (sentence(rng, kind) for _ in range(1_500))
    yield from (turn for talk in world.dialogues for turn in talk)
    yield from (utterance.text for utterance in world.corpus.speech("human_train"))
    yield from (name for name, _ in world.emoji)
    for task in TEXT_TASKS:
        for item in tasks.items(task, world, 1_500, seed=0):
            for message in item.messages:
                yield from (part.text for part in message.content if isinstance(part, Text))
                yield from filter(None, [message.thinking])


def _own_texts(recipe) -> Iterator[str]:
    """The words in the first records of each of the user's sources."""
    for source in recipe.data.sources.values():
        records = open_records(asdict(source))
        for index in range(min(len(records), OWN_TEXTS)):
            yield from texts_of(records[index])


def tokenizer_of(context) -> Tokenizer:
    """The run's tokenisers and codecs as one."""
    text = TextTokenizer.load(context.stage_directory("text"))
    codecs: list[Any] = [load_codec(context.stage_directory(name)) for name in CODECS]
    image, audio = codecs
    vocabulary = Vocabulary(text.size, image.codebook_size, audio.codebook_size)
    return Tokenizer(vocabulary, text, image, audio)


def encode(context) -> dict:
    """Every task's training conversations -> `encode/TASK.npz` of tokens, loss weights and modalities."""
    tokenizer = tokenizer_of(context)
    world = tasks.World(corpus_of(context), held_out=False)
    directory = context.stage_directory("encode")
    counts = {}
    with context.progress() as progress:
        for task, count in context.recipe.data.items.items():
            bar = progress.add_task(f"encoding {task}", total=count)
            examples, waiting = [], []
            for item in tasks.items(task, world, count, context.recipe.seed):
                waiting.append(item)
                if len(waiting) == GROUP:
                    examples += _encoded(waiting, tokenizer)
                    waiting = []
                    progress.update(bar, completed=len(examples))
            examples += _encoded(waiting, tokenizer)
            progress.update(bar, completed=len(examples))
            counts[task] = _store(directory, task, examples)
        length = min(context.recipe.pretrain.length, context.recipe.tune.length)  # documents fit both trainings
        for name, table in context.recipe.data.sources.items():
            source = open_source({**asdict(table), "name": name}, tokenizer, length)
            bar = progress.add_task(f"encoding {name}", total=len(source))
            examples = [source.example(index, 0) for index in progress.track(range(len(source)), task_id=bar)]
            counts[name] = _store(directory, name, examples)
    return {"tokens": counts}


def _store(directory: Path, name: str, examples: list[Example]) -> int:
    """Write a task's or a source's examples; returns their number of tokens."""
    write_encoded(encoded_path(directory, name), examples)
    return sum(len(example.tokens) for example in examples)


def encoded_path(directory: Path, task: str) -> Path:
    """Where a task's encoded examples are."""
    return directory / f"{task}.npz"


def _encoded(items: list[tasks.Item], tokenizer: Tokenizer) -> list:
    conversations: list[list[Message]] = tasks.encode_items(items, tokenizer) if items else []
    # Three in ten are not told what to answer with, so that the model learns to choose for itself.
    return [
        example(messages, tokenizer.vocabulary, tokenizer.text, modality=None if index % 10 < 3 else item.modality)
        for index, (item, messages) in enumerate(zip(items, conversations, strict=True))
    ]
