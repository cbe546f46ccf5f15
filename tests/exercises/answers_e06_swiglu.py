"""Answers to the exercises of notebook 06, apart from the checkers' own."""

import numpy as np
import torch
from torch.nn import functional

W1, W3, W2 = (f"feed_forward.w{i}.weight" for i in (1, 3, 2))


def whole(x, w, act=functional.silu):
    return (act(x @ w[W1].T) * (x @ w[W3].T)) @ w[W2].T


def longhand(x, w):
    a, b = (torch.einsum("...d,fd->...f", x, w[name]) for name in (W1, W3))
    return torch.einsum("...f,df->...d", a / (1 + torch.exp(-a)) * b, w[W2])


def neuron_by_neuron(x, w):
    total = torch.zeros_like(x)
    for f in range(len(w[W1])):
        strength = functional.silu(x @ w[W1][f]) * (x @ w[W3][f])
        total = total + strength[..., None] * w[W2][:, f]
    return total


def without_columns(x, w, neurons):
    silent = w[W2].clone()
    silent[:, neurons] = 0
    return whole(x, w | {W2: silent})


def subtracted(x, w, neurons):
    return whole(x, w) - whole(x, {W1: w[W1][neurons], W3: w[W3][neurons], W2: w[W2][:, neurons]})


def silent_for_good(x, w, neurons):
    w[W2][:, neurons] = 0
    return whole(x, w)


def of(*weights):
    """An answer with these weights: rows as lists, whole numbers as people type them."""
    return lambda: tuple(torch.tensor(w) for w in weights)


U, V, MINUS_U, MINUS_V, NONE = [1, 0], [0, 1], [-1, 0], [0, -1], [0, 0]
SUMS = [[1, 1], [-1, -1], [1, -1], [-1, 1]]  # (a*a - b*b) / 4 of sum and difference
RIGHT = {
    "e06_swiglu.feed_forward": [whole, longhand],
    "e06_swiglu.multiplier": [
        of(SUMS, SUMS, [[0.25, 0.25, -0.25, -0.25], [0, 0, 0, 0]]),
        lambda: ([[9, 0], [-9, 0]], np.array([V, MINUS_V]), [[1 / 9, 1 / 9], NONE])],
    "e06_swiglu.silence": [without_columns, subtracted],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e06_swiglu.feed_forward": [
        (neuron_by_neuron, "Right, but it has a loop"),
        (lambda x, w: whole(x, w, lambda a: functional.gelu(a, approximate="tanh")),
         "should give SiLU(1) = 0.731"),
        #
        (lambda x, w: x + whole(x, w, torch.sigmoid), "with a w3 of zeros"),
    ],
    "e06_swiglu.multiplier": [
        (of([[1e-6, 0]], [V], [[2e6], [0]]), "this is an approximation"),
        #
        (of([U, U], [V, MINUS_V], [[1, 0], [2, 0]]), "the second output is not 0"),
        (of([U, MINUS_U], [U, MINUS_U], [[-1, -1], NONE]), "with u and v exchanged"),
    ],
    "e06_swiglu.silence": [
        (silent_for_good, "it changes its arguments"),
        (lambda x, w, neurons: without_columns(x, w, [j - 1 for j in neurons]), "the value is"),
        #
        (lambda x, w, neurons: without_columns(x, w, neurons[1:]) + 1, "with an empty list"),
    ],
}  # fmt: skip
