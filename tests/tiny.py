"""A whole release folder with a tiny random network and tiny untrained codecs: real files, real protocols, no sense."""

from pathlib import Path

import jax

from tony.model.config import ModelConfig
from tony.model.files import save_model
from tony.model.params import declare, init
from tony.tokens import audio, image
from tony.tokens.text import TextTokenizer
from tony.tokens.tokenizer import Tokenizer
from tony.tokens.vocabulary import Vocabulary

TEXTS = ["what is the number", "draw a seven", "hello, I am Tony", "27 + 48 = 75", "the circle is red"] * 20


def make_release(directory: Path, codec_width: int = 16, unused: int = 0) -> Path:
    """Write a release whose network has `unused` tokens more than its tokenizer; returns its folder."""
    text = TextTokenizer.train(iter(TEXTS), 300)
    pictures = image.ImageCodecConfig(levels=(5, 3), width=codec_width, layers=1, heads=2)
    speech = audio.AudioCodecConfig(levels=(5, 3), width=codec_width, layers=1, heads=2, window=8, symbols="ab")
    tokenizer = Tokenizer(
        Vocabulary(text.size, 15, 15),
        text,
        image.PictureCodec(pictures, image.init(jax.random.key(0), pictures)),
        audio.SpeechCodec(speech, audio.init(jax.random.key(1), speech)),
    )
    config = ModelConfig(
        tokenizer.vocabulary.padded_size + unused,
        layers=1,
        width=32,
        heads=2,
        kv_heads=1,
        head_dim=16,
        hidden=32,
        max_length=192,
    )
    save_model(directory, config, init(declare(config), jax.random.key(2)))
    tokenizer.save(directory / "tokenizer")
    return directory
