"""Answers to the exercises of notebook 03, written without a look at the checkers' own."""

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


def one_at_a_time(x, r):
    return torch.cat([by_sines(x[..., [i], :], r) for i in range(x.shape[-2])], -2)


def without_heads(x, r):
    numbers = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(numbers * r).flatten(-2)


def in_bfloat16(x, r):
    r = r[:, None]
    cos, sin, a, b = r.real.to(x.dtype), r.imag.to(x.dtype), x[..., ::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).reshape(x.shape)


def rotate_half(x, r):
    angles, (first, second) = r.angle().repeat(1, 2)[:, None], x.float().chunk(2, -1)
    return (x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()).to(x.dtype)


def rotate_half_at(x, t, f):
    angles, (first, second) = torch.cat([f, f]) * t, x.chunk(2)
    return x * angles.cos() + torch.cat([-second, first]) * angles.sin()


def names_used_again(x, r):
    a, b, c, s = x[..., ::2].float(), x[..., 1::2].float(), r[:, None].real, r[:, None].imag
    a = a * c + b * s
    return torch.stack([a, a * s + b * c], -1).flatten(-2).to(x.dtype)


def from_the_last(x, r):
    return by_sines(x, r.flip(0))


def ordered(w, N, order=None):
    H = len(w) // N
    return torch.cat([head[order or [*range(0, H, 2), *range(1, H, 2)]] for head in w.split(H)])


def scaled(f, factor, low, high, n, clamp=(0, 1)):
    s = ((n * f / math.tau - low) / (high - low)).clamp(*clamp)
    return (1 - s) * f / factor + s * f


def scaled_by_cases(f, factor, low, high, n):
    r = n * f / math.tau
    return torch.where(r >= high, f, scaled(f, factor, low, high, n))


def scaled_in_a_loop(f, *rest):
    return torch.stack([scaled(one, *rest) for one in f])


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
        (one_at_a_time, "Right, but it loops"),
        (without_heads, "it raised RuntimeError: The size of tensor a (3) must match"),
        (in_bfloat16, "the product is computed in bfloat16"),
        (lambda x, r: by_sines(x.float(), r), "Cast it back to the type of x"),
        (lambda x, r: by_matrices(x.double(), r), "the dtype is torch.float64"),
        (lambda x, r: x.copy_(by_sines(x, r)), "it changes its arguments"),
        (lambda x, r: by_sines(x, r.flip(1)), "the order of the pairs"),
        (lambda x, r: by_sines(x, r[:1].expand_as(r)), "Row t of the rotations"),
        (from_the_last, "Row t of the rotations"),
        #
        (names_used_again, "the length of a vector changes"),
        (lambda x, r: rotate_half(x, r.conj()), "the length of a pair changes"),
        (lambda x, r: by_sines(x, -r), "with all angles 0"),
        (lambda x, r: by_sines(x, r.flip(1).conj()), "Look at the minus"),
    ],
    "e03_rope.relative_product": [
        (lambda q, k, d, f: rotate_half_at(q, d, f) @ k, "paired with number i + P"),
        (lambda q, k, d, f: (turned(q, d, f) @ k)[None], "the shape is [1], expected []"),
        (lambda q, k, d, f: turned(q, float(torch.tensor(d).bfloat16()), f) @ k, "has no 1030"),
        #
        (lambda q, k, d, f: q @ turned(k, d + 1, f), "at distance 0"),
        (lambda q, k, d, f: rotate_half_at(q, -d, f) @ k, "numbers 0 and P are paired"),
        (lambda q, k, d, f: turned(q, abs(d), f**0) @ k, "the same as -2"),
        (lambda q, k, d, f: turned(q, -d, f**0) @ k, "it rotates the wrong way"),
    ],
    "e03_rope.half_split": [
        (lambda w, N: ordered(w, N).T, "the shape is"),
        (lambda w, N: ordered(w, N, [*range(0, len(w) // N, 2)] * 2), "or lacks some"),
        #
        (lambda w, N: torch.cat([w[1::2], w[0::2]]), "a row moved to another head"),
        (lambda w, N: ordered(w, N, [*range(len(w) // N)][::-1]), "not its first row any more"),
    ],
    "e03_rope.rope_scaling": [
        (scaled_by_cases, "with `if` or `where`"),
        (scaled_in_a_loop, "it loops over the pairs"),
        (lambda f, factor, low, high, n: scaled(f, factor, high, low, n), "low and high swapped"),
        (lambda f, factor, low, high, n: scaled(f, factor, 1, high, n), "`low` has no effect"),
        #
        (lambda f, factor, low, high, n: scaled(f, 8, 1, 4, n), "`factor` has no effect"),
        (lambda *case: scaled(*case[:4], case[4] * math.tau, (None, 2)), "more than `high` full"),
        (lambda f, factor, *rest: scaled(f, 1 / factor, *rest, (-1, 1)), "fewer than `low` full"),
    ],
}  # fmt: skip
