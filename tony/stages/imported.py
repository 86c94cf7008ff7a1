"""Stages of a recipe with `model.base`: the user's own texts and conversations, and a training from there on."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np

from tony.data import messages
from tony.data.records import Records, open_records
from tony.data.source import write_encoded
from tony.errors import TonyError
from tony.exchange.text import ImportedTokenizer
from tony.generate.release import find_release, is_imported
from tony.model.count import parameter_count
from tony.model.files import load_model, save_model
from tony.model.forward import stacked, unstacked
from tony.stages.language import train_network
from tony.stages.world import encoded_path
from tony.tokens.tokenizer import Example


def base_of(recipe) -> Path:
    """The release folder that a recipe starts from; TonyError if it is not of an imported model."""
    release = find_release(recipe.model.base)
    if not is_imported(release):
        raise TonyError(
            f"model.base = {recipe.model.base!r}: expected a model that `tony import` wrote, or a tuned one of it"
        )
    return release


def encode(context) -> dict:
    """Every source of the user's -> `encode/NAME.npz`, in the base's own tokens and chat template."""
    recipe = context.recipe
    tokenizer = ImportedTokenizer.load(base_of(recipe) / "tokenizer")
    directory, counts = context.stage_directory("encode"), {}
    for name, table in recipe.data.sources.items():
        records = open_records({**asdict(table), "name": name})
        examples = list(_examples(records, tokenizer, recipe.tune.length - 1))
        if not examples:
            raise TonyError(f"{table.path} holds no records; give data source {name!r} some or remove it")
        write_encoded(encoded_path(directory, name), examples)
        counts[name] = sum(len(example.tokens) for example in examples)
    return {"tokens": counts}


def _examples(records: Records, tokenizer: ImportedTokenizer, length: int) -> Iterator[Example]:
    for index in range(len(records)):
        try:
            record = records[index]
            messages.check(record)
            if messages.is_plain_text(record):
                yield from tokenizer.pieces([record["text"]], length)
            else:
                read = lambda name, at=index: records.read(at, name)  # noqa: E731
                yield tokenizer.example(messages.to_messages(record, tokenizer, read))
        except (TonyError, OSError, KeyError, TypeError, ValueError) as error:
            place = records.where(index)
            raise TonyError(str(error) if str(error).startswith(place) else f"{place}: {error}") from None


def tune(context) -> dict:
    """Go on training the base's whole network on the `tune` section's mixture."""
    recipe = context.recipe
    config, params = load_model(base_of(recipe))
    if recipe.tune.length > config.max_length:
        raise TonyError(f"tune.length = {recipe.tune.length}: the base holds {config.max_length} tokens; lower it")
    loop = config.layers % config.period == 0
    config = replace(config, stacked=loop, remat=recipe.model.remat)
    if loop:  # compiled once, whatever the depth
        params = {**params, "blocks": stacked(params["blocks"], config)}
    return train_network(context, "tune", config, params)


def release(context) -> dict:
    """`model/`: the tuned network, block by block as it was, and the base's tokenizer."""
    config, params = load_model(context.stage_directory("tune"))
    params = {**params, "blocks": unstacked(params["blocks"], config)}
    config = replace(config, stacked=False, remat="none")
    directory = context.stage_directory("model")
    save_model(directory, config, jax.tree.map(np.ascontiguousarray, params))
    ImportedTokenizer.load(base_of(context.recipe) / "tokenizer").save(directory / "tokenizer")
    return {"parameters": parameter_count(config), "base": context.recipe.model.base}
