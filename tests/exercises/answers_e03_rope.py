"""Answers to the exercises of notebook 03, written without a look at the checkers' own."""

import math

import numpy as np
import torch


def freqs(theta, H):
    return 1.0 / theta ** (torch.arange(0, H, 2) / H)


def freqs_in_a_loop(theta, H):
    return torch.tensor([theta ** (-2 * i / H) for i in range(H // 2)])


def turned(x, t, f):
    a = t * f
    blocks = torch.stack([a.cos(), -a.sin(), a.sin(), a.cos()], -1).view(-1, 2, 2)
    return torch.block_diag(*blocks) @ x


def turned_as_complex(x, t, f):
    return torch.view_as_real((x[0::2] + 1j * x[1::2]) * torch.exp(1j * t * f)).flatten()


def turned_in_a_loop(x, t, f):
    return torch.cat([turned(x[2 * p : 2 * p + 2], t, f[p, None]) for p in range(len(f))])


def rotate_half(x, t, f):
    angles, (first, second) = torch.cat([f, f]) * t, x.chunk(2)
    return x * angles.cos() + torch.cat([-second, first]) * angles.sin()


def names_used_again(x, t, f):
    a, b, angles = x[0::2], x[1::2], t * f
    a = a * angles.cos() + b * angles.sin()
    return torch.stack([a, a * angles.sin() + b * angles.cos()], -1).flatten()


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
    "e03_rope.frequencies": [freqs, lambda theta, H: np.power(theta, -np.arange(0, H, 2) / H)],
    "e03_rope.rotate": [turned, lambda x, t, f: turned(x.double(), t, f.double())],
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
    "e03_rope.frequencies": [
        (freqs_in_a_loop, "loops over the pairs"),
        (lambda theta, H: freqs(theta, H).tolist(), "expected a tensor"),
        (lambda theta, H: theta ** -(torch.arange(H // 2) / 2), "to the power 1/P"),
        #
        (lambda theta, H: freqs(theta, H) * 360, "first frequency is not 1"),
        (lambda theta, H: theta ** (torch.arange(H // 2) / H), "do not fall from pair to pair"),
        (lambda theta, H: 5e5 ** -(torch.arange(H // 2) / H), "rope_theta has no effect"),
    ],
    "e03_rope.rotate": [
        (turned_as_complex, "it uses complex numbers"),
        (turned_in_a_loop, "it loops over the pairs"),
        (lambda x, t, f: x.copy_(turned(x, t, f)), "it changes its arguments"),
        (lambda x, t, f: turned(x, t, f.flip(0)), "the order of the pairs"),
        (lambda x, t, f: turned(x, t**2, f), "position times its own frequency"),
        #
        (names_used_again, "the length of the vector changes"),
        (lambda x, t, f: rotate_half(x, -t, f), "the length of a pair changes"),
        (lambda x, t, f: turned(x, -t - 1, f), "position 0 is rotated"),
        (lambda x, t, f: turned(x, -t, torch.deg2rad(f)), "angles are in radians"),
    ],
    "e03_rope.relative_product": [
        (lambda q, k, d, f: rotate_half(q, d, f) @ k, "paired with number i + P"),
        (lambda q, k, d, f: (turned(q, d, f) @ k)[None], "the shape is [1], expected []"),
        #
        (lambda q, k, d, f: q @ turned(k, d + 1, f), "at distance 0"),
        (lambda q, k, d, f: rotate_half(q, -d, f) @ k, "numbers 0 and P are paired"),
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
        (lambda *case: scaled(*case[:4], case[4] * math.tau, (None, 2)), "more than `high` turns"),
        (lambda f, factor, *rest: scaled(f, 1 / factor, *rest, (-1, 1)), "fewer than `low` turns"),
    ],
}  # fmt: skip
