"""Stages of the network itself: pre-training on the whole mixture, tuning to converse, and the release folder."""

import jax
import numpy as np

from tony.data.loader import Loader, rows_before
from tony.data.source import EncodedSource
from tony.errors import TonyError
from tony.model.config import ModelConfig
from tony.model.count import flops_per_token, parameter_count
from tony.model.files import load_model, save_model
from tony.model.params import declare, init, network_extents, shardings
from tony.parallel import hosts
from tony.parallel.sharding import make_layout, whole
from tony.recipe import CODECS, TRAININGS
from tony.stages.world import encoded_path, tokenizer_of
from tony.tokens.tokenizer import Tokenizer, codebook_size
from tony.tokens.vocabulary import Vocabulary
from tony.train.loop import fit
from tony.train.step import check_groups, check_rows, language_loss_fn, rows_extents


def model_config(context, tokenizer: Tokenizer) -> ModelConfig:
    """The network that the recipe's `size` and `model` section describe, for this run's vocabulary."""
    needed = tokenizer.vocabulary.padded_size
    config = _config(context.recipe, needed)
    if config.vocab_size < needed:
        raise TonyError(
            f"model.vocab_size = {config.vocab_size}: the tokenisers of this run have {needed} tokens; raise it"
        )
    return config


def network(recipe) -> ModelConfig:
    """The network of a recipe before its tokenisers are trained, its vocabulary as large as theirs will be."""
    codes = (codebook_size(recipe, name) for name in CODECS)
    return _config(recipe, Vocabulary(recipe.text.vocab_size, *codes).padded_size)


def _config(recipe, tokens: int) -> ModelConfig:
    """A recipe's network, for so many tokens unless it says how many."""
    fields = recipe.model_fields()
    return ModelConfig(**{**fields, "vocab_size": fields["vocab_size"] or tokens})


def check_mesh(recipe) -> None:
    """TonyError if a recipe's mesh, of the devices there are, does not divide its network and batches: before hours
    have gone into anything."""
    layout = make_layout(recipe.mesh)
    if layout is None:
        return
    config = network(recipe)
    batches = [extent for name in TRAININGS for extent in rows_extents(getattr(recipe, name).batch_sizes, name)]
    layout.check([*network_extents(config), *batches])
    shardings(config, layout)
    for name in TRAININGS:
        section = getattr(recipe, name)
        check_rows(section.batch_sizes, section.accumulation, layout, name)
        check_groups(config, section.batch_sizes, section, layout, name)


def embedding_features(tokenizer: Tokenizer, size: int) -> np.ndarray:
    """What is known of each of `size` tokens [size, k] before any training: the codecs' features of their codes."""
    vocabulary = tokenizer.vocabulary
    image, audio = tokenizer.image.features, tokenizer.audio.features
    features = np.zeros((size, image.shape[1] + audio.shape[1]), np.float32)
    features[vocabulary.image.start : vocabulary.image.stop, : image.shape[1]] = image
    features[vocabulary.audio.start : vocabulary.audio.stop, image.shape[1] :] = audio
    return features


def pretrain(context) -> dict:
    """Train from random weights on the mixture of the `pretrain` section."""
    tokenizer = tokenizer_of(context)
    config = model_config(context, tokenizer)
    key, layout = jax.random.key(context.recipe.seed), make_layout(context.recipe.mesh)
    features = embedding_features(tokenizer, config.vocab_size)
    params = init(declare(config), key, features, placed=shardings(config, layout) if layout else None)
    return train_network(context, "pretrain", config, params)


def tune(context) -> dict:
    """Go on from pre-training with the `tune` section's mixture and learning rate."""
    config, params = load_model(context.stage_directory("pretrain"))
    return train_network(context, "tune", config, params)


def train_network(context, name: str, config: ModelConfig, params) -> dict:
    """Train a network as a recipe's section `name` says; facts of the stage."""
    section, directory = getattr(context.recipe, name), context.stage_directory(name)
    encoded = context.stage_directory("encode")
    mixture = {task: weight for task, weight in section.mixture.items() if weight}
    unknown = sorted(task for task in mixture if not encoded_path(encoded, task).exists())
    if unknown:
        raise TonyError(
            f"{name}.mixture names {', '.join(unknown)}, of which data.items makes no examples; "
            "add a count to data.items"
        )
    sources = [EncodedSource(encoded_path(encoded, task), name=task) for task in mixture]
    loader = Loader(
        sources,
        list(mixture.values()),
        rows=section.rows,
        length=section.length,
        seed=context.recipe.seed + (name == "tune"),
        ramp=section.ramp,
    )
    layout = make_layout(context.recipe.mesh)
    params = fit(
        name=name,
        loss_fn=language_loss_fn(config, section),
        params=params,
        batch_at=loader.batch,
        config=section,
        directory=directory,
        console=context.console,
        tokens_per_step=lambda step: loader.rows_at(step) * section.length,
        flops_per_token=flops_per_token(config, section.length),
        layout=layout,
        shardings=shardings(config, layout) if layout else None,
    )
    params = whole(params)
    if hosts.first():
        save_model(directory, config, params)
    tokens = tokens_seen(section)
    flops = tokens * flops_per_token(config, section.length)
    return {"parameters": parameter_count(config), "tokens": tokens, "flops": flops}


def tokens_seen(section) -> int:
    """Tokens of all steps of a `Language` section, its ramp included."""
    return section.length * rows_before([(0, section.rows), *section.ramp], section.steps)


def release(context) -> dict:
    """`model/`: the network and its tokenisers, all that is needed to serve it."""
    config, params = load_model(context.stage_directory("tune"))
    directory = context.stage_directory("model")
    save_model(directory, config, params)
    tokenizer_of(context).save(directory / "tokenizer")
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return {"parameters": parameter_count(config), "megabytes": round(size / 1e6, 1)}
