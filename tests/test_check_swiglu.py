"""The exercises of notebook 06: right answers pass, and each mistake gets the word meant for it."""

import math

import pytest
import torch
import torch.nn.functional as F

from llama3_scratch import check
from llama3_scratch.model import feed_forward, rms_norm


def said(capsys, checker, answer):
    checker(answer)
    return capsys.readouterr().out.strip()


def my_ffn_dim(dim, multiple_of, ffn_dim_multiplier):
    width = int(2 * (4 * dim) / 3)
    if ffn_dim_multiplier is not None:
        width = int(ffn_dim_multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def my_neuron(x, w1, w3, w2, j):
    return (F.silu(x @ w1[j]) * (x @ w3[j]))[:, None] * w2[:, j]


def my_second_half(stream, change, weights, eps):
    middle = stream + change
    return middle + feed_forward(rms_norm(middle, weights["ffn_norm.weight"], eps), weights)


def my_multiplier():
    w1 = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    w3 = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    w2 = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    return w1, w3, w2


def my_break_even(config):
    return 1.5 * config.ffn_dim - config.dim - config.n_kv_heads * config.head_dim


@pytest.mark.parametrize("checker, answer", [
    (check.ffn_dim, my_ffn_dim), (check.one_neuron, my_neuron),
    (check.second_half, my_second_half), (check.multiplier, my_multiplier),
    (check.break_even, my_break_even),
])  # fmt: skip
def test_the_right_answer_is_right_and_an_empty_one_is_not(capsys, checker, answer):
    assert said(capsys, checker, answer).startswith("Right: ")
    assert "returned None" in said(capsys, checker, lambda *case: None)


def up(width, multiple_of):
    return math.ceil(width / multiple_of) * multiple_of


def times(width, multiplier):
    return width if multiplier is None else int(width * multiplier)


@pytest.mark.parametrize("answer, text", [
    (lambda d, m, x: up(times(4 * d, x), m), "two thirds"),
    (lambda d, m, x: times(8 * d // 3, x) // m * m, "rounded down"),
    (lambda d, m, x: round(times(8 * d // 3, x) / m) * m, "to the nearest"),
    (lambda d, m, x: (times(8 * d // 3, x) // m + 1) * m, "a multiple already"),
    (lambda d, m, x: times(up(8 * d // 3, m), x), "the multiplier comes last"),
    (lambda d, m, x: up(8 * d // 3, m), "multiplier is not used"),
    (lambda d, m, x: times(8 * d // 3, x), "not rounded up"),
    (lambda d, m, x: up(round((x or 1) * round(8 * d / 3)), m), "here it is rounded"),
    (lambda d, m, x: up(int((x or 1) * 2 * (4 * d) / 3), m), "int() is taken once"),
    (lambda d, m, x: up((x or 1) * 8 * d / 3, m), "carried along"),
    (lambda d, m, x: up(int(int(8 * d / 3) * x), m), "raised TypeError"),
])  # fmt: skip
def test_wrong_widths(capsys, answer, text):
    assert text in said(capsys, check.ffn_dim, answer)


@pytest.mark.parametrize("answer, text", [
    (lambda x, w1, w3, w2, j: my_neuron(x, w3, w1, w2, j), "on w3's side"),
    (lambda x, w1, w3, w2, j: F.silu(x @ w1[j])[:, None] * w2[:, j], "the gate alone"),
    (lambda x, w1, w3, w2, j: (x @ w3[j])[:, None] * w2[:, j], "up alone"),
    (lambda x, w1, w3, w2, j: (F.silu(x @ w1[j]) + x @ w3[j])[:, None] * w2[:, j], "are added"),
    (lambda x, w1, w3, w2, j: torch.outer((x @ w1[j]).sigmoid() * (x @ w3[j]), w2[:, j]),
     "the sigmoid alone"),
    (lambda x, w1, w3, w2, j: torch.outer((x @ w1[j]).relu() * (x @ w3[j]), w2[:, j]), "a ReLU"),
    (lambda x, w1, w3, w2, j: torch.outer(F.gelu(x @ w1[j]) * (x @ w3[j]), w2[:, j]), "a GELU"),
    (lambda x, w1, w3, w2, j: torch.outer((x @ w1[j]) * (x @ w3[j]), w2[:, j]), "no SiLU"),
    (lambda x, w1, w3, w2, j: torch.outer(F.silu((x @ w1[j]) * (x @ w3[j])), w2[:, j]),
     "taken of the product"),
    (lambda x, w1, w3, w2, j: torch.outer(F.silu(x @ w1[j]) * (x @ w3[j]), w2[j]), "row j of w2"),
    (lambda x, w1, w3, w2, j: F.silu(x @ w1[j]) * (x @ w3[j]), "how strongly the neuron fires"),
    (lambda x, w1, w3, w2, j: (F.silu(x @ w1.T) * (x @ w3.T)) @ w2.T, "all neurons add together"),
    (lambda x, w1, w3, w2, j: 2 * my_neuron(x, w1, w3, w2, j), "expected"),
])  # fmt: skip
def test_wrong_neurons(capsys, answer, text):
    assert text in said(capsys, check.one_neuron, answer)


def normed(x, weights, eps):
    return rms_norm(x, weights["ffn_norm.weight"], eps)


@pytest.mark.parametrize("answer, text", [
    (lambda s, c, w, eps: normed(s + c, w, eps) + feed_forward(normed(s + c, w, eps), w),
     "added to the normalised stream"),
    (lambda s, c, w, eps: s + c + feed_forward(normed(c, w, eps), w), "attention's change alone"),
    (lambda s, c, w, eps: s + feed_forward(normed(s + c, w, eps), w), "change is lost"),
    (lambda s, c, w, eps: s + c + feed_forward(normed(s, w, eps), w), "does not see attention's"),
    (lambda s, c, w, eps: s + c + feed_forward(s + c, w), "nothing is normalised"),
    (lambda s, c, w, eps: feed_forward(normed(s + c, w, eps), w), "the stream is gone"),
    (lambda s, c, w, eps: s + c + feed_forward(rms_norm(s + c, w["attention_norm.weight"], eps), w),
     "the norm of the first half"),
    (lambda s, c, w, eps: s + c + normed(feed_forward(s + c, w), w, eps), "after the feed-forward"),
    (lambda s, c, w, eps: normed(s + c + feed_forward(s + c, w), w, eps), "the first Transformer"),
])  # fmt: skip
def test_wrong_places(capsys, answer, text):
    assert text in said(capsys, check.second_half, answer)


def test_what_is_given_is_named_and_stays_as_it_is(capsys):
    def changes(stream, change, weights, eps):
        stream += change
        return my_second_half(stream, 0 * change, weights, eps)

    assert "changes its arguments" in said(capsys, check.second_half, changes)
    told = said(capsys, check.second_half, lambda s, c, w, eps: w["w1"])
    assert "a tensor [3, 6], a tensor [3, 6], weights, 1e-05 it raised KeyError: 'w1'" in told


def weights_of(w1, w3, w2):
    """An answer to the multiplier: rows as lists, whole numbers as people type them."""
    return lambda: tuple(torch.tensor(w) for w in (w1, w3, w2))


U, V, MINUS_U, MINUS_V, NONE = [1, 0], [0, 1], [-1, 0], [0, -1], [0, 0]


@pytest.mark.parametrize("answer, text", [
    (weights_of([U, MINUS_U], [V, MINUS_V], [[1, 1], NONE]), "Right"),
    (weights_of([V, MINUS_V], [U, U], [[1, -1], NONE]), "Right"),
    (weights_of([U], [V], [[1], [0]]), "SiLU(u)·v, the product of one neuron"),
    (weights_of([V], [U], [[1], [0]]), "SiLU(v)·u, the product of one neuron"),
    (weights_of([U, U], [V, V], [[1, 1], NONE]), "2·SiLU(u)·v: both neurons do the same"),
    (weights_of([U, MINUS_U], [V, V], [[1, 1], NONE]), "tanh(u/2)"),
    (weights_of([V, MINUS_V], [U, MINUS_U], [[1, -1], NONE]), "tanh(v/2)"),
    (weights_of([U, MINUS_U], [U, MINUS_U], [[1, 1], NONE]), "this is u·u"),
    (weights_of([V, MINUS_V], [V, MINUS_V], [[1, 1], NONE]), "this is v·v"),
    (weights_of([U, MINUS_U], [V, MINUS_V], [[-1, -1], NONE]), "minus u·v"),
    (weights_of([U, MINUS_U], [V, MINUS_V], [NONE, [1, 1]]), "in the second column"),
    (weights_of([U, MINUS_U], [V, MINUS_V], [[1, 1], [1, 1]]), "in both columns"),
    (weights_of([U, MINUS_U], [V, MINUS_V], [[1, 0], [1, 0]]), "w2 is transposed"),
    (weights_of([MINUS_V, V], [MINUS_U, U], [[1, 0], [1, 0]]), "SiLU(-v)·(-u), twice"),
    (lambda: ([U, MINUS_U], [V, MINUS_V], [[1, 1], NONE]), "Right"),
    (weights_of([U, MINUS_U], [V, MINUS_V], [[1, 1]]), "the shape is [5, 1], expected [5, 2]"),
    (lambda: torch.eye(2), "expected three tensors"),
])  # fmt: skip
def test_multipliers(capsys, answer, text):
    assert text in said(capsys, check.multiplier, answer)


def sizes(config):
    return config.dim, config.ffn_dim, config.n_kv_heads * config.head_dim, config.n_heads


@pytest.mark.parametrize("formula, text", [
    (lambda D, width, KH, N: 1.5 * width, "four matrices are left out"),
    (lambda D, width, KH, N: 3 * width - 2 * D - 2 * KH, "twice too large"),
    (lambda D, width, KH, N: 1.5 * width - 2 * D, "as wide as wq"),
    (lambda D, width, KH, N: 1.5 * width - D / 2 - KH, "wo is left out"),
    (lambda D, width, KH, N: width - D - KH, "here two are counted"),
    (lambda D, width, KH, N: (1.5 * width - D - KH) / 2, "half of it"),
    (lambda D, width, KH, N: (1.5 * width - D - KH) * D / KH, "grouping spares memory"),
    (lambda D, width, KH, N: (1.5 * width - D - KH) / N, "each of the N heads"),
    (lambda D, width, KH, N: 1.5 * width - D + KH, "expected 16384"),
])  # fmt: skip
def test_wrong_break_evens(capsys, formula, text):
    assert text in said(capsys, check.break_even, lambda config: formula(*sizes(config)))
