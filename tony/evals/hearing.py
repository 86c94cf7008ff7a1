"""speech_wer: what the model hears, in words wrong per word said."""

from tony.evals.bench import Bench, prompt_parts, text_of
from tony.evals.judges.words import WordErrors, normalise, word_error_rate, word_errors
from tony.evals.result import Result, derangement, ratio_stderr


def speech_wer(bench: Bench) -> list[Result]:
    """Transcription of unseen sentences in unseen voices, against the text that was spoken."""
    items = bench.items("transcribe", bench.n)
    answers = bench.ask(items, "text", max_tokens=96)
    texts = [text_of(answer) for answer in answers]
    references = [item.answer for item in items]
    pairs = [word_errors(reference, text) for reference, text in zip(references, texts, strict=True)]
    records = [
        {
            "index": index,
            "prompt": bench.show("speech_wer", index, "prompt", prompt_parts(item)),
            "answer": [{"kind": "text", "text": text}],
            "expected": item.answer,
            "normalised": normalise(text),
            "errors": pair.errors,
            "words": pair.words,
            "correct": pair.errors == 0,
            "score": pair.errors / max(1, pair.words),
        }
        for index, (item, text, pair) in enumerate(zip(items, texts, pairs, strict=True))
    ]
    return [
        wer_result(
            "speech_wer",
            pairs,
            records,
            controls={
                "positive": word_error_rate([word_errors(text, text) for text in references]),
                "negative": shuffled_wer(references, texts, bench.seed),
            },
            notes="Positive control: the reference transcripts. Negative: each answer against another sentence.",
        )
    ]


def shuffled_wer(references: list[str], texts: list[str], seed: int) -> float:
    """Word error rate when every text is compared with another sentence's reference."""
    other = derangement(len(references), seed)
    return word_error_rate([word_errors(references[other[i]], text) for i, text in enumerate(texts)])


def wer_result(name: str, pairs: list[WordErrors], records: list[dict], controls: dict, notes: str, **more) -> Result:
    """A Result of a word error rate, with its standard error bootstrapped over utterances."""
    exact = sum(pair.errors == 0 for pair in pairs) / max(1, len(pairs))
    return Result(
        name=name,
        value=word_error_rate(pairs),
        stderr=ratio_stderr([pair.errors for pair in pairs], [pair.words for pair in pairs]),
        n=len(pairs),
        higher_is_better=False,
        records=records,
        controls=controls,
        facts={"sentences without error": exact, "words": float(sum(pair.words for pair in pairs)), **more},
        notes=notes,
    )
