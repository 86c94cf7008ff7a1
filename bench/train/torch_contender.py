"""The same decoder in PyTorch, run by the peers' Python: `python torch_contender.py WORK KIND`.

KIND is eager_float32, compiled_float32, eager_bf16, compiled_bf16, or trainer (transformers' Llama or Mixtral in
Hugging Face's Trainer, bfloat16).
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # `bench`, which has no PyTorch environment's packages

from bench.train.work import BETAS, CLIP, LEARNING_RATE, LENGTH, ROWS, WEIGHT_DECAY, WORKS, serve


class Attention(nn.Module):
    """Causal attention with rotary positions."""

    def __init__(self, shape: dict):
        super().__init__()
        inner = shape["heads"] * shape["head_dim"]
        self.heads = shape["heads"]
        self.qkv = nn.Linear(shape["width"], 3 * inner, bias=False)
        self.out = nn.Linear(inner, shape["width"], bias=False)

    def forward(self, x, cosine, sine):
        b, l, _ = x.shape
        q, k, v = self.qkv(x).view(b, l, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (turned(y, cosine, sine) for y in (q, k))
        made = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(made.transpose(1, 2).reshape(b, l, -1))


def turned(x, cosine, sine):
    """Rotary positions, halves paired."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1).to(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: dict):
        super().__init__()
        self.gate = nn.Linear(shape["width"], shape["hidden"], bias=False)
        self.up = nn.Linear(shape["width"], shape["hidden"], bias=False)
        self.down = nn.Linear(shape["hidden"], shape["width"], bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """Tokens go to the best experts, one expert after the other, without a capacity."""

    def __init__(self, shape: dict):
        super().__init__()
        self.router = nn.Linear(shape["width"], shape["experts"], bias=False)
        self.experts = nn.ModuleList(FeedForward(shape) for _ in range(shape["experts"]))
        self.chosen = shape["experts_per_token"]

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        probabilities = self.router(flat).float().softmax(-1)
        weights, chosen = probabilities.topk(self.chosen, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        made = torch.zeros_like(flat, dtype=torch.float32)
        for index, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == index)
            made.index_add_(0, token, (expert(flat[token]) * weights[token, rank, None]).float())
        return made.view(x.shape)


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, shape: dict):
        super().__init__()
        self.norm, self.second_norm = (nn.RMSNorm(shape["width"], eps=1e-6) for _ in range(2))
        self.attention = Attention(shape)
        self.feed_forward = Experts(shape) if shape["experts"] else FeedForward(shape)

    def forward(self, x, cosine, sine):
        x = x + self.attention(self.norm(x), cosine, sine)
        return x + self.feed_forward(self.second_norm(x))


class Decoder(nn.Module):
    """The whole network; gives the mean cross-entropy."""

    def __init__(self, shape: dict):
        super().__init__()
        self.embedding = nn.Embedding(shape["vocab_size"], shape["width"])
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape["layers"]))
        self.norm = nn.RMSNorm(shape["width"], eps=1e-6)
        self.unembedding = nn.Linear(shape["width"], shape["vocab_size"], bias=False)
        half = shape["head_dim"] // 2
        angles = torch.arange(LENGTH)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cosine, self.sine)
        logits = self.unembedding(self.norm(x))
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def main(work: str, kind: str) -> None:
    """Steps of AdamW on one random batch."""
    torch.manual_seed(0)
    shape = WORKS[work]
    tokens = torch.randint(shape["vocab_size"], (ROWS, LENGTH + 1))
    if kind == "trainer":
        trainer(shape, tokens)
        return
    model = Decoder(shape)
    run = torch.compile(model) if kind.startswith("compiled") else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
    )
    half = kind.endswith("bf16")

    def one() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = run(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return loss.item()

    serve(one, sum(p.numel() for p in model.parameters()), {"torch": torch.__version__})


def trainer(shape: dict, tokens) -> None:
    """Hugging Face's Trainer on its own model of this shape; it goes on for as many steps as it is asked for."""
    import transformers

    common = {
        "vocab_size": shape["vocab_size"], "hidden_size": shape["width"], "num_hidden_layers": shape["layers"],
        "intermediate_size": shape["hidden"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["heads"], "head_dim": shape["head_dim"], "tie_word_embeddings": False,
        "max_position_embeddings": LENGTH, "use_cache": False,
    }  # fmt: skip
    if shape["experts"]:
        config = transformers.MixtralConfig(
            **common, num_local_experts=shape["experts"], num_experts_per_tok=shape["experts_per_token"]
        )
    else:
        config = transformers.LlamaConfig(**common)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    row = {"input_ids": tokens[:, :-1], "labels": tokens[:, :-1]}  # it shifts the labels itself
    arguments = transformers.TrainingArguments(
        output_dir="/tmp/bench-train", use_cpu=True, bf16=True, learning_rate=LEARNING_RATE, adam_beta2=BETAS[1],
        weight_decay=WEIGHT_DECAY, max_grad_norm=CLIP, max_steps=1_000_000, lr_scheduler_type="constant",
        per_device_train_batch_size=ROWS, logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    own = transformers.Trainer(model=model, args=arguments)
    own.current_gradient_accumulation_steps = 1  # which its loop sets
    own.create_optimizer_and_scheduler(num_training_steps=arguments.max_steps)
    own.model_wrapped = own.accelerator.prepare(model)
    own.optimizer = own.accelerator.prepare(own.optimizer)

    def one() -> float:
        loss = own.training_step(own.model_wrapped, dict(row))
        own.accelerator.clip_grad_norm_(model.parameters(), CLIP)
        own.optimizer.step()
        own.model_wrapped.zero_grad()
        return float(loss)

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    serve(one, sum(p.numel() for p in model.parameters()), versions)


if __name__ == "__main__":
    main(*sys.argv[1:])
