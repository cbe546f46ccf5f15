"""The exercises of notebook 04: right answers pass, and each mistake gets the word meant for it."""

import math

import pytest
import torch
import torch.nn.functional as F

from llama3_scratch import check


def said(capsys, checker, answer):
    checker(answer)
    return capsys.readouterr().out.strip()


def my_mask(queries, keys):
    return torch.where(keys > queries[:, None], -math.inf, 0.0)


def my_softmax(scores):
    exps = (scores - scores.max(-1, keepdim=True).values).exp()
    return exps / exps.sum(-1, keepdim=True)


def above(q, value=-math.inf):
    return torch.full((len(q), len(q)), value).triu(1)


def my_head(q, k, v):
    return F.softmax(q @ k.T / math.sqrt(q.shape[-1]) + above(q), dim=-1) @ v


def my_previous(frequencies, by=-1, size=100.0):
    turn = torch.polar(torch.full_like(frequencies, size), by * frequencies)
    return torch.view_as_real(turn).flatten(), torch.view_as_real(turn.abs() + 0j).flatten()


@pytest.mark.parametrize("checker, answer", [
    (check.causal_mask, my_mask), (check.softmax, my_softmax),
    (check.softmax, lambda scores: F.softmax(scores, -1)), (check.one_head, my_head),
    (check.previous_token_head, my_previous),
    # keys turned ahead in place of queries turned back, and any length that is enough
    (check.previous_token_head, lambda f: my_previous(f, 1, 11.0)[::-1]),
    (check.previous_token_head, lambda f: torch.stack(my_previous(f))),
    (check.causal_mask, lambda q, k: (k <= q[:, None]).float().log()),
    (check.causal_mask, lambda q, k: torch.tensor(
        [[0.0 if s <= t else -math.inf for s in k.tolist()] for t in q.tolist()])),
    (check.softmax, lambda s: (s - s.logsumexp(-1, keepdim=True)).exp()),
    (check.one_head, lambda q, k, v: F.scaled_dot_product_attention(
        q[None], k[None], v[None], is_causal=True)[0]),
    (check.one_head, lambda q, k, v: torch.stack([
        F.softmax(k[: t + 1] @ q[t] / math.sqrt(len(q[t])), 0) @ v[: t + 1]
        for t in range(len(q))])),
])  # fmt: skip
def test_the_right_answer_is_right_and_an_empty_one_is_not(capsys, checker, answer):
    assert said(capsys, checker, answer).startswith("Right: ")
    assert "returned None" in said(capsys, checker, lambda *case: None)


@pytest.mark.parametrize("answer, text", [
    (lambda q, k: (k > q[:, None]) * -math.inf, "0 times minus infinity"),
    (lambda q, k: (k > q[:, None]).float() * float("-inf"), "0 times minus infinity"),
    (lambda q, k: torch.where(k >= q[:, None], -math.inf, 0.0), "hidden from itself"),
    (lambda q, k: torch.where(k < q[:, None], -math.inf, 0.0), "the wrong side is masked"),
    (lambda q, k: torch.where(k > q[:, None], 0.0, -math.inf), "are exchanged"),
    (lambda q, k: torch.where(k > q[:, None], 0.0, 1.0), "ones and zeros"),
    (lambda q, k: k <= q[:, None], "True and False. The mask is added"),
    (lambda q, k: k > q[:, None], "True and False: the right places"),
    (lambda q, k: torch.where(k > q[:, None], math.inf, 0.0), "the infinity is positive"),
    (lambda q, k: torch.where(k > q[:, None], -1e9, 0.0), "a large negative number"),
    (lambda q, k: torch.where(k > q[:, None], -1e4, 0.0), "a large negative number"),
    (lambda q, k: torch.full((len(q), len(k)), -math.inf).triu(1), "begin at position 0"),
    (lambda q, k: torch.full((len(q), len(k)), -math.inf).triu(len(k) - len(q) + 1),
     "the last query is the last key"),
    (lambda q, k: my_mask(q, k).T, "rows and columns are exchanged"),
    (lambda q, k: torch.ones(len(q), len(k)).triu(1) * -math.inf, "counts rows and columns, too"),
    (lambda q, k: torch.where(k > q[:, None] + 1, -math.inf, 0.0), "sees one token of the future"),
    (lambda q, k: (k > q[:, None]).float(), "ones on the future"),
    (lambda q, k: torch.where(k > q[:, None], -100.0, 0.0), "a large negative number"),
    (lambda q, k: my_mask(q, torch.arange(len(k))), "it counts the keys"),
    (lambda q, k: my_mask(torch.arange(len(q)), k), "it counts the queries"),
    (lambda q, k: my_mask(q, q), "expected [3, 8]"),
    (lambda q, k: my_mask(q, k) - 5, "expected"),
])  # fmt: skip
def test_wrong_masks(capsys, answer, text):
    assert text in said(capsys, check.causal_mask, answer)


def _exps(scores):
    return (scores - scores.max(-1, keepdim=True).values).exp()


def _over_all(scores):
    exps = (scores - scores.max()).exp()
    return exps / exps.sum(-1, keepdim=True)


