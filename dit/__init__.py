"""Train and evaluate diffusion transformers, with results that can be trusted."""

__version__ = "0.1.0"
