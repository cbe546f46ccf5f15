"""Random weights: those of the checkpoint `random`, and those with which training starts."""

import math

import torch

from llama3_scratch.config import weight_shapes


def random_weights(config, seed, dtype=torch.float32):
    """Config, seed -> {Meta's name: tensor}, the same on every machine.

    Norms are 1; a matrix is normal with variance 1/(number of its inputs), so that values keep
    their size as they pass through it; the embedding table is normal with variance 1.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        scale = 1.0 if name == "tok_embeddings.weight" else 1 / math.sqrt(shape[-1])
        drawn = torch.ones(shape, device="cpu")
        if len(shape) == 2:
            drawn = torch.randn(shape, generator=generator, device="cpu") * scale
        weights[name] = drawn.to(dtype)
    if config.tied_output:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return weights