@pytest.mark.parametrize("answer, text", [
    (lambda s: s.exp() / s.exp().sum(-1, keepdim=True), "NaN for large ones"),
    (_over_all, "largest score of the whole matrix"),
    (lambda s: F.softmax(s, dim=0), "columns add up to 1"),
    (lambda s: (s - s.max()).exp() / (s - s.max()).exp().sum(), "all rows together"),
    (lambda s: _exps(s) / _exps(s).sum(), "the sum over all rows"),
    (lambda s: (e := (s - s.max(0).values).exp()) / e.sum(-1, keepdim=True), "of each column"),
    (_exps, "the largest of each row is 1"),
    (lambda s: s - s.logsumexp(-1, keepdim=True), "logarithms"),
    (lambda s: s / s.sum(-1, keepdim=True), "divided by their sum"),
    (lambda s: torch.exp2(s - s.max(-1, keepdim=True).values), "expected"),
    (lambda s: F.softmax(s * math.log(2), -1), "the base is 2"),
    (lambda s: _exps(s) / _exps(s).sum(-1), "it raised RuntimeError"),
    (lambda s: s.sub_(s.max(-1, keepdim=True).values).softmax(-1), "changes its arguments"),
])  # fmt: skip
def test_wrong_softmaxes(capsys, answer, text):
    assert text in said(capsys, check.softmax, answer)


def head(q, k, v, by=None, mask=None, dim=-1):
    mask = above(q) if mask is None else mask
    return F.softmax(q @ k.T / (by or math.sqrt(q.shape[-1])) + mask, dim=dim) @ v


def probabilities(q, k):
    return F.softmax(q @ k.T / math.sqrt(q.shape[-1]) + above(q), dim=-1)


@pytest.mark.parametrize("answer, text", [
    (lambda q, k, v: head(q, k, v, q.shape[-1]), "divide by H instead of sqrt(H)"),
    (lambda q, k, v: head(q, k, v, 1.0), "not divided by sqrt(H)"),
    (lambda q, k, v: head(q, k, v, q.shape[-1] ** -0.5), "multiplied by sqrt(H)"),
    (lambda q, k, v: head(q, k, v, math.sqrt(len(q))), "square root of T"),
    (lambda q, k, v: F.softmax(q @ k.T + above(q), -1) / math.sqrt(q.shape[-1]) @ v,
     "sqrt(H) comes too late"),
    (lambda q, k, v: head(q, k, v, mask=0), "nothing is masked: each"),
    (lambda q, k, v: head(q, k, v, 1.0, mask=0), "two things are missing"),
    (lambda q, k, v: head(q, k, v, mask=above(q, 1.0) * -math.inf), "all of it is NaN"),
    (lambda q, k, v: head(q, k, v, mask=torch.full((len(q),) * 2, -math.inf).tril()),
     "zeros and infinities are exchanged"),
    (lambda q, k, v: probabilities(q, k) @ k, "mean is taken of the keys"),
    (lambda q, k, v: F.softmax((q @ k.T / math.sqrt(q.shape[-1])).tril(), -1) @ v,
     "e to the power of 0 is 1"),
    (lambda q, k, v: F.softmax(q @ k.T / math.sqrt(q.shape[-1]), -1).tril() @ v,
     "does not add up to 1"),
    (lambda q, k, v: (F.softmax(q @ k.T / math.sqrt(q.shape[-1]), -1) + above(q)) @ v,
     "added after the softmax"),
    (lambda q, k, v: head(q, k, v, mask=torch.full((len(q),) * 2, -math.inf).triu(0)),
     "the first row is NaN"),
    (lambda q, k, v: head(q, k, v, mask=above(q).T), "the mask is turned round"),
    (lambda q, k, v: head(q, k, v, dim=0), "along the queries"),
    (lambda q, k, v: head(k, q, v), "queries and keys are exchanged"),
    (lambda q, k, v: probabilities(q, k), "these are the probabilities"),
    (lambda q, k, v: probabilities(q, k).T @ v, "mixed by the columns"),
    (lambda q, k, v: probabilities(q, k) @ q, "mean is taken of the queries"),
    (lambda q, k, v: (q @ k.T / math.sqrt(q.shape[-1]) + above(q)) @ v, "there is no softmax"),
    (lambda q, k, v: my_head(q, k, v) + 1, "expected"),
])  # fmt: skip
def test_wrong_heads(capsys, answer, text):
    assert text in said(capsys, check.one_head, answer)


def in_halves(f, sign):
    return 100 * torch.cat([f.cos(), sign * f.sin()]), torch.cat([f.cos() * 0 + 1, f * 0])


def turned_alike(f, angle):
    turn = torch.polar(torch.full_like(f, 100.0), torch.full_like(f, angle))
    return torch.view_as_real(turn).flatten(), torch.view_as_real(turn.abs() + 0j).flatten()


@pytest.mark.parametrize("answer, text", [
    (lambda f: my_previous(f, 1), "one position ahead"),
    (lambda f: my_previous(f, -1)[::-1], "one position ahead"),
    (lambda f: my_previous(f, -2), "two positions back"),
    (lambda f: my_previous(f, 0), "each token looks at itself"),
    (lambda f: my_previous(f, -1, 1.0), "less than half of its probability"),
    (lambda f: (0 * f.repeat(2), f.repeat(2)), "all scores are equal"),
    (lambda f: in_halves(f, -1), "in two halves"),
    (lambda f: my_previous(f, -5), "at another token"),
    (lambda f: turned_alike(f, -1.0), "by the same angle. In one"),
    (lambda f: turned_alike(f, 1.0), "by the same angle, and forward"),
    (lambda f: (f, f), "two tensors of 2 P numbers each"),
    (lambda f: my_previous(f)[0], "two tensors of 2 P numbers each"),
    (lambda f: tuple(x.tolist() for x in my_previous(f)), "two tensors of 2 P numbers each"),
    (lambda f: (torch.polar(100 + 0 * f, -f), torch.polar(1 + 0 * f, 0 * f)), "complex numbers"),
])  # fmt: skip
def test_wrong_previous_token_heads(capsys, answer, text):
    assert text in said(capsys, check.previous_token_head, answer)
