"""Stages that train the two codecs."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np

from tony.data.corpus import Corpus
from tony.data.world import pictures
from tony.stages.speech import symbols_of, training_speech
from tony.tokens import audio, image
from tony.tokens.tokenizer import trained_codec
from tony.train.loop import fit

TOKENS_OF_AN_UTTERANCE = 48  # about; a short training reads only what it can hear twice


def corpus_of(context) -> Corpus:
    """The corpus that the recipe names: the built-in one, or a folder."""
    return Corpus.named(context.recipe.data.corpus)


def _taken_over(context, name: str) -> dict:
    """Copies the codec that the recipe has instead of a training."""
    codec = trained_codec(context.recipe, name)
    codec.save(context.stage_directory(name))
    return {"codes": codec.codebook_size, "taken from": getattr(context.recipe, name).trained}


def train_image_codec(context) -> dict:
    """Digits, scenes, film frames and emoji -> the picture codec."""
    section, corpus = context.recipe.image_codec, corpus_of(context)
    if section.trained:
        return _taken_over(context, "image_codec")
    batch_at = pictures.codec_batches(
        corpus, context.recipe.seed, small=section.batch, large=max(1, section.batch // 12)
    )
    directory = context.stage_directory("image_codec")
    codec = image.train_image_codec(
        section, batch_at, directory, fit, seed=context.recipe.seed, console=context.console
    )
    test, _ = corpus.digits("test")
    rebuilt = codec.decode(codec.encode(test[:256]))
    error = np.mean(np.square((rebuilt.astype(np.float32) - test[:256]) / 255))
    return {"psnr of unseen digits (dB)": round(float(-10 * np.log10(error)), 2), "codes": codec.codebook_size}


def train_audio_codec(context) -> dict:
    """Synthetic and human speech -> the speech codec."""
    section, corpus = context.recipe.audio_codec, corpus_of(context)
    if section.trained:
        return _taken_over(context, "audio_codec")
    symbols = symbols_of(corpus)
    tokens = (section.phoneme_steps + section.steps) * section.batch * section.length
    with context.console.status("reading speech and its pitch"):
        spoken = training_speech(corpus, symbols, limit=1 + tokens // (2 * TOKENS_OF_AN_UTTERANCE))
    config = audio.AudioCodecConfig(
        levels=tuple(section.levels), width=section.width, layers=section.layers, symbols=symbols
    )
    params = audio.init(jax.random.key(context.recipe.seed), config)
    options = {
        "batch_at": lambda step, skipped=0: audio.pack_batch(
            spoken, context.recipe.seed, step + skipped, section.batch, section.length
        ),
        "console": context.console,
    }
    directory = context.stage_directory("audio_codec")
    params |= fit(
        name="audio_codec, phonemes",
        loss_fn=partial(audio.phoneme_loss, config=config),
        params={name: params[name] for name in ("encoder", "phonemes")},
        config=replace(section, steps=section.phoneme_steps),
        directory=directory / "phonemes",
        **options,
    )
    params = fit(
        name="audio_codec",
        loss_fn=partial(audio.loss, config=config),
        params=params,
        config=section,
        directory=directory,
        **options,
    )
    audio.SpeechCodec(config, params).save(directory)
    minutes = sum(len(item.samples) for item in spoken) / audio.SAMPLE_RATE / 60
    return {"minutes of speech": round(minutes, 1), "codes": int(np.prod(config.levels))}
