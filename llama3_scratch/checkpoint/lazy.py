"""Weights that stay on disk until they are used."""

from collections.abc import Mapping

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class LazyWeights(Mapping):
    """{Meta's name: tensor}, where each tensor is read, cast and moved whenever it is looked up.

    names: those of all tensors; read: name -> tensor as the model expects it; dtype, device: None
    leaves what `read` returns. costly: the names of tensors whose `read` takes time and memory;
    these are cached on their second use. (So a single pass, as for one token, a check or a copy to
    a GPU, caches nothing.) packed: the bytes that all take in the file, if `read` makes numbers of
    another form from them, which is done anew on each use. read_part: (name, rank, ranks) -> the
    slice of the tensor for one of several ranks, if it can be read without the rest.
    """

    def __init__(
        self, names, read, dtype=None, device=None, costly=(), packed=None, read_part=None
    ):
        self.names, self.read = dict.fromkeys(names), read
        self.dtype, self.device, self.costly = dtype, device, frozenset(costly)
        self.packed, self.read_part = packed, read_part
        self.used, self.cached = set(), {}

    def to(self, dtype, device):
        """Return the same weights, to be cast and moved when they are looked up."""
        moved = LazyWeights(
            self.names, self.read, dtype, device, self.costly, self.packed, self.read_part
        )
        moved.used, moved.cached = self.used, self.cached
        return moved

    def __getitem__(self, name):
        if name not in self.names:
            raise KeyError(name)
        tensor = self.cached.get(name)
        if tensor is None:
            tensor = self.read(name)
            if name in self.costly and name in self.used:
                self.cached[name] = tensor
            self.used.add(name)
        if self.dtype is None and self.device is None:
            return tensor
        return tensor.to(self.device or tensor.device, self.dtype or tensor.dtype)

    def __contains__(self, name):
        return name in self.names

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)
