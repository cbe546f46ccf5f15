"""Answers to the exercises of notebook 04, written without a look at the checkers' own."""

import math

import numpy as np
import torch
import torch.nn.functional as F

INF = math.inf


def above(q, value=-INF, diagonal=1):
    return torch.full((len(q), len(q)), value).triu(diagonal)


def mask(queries, keys, hidden=-INF, shown=0.0, ahead=0):
    return torch.where(keys > queries[:, None] + ahead, hidden, shown)


def parts(scores):
    e = torch.exp(scores - torch.amax(scores, 1)[:, None])
    return e, e.sum(1, keepdim=True)


def torchs_own(scores):
    return torch.softmax(scores, dim=1)


def head(q, k, v, by=None, hidden=None, dim=-1):
    hidden = above(q) if hidden is None else hidden
    return F.softmax(q @ k.T / (by or math.sqrt(q.shape[-1])) + hidden, dim=dim) @ v


def head_in_a_loop(q, k, v):
    rows = []
    for t in range(len(q)):
        scores = k[: t + 1] @ q[t] / len(q[t]) ** 0.5
        rows.append(scores.softmax(0) @ v[: t + 1])
    return torch.stack(rows)


def head_with_numpy(q, k, v):
    q, k, v = (x.double().numpy() for x in (q, k, v))
    exps = np.exp(q @ k.T / np.sqrt(q.shape[1])) * np.tri(len(q))
    return exps / exps.sum(1, keepdims=True) @ v


def previous(f, by=-1, size=100.0):
    arrows = torch.polar(torch.full_like(f, size), by * f)
    return torch.view_as_real(arrows).flatten(), torch.view_as_real(arrows.abs() + 0j).flatten()


def in_halves(f, by=-1):
    return 100 * torch.cat([f.cos(), (by * f).sin()]), torch.cat([f.cos() * 0 + 1, f * 0])


RIGHT = {
    "e04_attention.mask": [
        mask,
        lambda q, k: (k <= q[:, None]).float().log(),
        lambda q, k: torch.tensor([[0.0 if s <= t else -INF for s in k] for t in q]),
        lambda q, k: np.where(k.numpy() > q.numpy()[:, None], -INF, 0.0),
    ],
    "e04_attention.softmax": [
        lambda s: parts(s)[0] / parts(s)[1],
        lambda s: (s - s.logsumexp(-1, keepdim=True)).exp(),
        lambda s: torch.stack([(row - max(row)).exp() / sum((row - max(row)).exp()) for row in s]),
    ],
    "e04_attention.one_head": [
        head, head_in_a_loop, head_with_numpy,
        lambda *qkv: F.scaled_dot_product_attention(*(x[None] for x in qkv), is_causal=True)[0],
        lambda q, k, v: head(q, k, v, hidden=above(q, -1e9)),
    ],
    "e04_attention.previous_token_head": [
        # keys turned ahead in place of queries turned back, and any length that is enough
        previous, lambda f: previous(f, 1, 11.0)[::-1], lambda f: torch.stack(previous(f)),
    ],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e04_attention.mask": [
        (lambda q, k: mask(q, q), "the shape is [3, 3], expected [3, 8]"),
        (lambda q, k: mask(q, k)[0] if len(q) == 1 else mask(q, k), "the shape is [8]"),
        (lambda q, k: mask(q, k, -100.0), "a large negative number"),
        #
        (lambda q, k: mask(q, k, shown=1.0), "has no 0"),
        (lambda q, k: mask(q, k, -1.0, ahead=1), "is not masked"),
        (lambda q, k: mask(q - q[0], k - k[0], -1e9), "is not masked"),
        (lambda q, k: mask(q, k, 1.0).isinf(), "the dtype is torch.bool"),
    ],
    "e04_attention.softmax": [
        (torchs_own, "torch's own softmax"),
        (lambda s: parts(s)[0] / parts(s)[1][:, 0], "it raised RuntimeError"),
        (lambda s: s.sub_(1).exp(), "it changes its arguments"),
        (lambda s: s.double().exp() / s.double().exp().sum(-1, keepdim=True), "there is NaN"),
        #
        (lambda s: s.exp().log1p() / s.exp().sum(), "there is NaN in the result"),
        (lambda s: torch.exp2(parts(s)[0].log()) / parts(s)[1], "the rows do not add up to 1"),
        (lambda s: parts(-s.clamp(-1e4))[0] / parts(-s.clamp(-1e4))[1], "the largest probability"),
    ],
    "e04_attention.one_head": [
        (lambda q, k, v: head(q, k, v) + 1, "values that are all 1 do not give 1"),
        (lambda q, k, v: head(q, k, v).squeeze(), "the shape is [6], expected [1, 6]"),
        (lambda q, k, v: head(q, k, v, hidden=above(q, -INF, 2)), "an earlier token notices"),
        #
        (lambda q, k, v: head(q, k, v, 1.0, dim=0), "an earlier token notices"),
        (lambda q, k, v: head(k, q, v, hidden=above(q).T), "an earlier token notices"),
        (lambda q, k, v: head(q, k, v, len(q), above(q, -1.0)), "an earlier token notices"),
        (lambda q, k, v: head(k, q, k, q.shape[-1]), "do not give 1"),
        (lambda q, k, v: (q @ k.T / q.shape[-1]).tril() @ v, "do not give 1"),
    ],
    "e04_attention.previous_token_head": [
        (lambda f: previous(f, -5), "not at the position before"),
        (lambda f: previous(f)[0], "two tensors of 2 P numbers each"),
        (lambda f: tuple(x.tolist() for x in previous(f)), "two tensors of 2 P numbers each"),
        (lambda f: previous(f)[::-1], "attends to the position after"),
        #
        (lambda f: previous(f, -3, 0.1), "not at the position before"),
        (lambda f: previous(f, 3, 0.1), "at a later position"),
        (lambda f: tuple(x.cfloat() for x in in_halves(f)), "complex numbers still"),
    ],
}  # fmt: skip
