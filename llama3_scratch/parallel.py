"""One model on several ranks: each holds a slice of every matrix and runs the same `forward`.

A rank of p has N/p query heads, K/p key/value heads and F/p columns between. Weights whose *rows*
are split (wq, wk, wv, w1, w3) are plain matrices of fewer heads or columns; what wo and w2 give,
whose *columns* are split, is added up over the ranks; the embeddings and the output are split by
vocabulary (Shoeybi et al. 2019, arXiv:1909.08053; the slices are those of Meta's files, and the
sums those of fairscale's `model_parallel`). The stream, the norms and the logits are whole and the
same on every rank, so the ranks choose the same tokens from the same seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from llama3_scratch.checkpoint import load
from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.checkpoint.meta import cut
from llama3_scratch.checkpoint.source import Checkpoint, open_checkpoint
from llama3_scratch.config import Config
from llama3_scratch.errors import require
from llama3_scratch.processes import collective

TABLES = "tok_embeddings.weight", "output.weight"
SUMMED = "attention.wo.weight", "feed_forward.w2.weight"


# Who holds what


@dataclass(frozen=True)
class SliceConfig(Config):
    """The sizes of one rank's slice: N, K and F are those of the slice, D and V of the model."""

    ranks: int = 1

    @property
    def head_dim(self):
        """H: that of the whole model."""
        return self.dim // (self.n_heads * self.ranks)

    @property
    def ffn_dim(self):
        """F of the slice."""
        return super().ffn_dim // self.ranks

    @property
    def n_parameters(self):
        """The number of values that the rank holds."""
        tables = self.vocab_size * self.dim * (1 if self.tied_output else 2)
        return super().n_parameters - tables + tables // self.ranks


def slice_config(config, ranks):
    """Config, p -> the `SliceConfig` of each rank. Raises `InputError` if p does not divide it."""
    sizes = {"n_kv_heads": config.n_kv_heads, "F": config.ffn_dim, "vocab_size": config.vocab_size}
    for name, size in sizes.items():
        require(
            size % ranks == 0,
            f"{name} is {size}: expected a multiple of the {ranks} ranks, each of which holds as "
            "much as the others. Start fewer.",
        )
    heads = {"n_heads": config.n_heads // ranks, "n_kv_heads": config.n_kv_heads // ranks}
    return SliceConfig(**{**vars(config), **heads}, ranks=ranks)


def slice_weights(weights, rank, ranks):
    """All weights -> those of one rank, plain tensors: [O/p, I] or [O, I/p]; the norms are whole.

    Of files only the slice is read, when it is used.
    """
    if not getattr(weights, "read_part", None):
        packed = getattr(weights, "packed", None)
        return LazyWeights(
            weights, lambda name: cut(weights[name], name, rank, ranks), packed=packed
        )

    def read(name):
        return weights.read_part(name, rank, ranks)

    return LazyWeights(weights, read, weights.dtype, weights.device, weights.costly)


def open_slice(source, rank, ranks):
    """What `load` takes -> the Checkpoint of one rank, as stored, each slice read when it is used.

    If there are as many of Meta's files as ranks, a slice is what lies in the rank's own file.
    """
    stored = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    config = slice_config(stored.config, ranks)
    require(
        torch.is_tensor(stored.weights["layers.0.feed_forward.w2.weight"]),
        "the matrices are in few bits, which are not sliced: run by layers, with --pipeline.",
    )
    return stored._replace(weights=slice_weights(stored.weights, rank, ranks), config=config)


# What travels


class _Sum(torch.autograd.Function):
    """[...] on each rank -> the sum over the ranks, on every rank, the same bits on each."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        collective(dist.all_reduce, total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class _Copy(torch.autograd.Function):
    """What every rank has and uses differently: its gradients are summed over the ranks."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.forward(ctx, gradient)


class _Joined(torch.autograd.Function):
    """[..., V/p] of each rank -> [..., V], on every rank."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        collective(dist.all_gather, parts, x.contiguous())
        return torch.cat(parts, dim=-1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.chunk(dist.get_world_size(), dim=-1)[dist.get_rank()]


class Summed:
    """wo or w2, split by columns, as `linear` multiplies by it: [..., I/p] -> [..., O], summed."""

    def __init__(self, part):
        self.part, self.T = part, self

    def __rmatmul__(self, x):
        return _Sum.apply(x @ self.part.T)


class Joined:
    """The output, split by vocabulary: [..., D] -> [..., V], joined from all ranks."""

    def __init__(self, part):
        self.part, self.T = part, self

    def __rmatmul__(self, x):
        return _Joined.apply(x @ self.part.T)


class Table:
    """The embeddings, split by vocabulary: ids [..., T] -> rows [..., T, D], looked up by one rank.

    The other ranks contribute zeros.
    """

    def __init__(self, part):
        self.part = part

    def __getitem__(self, tokens):
        own = tokens - dist.get_rank() * len(self.part)
        elsewhere = (own < 0) | (own >= len(self.part))  # [..., T]
        rows = self.part[own.masked_fill(elsewhere, 0)]  # [..., T, D]
        return _Sum.apply(rows.masked_fill(elsewhere[..., None], 0))


class Norm:
    """The weight of a norm in training, before matrices whose rows are split."""

    def __init__(self, weight):
        self.weight = weight

    def __rmul__(self, normed):
        return _Copy.apply(normed * self.weight)


class Parallel(Mapping):
    """The plain weights of one rank -> the same, as `forward` computes with them among the ranks.

    With weights that require gradients, each gets the gradient that its part of the whole has.
    """

    def __init__(self, weights):
        self.weights = weights

    def __iter__(self):
        return iter(self.weights)

    def __len__(self):
        return len(self.weights)

    def __getitem__(self, name):
        weight = self.weights[name]
        if name in TABLES:
            return (Table if name == TABLES[0] else Joined)(weight)
        if name.endswith(SUMMED):
            return Summed(weight)
        trained = name.endswith("norm.weight") and weight.requires_grad
        return Norm(weight) if trained else weight


def load_slice(directory=None, dtype=None, device=None):
    """As `load`, of this rank's slice -> Checkpoint, whose weights compute among the ranks.

    directory, dtype, device: as in `load`. Called by every rank. Raises `InputError`.
    """
    slice_ = open_slice(directory, dist.get_rank(), dist.get_world_size())
    loaded = load(slice_, dtype, device)
    return loaded._replace(weights=Parallel(loaded.weights))
