"""Answers to the exercises of notebook 04, written without a look at the checkers' own."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from llama3_scratch.model import attend

INF = math.inf


def above(q, value=-INF, diagonal=1):
    return torch.full((len(q), len(q)), value).triu(diagonal)


def mask(queries, keys, hidden=-INF, shown=0.0, ahead=0):
    return torch.where(keys > queries[:, None] + ahead, hidden, shown)


def attended(query, keys, values, mask, by=None, dim=-1):
    """The likely way, with whatever is wrong given as a number."""
    scores = torch.einsum("...th,...sh->...ts", query, keys) / (by or math.sqrt(query.shape[-1]))
    shares = F.softmax((scores + mask).float(), dim=dim).to(values.dtype)
    return torch.einsum("...ts,...sh->...th", shares, values)


def attended_in_a_loop(query, keys, values, mask):
    rows = []
    for t in range(query.shape[-2]):
        scores = (keys * query[..., t : t + 1, :]).sum(-1) / query.shape[-1] ** 0.5 + mask[t]
        exps = (scores - scores.max(-1, keepdim=True).values).exp()
        shares = exps / exps.sum(-1, keepdim=True)
        rows.append((shares[..., None] * values).sum(-2).to(values.dtype))
    return torch.stack(rows, -2)


def attended_by_torch(query, keys, values, mask):
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask.to(query.dtype))


def two_dimensions_only(query, keys, values, mask):
    return (query @ keys.T / math.sqrt(query.shape[1]) + mask).softmax(1) @ values


def without_by_class(layer, head):
    class Without:
        def __init__(self):
            self.layers = iter(range(100))

        def __call__(self, *given):
            return attend(*given) * self.kept(attend(*given), next(self.layers))

        def kept(self, outputs, i):
            kept = torch.ones(outputs.shape[-2], 1)
            kept[head] = float(i != layer)
            return kept

    return Without()


def silenced(outputs, head):
    outputs[..., head, :] = 0


def without_by_list(layer, head, at=lambda layer: layer, change=silenced):
    seen = []

    def inner(query, keys, values, mask):
        outputs = attend(query, keys, values, mask).clone()
        if len(seen) == at(layer):
            change(outputs, head)
        seen.append(1)
        return outputs

    return inner


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
    "e04_attention.attend": [
        attended, attended_in_a_loop, attended_by_torch,
        lambda q, k, v, m: attended(q, k, v, m.clamp(-1e9)),
    ],
    "e04_attention.previous_token": [
        # keys turned ahead in place of queries turned back, and any length that is enough
        previous, lambda f: previous(f, 1, 11.0)[::-1], lambda f: torch.stack(previous(f)),
    ],
    "e04_attention.without": [without_by_class, without_by_list],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e04_attention.mask": [
        (lambda q, k: mask(q, q), "the shape is [3, 3], expected [3, 8]"),
        (lambda q, k: mask(q, k)[0] if len(q) == 1 else mask(q, k), "the shape is [8]"),
        (lambda q, k: mask(q, k, -100.0), "a large negative number"),
        (lambda q, k: mask(q, k, -20.0), "a key of the future is not masked"),
        #
        (lambda q, k: mask(q, k, shown=1.0), "has no 0"),
        (lambda q, k: mask(q, k, -1.0, ahead=1), "is not masked"),
        (lambda q, k: mask(q - q[0], k - k[0], -1e9), "is not masked"),
        (lambda q, k: mask(q, k, 1.0).isinf(), "the dtype is torch.bool"),
    ],
    "e04_attention.attend": [
        (lambda *g: attended(*g) + 1, "values that are all 1 do not give 1"),
        (lambda *g: attended(*g).squeeze(), "the shape is [6], expected [1, 6]"),
        (lambda q, k, v, m: attended(q, k, v, m.clamp(-20)), "for scores of several hundred"),
        (two_dimensions_only, "for leading dimensions, [2, 3, T, H] it raised"),
        (lambda q, k, v, m: attended(k, q, v, m), "it raised RuntimeError"),
        (lambda q, k, v, m: (q @ k.mT / math.sqrt(q.shape[-1]) + m).softmax(-1) @ v,
         "for bfloat16 it raised RuntimeError"),
        (lambda q, k, v, m: attended(q, k, v, m) * (1 + 1e-3), "values that are all 1"),
        (lambda q, k, v, m: attended(q.float(), k.float(), v.float(), m), "is float32"),
        #
        (lambda q, k, v, m: attended(q, k, v, m, 1.0, -2), "there is NaN"),
        (lambda q, k, v, m: attended(q, k, v, m.clamp(0), len(k)), "a key that is hidden"),
        (lambda q, k, v, m: attended(q, k, k, m, 1.0), "do not give 1"),
        (lambda q, k, v, m: (q @ k.mT / q.shape[-1] * (m == 0)).to(v.dtype) @ v, "do not give 1"),
    ],
    "e04_attention.previous_token": [
        (lambda f: previous(f, -5), "not at the position before"),
        (lambda f: previous(f)[0], "two tensors of 2 P numbers each"),
        (lambda f: tuple(x.tolist() for x in previous(f)), "two tensors of 2 P numbers each"),
        (lambda f: previous(f)[::-1], "attends to the position after"),
        (lambda f: (f, f), "vectors of H = 2 P numbers each"),
        (lambda f: [x.expand(24, -1) for x in previous(f)], "vectors of H = 2 P numbers each"),
        (lambda f: [x / (0 * x) for x in previous(f)], "holds NaN or infinity"),
        #
        (lambda f: previous(f, -3, 0.1), "not at the position before"),
        (lambda f: previous(f, 3, 0.1), "at a later position"),
        (lambda f: tuple(x.cfloat() for x in in_halves(f)), "complex numbers still"),
    ],
    "e04_attention.without": [
        (lambda i, j: torch.zeros(5, 4, 6), "it raised TypeError"),
        (lambda i, j: without_by_list(i, j, lambda i: 2 - i), "at [0, 0, "),
        (lambda i, j: without_by_list(i, j, change=lambda o, j: o[..., j:, :].zero_()), "at [0, 0"),
        (lambda i, j: without_by_list(i, j, change=lambda o, j: o[:, j].zero_()), "a token is"),
        (lambda i, j: without_by_list(i, j, change=lambda o, j: o.mul_(-math.inf)), "there is NaN"),
    ],
}  # fmt: skip
