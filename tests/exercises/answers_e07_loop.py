"""Answers to the exercises of notebook 07, apart from the checkers' own."""

import math

import numpy as np
import torch
from torch.nn import functional

from llama3_scratch import model
from llama3_scratch.model import attention, feed_forward, layer, rms_norm


def size_1(x, c, w=1.0):
    return w * x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt()


def one_layer(x, w, r, m, c, eps=None, first="attention", second="ffn", scale=1.0):
    for part, name in (("attention", first), ("feed_forward", second)):
        rows = rms_norm(x, w[f"{name}_norm.weight"], eps or c.norm_eps)
        more = (rows, w, r, m, c) if part == "attention" else (rows, w)
        x = x + scale * vars(model)[part](*more)
    return x


def longhand(x, w, r, m, c):
    """Nothing but torch, a loop over the heads."""
    H, G = c.head_dim, c.n_heads // c.n_kv_heads
    rows, outputs = rms_norm(x, w["attention_norm.weight"], c.norm_eps), []
    q, k, v = (rows @ w[f"attention.w{name}.weight"].T for name in "qkv")
    for n in range(c.n_heads):
        one, two = (
            torch.view_as_real(torch.view_as_complex(
                y[..., i * H : (i + 1) * H].float().unflatten(-1, (-1, 2))) * r).flatten(-2)
            for y, i in ((q, n), (k, n // G))
        )  # fmt: skip
        shares = (one @ two.mT / math.sqrt(H) + m).softmax(-1)
        outputs.append(shares.to(x.dtype) @ v[..., n // G * H : (n // G + 1) * H])
    x = x + torch.cat(outputs, -1) @ w["attention.wo.weight"].T
    rows = rms_norm(x, w["ffn_norm.weight"], c.norm_eps)
    w1, w2, w3 = (w[f"feed_forward.w{i}.weight"].T for i in (1, 2, 3))
    return x + (functional.silu(rows @ w1) * (rows @ w3)) @ w2


def in_place(x, w, r, m, c):
    x += attention(rms_norm(x, w["attention_norm.weight"], c.norm_eps), w, r, m, c)
    return x + feed_forward(rms_norm(x, w["ffn_norm.weight"], c.norm_eps), w)


def parallel(x, w, r, m, c):
    """GPT-J's layer: both parts read the same rows."""
    rows = rms_norm(x, w["attention_norm.weight"], c.norm_eps)
    return x + attention(rows, w, r, m, c) + feed_forward(rows, w)


def whole(w, ids, c, one=one_layer, T=None, last="norm.weight", layers=None, start=0):
    T = T or ids.shape[-1]
    turns = model.rotations_at(start + torch.arange(T), c)
    future = torch.full((T, T), -math.inf).triu(1)
    x = functional.embedding(ids, w["tok_embeddings.weight"])
    for i in range(layers or c.n_layers):
        x = one(x, layer(w, i), turns, future, c)
    return functional.linear(rms_norm(x, w[last], c.norm_eps), w["output.weight"]).float()


def shares(parts, w, token, other, c):
    """By taking each part out of a product that is linear once the size is fixed."""
    stream = parts.sum(0)
    size = float((stream @ stream / len(stream) + c.norm_eps) ** 0.5)
    rows = (parts * w["norm.weight"] / size) @ w["output.weight"].T
    return rows[:, token] - rows[:, other]


def last_disagreement(tops):
    found = torch.zeros_like(tops[0])
    for layers, row in enumerate(tops, start=1):
        found[row != tops[-1]] = layers
    return found


def with_a_while(tops):
    found = []
    for column in tops.T.tolist():
        n = len(column) - 1
        while n > 0 and column[n - 1] == column[-1]:
            n -= 1
        found.append(n)
    return found


def same(ours, theirs, tolerance):
    return (ours - theirs).abs().max() / theirs.abs().max() <= tolerance


RIGHT = {
    "e07_loop.block": [
        one_layer,
        longhand,
        lambda x, w, r, m, c: torch.stack([one_layer(row, w, r, m, c) for row in x])
        if x.dim() == 3 else one_layer(x, w, r, m, c),
    ],
    "e07_loop.forward": [
        whole,
        lambda w, ids, c: whole(w, ids, c, longhand),
        lambda w, ids, c: whole(w, ids, c, start=1),  # only distances matter
    ],
    "e07_loop.attribute": [
        shares,
        lambda *case: [float(x) for x in shares(*case)],
    ],
    "e07_loop.settled": [
        last_disagreement,
        with_a_while,
        lambda tops: ((tops != tops[-1]).int() * torch.arange(1, len(tops) + 1)[:, None]).amax(0),
        lambda tops: np.logical_or.accumulate((tops != tops[-1]).numpy()[::-1]).sum(0),
    ],
    "e07_loop.same_logits": [
        same,
        lambda a, b, t: np.abs((a - b).numpy()).max() <= float(t * b.abs().max()),
        lambda a, b, t: all(abs(x) <= t * b.abs().max().item() for row in a - b for x in row),
    ],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e07_loop.block": [
        (in_place, "it changes its arguments"),
        (lambda x, w, r, m, c: w["wq"], "it raised KeyError"),
        (lambda x, w, r, m, c: one_layer(x, w, r, m, c)[-1], "the shape is [4], expected [2, 4]"),
        (lambda *case: one_layer(*case, eps=1e-9), "use `config.norm_eps`"),
        (lambda *case: one_layer(*case, first="ffn"), "the first half is not right"),
        (lambda x, w, r, m, c: one_layer(x, w, r, m.clamp(0), c), "the first half is not right"),
        (parallel, "the second half is not right"),
        (lambda *case: one_layer(*case).float(), "expected 'torch.bfloat16'"),
        #
        (lambda *case: size_1(one_layer(*case, first="ffn"), case[4]), "come out as it went in"),
        (lambda x, w, r, m, c: 2 * one_layer(x, w, r, m, c), "come out as it went in"),
        (lambda *case: one_layer(*case, scale=0.5), "the first half is not right"),
    ],
    "e07_loop.forward": [
        (lambda w, ids, c: whole(w, ids, c)[-1], "the shape is [5], expected [3, 5]"),
        (lambda w, ids, c: whole(w, ids, c, T=len(ids)), "two texts at once it raised"),
        (lambda w, ids, c: whole(w, ids, c, last="ffn_norm.weight"), "it raised KeyError"),
        (lambda w, ids, c: whole(w, ids, c).argmax(-1), "the shape is [3], expected [3, 5]"),
        (lambda w, ids, c: functional.linear(whole(w, ids, c), w["output.weight"]), "raised"),
        #
        (lambda w, ids, c: whole(w, ids, c, lambda x, *more: parallel(x, *more)), "the value is"),
        (lambda *case: whole(*case, lambda x, w, r, m, c: one_layer(x, w, r, m.triu(2), c)),
         "another last token changes the logits"),
    ],
    "e07_loop.attribute": [
        (lambda *case: shares(*case).sum(), "the shape is [], expected [3]"),
        (lambda parts, w, t, o, c: parts @ w["output.weight"][t], "do not add up"),
        (lambda *case: shares(*case)[:-1], "the shape is [2], expected [3]"),
        (lambda parts, w, t, o, c: shares(parts, w, t, o, c).mean().expand(len(parts)), "are cut"),
        (lambda *case: shares(*case).abs(), "do not add up"),
        #
        (lambda parts, w, t, o, c: size_1(parts, c) @ w["output.weight"][t], "do not add up"),
    ],
    "e07_loop.settled": [
        (lambda tops: last_disagreement(tops.T), "the shape is [4], expected [5]"),
        (lambda tops: last_disagreement(tops).float(), "the dtype is torch.float32"),
        (lambda tops: last_disagreement(tops).squeeze(), "the shape is [], expected [1]"),
        (lambda tops: last_disagreement(tops.where(tops > 7, 8)), "settled too early"),
        #
        (lambda tops: (tops == tops[-1]).int().argmax(0) + 1, "not between 0 and L"),
        (lambda tops: (tops[1:] == tops[-1]).int().argmax(0), "settled too early"),
        (lambda tops: (last_disagreement(tops) + 1) % len(tops), "settled too early"),
    ],
    "e07_loop.same_logits": [
        (lambda a, b, t: same(a, b, t).expand(6), "expected True"),
        (lambda a, b, t: bool(max((a - b).abs().flatten().tolist()) <= t * b.abs().max()), "NaN"),
        (lambda a, b, t: same(a[:-1], b[:-1], t), "one and a half times"),
        (lambda a, b, t: ((a - b).abs() <= t * b.abs().mean()).all(), "not have the right effect"),
        (lambda a, b, t: same(a, b, 2 * t), "one and a half times"),
        (lambda a, b, t: torch.allclose(a, b, rtol=t), "against its own logit"),
        (lambda a, b, t: np.allclose(a, b, 0, float(t * b.nan_to_num().abs().max()), True),
         "NaN in both"),
        (lambda a, b, t: all(same(x, y, t) for x, y in zip(a, b, strict=True)), "each row"),
        (lambda a, b, t: bool((a - b).abs().max() <= t * a.max()), "all logits are negative"),
        #
        (lambda a, b, t: bool((a - b)[-1].max() <= t * b.max()), "where all logits are negative"),
        (lambda a, b, t: not ((a - b).abs() > 1e-4).any(), "one and a half times"),
        (lambda a, b, t: bool((a != b).sum() == 0 and t > 1e-4), "equal logits that are"),
    ],
}  # fmt: skip
