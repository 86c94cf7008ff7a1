"""Evaluations of what the model says aloud, through the ears of a recogniser that shares nothing with it."""

import numpy as np

from tony.data.world.sentences import COLORS, ONES, SHAPES
from tony.evals.bench import Bench, prompt_parts, spoken, text_of
from tony.evals.hearing import shuffled_wer, wer_result
from tony.evals.judges.speech import LONGEST_SECONDS, SAMPLE_RATE, timed
from tony.evals.judges.words import normalise, word_error_rate, word_errors
from tony.evals.result import Result, binomial_stderr, derangement

_ALTERNATIVES = (frozenset(ONES), frozenset(COLORS), frozenset(SHAPES))
# Said aloud these are one sound; which spelling the recogniser picks says nothing about the answer.
_HOMOPHONES = {"to": "two", "too": "two", "for": "four", "ate": "eight", "won": "one", "read": "red"}


def tts_wer(bench: Bench) -> list[Result]:
    """Word errors of unseen sentences read aloud, and of the same sentences' source recordings: two results."""
    items = bench.items("speak", bench.n)
    answers = bench.say(items)
    said = [_audible(spoken(bench.omni, answer)) for answer in answers]
    sources = [np.asarray(item.facts["samples"], np.float32) for item in items]
    references = [item.answer for item in items]
    heard, speed = timed(bench.recogniser, said)
    heard_sources, _ = timed(bench.recogniser, sources)
    pairs = [word_errors(reference, text) for reference, text in zip(references, heard, strict=True)]
    source_pairs = [word_errors(reference, text) for reference, text in zip(references, heard_sources, strict=True)]

    def records(name: str, texts: list[str], counted: list, shown: list[list]) -> list[dict]:
        return [
            {
                "index": index,
                "prompt": bench.show(name, index, "prompt", prompt_parts(item)),
                "answer": bench.show(name, index, "answer", parts),
                "expected": item.answer,
                "heard": text,
                "errors": pair.errors,
                "words": pair.words,
                "correct": pair.errors == 0,
                "score": pair.errors / max(1, pair.words),
            }
            for index, (item, text, pair, parts) in enumerate(zip(items, texts, counted, shown, strict=True))
        ]

    source_wer = word_error_rate(source_pairs)
    judge = bench.recogniser.name
    return [
        wer_result(
            "tts_wer",
            pairs,
            records("tts_wer", heard, pairs, [list(answer.content) for answer in answers]),
            controls={"positive": source_wer, "negative": shuffled_wer(references, heard, bench.seed)},
            notes=f"Heard by {judge}, at {speed:.1f} times real time. Positive control: the source recordings of the "
            "same sentences. Negative: what was heard against another sentence.",
            silent=float(np.mean([len(sound) == 0 for sound in said])),
        ),
        wer_result(
            "tts_source_wer",
            source_pairs,
            records("tts_source_wer", heard_sources, source_pairs, [[sound] for sound in sources]),
            controls={
                "positive": word_error_rate([word_errors(text, text) for text in references]),
                "negative": shuffled_wer(references, heard_sources, bench.seed),
            },
            notes=f"Heard by {judge}; no speech learnt from these voices can be expected to be understood better. "
            "Positive control: the reference texts. Negative: what was heard against another sentence.",
        ),
    ]


def speech_image_speech(bench: Bench) -> list[Result]:
    """Asked aloud about a picture, answers aloud: right if the recogniser hears the one right answer in it."""
    items = bench.items("spoken_question", bench.n)
    answers = bench.ask(items, "audio", max_tokens=320)
    said = [_audible(spoken(bench.omni, answer)) for answer in answers]
    heard, _ = timed(bench.recogniser, said)
    right = [says(item, text) for item, text in zip(items, heard, strict=True)]
    written = [says(item, _written(answer)) for item, answer in zip(items, answers, strict=True)]
    records = [
        {
            "index": index,
            "prompt": bench.show("speech_image_speech", index, "prompt", prompt_parts(item)),
            "answer": bench.show("speech_image_speech", index, "answer", list(answer.content)),
            "expected": item.answer,
            "heard": text,
            "correct": ok,
            "score": float(ok),
        }
        for index, (item, answer, text, ok) in enumerate(zip(items, answers, heard, right, strict=True))
    ]
    other = derangement(len(items), bench.seed)
    return [
        Result(
            name="speech_image_speech",
            value=float(np.mean(right)),
            stderr=binomial_stderr(sum(right), len(right)),
            n=len(right),
            higher_is_better=True,
            records=records,
            facts={"right in its transcript": float(np.mean(written))},
            controls={
                "positive": float(np.mean([says(item, item.answer) for item in items])),
                "negative": float(np.mean([says(items[other[i]], text) for i, text in enumerate(heard)])),
            },
            notes=f"Judged on what {bench.recogniser.name} heard. Positive control: the reference answers as text. "
            "Negative: what was heard, graded for another question.",
        )
    ]


def says(item, heard: str) -> bool:
    """The word that decides the answer was heard, and no other word that could have stood in its place."""
    choices = next(group for group in _ALTERNATIVES if item.facts["key"] in group)
    words = [_HOMOPHONES.get(word, word) for word in normalise(heard).split()]
    return {word for word in words if word in choices} == {item.facts["key"]}


def _written(answer) -> str:
    """The words an answer says it says: the text of its speech parts, or its plain text."""
    return " ".join(part.text for part in answer.content if getattr(part, "text", None)) or text_of(answer)


def _audible(sound: np.ndarray) -> np.ndarray:
    """The first half minute: what the recogniser takes. Longer answers are errors in any case."""
    return sound[: LONGEST_SECONDS * SAMPLE_RATE]
