"""The stages of a recipe, in order: tokenisers, encoded data, the network's two trainings, release, measures, card.

Each is a function of a `RunContext` that reads what earlier stages left in the run's folder and returns the facts that
go into the manifest. `tony/run.py` decides which of them must run.
"""

from tony.run import Stage
from tony.stages import codecs, imported, language, report, world

ENCODED = ("data.corpus", "data.items", "data.sources", "pretrain.length", "tune.length")
STAGES = [
    Stage("text", world.train_text_tokenizer, inputs=("text", "data.corpus", "data.sources"), after=()),
    Stage("image_codec", codecs.train_image_codec, inputs=("image_codec", "data.corpus"), after=()),
    Stage("audio_codec", codecs.train_audio_codec, inputs=("audio_codec", "data.corpus"), after=(), version=5),
    Stage("encode", world.encode, inputs=ENCODED, after=("text", "image_codec", "audio_codec"), version=3),
    Stage("pretrain", language.pretrain, inputs=("size", "model", "pretrain"), after=("encode",), together=True),
    Stage("tune", language.tune, inputs=("tune",), after=("pretrain",), together=True),
    Stage("model", language.release, inputs=(), after=("tune",)),
    Stage("eval", report.evaluate, inputs=("eval",), after=("model",)),
    Stage("card", report.card, inputs=("card",), after=("eval",)),
]
TUNING = [  # of a recipe with `model.base`
    Stage("encode", imported.encode, inputs=("data.sources", "tune.length", "model.base"), after=()),
    Stage("tune", imported.tune, inputs=("tune", "model.base", "model.remat"), after=("encode",)),
    Stage("model", imported.release, inputs=(), after=("tune",)),
    Stage("card", report.card, inputs=("card",), after=("model",)),
]
