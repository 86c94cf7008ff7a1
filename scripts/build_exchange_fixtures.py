"""Make tests/exchange/fixtures: tiny random models of each family with what `transformers` computes of them.

Run in an environment with torch and transformers (`python bench/exchange/environment.py` makes one):

    .peers/bin/python scripts/build_exchange_fixtures.py
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

OUT = Path(__file__).parents[1] / "tests" / "exchange" / "fixtures"
SHAPE = {
    "vocab_size": 280, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
MODELS = {
    "llama": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16}}),
    "mistral": ("Mistral", {"sliding_window": 7, "head_dim": 6}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 1e-6}),
    "qwen3": ("Qwen3", {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 8,
                               "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [1]}),
}  # fmt: skip
TEMPLATES = {
    "chatml": "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system"
    "\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "blocks": "{{ bos_token }}\n{%- for message in messages %}\n    {%- if message.role == 'user' %}\n"
    "[INST] {{ message.content | trim }} [/INST]\n    {%- else %}\n{{ message.content }}{{ eos_token }}\n"
    "    {%- endif %}\n{%- endfor %}\n",
}
TALK = [
    {"role": "user", "content": " What is 27 + 48? "},
    {"role": "assistant", "content": "It is 75."},
    {"role": "user", "content": "Grüße, 世界"},
]
WORDS = ["the quick brown fox jumps over the lazy dog", "27 + 48 = 75", "Grüße an die Welt"] * 10


def tokenizer() -> Tokenizer:
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(vocab_size=280, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return model


def build(name: str, architecture: str, more: dict) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**{**SHAPE, **more})
    model = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from zero and one, rounded so that files can be bfloat16
            spread = 0.5 if parameter.dim() < 2 or name.startswith(("mixtral", "qwen3_moe")) else 0.3
            parameter.add_(spread * torch.randn_like(parameter))
            parameter.copy_(parameter.bfloat16().float())
    tokens = np.random.default_rng(0).integers(4, 280, size=14)
    with torch.no_grad():
        logits = model(torch.tensor(tokens)[None]).logits[0].numpy()
    folder = OUT / name
    model.bfloat16().save_pretrained(folder)
    np.savez_compressed(folder / "expected.npz", tokens=tokens, logits=logits.astype(np.float32))


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    for name, (architecture, more) in MODELS.items():
        build(name, architecture, more)
    text = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer(), bos_token="<s>", eos_token="<|im_end|>")
    chats = []
    for template in TEMPLATES.values():
        text.chat_template = template
        for count, opened in ((1, True), (2, False), (3, True)):
            chat = text.apply_chat_template(TALK[:count], tokenize=False, add_generation_prompt=opened)
            ids = text(chat, add_special_tokens=False)["input_ids"]
            chats.append({"template": template, "messages": TALK[:count], "open": opened, "text": chat, "ids": ids})
    (OUT / "chats.json").write_text(json.dumps(chats, ensure_ascii=False, indent=1))
    text.chat_template = TEMPLATES["chatml"]
    text.save_pretrained(OUT / "tokenizer")


if __name__ == "__main__":
    main()
