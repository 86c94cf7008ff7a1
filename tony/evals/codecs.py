"""How much of a sound or a picture survives its tokens: held-out recordings and pictures, encoded and decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tony.evals.bench import Bench, frames_of, kind_of, pixels_of, prompt_parts, samples_of
from tony.evals.judges import likeness, speech
from tony.evals.result import Result, derangement, jackknife_stderr, mean_stderr

USAGE_PICTURES, USAGE_FILMS, USAGE_SOUNDS = 400, 100, 1000  # usage needs many tokens and no decoding
ANY_VOICE = 0  # the codec's voice that leaves the sound to the codes


@dataclass(frozen=True)
class Pair:
    """An original and what its codes give back; `group` names the kind of material."""

    group: str
    original: np.ndarray
    coded: np.ndarray
    codes: np.ndarray


def codec_stoi(bench: Bench) -> list[Result]:
    """Intelligibility of coded speech."""
    return [_likeness(bench, "codec_stoi", _sounds(bench), speech.stoi, "audio", "Short-time intelligibility, 0 to 1.")]


def codec_pesq(bench: Bench) -> list[Result]:
    """Perceived quality of coded speech."""
    return [_likeness(bench, "codec_pesq", _sounds(bench), speech.pesq, "audio", "Wide-band PESQ, 1 to 4.64.")]


def codec_psnr(bench: Bench) -> list[Result]:
    """Fidelity of coded pictures in dB."""
    pairs = _pictures(bench)
    return [_likeness(bench, "codec_psnr", pairs, likeness.psnr, "image", "In dB; an identical picture counts 100.")]


def codec_ssim(bench: Bench) -> list[Result]:
    """Structural similarity of coded pictures."""
    return [_likeness(bench, "codec_ssim", _pictures(bench), likeness.ssim, "image", "7x7 windows, up to 1.")]


def codec_usage(bench: Bench) -> list[Result]:
    """Share of the codebook that held-out material uses: the smaller of the two codecs'."""
    tokenizer = bench.omni.tokenizer
    codecs = {
        "image": (_picture_codes(bench), tokenizer.image.codebook_size),
        "audio": (_sound_codes(bench), tokenizer.audio.codebook_size),
    }
    usage = {name: used(codes, size) for name, (codes, size) in codecs.items()}
    worst = min(usage, key=lambda name: usage[name])
    codes, size = codecs[worst]
    tokens = sum(map(len, codes))
    rng = np.random.default_rng(bench.seed)
    facts: dict[str, float] = {}
    for name, (some, entries) in codecs.items():
        facts |= {
            f"{name} usage": usage[name],
            f"{name} entries": float(entries),
            f"{name} tokens": float(sum(map(len, some))),
            f"{name} entropy, bits": entropy_bits(np.concatenate(some), entries),
        }
    return [
        Result(
            name="codec_usage",
            value=usage[worst],
            stderr=jackknife_stderr(codes, lambda some: used(some, size)),
            n=tokens,
            higher_is_better=True,
            records=[{"index": i, "codec": name, **_usage_record(*codecs[name])} for i, name in enumerate(codecs)],
            facts=facts,
            controls={
                "positive": used([rng.integers(0, size, tokens)], size),
                "negative": used([np.zeros(tokens, np.int64)], size),
            },
            notes=f"Of the {worst} codec, the lower of the two; n counts tokens. Positive control: as many uniformly "
            "random codes, the most that so few tokens can show. Negative: one code repeated.",
        )
    ]


def used(codes: Sequence[np.ndarray], size: int) -> float:
    """Distinct codes over codebook size."""
    return len(np.unique(np.concatenate(list(codes)))) / size


def entropy_bits(codes: np.ndarray, size: int) -> float:
    """Empirical entropy of the code distribution in bits a token."""
    share = np.bincount(codes, minlength=size) / len(codes)
    share = share[share > 0]
    return max(0.0, float(-np.sum(share * np.log2(share))))


def _usage_record(codes: list[np.ndarray], size: int) -> dict:
    counts = np.sort(np.bincount(np.concatenate(codes), minlength=size))[::-1]
    return {"entries": size, "tokens": int(counts.sum()), "used": int((counts > 0).sum()), "counts": counts.tolist()}


def _likeness(bench: Bench, name: str, pairs: list[Pair], measure: Callable, kind: str, notes: str) -> Result:
    scores = []
    for index, pair in enumerate(pairs):
        scores.append(measure(pair.original, pair.coded))
        bench.advance(index + 1, len(pairs))
    other = derangement(len(pairs), bench.seed)
    wrong = [measure(pair.original, _fitted(pairs[other[i]].coded, pair.original)) for i, pair in enumerate(pairs)]
    same = [measure(pair.original, pair.original) for pair in pairs[:20]]
    groups = sorted({pair.group for pair in pairs})
    return Result(
        name=name,
        value=float(np.mean(scores)),
        stderr=mean_stderr(scores),
        n=len(scores),
        higher_is_better=True,
        records=[
            {
                "index": index,
                "group": pair.group,
                "prompt": bench.show(name, index, "before", [pair.original]),
                "answer": bench.show(name, index, "after", [pair.coded]),
                "tokens": int(pair.codes.size),
                "score": score,
            }
            for index, (pair, score) in enumerate(zip(pairs, scores, strict=True))
        ],
        facts={
            group: float(np.mean([score for pair, score in zip(pairs, scores, strict=True) if pair.group == group]))
            for group in groups
        },
        controls={"positive": float(np.mean(same)), "negative": float(np.mean(wrong))},
        notes=f"{notes} Positive control: the original against itself. Negative: against another's reconstruction.",
    )


