"""Answers to the exercises of notebook 05, apart from the checkers' own."""

import math
from functools import partial

import torch
from torch.nn import functional

from llama3_scratch.model import rotate


def one_head_after_another(x, weights, rotations, mask, c, dealt=False, wide=False):
    """The sum of what the heads write, each computed from its own rows of the matrices."""
    H, change = c.dim // c.n_heads, torch.zeros_like(x)
    w = {name: weights[f"attention.w{name}.weight"] for name in "qkvo"}
    for n in range(c.n_heads):
        k = n % c.n_kv_heads if dealt else n * c.n_kv_heads // c.n_heads
        query, own = x @ w["q"][n * H : (n + 1) * H].T, slice(k * H, (k + 1) * H)
        key, value = (x @ w[name][own].T for name in "kv")
        query, key = (rotate(a.unsqueeze(-2), rotations).squeeze(-2) for a in (query, key))
        scores = query @ key.mT / math.sqrt(c.dim if wide else H)
        probabilities = (scores + mask.to(x.dtype)).softmax(-1)
        change = change + probabilities @ value @ w["o"][:, n * H : (n + 1) * H].T
    return change


def by_torch(x, weights, rotations, mask, c, gives="change", values=lambda v, rotations: v):
    """PyTorch's own function; `gives` and `values` break it."""
    shaped = (*x.shape[:-1], -1, c.dim // c.n_heads)
    query, key, value = ((x @ weights[f"attention.w{w}.weight"].T).view(shaped) for w in "qkv")
    query, key = rotate(query, rotations), rotate(key, rotations)
    first = (a.transpose(-2, -3) for a in (query, key, values(value, rotations)))
    o = functional.scaled_dot_product_attention(*first, mask.to(x.dtype), enable_gqa=True)
    merged = o.contiguous().view(x.shape) if gives == "leak" else o.transpose(-2, -3).flatten(-2)
    return merged if gives == "merged" else merged @ weights["attention.wo.weight"].T


def by_rows(o, wo):
    return (o.transpose(0, 1) @ wo.view(*o.shape[1:], -1)).transpose(0, 1)


def room(c, memory, size, weights=1, kept=None):
    token = 2 * c.n_layers * (kept or c.n_kv_heads) * (c.dim // c.n_heads) * size
    return (memory - weights * c.n_parameters * size) // token


def exact_room(c, memory, size):
    """Tokens and the part of a token that fit."""
    per_token = 2 * c.sizes["L"] * c.sizes["K"] * c.sizes["H"]
    return (memory / size - c.n_parameters) / per_token


RIGHT = {
    "e05_grouped_query.attention": [one_head_after_another, by_torch],
    "e05_grouped_query.head_writes": [
        lambda o, wo: torch.stack(
            [h @ w.T for h, w in zip(o.unbind(1), wo.chunk(o.shape[1], 1), strict=True)], 1),
        lambda o, wo: (o[:, :, None] * wo.view(len(wo), *o.shape[1:]).transpose(0, 1)).sum(-1),
    ],
    "e05_grouped_query.cache_room": [
        room,
        lambda c, memory, size: math.floor(exact_room(c, memory, size)),
    ],
    "e05_grouped_query.pool_heads": [
        lambda w, K, J: torch.cat(
            [torch.stack(w.chunk(K)[i : i + K // J]).mean(0) for i in range(0, K, K // J)]),
    ],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e05_grouped_query.attention": [
        (lambda x, *others: by_torch(x, *others).float(), "expected torch.bfloat16"),
        #
        (lambda x, *others: x + by_torch(x, *others, gives="merged"), "with wo all zeros"),
        (partial(by_torch, gives="leak", values=rotate), "the future is visible"),
        (partial(one_head_after_another, dealt=True, wide=True), "not at the scores"),
    ],
    "e05_grouped_query.head_writes": [
        (lambda o, wo: (o.flatten(1)[:, None] * wo).unflatten(2, o.shape[1:]), "the shape is"),
        #
        (lambda o, wo: by_rows(o.flip(1), wo), "do not add up"),
        (lambda o, wo: by_rows(o, wo.T).flip(1), "another head writes something"),
    ],
    "e05_grouped_query.cache_room": [
        (lambda c, memory, size: room(c, memory, size) + 3, "or something is added"),
        (lambda c, memory, size: round(exact_room(c, memory, size)), "to the nearest"),
        (lambda c, memory, size: math.ceil(exact_room(c, memory, size)), "rounded up"),
        (lambda c, memory, size: exact_room(c, memory, size), "round down"),
        (lambda c, memory, size: room(c, memory, size, kept=8), "what one token takes"),
        #
        (lambda c, memory, size: room(c, memory, size, 0, c.n_heads), "what one token takes"),
    ],
    "e05_grouped_query.pool_heads": [
        (lambda w, K, J: w.unflatten(0, (K, -1)).mean(0).repeat(J, 1), "K/J heads of each group"),
        #
        (lambda w, K, J: w.unflatten(0, (-1, K // J)).sum(1), "Is it a sum"),
    ],
}  # fmt: skip
