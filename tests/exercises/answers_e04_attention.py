"""Answers to the exercises of notebook 04, apart from the checkers' own."""

import math

import torch
import torch.nn.functional as F

from llama3_scratch.model import attend

INF = math.inf


def mask(queries, keys, hidden=-INF, shown=0.0, ahead=0):
    return torch.where(keys > queries[:, None] + ahead, hidden, shown)


def attended(query, keys, values, mask, by=None):
    """The likely way, with whatever is wrong given as a number."""
    scores = torch.einsum("...th,...sh->...ts", query, keys) / (by or math.sqrt(query.shape[-1]))
    shares = F.softmax((scores + mask).float(), dim=-1).to(values.dtype)
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


def without_by_class(layer, head):
    class Without:
        called = 0

        def __call__(self, query, *others):
            kept = torch.ones(query.shape[-2], 1)
            kept[head] = float(self.called != layer)
            self.called += 1
            return attend(query, *others) * kept

    return Without()


def without_by_list(layer, head, change=lambda o, j: o[..., j, :].zero_()):
    seen = []

    def inner(query, keys, values, mask):
        outputs = attend(query, keys, values, mask).clone()
        if len(seen) == layer:
            change(outputs, head)
        seen.append(1)
        return outputs

    return inner


def previous(f, by=-1, size=100.0):
    arrows = torch.polar(torch.full_like(f, size), by * f)
    return torch.view_as_real(arrows).flatten(), torch.view_as_real(arrows.abs() + 0j).flatten()


RIGHT = {
    "e04_attention.mask": [
        lambda q, k: (k <= q[:, None]).float().log(),
        lambda q, k: torch.tensor([[0.0 if s <= t else -INF for s in k] for t in q]),
    ],
    "e04_attention.attend": [attended_in_a_loop, attended_by_torch],
    # queries turned back, or keys turned ahead by any length that is enough
    "e04_attention.previous_token": [previous, lambda f: previous(f, 1, 11.0)[::-1]],
    "e04_attention.without": [without_by_class, without_by_list],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e04_attention.mask": [
        (lambda q, k: mask(q, k, -20.0), "a key of the future is not masked"),
        (lambda q, k: mask(q, k, shown=1.0), "has no 0"),
        #
        (lambda q, k: mask(q, k, -1.0, ahead=1), "is not masked"),
    ],
    "e04_attention.attend": [
        (lambda q, k, v, m: attended(q, k, v, m.clamp(-20)), "for scores of several hundred"),
        (lambda q, k, v, m: (q @ k.T / math.sqrt(q.shape[1]) + m).softmax(1) @ v,
         "for leading dimensions, [2, 3, T, H] it raised"),
        #
        (lambda q, k, v, m: attended(q, k, v, m.clamp(0), len(k)), "a key that is hidden"),
        (lambda q, k, v, m: (q @ k.mT / q.shape[-1] * (m == 0)).to(v.dtype) @ v, "do not give 1"),
    ],
    "e04_attention.previous_token": [
        (lambda f: (f, f), "vectors of H = 2 P numbers each"),
        (lambda f: [x / (0 * x) for x in previous(f)], "holds NaN or infinity"),
        #
        (lambda f: previous(f, -3, 0.1), "not at the position before"),
        (lambda f: previous(f, 3, 0.1), "at a later position"),
    ],
    "e04_attention.without": [
        (lambda i, j: without_by_list(i, j, change=lambda o, j: o[..., j:, :].zero_()), "at [0, 0"),
        (lambda i, j: without_by_list(i, j, change=lambda o, j: o.mul_(-math.inf)), "there is NaN"),
        #
        (lambda i, j: without_by_list(2 - i, j, lambda o, j: o[..., j:, :].zero_()), "at [0, 0"),
    ],
}  # fmt: skip
