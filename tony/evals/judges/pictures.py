"""A judge of drawn pictures: small networks that learnt what digits and scenes look like from real pictures only.

Real means handwritten digits of the corpus's training people, and scenes as the program renders them; never anything a
model drew or a codec decoded. The judge reports its own accuracy on held-out people and held-out captions.

Shapes: n pictures, h height, w width, c channels.
"""

import hashlib
import json
import random
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from tony.data.corpus import Corpus
from tony.data.world.pictures import OPPOSITE, Scene, caption, random_scene, render
from tony.data.world.sentences import COLORS, SHAPES
from tony.errors import TonyError

SIZE = 32
CHUNK = 128
RELATIONS = (None, *OPPOSITE)
# Each network sees one channel count and has one read-out for each fact. Shapes are read from the silhouette alone, so
# that no colour can hint at a shape it was often seen with; first and second thing are as in the canonical caption.
HEADS = {"digits": (10,), "shapes": (len(RELATIONS), len(SHAPES), len(SHAPES)), "colors": (len(COLORS), len(COLORS))}
CHANNELS = {"digits": 1, "shapes": 1, "colors": 3}
STEPS, BATCH = {"digits": 800, "shapes": 900, "colors": 250}, 64
VERSION = 2  # of the scenes it learns from, and of the networks


