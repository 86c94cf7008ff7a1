"""Facts about the data, written beside the results so that the card needs nothing but the run's folder."""

from typing import Any

SPLITS = {
    "train": ("speech", "train", "learnt from"),
    "heard": ("speech", "test", "unseen sentences in unseen voices"),
    "asked": ("speech", "test", "unseen spoken questions in unseen voices"),
    "spoken": ("speech", "test", "unseen sentences in the assistant's own voices"),
    "human_train": ("human speech", "train", "one recorded speaker's prompts"),
    "human_test": ("human speech", "test", "the same speaker, unseen prompts"),
}


def describe(corpus: Any) -> dict:
    """Sizes of every split of the corpus, how the splits are kept apart, and the corpus's own notice of licences."""
    rows = []
    for split, use in (("train", "train"), ("test", "test")):
        _, labels = corpus.digits(split)
        rows.append({"kind": "handwritten digits", "split": split, "use": use, "count": len(labels),
                     "note": "written by different people than the other split"})  # fmt: skip
        rows.append({"kind": "emoji", "split": split, "use": use, "count": len(corpus.emoji(split)),
                     "note": "different pictures, up to skin tone"})  # fmt: skip
    for split, (kind, use, note) in SPLITS.items():
        utterances = corpus.speech(split)
        voices = {voice for utterance in utterances for voice in utterance.voice.split("+")}
        if utterances:
            rows.append({"kind": kind, "split": split, "use": use, "count": len(utterances), "voices": len(voices),
                         "sentences": len({utterance.text for utterance in utterances}), "note": note})  # fmt: skip
    notice = corpus.path / "NOTICE.md"
    return {
        "corpus": str(corpus.path.name),
        "rows": rows,
        "notice": notice.read_text(encoding="utf-8") if notice.is_file() else "",
    }
