"""The other side, run by `.peers/bin/python`: a job as JSON on stdin, its results as JSON and .npz.

{"kind": "transformers", "path": folder or GGUF file, "prompts": [ids], "chats": [[messages]], "count": tokens,
 "out": .npz}                                         -> {"versions", "rendered": [ids], "continued": [ids]}
{"kind": "llama.cpp", "path": GGUF file, "prompts": [ids], "count": tokens} -> {"continued": [ids]}
"""

import json
import sys
import urllib.request
from pathlib import Path


def transformers_job(job: dict) -> dict:
    """Logits of each prompt (into `out`), greedy continuations, and prompts by the model's chat template."""
    import numpy as np
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    path = Path(job["path"])
    folder, named = (path.parent, {"gguf_file": path.name}) if path.suffix == ".gguf" else (path, {})
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **named).eval()
    rendered = []
    if job["chats"]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **named)
        for chat in job["chats"]:
            text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            rendered.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    logits, continued = {}, []
    least = job["count"] if job["endless"] else 1
    end = None if job["endless"] else model.generation_config.eos_token_id
    for index, prompt in enumerate(job["prompts"] or rendered):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=job["count"], min_new_tokens=least,
                do_sample=False, eos_token_id=end,
                pad_token_id=0, repetition_penalty=1.0,
            )[0]  # fmt: skip
            logits[str(index)] = model(made[None]).logits[0].numpy()
        continued.append(made[len(prompt) :].tolist())
    np.savez(job["out"], **logits)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"versions": versions, "architecture": type(model).__name__, "rendered": rendered, "continued": continued}


def llama_job(job: dict) -> dict:
    """Greedy continuations by llama.cpp."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["path"]
    params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = 512, 1, False, 1
    params.cache_type_k = params.cache_type_v = params.flash_attn_type = 0  # float32, and nothing rounded on the way
    server = xllamacpp.Server(params)
    address = server.listening_address
    address = address if address.startswith("http") else f"http://{address}"
    continued = []
    for prompt in job["prompts"]:
        body = {
            "prompt": prompt, "n_predict": job["count"], "temperature": 0.0, "top_k": 1, "repeat_penalty": 1.0,
            "return_tokens": True, "ignore_eos": job["endless"], "cache_prompt": False, "samplers": ["top_k"],
        }  # fmt: skip
        asked = urllib.request.Request(
            f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=600) as answer:
            continued.append(json.load(answer)["tokens"])
    return {"versions": {"xllamacpp": xllamacpp.__version__}, "continued": continued}


if __name__ == "__main__":
    job = json.load(sys.stdin)
    print(json.dumps({"transformers": transformers_job, "llama.cpp": llama_job}[job["kind"]](job)))
