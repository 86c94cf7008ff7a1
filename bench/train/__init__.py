"""Training throughput beside PyTorch and Hugging Face's Trainer."""
