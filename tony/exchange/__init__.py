"""Models of other families in and out: safetensors folders as Hugging Face's `transformers` keeps them, and GGUF."""
