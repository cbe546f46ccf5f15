"""Answers to the exercises of notebook 05, written without a look at the checkers' own."""

import math

import numpy as np
import torch

from llama3_scratch.model import rms_norm


def parts(heads, n):
    """The heads in lists of n each."""
    return [heads[i : i + n] for i in range(0, len(heads), n)]


def room(c, memory, size, weights=1, kept=None):
    token = 2 * c.n_layers * (kept or c.n_kv_heads) * (c.dim // c.n_heads) * size
    return (memory - weights * c.n_parameters * size) // token


def add_in_place(x, w, eps, f):
    x += f(rms_norm(x, w, eps))
    return x


RIGHT = {
    "e05_grouped_query.readers": [
        lambda k, N, K: [n for n in range(N) if n // (N // K) == k],
        lambda k, N, K: range(k * N // K, (k + 1) * N // K),
        lambda k, N, K: torch.arange(N).view(K, -1)[k],
        lambda k, N, K: np.split(np.arange(N), K)[k],
    ],
    "e05_grouped_query.merge_heads": [
        lambda x: torch.cat(list(x), dim=-1),
        lambda x: x.numpy().swapaxes(0, 1).reshape(x.shape[1], -1),
    ],
    "e05_grouped_query.add_change": [
        lambda x, w, eps, f: f(rms_norm(x, w, eps)) + x,
        lambda x, w, eps, f: x + f(torch.nn.functional.rms_norm(x, w.shape, w, eps)),
    ],
    "e05_grouped_query.cache_room": [
        room,
        lambda c, memory, size: math.floor(
            (memory / size - c.n_parameters) / (2 * c.sizes["L"] * c.sizes["K"] * c.sizes["H"])),
    ],
    "e05_grouped_query.pool_heads": [
        lambda w, K, J: torch.cat([torch.stack(p).mean(0) for p in parts(w.chunk(K), K // J)]),
        lambda w, K, J: torch.cat([sum(p) / len(p) for p in parts(w.double().chunk(K), K // J)]),
    ],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e05_grouped_query.readers": [
        (lambda k, N, K: set(range(k * N // K, (k + 1) * N // K)), "expected a list"),
        (lambda k, N, K: (k * (N // K), k * (N // K) + N // K - 1), "those between them"),
        (lambda k, N, K: [n for n in range(N) if n // (N // K) == k][::-1], "not neighbours"),
        #
        (lambda k, N, K: [n + 1 for n in range(k, N, K)], "do not exist"),
        (lambda k, N, K: list(range(k * K, k * K + K + 1)), "is not G = N/K"),
        (lambda k, N, K: [k + g for g in range(N // K)], "twice or not at all"),
    ],
    "e05_grouped_query.merge_heads": [
        (lambda x: x.reshape(x.shape[2] * x.shape[0], -1).T, "numbers of its own token"),
        (lambda x: x.transpose(0, 1).reshape(x.shape[1], -1).squeeze(0), "the shape is [12]"),
        (lambda x: torch.cat([*x.flip(0)], -1), "not in the right order"),
        #
        (lambda x: x.flip(0).reshape(x.shape[1], -1), "numbers of its own token"),
        (lambda x: torch.stack([*x.flip(0)], -1).flatten(1), "not in the right order"),
    ],
    "e05_grouped_query.add_change": [
        (add_in_place, "it changes its arguments"),
        (lambda x, w, eps, f: x + f(rms_norm(x, w, 0)), "there is NaN in the result"),
        (lambda x, w, eps, f: x + f(rms_norm(x, w, 1e-5)), "Are all three used?"),
        (lambda x, w, eps, f: x + 2 * f(rms_norm(x, w, eps)), "as it is, once"),
        (lambda x, w, eps, f: x - f(x), "not rms_norm(stream, weight, eps)"),
        #
        (lambda x, w, eps, f: rms_norm(x, w**0, eps) + f(rms_norm(x, w**0, eps)), "as it is"),
        (lambda x, w, eps, f: rms_norm(x, w, eps) + f(rms_norm(f(x), w, eps)), "stream itself"),
    ],
    "e05_grouped_query.cache_room": [
        (lambda c, memory, size: room(c, memory - 1, size), "what the weights take is not right"),
        (lambda c, memory, size: room(c, memory, size) + 1, "or something is added"),
        (lambda c, memory, size: room(c, memory, size, kept=8), "what one token takes"),
        #
        (lambda c, memory, size: room(c, memory, size, 0, c.n_heads), "what one token takes"),
        (lambda c, memory, size: room(c, memory, size, 0.5) // 1.0 + 2, "what the weights take"),
        (lambda c, memory, size: memory / size / c.n_layers / c.dim, "round down"),
    ],
    "e05_grouped_query.pool_heads": [
        (lambda w, K, J: sum(w.chunk(K // J)) / (K // J), "every J-th head"),
        (lambda w, K, J: w.unflatten(0, (K, -1)).mean(0).repeat(J, 1), "K/J heads of each group"),
        #
        (lambda w, K, J: sum(w.chunk(K // J)), "Is it a sum"),
        (lambda w, K, J: w.unflatten(0, (-1, K // J)).sum(1), "Is it a sum"),
        (lambda w, K, J: w[-J * (len(w) // K) :], "K/J heads of each group"),
    ],
}  # fmt: skip
