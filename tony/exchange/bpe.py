"""Byte-pair tokenizers in and out of GGUF files: lists of tokens, kinds and merges, the name of a splitting rule."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tony.errors import TonyError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of tokens, as llama.cpp numbers them
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + (
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# What splits a text before merging, by the name that llama.cpp gives it; see `_signature`.
SPLITS: dict[str, tuple] = {
    "smollm": (("Digits", True), ("ByteLevel", True)),
    "gpt-2": (("ByteLevel", True),),
    "llama-bpe": (("Split", LLAMA3), ("ByteLevel", False)),
    "qwen2": (("Split", QWEN2), ("ByteLevel", False)),
}
SAME = {"default": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "llama4": "llama-bpe"}
SPACE = "▁"


def from_gguf(metadata: Mapping[str, Any], where: str):
    """(tokenizers.Tokenizer, begin or None, ends, chat template or None) of a file's metadata."""
    from tokenizers import AddedToken

    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise TonyError(f"{where} has no tokens; expected a file with its tokenizer")
    kinds = metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    kinds = kinds if isinstance(kinds, list) else []
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise TonyError(
            f"{where} has {len(tokens)} tokens, {len(set(tokens))} of them different, and {len(kinds)} kinds"
        )
    if kind == "gpt2":
        model = _byte_level(metadata, tokens, where)
    elif kind == "llama":
        model = _pieces(metadata, tokens, where)
    else:
        raise TonyError(f"{where} has a tokenizer of kind {str(kind)[:40]!r}; supported are gpt2 and llama")
    model.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, k in zip(tokens, kinds, strict=True)
            if k == CONTROL
        ]
    )
    model.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, kinds, strict=True) if k == USER_DEFINED])
    begin = _begin(metadata, model, tokens, kind)
    found = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(end for end in found if isinstance(end, int) and 0 <= end < len(tokens)))
    template = metadata.get("tokenizer.chat_template")
    return model, begin, ends, template if isinstance(template, str) else None


def _begin(metadata, model, tokens, kind) -> int | None:
    """The token that the file asks to begin texts with, which the tokenizer is made to do."""
    begin = metadata.get("tokenizer.ggml.bos_token_id")
    if not isinstance(begin, int) or not 0 <= begin < len(tokens):
        return None
    split = metadata.get("tokenizer.ggml.pre", "default")
    usual = kind == "llama" or SAME.get(split, split) == "llama-bpe"  # where the file does not say, as llama.cpp has it
    if not metadata.get("tokenizer.ggml.add_bos_token", usual):
        return None
    begin_with(model, tokens[begin], begin)
    return begin


def begin_with(model, name: str, token: int) -> None:
    """Have a `tokenizers.Tokenizer` begin every text with a token, which is called `name`."""
    from tokenizers import processors

    model.post_processor = processors.TemplateProcessing(single=[name, "$A"], special_tokens=[(name, token)])


def _byte_level(metadata, tokens, where):
    from tokenizers import Tokenizer, decoders, models

    name = metadata.get("tokenizer.ggml.pre", "default")
    split = SPLITS.get(SAME.get(name, name)) if isinstance(name, str) else None
    if split is None:
        raise TonyError(f"{where} splits texts by the rule {str(name)[:40]!r}; supported are {', '.join(SPLITS)}")
    told = metadata.get("tokenizer.ggml.merges")
    told = told if isinstance(told, list) else []
    merges = [tuple(merge.split(" ", 1)) for merge in told if isinstance(merge, str) and " " in merge.strip()]
    vocab = {token: index for index, token in enumerate(tokens)}
    if any(left not in vocab or right not in vocab or left + right not in vocab for left, right in merges):
        raise TonyError(f"{where}: its merges make tokens that it has not got; copy it again")
    model = Tokenizer(models.BPE(vocab, merges, ignore_merges=split is SPLITS["llama-bpe"]))
    model.pre_tokenizer = _splitter(split)
    model.decoder = decoders.ByteLevel()
    return model


def _pieces(metadata, tokens, where):
    """SentencePiece's pairs: what has the higher score is merged first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or not all(isinstance(s, float) for s in scores):
        raise TonyError(f"{where} has no score for each of its tokens; copy it again")
    vocab = {token: index for index, token in enumerate(tokens)}
    found = [
        (-scores[vocab[token]], index, token[:at], token[at:])
        for index, token in enumerate(tokens)
        for at in range(1, min(len(token), 64))
        if token[:at] in vocab and token[at:] in vocab
    ]
    merges = [(left, right) for _, _, left, right in sorted(found)]
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    name = tokens[unknown] if isinstance(unknown, int) and 0 <= unknown < len(tokens) else None
    model = Tokenizer(models.BPE(vocab, merges, unk_token=name, fuse_unk=True, byte_fallback="<0x00>" in vocab))
    prefix = [normalizers.Prepend(SPACE)] if metadata.get("tokenizer.ggml.add_space_prefix", True) else []
    model.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    model.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return model


def _splitter(split):
    from tokenizers import Regex, pre_tokenizers

    made = []
    for kind, value in split:
        if kind == "Digits":
            made.append(pre_tokenizers.Digits(individual_digits=value))
        elif kind == "Split":
            made.append(pre_tokenizers.Split(Regex(value), "isolated"))
        else:
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=value))
    return pre_tokenizers.Sequence(made)


def _signature(part: Mapping[str, Any] | None) -> tuple:
    """What a pre-tokenizer of a tokenizer.json does, in the form of SPLITS."""
    match part:
        case {"type": "Sequence", "pretokenizers": parts}:
            return tuple(one for inner in parts for one in _signature(inner))
        case {"type": "Digits", "individual_digits": value}:
            return (("Digits", value),)
        case {"type": "Split", "pattern": {"Regex": pattern}}:
            return (("Split", pattern),)
        case {"type": "ByteLevel"}:
            return (("ByteLevel", dict(part or {}).get("use_regex", True)),)
    return (("other", None),)


def to_gguf(model, rows: int, ends: Sequence[int], begin: int | None, template: str | None) -> dict[str, Any]:
    """The metadata that makes llama.cpp split and merge as a `tokenizers.Tokenizer` does; TonyError if it cannot."""
    told = json.loads(model.to_str())
    split = _signature(told["pre_tokenizer"])
    name = next((name for name, known in SPLITS.items() if known == split), None)
    if told["model"]["type"] != "BPE" or name is None:
        raise TonyError("this tokenizer's way of splitting texts has no name in GGUF; export it as safetensors")
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in told["added_tokens"]}
    spelled = {index: token for token, index in model.get_vocab(with_added_tokens=True).items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in told["model"]["merges"]]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [spelled.get(index, f"[PAD{index}]") for index in range(rows)],
        "tokenizer.ggml.token_type": [added.get(i, NORMAL if i in spelled else UNUSED) for i in range(rows)],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": ends[0],
        "tokenizer.ggml.add_bos_token": begin is not None and model.encode("").ids[:1] == [begin],
    }
    if len(ends) > 1:
        metadata["tokenizer.ggml.eot_token_id"] = ends[1]
    if begin is not None:
        metadata["tokenizer.ggml.bos_token_id"] = begin
    if template:
        metadata["tokenizer.chat_template"] = template
    return metadata
