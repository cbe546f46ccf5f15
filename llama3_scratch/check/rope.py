"""Checkers of notebook 03, RoPE. Small bases and short contexts, so that every pair can be seen."""

import math

import torch

from llama3_scratch.check.frame import examine


def _speeds(theta, P):
    return 1 / theta ** (torch.arange(P) / P)


def _drawn(seed, *sizes):
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = [torch.randn(size, generator=generator, device="cpu") for size in sizes]
    return [tensor.to(torch.get_default_device()) for tensor in drawn]


# --- 3.1: the speeds ------------------------------------------------------------------------------


def frequencies(answer):
    """The speeds of RoPE's pairs in radians per position: (theta, head_dim H) -> [P], P = H/2."""

    def right(theta, H):
        return _speeds(theta, H // 2)

    mistakes = {
        "there are H of them. Two numbers make one pair: expected P = H/2.":
            lambda theta, H: 1 / theta ** (torch.arange(H) / H),
        "there are H of them, each twice. Expected one to a pair: P = H/2.":
            lambda theta, H: right(theta, H).repeat_interleave(2),
        "there are H of them, the P speeds twice over. Expected one to a pair: P = H/2.":
            lambda theta, H: right(theta, H).repeat(2),
        "the exponent is p/H. It is p/P, which is 2p/H; yours goes down only to the square root.":
            lambda theta, H: 1 / theta ** (torch.arange(H // 2) / H),
        "the first pair does not turn by 1 radian. Do your pairs count from 1? They count from 0.":
            lambda theta, H: 1 / theta ** (torch.arange(1, H // 2 + 1) / (H // 2)),
        "the last pair is as slow as 1/rope_theta. The exponent p/P ends just short of 1.":
            lambda theta, H: 1 / theta ** torch.linspace(0, 1, H // 2),
        "they grow from pair to pair. Each is 1 over what you have.":
            lambda theta, H: 1 / right(theta, H),
        "these are wavelengths, positions per turn. The speed is 2 pi over that.":
            lambda theta, H: 2 * math.pi / right(theta, H),
        "these are degrees. RoPE's angles are radians: rope_theta to the power -p/P, and no more.":
            lambda theta, H: right(theta, H) * 180 / math.pi,
        "there is a 2 pi too much. These are radians per position, not turns: drop it.":
            lambda theta, H: 2 * math.pi * right(theta, H),
        "the exponent is twice too large. Is a 2 in it twice, as in 2 * torch.arange(0, H, 2)?":
            lambda theta, H: right(theta, H) ** 2,
        "all speeds are 1. Does the exponent have a // that rounds it to 0?":
            lambda theta, H: torch.ones(H // 2),
        "they fall in equal steps. From pair to pair the ratio is the same, not the difference.":
            lambda theta, H: 1 - torch.arange(H // 2) / (H // 2),
        "rope_theta is typed in: 500000 is Llama 3's. Use the argument.":
            lambda theta, H: right(500000.0, H),
        "rope_theta is typed in: 10000 is from the paper and from Llama 2. Use the argument.":
            lambda theta, H: right(10000.0, H),
    }  # fmt: skip
    examine(answer, right, [(100.0, 8), (20.0, 14), (50.0, 10)], mistakes)


# --- 3.2: one vector, without complex numbers -----------------------------------------------------


def _turned(x, angles):
    a, b = x[0::2], x[1::2]
    return angles.cos() * a - angles.sin() * b, angles.sin() * a + angles.cos() * b


def _interleaved(first, second):
    return torch.stack([first, second], dim=-1).flatten()


def rotate(answer):
    """One vector at one position: (x [H], position, frequencies [P]) -> [H], neighbours paired."""

    def right(x, position, frequencies):
        return _interleaved(*_turned(x, position * frequencies))

    def halves(x, position, frequencies):
        (a, b), angles = x.chunk(2), position * frequencies
        return torch.cat([angles.cos() * a - angles.sin() * b, angles.sin() * a + angles.cos() * b])

    def wrong_sine(x, position, frequencies):
        a, b, angles = x[0::2], x[1::2], position * frequencies
        turned = angles.cos() * a + angles.sin() * b, angles.sin() * a + angles.cos() * b
        return _interleaved(*turned)

    def overwritten(x, position, frequencies):
        angles = position * frequencies
        a = angles.cos() * x[0::2] - angles.sin() * x[1::2]
        return _interleaved(a, angles.sin() * a + angles.cos() * x[1::2])

    def other_order(x, position, frequencies):
        angles = (position * frequencies).repeat(2)
        return x * angles.cos() + _interleaved(-x[1::2], x[0::2]) * angles.sin()

    cases = [
        (*_drawn(seed, P * 2), position, _speeds(theta, P))
        for seed, P, position, theta in ((1, 3, 2, 100.0), (2, 5, 1, 50.0), (3, 4, 7, 20.0))
    ]
    mistakes = {
        "number i is paired with number i + P, as Hugging Face does. Meta pairs neighbours: "
        "0 and 1, 2 and 3, ...": halves,
        "the numbers are right, in the wrong places: first all of the firsts, then all of the "
        "seconds. Each pair goes back where it was.":
            lambda x, t, f: torch.cat(_turned(x, t * f)),
        "each pair turns the other way round, clockwise. Which of the two sines has the minus?":
            lambda x, t, f: right(x, -t, f),
        "a sine has the wrong sign, so lengths change. The minus stands in the first number.":
            wrong_sine,
        "the second number of a pair is made from the first one after its turn. Both are made from "
        "a and b as they were: give the new ones other names.": overwritten,
        "sine and cosine are swapped.":
            lambda x, t, f: _interleaved(*_turned(x, math.pi / 2 - t * f)),
        "the angles stand in another order than the pairs: f0, f1, ... twice over. Neighbours "
        "share one: repeat_interleave(2).": other_order,
        "it turns one position too little. Positions count from 0: take the argument as it is.":
            lambda x, t, f: right(x, t - 1, f),
        "it turns one position too far. Positions count from 0: take the argument as it is.":
            lambda x, t, f: right(x, t + 1, f),
        "the angle is taken as degrees. Position times frequency is in radians already.":
            lambda x, t, f: right(x, t, f * math.pi / 180),
        "every pair turns by the position alone. Its own frequency is missing.":
            lambda x, t, f: right(x, t, torch.ones_like(f)),
        "the position is left out: this is the rotation of position 1.":
            lambda x, t, f: right(x, 1, f),
        "the result is complex, one number a pair. Back to H real ones: view_as_real, flatten.":
            lambda x, t, f: torch.complex(*_turned(x, t * f)),
        "the result is [P, 2]. One flatten() is missing.":
            lambda x, t, f: right(x, t, f).view(-1, 2),
    }  # fmt: skip
    examine(answer, right, cases, mistakes)


# --- 3.3: the product from the distance -----------------------------------------------------------


def relative_product(answer):
    """q.k from the distance alone: (q [H], k [H], not rotated, distance, frequencies [P]) -> [].

    The distance is the position of the query minus that of the key.
    """

    def spun(x, distance, frequencies):
        return _interleaved(*_turned(x, distance * frequencies))

    def right(q, k, distance, frequencies):
        return spun(q, distance, frequencies) @ k

    def as_complex(q, k, distance, frequencies):
        angles = distance * frequencies
        q, k = (torch.view_as_complex(x.view(-1, 2)) for x in (q, k))
        return q, k, torch.polar(torch.ones_like(angles), angles)

    def without_conj(*case):
        q, k, rotation = as_complex(*case)
        return (q * k * rotation).real.sum()

    def size(*case):
        q, k, rotation = as_complex(*case)
        return (q * k.conj() * rotation).sum().abs()

    def whole(*case):
        q, k, rotation = as_complex(*case)
        return (q * k.conj() * rotation).sum()

    def one_by_one(*case):
        q, k, rotation = as_complex(*case)
        return (q * k.conj() * rotation).real

    cases = [
        (*_drawn(seed, 2 * P, 2 * P), distance, _speeds(theta, P))
        for seed, P, distance, theta in ((1, 3, 2, 100.0), (2, 5, -3, 50.0), (3, 4, 6, 20.0))
    ]
    mistakes = {
        "it is the product at minus the distance. Turn the query by +distance, or the key by "
        "-distance.": lambda q, k, d, f: right(q, k, -d, f),
        "this is q.k without any rotation. Were both turned by the distance? That changes nothing: "
        "turn one of them.":
            lambda q, k, d, f: q @ k,
        "the sign of the distance is lost. The query 3 before the key is not the same as 3 after.":
            lambda q, k, d, f: right(q, k, abs(d), f),
        "the key is not conjugated, so its angles are added. The angle between two arrows is a "
        "difference: q * k.conj().": without_conj,
        "the size of the complex sum is taken. q.k is its real part.": size,
        "the sum is complex. q.k is its real part.": whole,
        "one number for each pair. q.k is their sum.": one_by_one,
        "H numbers, each a product of two. q.k is their sum.":
            lambda q, k, d, f: spun(q, d, f) * k,
        "the product is divided by sqrt(H). That is right for a score (notebook 04); here q.k "
        "itself is asked for.": lambda q, k, d, f: right(q, k, d, f) / math.sqrt(len(q)),
        "every pair turns by the distance alone. Its own frequency is missing.":
            lambda q, k, d, f: right(q, k, d, torch.ones_like(f)),
        "number i is paired with number i + P. Meta pairs neighbours: 0 and 1, 2 and 3, ...":
            lambda q, k, d, f: right(
                *(_interleaved(*x.chunk(2)) for x in (q, k)), d, f
            ),
    }  # fmt: skip
    examine(answer, right, cases, mistakes)


# --- 3.4: from Meta's rows to Hugging Face's ------------------------------------------------------


def half_split(answer):
    """The rows of wq, from Meta's order to Hugging Face's: ([N*H, D], N) -> [N*H, D]."""

    def right(weight, N):
        return weight.unflatten(0, (N, -1, 2)).transpose(1, 2).flatten(0, 2)

    cases = [
        (*_drawn(seed, (N * 2 * P, D)), N)
        for seed, N, P, D in ((1, 2, 3, 4), (2, 3, 5, 8), (3, 5, 4, 6))
    ]
    mistakes = {
        "the heads are mixed: all even rows of the matrix, then all odd ones. The order is made "
        "within each head.": lambda w, N: torch.cat([w[0::2], w[1::2]]),
        "that is the way back, from Hugging Face's order to Meta's. Row 1 of a head should be its "
        "row 2 from before.":
            lambda w, N: w.unflatten(0, (N, 2, -1)).transpose(1, 2).flatten(0, 2),
        "the two halves are the wrong way round: the even rows come first.":
            lambda w, N: w.unflatten(0, (N, -1, 2)).flip(2).transpose(1, 2).flatten(0, 2),
        "the columns are reordered. A head's numbers come from the rows of wq.":
            lambda w, N: torch.cat([w[:, 0::2], w[:, 1::2]], dim=1),
        "the order of heads and numbers is swapped too. Head 0 keeps the first H rows.":
            lambda w, N: w.unflatten(0, (N, -1, 2)).permute(2, 0, 1, 3).flatten(0, 2),
        "the rows are as they were.": lambda w, N: w,
        "the result has three or more dimensions. Flatten the first ones: [N*H, D].":
            lambda w, N: right(w, N).unflatten(0, (N, -1)),
    }  # fmt: skip
    examine(answer, right, cases, mistakes)


# --- 3.5: the scaling of 3.1 ----------------------------------------------------------------------


def rope_scaling(answer):
    """Speeds for longer texts: ([P], factor, low, high, original_length) -> [P], as from 3.1 on."""

    def ramp(frequencies, low, high, length):
        turns = frequencies * length / (2 * math.pi)
        return (turns - low) / (high - low)

    def mixed(kept, frequencies, factor):
        return kept * frequencies + (1 - kept) * frequencies / factor

    def right(frequencies, factor, low, high, length):
        return mixed(ramp(frequencies, low, high, length).clamp(0, 1), frequencies, factor)

    def border(at):
        def hard(frequencies, factor, low, high, length):
            turns = frequencies * length / (2 * math.pi)
            return torch.where(turns < (low, high)[at], frequencies / factor, frequencies)

        return hard

    def in_waves(frequencies, factor, low, high, length):
        waves = 2 * math.pi / frequencies
        kept = (length / low - waves) / (length / low - length / high)
        return mixed(kept.clamp(0, 1), frequencies, factor)

    cases = [
        (_speeds(100.0, 8), 4.0, 1.0, 4.0, 64),
        (_speeds(200.0, 11), 32.0, 2.0, 5.0, 200),
        (_speeds(20000.0, 12)[6:], 3.0, 1.5, 3.0, 4096),
    ]
    mistakes = {
        "nothing has changed: these are the speeds of Llama 3 itself. s comes from the turns in "
        "the old context, frequency * original_length / (2 pi); what do you compare with low and "
        "high?":
            lambda f, *rest: f,
        "every pair is slowed. The quick ones, with more than `high` turns in the old context, "
        "stay as they are.": lambda f, factor, *rest: f / factor,
        "there is no ramp: a pair is slowed or not. Between `low` and `high` turns it is mixed.":
            border(0),
        "there is no ramp, and the border is at `high`. Between `low` and `high` turns it is "
        "mixed.": border(1),
        "the ramp goes evenly over the wavelengths. It goes evenly over the turns in the old "
        "context.": in_waves,
        "the quick pairs are slowed and the slow ones kept. It is the other way round; are low and "
        "high swapped, or s and 1 - s?":
            lambda f, factor, low, high, n:
                mixed(1 - ramp(f, low, high, n).clamp(0, 1), f, factor),
        "the ramp goes on below 0 and above 1. It needs a clamp(0, 1).":
            lambda f, factor, low, high, n: mixed(ramp(f, low, high, n), f, factor),
        "s has no lower bound: pairs of less than `low` turns need s = 0.":
            lambda f, factor, low, high, n:
                mixed(ramp(f, low, high, n).clamp(max=1), f, factor),
        "s has no upper bound: pairs of more than `high` turns need s = 1.":
            lambda f, factor, low, high, n:
                mixed(ramp(f, low, high, n).clamp(min=0), f, factor),
        "1 and 4 are typed in. Use the arguments low and high.":
            lambda f, factor, low, high, n: right(f, factor, 1, 4, n),
        "wavelengths are mixed. It is speeds that are mixed: s * frequency + (1 - s) * frequency / "
        "factor.": lambda f, factor, low, high, n:
                1 / mixed(ramp(f, low, high, n).clamp(0, 1), 1 / f, 1 / factor),
        "the slow pairs got quicker. A longer wave has a smaller speed: divide by the factor.":
            lambda f, factor, *rest: right(f, 1 / factor, *rest),
        "the factor 8 is typed in, as in Meta's reference code. 3.2 has 32: use the argument.":
            lambda f, factor, *rest: right(f, 8.0, *rest),
        "the old context of 8192 is typed in. Use the argument.":
            lambda f, factor, low, high, n: right(f, factor, low, high, 8192),
        "2 pi is missing: in n positions a pair makes n * frequency / (2 pi) turns.":
            lambda f, factor, low, high, n: right(f, factor, low, high, n * 2 * math.pi),
    }  # fmt: skip
    examine(answer, right, cases, mistakes)
