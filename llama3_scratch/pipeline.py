"""One model on several ranks, by layers: each rank computes some of them and sends the stream on.

Less travels than between slices (`parallel`), and the ranks may differ; but of one text only one
rank computes at a time (Huang et al. 2018, arXiv:1811.06965). `forward` stays as it is: its weights
are objects, where the stream arrives or leaves.
"""

from collections import ChainMap
from dataclasses import dataclass

import torch.distributed as dist

from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.config import Config
from llama3_scratch.errors import require
from llama3_scratch.processes import collective

TABLE, NORM, OUTPUT = "tok_embeddings.weight", "norm.weight", "output.weight"


@dataclass(frozen=True)
class StageConfig(Config):
    """The sizes of one rank's stage: `n_layers` are its own; it holds so many of the two tables."""

    n_tables: int = 0

    @property
    def n_parameters(self):
        """The number of values that the rank holds."""
        return super().n_parameters - (2 - self.n_tables) * self.vocab_size * self.dim


def shares(n_layers, spare):
    """L, the bytes that each of p ranks has to spare -> the layers of each, about in proportion."""
    p = len(spare)
    require(n_layers >= p, f"n_layers is {n_layers}: expected one or more for each of {p} ranks.")
    layers = [1] * p
    for _ in range(n_layers - p):  # each goes where it leaves the most to a layer
        layers[max(range(p), key=lambda r: spare[r] / (layers[r] + 1))] += 1
    return layers


def open_stage(stored, rank, layers):
    """An opened checkpoint, a rank, the number of each rank's layers -> its part, as stored.

    The first rank has the embeddings, the last one the output, all have the last norm.
    """
    start, whole = sum(layers[:rank]), stored.weights
    tables = [TABLE] * (rank == 0) + [OUTPUT] * (rank == len(layers) - 1)
    names = {name: name for name in (*tables, NORM)}
    for name in whole:
        _, i, inside = name.split(".", 2) if name.startswith("layers.") else ("", -1, "")
        if 0 <= int(i) - start < layers[rank]:
            names[f"layers.{int(i) - start}.{inside}"] = name
    costly = [name for name in names if names[name] in getattr(whole, "costly", ())]
    packed = (getattr(whole, "packed", None) or 0) * len(names) // len(whole) or None
    own = LazyWeights(names, lambda name: whole[names[name]], costly=costly, packed=packed)
    sizes = {"n_layers": layers[rank], "n_tables": len(tables), "tied_output": False}
    return stored._replace(weights=own, config=StageConfig(**{**vars(stored.config), **sizes}))


class _Calls:
    """What calls a function with ids, or with what it is multiplied by or added to."""

    def __init__(self, function):
        self.function, self.T = function, self

    def __getitem__(self, tensor):
        return self.function(tensor)

    __rmatmul__ = __radd__ = __getitem__


def joined(weights, config):
    """The plain weights of a stage -> the same, as `forward` computes with them among the ranks."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    w2 = f"layers.{config.n_layers - 1}.feed_forward.w2.weight"

    def receive(tokens):
        """Ids [..., T] -> the stream of the rank before, [..., T, D]."""
        stream = weights[NORM].new_empty(*tokens.shape, config.dim)
        collective(dist.recv, stream, rank - 1)
        return stream

    def send(stream):
        """The stream after this rank's last layer, [..., T, D] -> the same, sent to the next."""
        collective(dist.send, stream.contiguous(), rank + 1)
        return stream

    def logits(x):
        """[..., D] -> the last rank's logits [..., V], on every rank."""
        empty = x.new_empty(*x.shape[:-1], config.vocab_size)
        found = x @ weights[OUTPUT].T if rank == last else empty
        collective(dist.broadcast, found, last)
        return found

    joints = {OUTPUT: _Calls(logits)}
    if rank > 0:
        joints[TABLE] = _Calls(receive)
    if rank < last:
        joints[w2] = _Calls(lambda x: _Calls(lambda middle: send(middle + x @ weights[w2].T)))
    return ChainMap(joints, weights)
