"""Answers to the exercises of notebook 07, written without a look at the checkers' own."""

import math

import numpy as np
import torch

from llama3_scratch.model import attention, feed_forward, rms_norm


def size_1(x, c, w=1.0):
    return w * x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt()


def post_norm(x, w, r, m, c, first="attention", second="ffn", eps=None):
    for part, name in ((attention, first), (feed_forward, second)):
        change = part(x, w, r, m, c) if part is attention else part(x, w)
        x = rms_norm(x + change, w[f"{name}_norm.weight"], eps or c.norm_eps)
    return x


def in_place(x, w, r, m, c):
    x += attention(x, w, r, m, c)
    return post_norm(x, w, r, m, c)


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


def layers(names):
    return len({name.split(".")[1] for name in names if name.startswith("layers.")})


def flops(c, T, output=1, layers=None, products=2, F=None):
    V, L, D, N, K, H = (c.sizes[letter] for letter in "VLDNKH")
    one = 2 * N * H * D + 2 * K * H * D + 3 * D * (F or c.ffn_dim)
    return 2 * T * (L * one + output * V * D), (layers or L) * 2 * products * T * T * N * H


def crossing(c, **changed):
    T = 1
    while flops(c, T, **changed)[1] <= flops(c, T, **changed)[0]:
        T += 1
    return T


def ratio(c, **changed):
    return flops(c, 1, **changed)[0] / flops(c, 1, **changed)[1]


RIGHT = {
    "e07_loop.post_norm_block": [
        post_norm,
        lambda x, w, r, m, c: size_1((y := size_1(
            attention(x, w, r, m, c) + x, c, w["attention_norm.weight"])) + feed_forward(y, w),
            c, w["ffn_norm.weight"]),
    ],
    "e07_loop.settled": [
        last_disagreement,
        with_a_while,
        lambda tops: ((tops != tops[-1]).int() * torch.arange(1, len(tops) + 1)[:, None]).amax(0),
        lambda tops: np.logical_or.accumulate((tops != tops[-1]).numpy()[::-1]).sum(0),
    ],
    "e07_loop.same_logits": [
        same,
        lambda a, b, t: np.allclose(a, b, rtol=0, atol=float(t * b.abs().max())),
        lambda a, b, t: all(abs(x) <= t * b.abs().max().item() for row in a - b for x in row),
    ],
    "e07_loop.n_layers": [layers, lambda names: sum("wq" in n for n in names),
                          lambda names: np.int64((len(names) - 3) // 9)],
    "e07_loop.crossing": [crossing, lambda c: math.floor(ratio(c)) + 1],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e07_loop.post_norm_block": [
        (in_place, "it changes its arguments"),
        (lambda x, w, r, m, c: w["wq"], "and layer A it raised KeyError"),
        (lambda x, w, r, m, c: post_norm(x, w, r, m, c)[-1], "the shape is [4], expected [2, 4]"),
        (lambda *case: post_norm(*case, eps=1e-9), "use `config.norm_eps`"),
        (lambda x, w, r, m, c: post_norm(x, w, r, m.clamp(0), c), "the first half is not right"),
        (lambda x, w, r, m, c: size_1((y := rms_norm(
            x + attention(x, w, r, m, c), w["attention_norm.weight"], c.norm_eps))
            + 2 * feed_forward(y, w), c, w["ffn_norm.weight"]), "the second half is not right"),
        #
        (lambda *case: post_norm(*case, "ffn", eps=1e-5), "should go through the two norms"),
        (lambda x, w, r, m, c: x, "the last step is not the second norm"),
        (lambda *case: post_norm(*case, "ffn", "ffn") + case[0], "the last step is not"),
        (lambda x, w, r, m, c: post_norm(size_1(x, c), w, r, m.clamp(0), c, "ffn"), "two norms"),
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
        #
        (lambda a, b, t: bool((a - b)[-1].max() <= t * b.max()), "where all logits are negative"),
        (lambda a, b, t: not ((a - b).abs() > 1e-4).any(), "one and a half times"),
        (lambda a, b, t: bool((a != b).sum() == 0 and t > 1e-4), "equal logits that are"),
    ],
    "e07_loop.n_layers": [
        (lambda names: int(names[-3].split(".")[1]) + 1, "on the order of the names"),
        (lambda names: 32, "does not grow by 1"),
        (lambda names: len(names) // 9 + 1, "one too many"),
        #
        (lambda names: max(name.split(".")[1] for name in sorted(names)[:-2]), "of type str"),
        (lambda names: int(max(n.split(".")[1][0] for n in names if "layers" in n)), "grow by 1"),
        (lambda names: layers(names) + 3, "than the names can be of"),
    ],
    "e07_loop.crossing": [
        (lambda c: 17, "the tables are not counted right"),
        (lambda c: crossing(c, F=4 * c.dim), "the feed-forward part is not counted right"),
        (lambda c: math.ceil(ratio(c)), "division comes out even"),
        #
        (lambda c: crossing(c, output=2, products=1), "the tables are not counted right"),
        (lambda c: crossing(c, layers=1, products=1), "are not counted right"),
        (lambda c: ratio(c, output=0), "a whole number of tokens"),
    ],
}  # fmt: skip