@dataclass(frozen=True)
class Judge:
    """Trained networks and their accuracy on held-out real pictures: {"digits": ..., "scenes": ..., "pairs": ...}."""

    params: dict
    accuracy: dict[str, float]

    def digit(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(labels int [n], probabilities float [n, 10]) of pictures uint8 [n, 32, 32, 3], white on black."""
        (probabilities,) = _classify(self.params, "digits", _checked(pixels).mean(-1, keepdims=True))
        return probabilities.argmax(1), probabilities

    def scene(self, pixels: np.ndarray) -> list[str]:
        """The canonical captions of pictures uint8 [n, 32, 32, 3], such as "a red circle left of a blue square"."""
        x = _checked(pixels)
        facts = [*_classify(self.params, "shapes", _silhouette(x)), *_classify(self.params, "colors", x)]
        return [_read(*row) for row in np.stack([fact.argmax(1) for fact in facts], axis=1).tolist()]


def train_judge(corpus: Corpus, directory: Path, seed: int = 0) -> Judge:
    """Train the judge (about half a minute on two cores) and save it in `directory`; load it if it is there already."""
    from tony.tokens import weights

    directory = Path(directory)
    tag = _tag(corpus, seed)
    if judge := _load(directory, tag):
        return judge
    start = time.monotonic()
    params = {
        "digits": _train("digits", _digit_batches(corpus, seed), seed),
        "shapes": _train("shapes", partial(_shape_batch, seed), seed),
        "colors": _train("colors", partial(_color_batch, seed), seed),
    }
    judge = Judge(params, {})
    judge = Judge(params, _accuracy(judge, corpus))
    config = {"kind": "picture-judge", "tag": tag, "accuracy": judge.accuracy, "seconds": time.monotonic() - start}
    weights.save(directory, config, params)
    return judge


def _tag(corpus: Corpus, seed: int) -> str:
    """Changes when anything does that the trained weights depend on."""
    recipe = [VERSION, seed, STEPS, BATCH, corpus.fingerprint]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def _load(directory: Path, tag: str) -> Judge | None:
    """The judge that was trained before; None if there is none, or it is another one, or damaged."""
    from tony.tokens import weights

    try:
        config, params = weights.load(directory)
    except TonyError:
        return None
    return Judge(params, config["accuracy"]) if config.get("tag") == tag else None


def _accuracy(judge: Judge, corpus: Corpus) -> dict[str, float]:
    pixels, labels = corpus.digits("test")
    found = {"digits": float((judge.digit(pixels)[0] == labels).mean())}
    for name, count in (("scenes", 1), ("pairs", 2)):
        rng = random.Random(f"judge {name}")
        scenes = [random_scene(rng, held_out=True, count=count) for _ in range(1_000)]
        seen = judge.scene(np.stack([render(scene) for scene in scenes]))
        found[name] = float(np.mean([caption(scene) == text for scene, text in zip(scenes, seen, strict=True)]))
    return found


# ------------------------------------------------------------------------------------------- what is seen


def _read(relation: int, shape: int, other_shape: int, color: int, other_color: int) -> str:
    names = [
        f"{'an' if COLORS[c][0] in 'aeiou' else 'a'} {COLORS[c]} {SHAPES[s]}"
        for c, s in ((color, shape), (other_color, other_shape))
    ]
    return f" {RELATIONS[relation]} ".join(names) if relation else names[0]


def _checked(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (SIZE, SIZE, 3):
        raise TonyError(f"the judge looks at uint8 [n, 32, 32, 3]; got {pixels.dtype} {list(pixels.shape)}")
    return pixels.astype(np.float32) / 255


def _silhouette(x: np.ndarray) -> np.ndarray:
    """How far each pixel of x [n, h, w, 3] is from the border's colour, 1 for the farthest: [n, h, w, 1]."""
    border = np.concatenate([x[:, 0], x[:, -1], x[:, :, 0], x[:, :, -1]], axis=1)
    distance = np.linalg.norm(x - np.median(border, axis=1)[:, None, None], axis=-1, keepdims=True)
    return distance / np.maximum(distance.max(axis=(1, 2), keepdims=True), 0.1)


# ----------------------------------------------------------------------------------------------- pictures


def _digit_batches(corpus: Corpus, seed: int):
    images, labels = corpus.digits("train")
    images = images[..., 0]

    def batch_at(step: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([seed, step])
        chosen = rng.integers(0, len(images), BATCH)
        shift = rng.integers(-2, 3, (BATCH, 2))
        moved = [np.roll(image, move, (0, 1)) for image, move in zip(images[chosen], shift, strict=True)]
        return _noisy(np.stack(moved)[..., None], rng), labels[chosen, None]

    return batch_at


def _scenes(name: str, seed: int, step: int) -> tuple[list[Scene], np.ndarray]:
    rng = random.Random(f"judge {name} {seed} {step}")
    scenes = [random_scene(rng) for _ in range(BATCH)]
    pictures = np.stack([render(scene) for scene in scenes])
    return scenes, _noisy(pictures, np.random.default_rng([seed, step]))


def _second(items: list[int]) -> list[int]:
    """Two classes; -1, which is not learnt from, where there is no second thing."""
    return [*items, -1][:2]


def _shape_batch(seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    scenes, pictures = _scenes("shapes", seed, step)
    targets = [
        [RELATIONS.index(scene.relation), *_second([SHAPES.index(thing.shape) for thing in scene.things])]
        for scene in scenes
    ]
    return _silhouette(pictures), np.array(targets)


def _color_batch(seed: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    scenes, pictures = _scenes("colors", seed, step)
    return pictures, np.array([_second([COLORS.index(thing.color) for thing in scene.things]) for scene in scenes])


def _noisy(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """In [0, 1], with a little noise, so that no judgement hangs on exact levels."""
    pixels = pictures.astype(np.float32) / 255
    return pixels + rng.normal(0, 0.05, pixels.shape).astype(np.float32)


# ------------------------------------------------------------------------------------------------ network


def _init(key, channels: int, heads: tuple[int, ...]) -> dict:
    """Three halving layers of 4x4 filters, a hidden layer, and one linear read-out for all heads together."""
    import jax
    import jax.numpy as jnp

    shapes = [(4, 4, channels, 16), (4, 4, 16, 32), (4, 4, 32, 48), (4 * 4 * 48, 128), (128, sum(heads))]
    keys = jax.random.split(key, len(shapes))
    scales = [(2 / np.prod(shape[:-1])) ** 0.5 for shape in shapes[:-1]] + [0.01]
    return {
        "weights": [s * jax.random.normal(k, shape) for k, shape, s in zip(keys, shapes, scales, strict=True)],
        "biases": [jnp.zeros(shape[-1]) for shape in shapes],
    }


def _filters(x, weight, bias):
    """4x4 filters [4, 4, c, outputs] at every second pixel of x [n, h, w, c]: [n, h/2, w/2, outputs]."""
    import jax

    made = jax.lax.conv_general_dilated(x, weight, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(made + bias)


def _logits(params, x):
    import jax

    *filters, (hidden, hidden_bias), (out, out_bias) = zip(params["weights"], params["biases"], strict=True)
    for weight, bias in filters:
        x = _filters(x, weight, bias)
    x = jax.nn.relu(x.reshape(len(x), -1) @ hidden + hidden_bias)
    return x @ out + out_bias


def _train(name: str, batch_at, seed: int) -> dict:
    import jax
    import jax.numpy as jnp
    import optax

    steps, splits = STEPS[name], np.cumsum(HEADS[name])[:-1]
    optimizer = optax.adam(optax.cosine_onecycle_schedule(steps, 4e-3, pct_start=0.15))

    def loss(params, x, targets):
        total = 0.0
        for logits, target in zip(jnp.split(_logits(params, x), splits, axis=1), targets.T, strict=True):
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(target, 0))
            total += jnp.mean(losses * (target >= 0))
        return total

    @jax.jit
    def update(params, state, x, targets):
        changes, state = optimizer.update(jax.grad(loss)(params, x, targets), state, params)
        return optax.apply_updates(params, changes), state

    params = _init(jax.random.key(seed), CHANNELS[name], HEADS[name])
    state = optimizer.init(params)
    for step in range(steps):
        params, state = update(params, state, *batch_at(step))
    return jax.tree.map(np.asarray, params)


def _classify(params: dict, name: str, x: np.ndarray) -> list[np.ndarray]:
    """Probabilities [n, classes] of each head of a network, computed in chunks of one compiled shape."""
    import jax

    heads, logits = HEADS[name], []
    for start in range(0, len(x), CHUNK):
        piece = x[start : start + CHUNK]
        filled = np.zeros((CHUNK, *x.shape[1:]), np.float32)
        filled[: len(piece)] = piece
        logits.append(np.asarray(_forward()(params[name], filled))[: len(piece)])
    whole = np.concatenate(logits) if logits else np.zeros((0, sum(heads)), np.float32)
    return [np.asarray(jax.nn.softmax(part)) for part in np.split(whole, np.cumsum(heads)[:-1], axis=1)]


@cache
def _forward():
    import jax

    return jax.jit(_logits)
