"""Wrong answers to the exercises of notebook 03, each told what it did, and the right ones."""

import math

import pytest
import torch

from llama3_scratch import check


def told(capsys, checker, answer):
    checker(answer)
    return capsys.readouterr().out.strip()


# --- 3.1 ------------------------------------------------------------------------------------------


def speeds(theta, H):
    return 1 / theta ** (torch.arange(0, H, 2) / H)


FREQUENCIES = {
    "P = H/2": lambda theta, H: 1 / theta ** (torch.arange(H) / H),
    "each twice": lambda theta, H: torch.stack([speeds(theta, H)] * 2, -1).flatten(),
    "the P speeds twice over": lambda theta, H: torch.cat([speeds(theta, H)] * 2),
    "goes down only to the square root": lambda theta, H: theta ** -(torch.arange(H // 2) / H),
    "count from 1": lambda theta, H: 1 / theta ** (torch.arange(2, H + 1, 2) / H),
    "ends just short of 1": lambda theta, H: theta ** -(torch.arange(H // 2) / (H // 2 - 1)),
    "they grow": lambda theta, H: theta ** (torch.arange(0, H, 2) / H),
    "wavelengths": lambda theta, H: 2 * torch.pi * theta ** (torch.arange(0, H, 2) / H),
    "degrees": lambda theta, H: torch.rad2deg(speeds(theta, H)),
    "2 pi too much": lambda theta, H: speeds(theta, H) * 2 * torch.pi,
    "twice too large": lambda theta, H: 1 / theta ** (2 * torch.arange(0, H, 2) / H),
    "a // that rounds": lambda theta, H: 1 / theta ** (torch.arange(0, H, 2) // H),
    "not the difference": lambda theta, H: torch.linspace(1, 0, H // 2 + 1)[:-1],
    "500000 is Llama 3's": lambda theta, H: speeds(500000.0, H),
    "10000 is from the paper": lambda theta, H: speeds(10000.0, H),
    "expected a tensor": lambda theta, H: speeds(theta, H).tolist(),
}


@pytest.mark.parametrize("word", FREQUENCIES)
def test_wrong_speeds(capsys, word):
    answer = told(capsys, check.frequencies, FREQUENCIES[word])
    assert answer.startswith("Not yet") and word in answer


def test_right_speeds(capsys):
    def in_a_loop(theta, H):
        return torch.tensor([1 / theta ** (2 * i / H) for i in range(H // 2)])

    for right in (speeds, in_a_loop):
        assert told(capsys, check.frequencies, right) == "Right: the same as ours on 3 inputs."


# --- 3.2 ------------------------------------------------------------------------------------------


def turn(x, position, frequencies):
    pairs = torch.view_as_complex(x.view(-1, 2))
    angles = position * frequencies
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()


def rotate_half(x, position, frequencies):
    first, second = x.chunk(2)
    angles = torch.cat([frequencies, frequencies]) * position
    return x * angles.cos() + torch.cat([-second, first]) * angles.sin()


def both_plus(x, position, frequencies):
    a, b, angles = x[0::2], x[1::2], position * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([a * cos + b * sin, a * sin + b * cos], -1).flatten()


def one_after_the_other(x, position, frequencies):
    a, b, angles = x[0::2], x[1::2], position * frequencies
    a = a * angles.cos() - b * angles.sin()
    b = a * angles.sin() + b * angles.cos()
    return torch.stack([a, b], -1).flatten()


def sine_first(x, position, frequencies):
    a, b, angles = x[0::2], x[1::2], position * frequencies
    cos, sin = angles.sin(), angles.cos()
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten()


def angles_of_halves(x, position, frequencies):
    angles = position * torch.cat([frequencies, frequencies])
    quarter_turn = torch.stack([-x[1::2], x[0::2]], -1).flatten()
    return x * angles.cos() + quarter_turn * angles.sin()


ROTATE = {
    "after its turn": one_after_the_other,
    "sine and cosine are swapped": sine_first,
    "repeat_interleave(2)": angles_of_halves,
    "one position too little": lambda x, t, f: turn(x, t - 1, f),
    "number i + P": rotate_half,
    "in the wrong places": lambda x, t, f: torch.cat([turn(x, t, f)[0::2], turn(x, t, f)[1::2]]),
    "clockwise": lambda x, t, f: turn(x, t, -f),
    "a sine has the wrong sign": both_plus,
    "one position too far": lambda x, t, f: turn(x, t + 1, f),
    "taken as degrees": lambda x, t, f: turn(x, t, torch.deg2rad(f)),
    "turns by the position alone": lambda x, t, f: turn(x, t, f**0),
    "rotation of position 1": lambda x, t, f: turn(x, 1, f),
    "the result is complex": lambda x, t, f: torch.view_as_complex(turn(x, t, f).view(-1, 2)),
    "the result is [P, 2]": lambda x, t, f: turn(x, t, f).unflatten(0, (-1, 2)),
}


@pytest.mark.parametrize("word", ROTATE)
def test_wrong_rotations(capsys, word):
    answer = told(capsys, check.rotate, ROTATE[word])
    assert answer.startswith("Not yet") and word in answer


def by_matrices(x, position, frequencies):
    a = position * frequencies
    blocks = torch.stack([a.cos(), -a.sin(), a.sin(), a.cos()], -1).view(-1, 2, 2)
    return torch.block_diag(*blocks) @ x


def test_right_rotation(capsys):
    for right in (turn, by_matrices):
        assert told(capsys, check.rotate, right).startswith("Right")


# --- 3.3 ------------------------------------------------------------------------------------------


def product(q, k, distance, frequencies):
    return turn(q, distance, frequencies) @ k


def complex_product(q, k, distance, frequencies, conj=True):
    q, k = (torch.view_as_complex(x.view(-1, 2)) for x in (q, k))
    angles = distance * frequencies
    return q * (k.conj() if conj else k) * torch.polar(torch.ones_like(angles), angles)


PRODUCT = {
    "minus the distance": lambda q, k, d, f: q @ turn(k, d, f),
    "That changes nothing": lambda q, k, d, f: turn(q, d, f) @ turn(k, d, f),
    "the sign of the distance is lost": lambda q, k, d, f: turn(q, abs(d), f) @ k,
    "not conjugated": lambda *case: complex_product(*case, conj=False).real.sum(),
    "the size of the complex sum": lambda *case: complex_product(*case).sum().abs(),
    "the sum is complex": lambda *case: complex_product(*case).sum(),
    "one number for each pair": lambda *case: complex_product(*case).real,
    "H numbers": lambda q, k, d, f: turn(q, d, f) * k,
    "divided by sqrt(H)": lambda q, k, d, f: turn(q, d, f) @ k / len(q) ** 0.5,
    "by the distance alone": lambda q, k, d, f: turn(q, d, torch.ones(len(f))) @ k,
    "number i + P": lambda q, k, d, f: rotate_half(q, d, f) @ k,
}


@pytest.mark.parametrize("word", PRODUCT)
def test_wrong_products(capsys, word):
    answer = told(capsys, check.relative_product, PRODUCT[word])
    assert answer.startswith("Not yet") and word in answer


def test_right_products(capsys):
    for right in (
        product,
        lambda q, k, d, f: q @ turn(k, -d, f),
        lambda q, k, d, f: turn(q, 9 + d, f) @ turn(k, 9, f),
        lambda *case: complex_product(*case).real.sum(),
    ):
        assert told(capsys, check.relative_product, right).startswith("Right")


# --- 3.4 ------------------------------------------------------------------------------------------


def permuted(weight, N, inverse=False):
    H = len(weight) // N
    order = torch.cat([torch.arange(0, H, 2), torch.arange(1, H, 2)])
    order = order.argsort() if inverse else order
    return torch.cat([head[order] for head in weight.split(H)])


def swapped(weight, N):
    firsts_last = [half for head in permuted(weight, N).chunk(N) for half in head.chunk(2)[::-1]]
    return torch.cat(firsts_last)


HALF_SPLIT = {
    "the heads are mixed": lambda w, N: permuted(w, 1),
    "the way back": lambda w, N: permuted(w, N, inverse=True),
    "the wrong way round": swapped,
    "the columns are reordered": lambda w, N: permuted(w.T, 1).T,
    "the rows are as they were": lambda w, N: w.clone(),
    "three or more dimensions": lambda w, N: torch.stack(permuted(w, N).chunk(N)),
}


@pytest.mark.parametrize("word", HALF_SPLIT)
def test_wrong_orders_of_rows(capsys, word):
    answer = told(capsys, check.half_split, HALF_SPLIT[word])
    assert answer.startswith("Not yet") and word in answer


def test_right_order_of_rows(capsys):
    assert told(capsys, check.half_split, permuted).startswith("Right")


# --- 3.5 ------------------------------------------------------------------------------------------


def scaled(frequencies, factor, low, high, length, clamp=True, two_pi=2 * math.pi):
    kept = (length * frequencies / two_pi - low) / (high - low)
    kept = kept.clamp(0, 1) if clamp else kept
    return (1 - kept) * frequencies / factor + kept * frequencies


def turns_forgotten(frequencies, factor, low, high, length):
    kept = ((2 * math.pi / frequencies - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies


def bounded(frequencies, factor, low, high, length, **bounds):
    kept = ((length * frequencies / (2 * math.pi) - low) / (high - low)).clamp(**bounds)
    return (1 - kept) * frequencies / factor + kept * frequencies


def hard(frequencies, factor, border, length):
    waves = 2 * math.pi / frequencies
    return torch.where(waves > length / border, frequencies / factor, frequencies)


def over_wavelengths(frequencies, factor, low, high, length):
    waves, longest, shortest = 2 * math.pi / frequencies, length / low, length / high
    slowed = ((waves - shortest) / (longest - shortest)).clamp(0, 1)
    return slowed * frequencies / factor + (1 - slowed) * frequencies


def wavelengths_mixed(frequencies, factor, low, high, length):
    kept = ((length * frequencies / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    waves = 2 * math.pi / frequencies
    return 2 * math.pi / (kept * waves + (1 - kept) * waves * factor)


SCALING = {
    "wavelengths are mixed": wavelengths_mixed,
    "nothing has changed": lambda f, *rest: f + 0,
    "every pair is slowed": lambda f, factor, low, high, n: f / factor,
    "a pair is slowed or not": lambda f, factor, low, high, n: hard(f, factor, low, n),
    "the border is at `high`": lambda f, factor, low, high, n: hard(f, factor, high, n),
    "evenly over the wavelengths": over_wavelengths,
    "what do you compare": turns_forgotten,
    "no lower bound": lambda *case: bounded(*case, max=1),
    "no upper bound": lambda *case: bounded(*case, min=0),
    "1 and 4 are typed in": lambda f, factor, low, high, n: scaled(f, factor, 1, 4, n),
    "are low and high swapped": lambda f, factor, low, high, n: scaled(f, factor, high, low, n),
    "the quick pairs are slowed": lambda f, s, *rest: f + f / s - scaled(f, s, *rest),
    "needs a clamp": lambda *case: scaled(*case, clamp=False),
    "got quicker": lambda f, factor, *rest: scaled(f, 1 / factor, *rest),
    "the factor 8 is typed in": lambda f, factor, *rest: scaled(f, 8, *rest),
    "8192 is typed in": lambda f, factor, low, high, n: scaled(f, factor, low, high, 8192),
    "2 pi is missing": lambda *case: scaled(*case, two_pi=1),
}


@pytest.mark.parametrize("word", SCALING)
def test_wrong_scalings(capsys, word):
    answer = told(capsys, check.rope_scaling, SCALING[word])
    assert answer.startswith("Not yet") and word in answer


def test_right_scaling(capsys):
    assert told(capsys, check.rope_scaling, scaled).startswith("Right")