def _fitted(other: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Another reconstruction in the original's shape: repeated and cut in time, or resized by nearest pixel."""
    if original.ndim == 1:
        return np.resize(other, original.shape)
    rows = np.arange(original.shape[0]) * other.shape[0] // original.shape[0]
    columns = np.arange(original.shape[1]) * other.shape[1] // original.shape[1]
    return other[rows][:, columns]


def _recordings(bench: Bench, n: int) -> list[tuple[str, np.ndarray, int]]:
    """(group, samples, voice) of held-out recordings: half in unseen voices, half in the assistant's own."""
    half = max(1, n // 2)
    heard = [
        ("unseen voices", samples_of(bench.omni, part), ANY_VOICE)
        for item in bench.items("transcribe", half)
        for part in prompt_parts(item)
        if kind_of(part) == "audio"
    ]
    said = [
        ("assistant voices", np.asarray(item.facts["samples"], np.float32), int(item.facts.get("voice", ANY_VOICE)))
        for item in bench.items("speak", half)
        if "samples" in item.facts
    ]
    return heard + said


def _stills(bench: Bench, pictures: int, films: int) -> list[tuple[str, np.ndarray]]:
    """(group, pixels) of unseen people's digits, unseen scenes, frames of unseen films, unseen emoji."""
    stills = []
    for group, task, n in (("digits", "digits", pictures), ("scenes", "captions", pictures), ("films", "video", films)):
        for item in bench.items(task, n):
            for part in prompt_parts(item):
                if kind_of(part) == "image":
                    stills.append((group, pixels_of(bench.omni, part)))
                elif kind_of(part) == "video":
                    stills += [(group, frame) for frame in frames_of(bench.omni, part)]
    if bench.corpus is not None:
        emoji = bench.corpus.emoji("test")
        step = max(1, len(emoji) // pictures)
        stills += [("emoji, 64 pixels", pixels) for _, pixels in emoji[::step][:pictures]]
    return stills


def _sounds(bench: Bench) -> list[Pair]:
    """Recordings before and after the codec."""
    codec = bench.omni.tokenizer.audio

    def make() -> list[Pair]:
        recordings = _recordings(bench, bench.n)
        coded = _encode_sounds(bench, [samples for _, samples, _ in recordings])
        return [
            Pair(group, samples, np.asarray(codec.decode(codes, voice), np.float32), codes)
            for (group, samples, voice), codes in zip(recordings, coded, strict=True)
        ]

    return bench.once(("coded sounds", bench.n), make)


def _pictures(bench: Bench) -> list[Pair]:
    """Pictures before and after the codec; of a film, whose frames are much alike, only the first."""
    codec = bench.omni.tokenizer.image
    quarter = max(1, bench.n // 4)

    def make() -> list[Pair]:
        stills = _stills(bench, quarter, films=0)
        for item in bench.items("video", quarter):
            films = [part for part in prompt_parts(item) if kind_of(part) == "video"]
            stills += [("films", frames_of(bench.omni, part)[0]) for part in films]
        pairs = []
        for batch in _by_shape(stills):
            pixels = np.stack([picture for _, picture in batch])
            codes = np.asarray(codec.encode(pixels))
            coded = np.asarray(codec.decode(codes))
            groups = [group for group, _ in batch]
            pairs += [Pair(*parts) for parts in zip(groups, pixels, coded, codes, strict=True)]
        return pairs

    return bench.once(("coded pictures", bench.n), make)


def _by_shape(stills: list[tuple[str, np.ndarray]]) -> list[list[tuple[str, np.ndarray]]]:
    shapes = sorted({pixels.shape for _, pixels in stills})
    return [[(group, pixels) for group, pixels in stills if pixels.shape == shape] for shape in shapes]


def _picture_codes(bench: Bench) -> list[np.ndarray]:
    """Codes of each of many held-out pictures."""
    codec = bench.omni.tokenizer.image
    stills = _stills(bench, USAGE_PICTURES, USAGE_FILMS)
    return [
        np.asarray(row).ravel()
        for batch in _by_shape(stills)
        for row in np.asarray(codec.encode(np.stack([pixels for _, pixels in batch])))
    ]


def _sound_codes(bench: Bench) -> list[np.ndarray]:
    """Codes of each of all held-out recordings."""
    sounds = [samples for _, samples, _ in _recordings(bench, USAGE_SOUNDS)]
    if bench.corpus is not None:
        sounds += [bench.corpus.samples(utterance) for utterance in bench.corpus.speech("asked")]
    return _encode_sounds(bench, sounds)


def _encode_sounds(bench: Bench, sounds: list[np.ndarray]) -> list[np.ndarray]:
    """Codes of each sound, int32 [tokens]; many at a time where the codec can."""
    codec = bench.omni.tokenizer.audio
    coded = codec.encode_many(sounds) if hasattr(codec, "encode_many") else map(codec.encode, sounds)
    return [np.asarray(codes, np.int32).ravel() for codes in coded]
