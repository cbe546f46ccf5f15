"""Answers to the exercises of notebook 06, written without a look at the checkers' own."""

import math

import numpy as np
import torch
import torch.nn.functional as functional

from llama3_scratch.config import Config
from llama3_scratch.model import feed_forward, rms_norm


def meta_width(dim, multiple_of, factor):
    hidden = int(2 * (4 * dim) / 3)
    if factor is not None:
        hidden = int(factor * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


def configs_width(dim, multiple_of, factor):
    return Config(dim, 1, 1, 1, 1, multiple_of, 1e-5, 1.0, ffn_dim_multiplier=factor).ffn_dim


def up(width, multiple_of):
    return math.ceil(width / multiple_of) * multiple_of


def gate(x, w1, w3, j, act=functional.silu):
    return act(x @ w1[j]) * (x @ w3[j])


def neuron(x, w1, w3, w2, j):
    return gate(x, w1, w3, j)[:, None] * w2[:, j]


def neuron_in_numpy(*case):
    x, w1, w3, w2, j = map(np.asarray, case)
    a = x @ w1[j]
    return (a / (1 + np.exp(-a)) * (x @ w3[j]))[:, None] * w2[None, :, j]


def neuron_kept_as_matrices(x, w1, w3, w2, j):
    one = slice(j, j + 1)
    return (functional.silu(x @ w1[one].T) * (x @ w3[one].T)) @ w2[:, one].T


def neuron_by_tokens(x, w1, w3, w2, j):
    return torch.stack([gate(row, w1, w3, j) * w2[:, j] for row in x])


def neuron_of_all(x, w1, w3, w2, j):
    every = functional.silu(x @ w1.T) * (x @ w3.T)
    return torch.outer(every[:, j], w2[:, j])


def neuron_of_all_in_one(x, w1, w3, w2, j):
    every = functional.silu(functional.linear(x, w1)) * functional.linear(x, w3)
    return every[:, j, None] * w2.T[j]


def normed(x, weights, eps):
    return rms_norm(x, weights["ffn_norm.weight"], eps)


def layer(stream, change, weights, eps):
    middle = stream + change
    return middle + feed_forward(normed(middle, weights, eps), weights)


def layer_longhand(stream, change, weights, eps):
    x = (stream + change).double()
    n = x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weights["ffn_norm.weight"]
    w1, w3, w2 = (weights[f"feed_forward.w{i}.weight"].double() for i in (1, 3, 2))
    a = n @ w1.T
    return x + (a * a.sigmoid() * (n @ w3.T)) @ w2.T


def in_place(stream, change, weights, eps):
    stream += change
    return layer(stream, 0 * change, weights, eps)


def of(*weights):
    """An answer with these weights: rows as lists, whole numbers as people type them."""
    return lambda: tuple(torch.tensor(w) for w in weights)


def sizes(formula):
    return lambda c: formula(c.dim, c.ffn_dim, c.n_kv_heads * c.head_dim, c.n_heads)


U, V, MINUS_U, MINUS_V, NONE = [1, 0], [0, 1], [-1, 0], [0, -1], [0, 0]
SUMS = [[1, 1], [-1, -1], [1, -1], [-1, 1]]  # (a*a - b*b) / 4 of sum and difference
RIGHT = {
    "e06_swiglu.ffn_dim": [
        meta_width, configs_width, lambda d, m, x: -(int((x or 1) * (8 * d // 3)) // -m) * m],
    "e06_swiglu.one_neuron": [neuron, neuron_in_numpy, neuron_kept_as_matrices],
    "e06_swiglu.second_half": [layer, layer_longhand],
    "e06_swiglu.multiplier": [
        of([U, MINUS_U], [V, MINUS_V], [[1, 1], NONE]), of([V, MINUS_V], [U, U], [[1, -1], NONE]),
        of(SUMS, SUMS, [[0.25, 0.25, -0.25, -0.25], [0, 0, 0, 0]]),
        lambda: ([[9, 0], [-9, 0]], np.array([V, MINUS_V]), [[1 / 9, 1 / 9], NONE])],
    "e06_swiglu.break_even": [sizes(lambda D, F, KH, N: 1.5 * F - D - KH)],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e06_swiglu.ffn_dim": [
        (lambda d, m, x: up(int(int(8 * d / 3) * x), m), "raised TypeError"),
        (lambda d, m, x: up(int(int(8 * d / 3) * (x or 2)), m), "should be the same as with 1"),
        (lambda d, m, x: up((x or 1) * 8 * d / 3, m), "the fractions are carried along"),
        (lambda d, m, x: meta_width(d, m, x) + m, "and no further"),
        #
        (lambda d, m, x: int(4 * d * (x or 1)) // m * m, "too narrow"),
        (lambda d, m, x: up(int(4 * d * (x or 1)), m) + m, "too wide"),
        (lambda d, m, x: int(4 * d * (x or 1)), "not a multiple of multiple_of"),
        (lambda d, m, x: up(4 * d, m), "a larger multiplier does not make F larger"),
        (lambda d, m, x: up(8 * d // 3, 256), "not a multiple of multiple_of"),
    ],
    "e06_swiglu.one_neuron": [
        (neuron_by_tokens, "Right, but it has a loop"),
        (neuron_of_all, "Right, but it computes the other neurons"),
        (neuron_of_all_in_one, "Right, but it computes the other neurons"),
        (lambda x, w1, w3, w2, j: (x @ w3[j])[:, None] * w2[:, j], "this is up alone"),
        (lambda *case: neuron(*case[:4], 1), "the rows are not multiples of w2[:, j]"),
        (lambda *case: 2 * neuron(*case), "should be SiLU(1) = 0.731"),
        (lambda x, w1, w3, w2, j: neuron(x, w1[:j] + 1, w3, w2, j), "raised IndexError"),
        (lambda x, w1, w3, w2, j: torch.outer(
            gate(x, w1, w3, j, lambda a: functional.gelu(a, approximate="tanh")), w2[:, j]),
         "should be SiLU(1) = 0.731"),
        #
        (lambda x, w1, w3, w2, j: (x @ w1.T).sigmoid() * (x @ w3.T) @ w2.T, "not multiples"),
        (lambda x, w1, w3, w2, j: torch.outer(gate(x, w3, w1, j, torch.sigmoid), w2[:, j]),
         "twice w3 does not give"),
        (lambda x, w1, w3, w2, j: torch.outer((x @ w1[j]).sigmoid() + x @ w3[j], w2[:, j]),
         "is 0, the result is not 0"),
        (lambda x, w1, w3, w2, j: torch.outer(gate(x, w3, w1, j, torch.relu), w2[:, j]),
         "should be SiLU(1) = 0.731"),
        (lambda x, w1, w3, w2, j: 3 * torch.outer(gate(x, w1, w3, j, torch.relu), w2[:, j]),
         "should be SiLU(1) = 0.731"),
    ],
    "e06_swiglu.second_half": [
        (in_place, "it changes its arguments"),
        (lambda s, c, w, eps: w["w1"], "it raised KeyError: 'w1'"),
        (lambda s, c, w, eps: layer(s, c, w, 0), "is typed in. Use the argument eps"),
        (lambda s, c, w, eps: layer(s, c, w, 0.1), "eps has no effect"),
        #
        (lambda s, c, w, eps: s + feed_forward(normed(c, w, eps), w), "not stream + change"),
        (lambda s, c, w, eps: feed_forward(s + c, w), "not stream + change"),
        (lambda s, c, w, eps: s + c + feed_forward(
            rms_norm(c, w["attention_norm.weight"], eps), w), "attention_norm.weight has an"),
        (lambda s, c, w, eps: s + c + feed_forward(s, w), "a part moved from one to the other"),
        (lambda s, c, w, eps: s + c + feed_forward(rms_norm(s + c, 1, 0.1), w),
         "ffn_norm.weight does not act"),
    ],
    "e06_swiglu.multiplier": [
        (of([MINUS_V, V], [MINUS_U, U], [[1, 0], [1, 0]]), "SiLU(-v)·(-u), twice"),
        (of([U, MINUS_U], [V, MINUS_V], [[1, 1]]), "the shape is [4, 1], expected [4, 2]"),
        (lambda: torch.eye(2), "expected three tensors"),
        (of([[1e-6, 0]], [V], [[2e6], [0]]), "this is an approximation"),
        #
        (of([U, U], [V, MINUS_V], [[1, 0], [2, 0]]), "the second output is not 0"),
        (of([U, MINUS_U], [V, V], [[-1, -1], NONE]), "with -u and -v"),
        (of([U], [V], [[-1], [0]]), "with -u and -v"),
        (of([U, MINUS_U], [U, MINUS_U], [[-1, -1], NONE]), "with u and v exchanged"),
        (of(SUMS, SUMS, [[0.25, 0.25, 0.25, 0.25], [0, 0, 0, 0]]), "does not change its sign"),
    ],
    "e06_swiglu.break_even": [
        (sizes(lambda D, F, KH, N: (3 * F - 2 * D - 2 * KH) // 2), "the fraction is cut off"),
        (sizes(lambda D, F, KH, N: 16384), "the feed-forward's part is not right"),
        (sizes(lambda D, F, KH, N: 1.5 * F - D + KH), "the part of wk and wv is not right"),
        (lambda c: (1.5 * c.ffn_dim - c.dim - c.n_kv_heads * c.head_dim) * c.n_layers,
         "the number of layers"),
        #
        (sizes(lambda D, F, KH, N: F - 2 * D), "the feed-forward's part is not right"),
        (sizes(lambda D, F, KH, N: 1.5 * F - D / 2 - 2 * KH), "the part of wk and wv"),
        (sizes(lambda D, F, KH, N: 1.5 * F - 3 * D - KH), "the part of wq and wo"),
        (sizes(lambda D, F, KH, N: (1.5 * F - 2 * D) * 2), "the feed-forward's part"),
    ],
}  # fmt: skip
