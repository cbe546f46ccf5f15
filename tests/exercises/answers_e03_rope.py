"""Answers to the exercises of notebook 03, apart from the checkers' own."""

import math

import torch


def rotation_matrix(angle):
    return torch.block_diag(
        *(torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for a in angle)
    )


def turned(x, t, f):
    """One vector [H] at position t."""
    return rotation_matrix(t * f) @ x


def by_matrices(x, r):
    matrices = torch.stack(list(map(rotation_matrix, r.angle())))  # [T, H, H]
    return torch.einsum("tij,...tnj->...tni", matrices, x.float()).to(x.dtype)


def by_sines(x, r):
    angles = r.angle().repeat_interleave(2, dim=1)[:, None]  # [T, 1, H]
    quarter = torch.stack([-x[..., 1::2], x[..., ::2]], -1).reshape(x.shape)
    return (x * angles.cos() + quarter * angles.sin()).to(x.dtype)


def rotate_half(x, r):
    angles, (first, second) = r.angle().repeat(1, 2)[:, None], x.float().chunk(2, -1)
    return (x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()).to(x.dtype)


def ordered(w, N, order=None):
    H = len(w) // N
    return torch.cat([head[order or [*range(0, H, 2), *range(1, H, 2)]] for head in w.split(H)])


def scaled(f, factor, low, high, n, clamp=(0, 1)):
    s = ((n * f / math.tau - low) / (high - low)).clamp(*clamp)
    return (1 - s) * f / factor + s * f


RIGHT = {
    "e03_rope.rotate": [by_matrices, by_sines],
    "e03_rope.relative_product": [
        lambda q, k, d, f: q @ turned(k, -d, f),
        lambda q, k, d, f: (turned(q, 9 + d, f) @ turned(k, 9, f)).item(),
    ],
    "e03_rope.half_split": [ordered, lambda w, N: torch.cat(
        [part for head in w.chunk(N) for part in (head[::2], head[1::2])])],
    "e03_rope.rope_scaling": [scaled, lambda f, factor, low, high, n: f / factor + (
        f - f / factor) * ((n * f / math.tau).clip(low, high) - low) / (high - low)],
}  # fmt: skip
OTHERS = {  # after a bare comment: two mistakes at once
    "e03_rope.rotate": [
        (lambda x, r: torch.cat([by_sines(head, r) for head in x.split(1, -2)], -2),
         "Right, but it loops"),
        (lambda x, r: by_sines(x, r[:1].expand_as(r)), "Row t of the rotations"),
        #
        (lambda x, r: rotate_half(x, r.conj()), "the length of a pair changes"),
    ],
    "e03_rope.relative_product": [
        (lambda q, k, d, f: turned(q, float(torch.tensor(d).bfloat16()), f) @ k, "has no 1030"),
        #
        (lambda q, k, d, f: q @ turned(k, d + 1, f), "at distance 0"),
        (lambda q, k, d, f: turned(q, abs(d), f**0) @ k, "the same as -2"),
    ],
    "e03_rope.half_split": [
        (lambda w, N: ordered(w, N, [*range(0, len(w) // N, 2)] * 2), "or lacks some"),
        #
        (lambda w, N: torch.cat([w[1::2], w[0::2]]), "a row moved to another head"),
        (lambda w, N: ordered(w, N, [*range(len(w) // N)][::-1]), "not its first row any more"),
    ],
    "e03_rope.rope_scaling": [
        (lambda f, factor, low, high, n: torch.where(
            n * f / math.tau >= high, f, scaled(f, factor, low, high, n)), "with `if` or `where`"),
        (lambda f, factor, low, high, n: scaled(f, factor, 1, high, n), "`low` has no effect"),
        #
        (lambda *case: scaled(*case[:4], case[4] * math.tau, (None, 2)), "more than `high` full"),
        (lambda f, factor, *rest: scaled(f, 1 / factor, *rest, (-1, 1)), "fewer than `low` full"),
    ],
}  # fmt: skip
