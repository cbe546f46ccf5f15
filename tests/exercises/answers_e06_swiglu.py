"""Answers to the exercises of notebook 06, written without a look at the checkers' own."""

import numpy as np
import torch
from torch.nn import functional

W1, W3, W2 = (f"feed_forward.w{i}.weight" for i in (1, 3, 2))


def whole(x, w, act=functional.silu, gate=W1, up=W3):
    return (act(x @ w[gate].T) * (x @ w[up].T)) @ w[W2].T


def by_linear(x, w):
    up = functional.linear(x, w[W3])
    return functional.linear(functional.silu(functional.linear(x, w[W1])) * up, w[W2])


def longhand(x, w):
    a, b = (torch.einsum("...d,fd->...f", x, w[name]) for name in (W1, W3))
    return torch.einsum("...f,df->...d", a / (1 + torch.exp(-a)) * b, w[W2])


def neuron_by_neuron(x, w):
    total = torch.zeros_like(x)
    for f in range(len(w[W1])):
        strength = functional.silu(x @ w[W1][f]) * (x @ w[W3][f])
        total = total + strength[..., None] * w[W2][:, f]
    return total


def in_float32(x, w):
    return whole(x.float(), {name: each.float() for name, each in w.items()})


def by_order(x, w):
    w1, w3, w2 = w.values()
    return whole(x, {W1: w1, W3: w3, W2: w2})


def of_one_token(x, w):
    return whole(x[-1], w)


def without(x, w, neurons):
    fires = functional.silu(x @ w[W1].T) * (x @ w[W3].T)
    fires[..., neurons] = 0
    return fires @ w[W2].T


def without_tokens(x, w, neurons):
    fires = functional.silu(x @ w[W1].T) * (x @ w[W3].T)
    fires[neurons] = 0
    return fires @ w[W2].T


def without_second(x, w, neurons):
    fires = functional.silu(x @ w[W1].T) * (x @ w[W3].T)
    fires[:, neurons] = 0
    return fires @ w[W2].T


def without_columns(x, w, neurons):
    silent = w[W2].clone()
    silent[:, neurons] = 0
    return whole(x, w | {W2: silent})


def others_only(x, w, neurons):
    rest = [f for f in range(len(w[W1])) if f not in neurons]
    return whole(x, {W1: w[W1][rest], W3: w[W3][rest], W2: w[W2][:, rest]})


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
    "e06_swiglu.feed_forward": [whole, by_linear, longhand],
    "e06_swiglu.multiplier": [
        of([U, MINUS_U], [V, MINUS_V], [[1, 1], NONE]), of([V, MINUS_V], [U, U], [[1, -1], NONE]),
        of(SUMS, SUMS, [[0.25, 0.25, -0.25, -0.25], [0, 0, 0, 0]]),
        lambda: ([[9, 0], [-9, 0]], np.array([V, MINUS_V]), [[1 / 9, 1 / 9], NONE])],
    "e06_swiglu.silence": [without, without_columns, others_only, subtracted],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e06_swiglu.feed_forward": [
        (neuron_by_neuron, "Right, but it has a loop"),
        (in_float32, "the dtype is torch.float32, expected torch.bfloat16"),
        (of_one_token, "In your line"),
        (by_order, "raised ValueError"),
        (lambda x, w: whole(x, w, gate=W3, up=W1), "the SiLU is on w3's side"),
        (lambda x, w: (functional.silu(x @ w[W1]) * (x @ w[W3])) @ w[W2], "raised RuntimeError"),
        (lambda x, w: whole(x, w, torch.tanh), "should give SiLU(1) = 0.731"),
        (lambda x, w: whole(x, w, lambda a: a.softmax(-1)), "with a w1 of zeros"),
        (lambda x, w: whole(x, w, lambda a: functional.gelu(a, approximate="tanh")),
         "should give SiLU(1) = 0.731"),
        (lambda x, w: x.mul_(2), "it changes its arguments"),
        #
        (lambda x, w: x + whole(x, w, torch.sigmoid), "with a w3 of zeros"),
        (lambda x, w: whole(x, w, torch.sigmoid, W3, W1), "with a w3 of zeros"),
        (lambda x, w: functional.silu(whole(x, w)), "twice w3 does not give"),
        (lambda x, w: 2 * whole(x, w), "should give SiLU(1) = 0.731"),
        (lambda x, w: whole(x, w).cumsum(0), "the same rows in reversed order"),
    ],
    "e06_swiglu.multiplier": [
        (of([MINUS_V, V], [MINUS_U, U], [[1, 0], [1, 0]]), "SiLU(-v)·(-u), twice"),
        (of([U, MINUS_U], [V, MINUS_V], [[1, 1]]), "these shapes do not fit together"),
        (lambda: torch.eye(2), "expected three tensors"),
        (of([[1, -1], NONE], [NONE, [1, -1]], [[1, 0], [1, 0]]), "or each neuron lacks a reading"),
        (of([U, MINUS_U, U], [V, MINUS_V], [[1, 1], NONE]), "these shapes do not fit together"),
        (of(U, V, [1, 0]), "these shapes do not fit together"),
        (of([[1e-6, 0]], [V], [[2e6], [0]]), "this is an approximation"),
        #
        (of([U, U], [V, MINUS_V], [[1, 0], [2, 0]]), "the second output is not 0"),
        (of([U, MINUS_U], [V, V], [[-1, -1], NONE]), "with -u and -v"),
        (of([U], [V], [[-1], [0]]), "with -u and -v"),
        (of([U, MINUS_U], [U, MINUS_U], [[-1, -1], NONE]), "with u and v exchanged"),
        (of(SUMS, SUMS, [[0.25, 0.25, 0.25, 0.25], [0, 0, 0, 0]]), "does not change its sign"),
    ],
    "e06_swiglu.silence": [
        (silent_for_good, "it changes its arguments"),
        (lambda x, w, neurons: whole(x, w), "nothing is silent"),
        (without_tokens, "these are tokens"),
        (without_second, "right for a matrix [T, F]"),
        (lambda x, w, neurons: whole(x, w | {W1: w[W1][neurons]}), "raised RuntimeError"),
        (lambda x, w, neurons: without(x, w, [j - 1 for j in neurons]), "the value is"),
        #
        (lambda x, w, neurons: without(x, w, neurons[1:]) + 1, "with an empty list"),
        (lambda x, w, neurons: without(x, w, neurons[:2]), "with all neurons silent"),
    ],
}  # fmt: skip
