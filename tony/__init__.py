"""Tony: train, align, evaluate and serve an omni-modal reasoning language model with one JAX program."""

__version__ = "0.1.0"
