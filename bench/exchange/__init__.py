"""Tony's models beside transformers' and llama.cpp's, on the same weights."""
