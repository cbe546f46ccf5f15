"""Checkers of notebook 05, grouped-query attention."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from llama3_scratch.check.frame import examine
from llama3_scratch.config import PRESETS
from llama3_scratch.model import rms_norm


def _normal(seed, *shape):
    """[shape], drawn on the CPU, so that it is the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    numbers = torch.randn(shape, generator=generator, device="cpu")
    return numbers.to(torch.get_default_device())


# --- 5.1 ------------------------------------------------------------------------------------------


def readers(answer):
    """Exercise 5.1: k, n_heads, n_kv_heads -> a list: the query heads that read head k."""

    def right(k, n_heads, n_kv_heads):
        G = n_heads // n_kv_heads
        return list(range(k * G, (k + 1) * G))

    def listed(k, n_heads, n_kv_heads):
        found = answer(k, n_heads, n_kv_heads)
        if isinstance(found, torch.Tensor):
            return found.tolist()
        return list(found) if isinstance(found, range) else found

    mistakes = {
        "these are every K-th head, as dealt out like cards. Query heads that share are "
        "neighbours: head n reads n // G, not n % K.": lambda k, N, K: list(range(k, N, K)),
        "your groups have K heads each. There are K groups, and each has G = N/K heads.": (
            lambda k, N, K: list(range(k * K, (k + 1) * K))
        ),
        "your groups have four heads each. That is Llama-3-8B; compute G = N/K.": (
            lambda k, N, K: list(range(4 * k, 4 * k + 4))
        ),
        "one too far: heads count from 0, so the first group begins with head 0.": (
            lambda k, N, K: list(range(k * N // K + 1, (k + 1) * N // K + 1))
        ),
        "the last head of the group is missing: `range` stops before its second argument.": (
            lambda k, N, K: list(range(k * N // K, (k + 1) * N // K - 1))
        ),
        "one too many: the last one is the first head of the next group.": (
            lambda k, N, K: list(range(k * N // K, (k + 1) * N // K + 1))
        ),
        "this is the group before: key/value heads count from 0, and so do their groups.": (
            lambda k, N, K: list(range((k - 1) * N // K, k * N // K))
        ),
        "these are the first and the last head of the group. List those between them too.": (
            lambda k, N, K: [k * N // K, (k + 1) * N // K - 1]
        ),
        "these are every G-th head. Query heads that share are neighbours: G of them in a row.": (
            lambda k, N, K: list(range(k, N, N // K))
        ),
        "this says for each query head which key/value head it reads. List the query heads for "
        "which that is k.": lambda k, N, K: [n // (N // K) for n in range(N)],
        "this is the key/value head that query head k reads. The question is the other way round: "
        "which query heads read key/value head k?": lambda k, N, K: k // (N // K),
    }
    examine(listed, right, [(1, 12, 3), (0, 10, 2), (2, 15, 5), (3, 24, 8)], mistakes)


# --- 5.2 ------------------------------------------------------------------------------------------


def merge_heads(answer):
    """Exercise 5.2: outputs [N, T, H] -> [T, N*H], each token's heads side by side."""

    def right(outputs):
        return outputs.transpose(0, 1).flatten(1)

    mistakes = {
        "the shape is right and the rows are not: `reshape` goes through the memory head by head, "
        "so your row 0 holds many tokens of head 0. First make the token the leading dimension.": (
            lambda x: x.reshape(x.shape[1], -1)
        ),
        "each row holds its own token, but the numbers are in the wrong order: number 0 of every "
        "head, then number 1 of every head. wo expects all of head 0 first.": (
            lambda x: x.permute(1, 2, 0).flatten(1)
        ),
        "the token comes first now, but it still has a matrix [N, H]: flatten that to one row.": (
            lambda x: x.transpose(0, 1)
        ),
        "heads and tokens went into one dimension, [N*T, H]. A token has one row, in which its "
        "heads stand side by side.": lambda x: x.flatten(0, 1),
        "each row is one head here, with the numbers of all its tokens. A row is one token, with "
        "the numbers of all its heads: first make the token the leading dimension.": (
            lambda x: x.flatten(1)
        ),
        "this is the mean of the heads. They stay apart here, side by side; wo mixes them.": (
            lambda x: x.mean(0)
        ),
        "the heads are added up. They stay apart here, side by side; wo adds, with weights.": (
            lambda x: x.sum(0)
        ),
    }
    shapes = [(2, 3, 5), (4, 5, 3), (3, 7, 2)]
    examine(answer, right, [(_normal(i, *shape),) for i, shape in enumerate(shapes)], mistakes)


# --- 5.3 ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sublayer:
    """[T, D] -> [T, D]: a stand-in for attention. (It is shown to the reader, hence its name.)"""

    change: Callable

    def __call__(self, x):
        return self.change(x)

    def __repr__(self):
        return "a sub-layer"


def _previous(x):
    """[T, D] -> [T, D]: each row from itself and the row before."""
    return torch.tanh(x + 2 * x.roll(1, 0))


def _mean_so_far(x):
    """[T, D] -> [T, D]: each row from all rows so far."""
    return torch.sin(x.cumsum(0)) + x * x


def add_change(answer):
    """Exercise 5.3: stream [T, D], weight [D], eps, a function [T, D] -> [T, D]: the new stream."""

    def right(stream, weight, eps, sublayer):
        return stream + sublayer(rms_norm(stream, weight, eps))

    def on_normed(stream, weight, eps, sublayer):
        normed = rms_norm(stream, weight, eps)
        return normed + sublayer(normed)

    mistakes = {
        "the change is added to the normalised copy. The stream itself goes on as it is; only the "
        "sub-layer sees the copy.": on_normed,
        "the sub-layer read the stream as it is. It reads a normalised copy.": (
            lambda x, weight, eps, sublayer: x + sublayer(x)
        ),
        "the two are the wrong way round: the sub-layer reads the normalised copy, and its result "
        "is added to the stream as it is.": (
            lambda x, weight, eps, sublayer: rms_norm(x, weight, eps) + sublayer(x)
        ),
        "the sum is normalised as well. Only what the sub-layer reads is normalised; the next "
        "sub-layer makes a copy of its own.": (
            lambda x, weight, eps, sublayer: rms_norm(right(x, weight, eps, sublayer), weight, eps)
        ),
        "this is the change alone. It is added to the stream.": (
            lambda x, weight, eps, sublayer: sublayer(rms_norm(x, weight, eps))
        ),
        "this normalises after the addition, as the first Transformer of 2017 did. Llama 3 "
        "normalises before the sub-layer, and leaves the sum alone.": (
            lambda x, weight, eps, sublayer: rms_norm(x + sublayer(x), weight, eps)
        ),
        "this normalises the change, behind the sub-layer. Llama 3 normalises what goes in.": (
            lambda x, weight, eps, sublayer: x + rms_norm(sublayer(x), weight, eps)
        ),
        "the norm's weight is left out: each column of the normalised copy has its own factor.": (
            lambda x, weight, eps, sublayer: x + sublayer(rms_norm(x, torch.ones_like(weight), eps))
        ),
    }
    cases = [
        (3 * _normal(0, 3, 5), _normal(1, 5), 1e-5, _Sublayer(_previous)),
        (_normal(2, 4, 6) / 9, _normal(3, 6), 1e-3, _Sublayer(_mean_so_far)),
        (5 * _normal(4, 6, 2), _normal(5, 2), 1e-5, _Sublayer(_previous)),
    ]
    examine(answer, right, cases, mistakes)


# --- 5.4 ------------------------------------------------------------------------------------------


def cache_room(answer):
    """Exercise 5.4: config, memory in bytes, bytes per number -> tokens that fit by the weights."""

    def tokens(config, memory, size, heads=None, both=2, layers=None, weights=1, cached=None):
        heads = config.n_kv_heads if heads is None else heads
        layers = config.n_layers if layers is None else layers
        left = memory - weights * config.n_parameters * size
        return left // (both * layers * heads * config.head_dim * (cached or size))

    mistakes = {
        "you count a key and a value for every query head. Only the K key/value heads are kept.": (
            lambda c, memory, size: tokens(c, memory, size, heads=c.n_heads)
        ),
        "twice too many: a token leaves a key and also a value.": (
            lambda c, memory, size: tokens(c, memory, size, both=1)
        ),
        "this is the room of one layer's cache. Every layer has its own keys and values.": (
            lambda c, memory, size: tokens(c, memory, size, layers=1)
        ),
        "the weights are in the same memory: take them away first.": (
            lambda c, memory, size: tokens(c, memory, size, weights=0)
        ),
        "the weights are taken away twice. Gradients are as large as the weights, but they belong "
        "to training; a model that only writes has none.": (
            lambda c, memory, size: tokens(c, memory, size, weights=2)
        ),
        "the cache is counted in numbers, not in bytes: a number takes `bytes_each`.": (
            lambda c, memory, size: tokens(c, memory, size, cached=1)
        ),
        "the weights are counted in numbers, not in bytes: a number takes `bytes_each`.": (
            lambda c, memory, size: tokens(c, memory, size, weights=1 / size)
        ),
        "the cache holds queries too. A query is used once, by its own token: only keys and values "
        "are kept.": lambda c, memory, size: tokens(
            c, memory, size, heads=c.n_heads + 2 * c.n_kv_heads, both=1
        ),
        "`dim` is as wide as all N query heads. One key takes `head_dim` numbers.": (
            lambda c, memory, size: tokens(c, memory, size, heads=c.n_kv_heads * c.n_heads)
        ),
        "a number takes 2 bytes here whatever `bytes_each` is.": (
            lambda c, memory, size: tokens(c, memory, 2)
        ),
        "nothing is counted in bytes: a number takes `bytes_each`, in the weights and in the "
        "cache.": lambda c, memory, size: tokens(c, memory, 1),
        "these are the bytes left for the cache. How many tokens fit into them?": (
            lambda c, memory, size: memory - c.n_parameters * size
        ),
        "this is the room for one key/value head: there are K of them.": (
            lambda c, memory, size: tokens(c, memory, size, heads=1)
        ),
    }
    cases = [
        (PRESETS["Llama-3-8B"], 24 * 2**30, 2),
        (PRESETS["Llama-3-8B"], 80 * 2**30, 4),
        (PRESETS["Llama-3.2-1B"], 8 * 2**30, 2),
        (PRESETS["Llama-3-70B"], 192 * 2**30, 2),
    ]
    examine(answer, tokens, cases, mistakes)


# --- 5.5 ------------------------------------------------------------------------------------------


def pool_heads(answer):
    """Exercise 5.5: wk or wv [K*H, D], K, J -> [J*H, D]: means of K/J neighbouring heads."""

    def right(weight, n_kv_heads, n_new):
        return weight.unflatten(0, (n_new, n_kv_heads // n_new, -1)).mean(1).flatten(0, 1)

    mistakes = {
        "you average every J-th head. The heads that become one are neighbours, so that query "
        "head n still finds its own at n // G.": (
            lambda w, K, J: w.unflatten(0, (K // J, J, -1)).mean(0).flatten(0, 1)
        ),
        "you average neighbouring rows, which are numbers of one and the same head. Average row h "
        "of one head with row h of the next.": (
            lambda w, K, J: w.unflatten(0, (-1, K // J)).mean(1)
        ),
        "these are sums. Divide by the number of heads that become one.": (
            lambda w, K, J: w.unflatten(0, (J, K // J, -1)).sum(1).flatten(0, 1)
        ),
        "the first head of each group is kept and the others are dropped. Take their mean.": (
            lambda w, K, J: w.unflatten(0, (J, K // J, -1))[:, 0].flatten(0, 1)
        ),
        "the first heads are kept and the others are dropped. Take means of neighbours.": (
            lambda w, K, J: w.unflatten(0, (K, -1))[:J].flatten(0, 1)
        ),
        "this makes K/J heads of J each. It is the other way round: J new heads, each the mean of "
        "K/J old ones.": lambda w, K, J: w.unflatten(0, (K // J, J, -1)).mean(1).flatten(0, 1),
        "each new head is a single row: its rows were averaged with one another. Average row h of "
        "one head with row h of the next.": lambda w, K, J: w.unflatten(0, (J, -1)).mean(1),
        "the rows are right, but they stand in [J, H, D]. A weight matrix has its heads one below "
        "the other: flatten the first two dimensions.": (
            lambda w, K, J: w.unflatten(0, (J, K // J, -1)).mean(1)
        ),
        "there are still K heads: those that were averaged stand there several times. One of each "
        "is kept, that is the saving.": lambda w, K, J: (
            w.unflatten(0, (J, K // J, -1)).mean(1).repeat_interleave(K // J, 0).flatten(0, 1)
        ),
    }  # fmt: skip
    cases = [
        (_normal(0, 6 * 5, 4), 6, 2),
        (_normal(1, 8 * 3, 7), 8, 2),
        (_normal(2, 6 * 7, 2), 6, 3),
        (_normal(3, 3 * 2, 5), 3, 1),
    ]
    examine(answer, right, cases, mistakes)
