"""The exercises of notebook 03: frequencies, rotation, relative products, row order, scaling."""

import ast
import math

import torch

from llama3_scratch.exercises.frame import (
    Exercise,
    agree,
    answer_property,
    desk,
    drawn,
    loops,
    of_each,
    uses,
)


def _frequencies(theta, P):
    return 1 / theta ** (torch.arange(P) / P)


# --- The frequencies ------------------------------------------------------------------------------


def _right_frequencies(theta, H):
    return _frequencies(theta, H // 2)


def _ratio_is_right(found, theta, H):
    ratios = found[1:] / found[:-1]
    return agree(ratios, torch.full_like(ratios, theta ** (-2 / H)))


frequencies = Exercise(
    "rope_theta, head_dim H -> [P], P = H/2: the frequencies in radians per position.",
    right=_right_frequencies,
    cases=lambda: [(100.0, 4), (20.0, 14), (50.0, 10)],  # small bases: no frequency is tiny
    mistakes=[
        (lambda theta, H: 1 / theta ** (torch.arange(H) / H),
         "there are H of them. Two numbers form one pair: expected P = H/2."),
        (lambda theta, H: _right_frequencies(theta, H).repeat_interleave(2),
         "there are H of them, each one twice. Expected one for each pair: P = H/2."),
        (lambda theta, H: _right_frequencies(theta, H).repeat(2),
         "there are H of them: the P frequencies, then the same again. Expected one for each pair: "
         "P = H/2."),
        (lambda theta, H: 1 / theta ** (torch.arange(H // 2) / H),
         "the exponent is p/H, so they fall only to about 1/sqrt(rope_theta). It is p/P, which is "
         "2p/H."),
        (lambda theta, H: 1 / theta ** (torch.arange(1, H // 2 + 1) / (H // 2)),
         "the first pair does not rotate by 1 radian. Do your pairs count from 1? They count from "
         "0."),
        (lambda theta, H: 1 / theta ** torch.linspace(0, 1, H // 2),
         "the last frequency is 1/rope_theta. The exponent p/P ends one step short of 1."),
        (lambda theta, H: 1 / _right_frequencies(theta, H),
         "they grow from pair to pair. Each is 1 over what you have."),
        (lambda theta, H: 2 * math.pi / _right_frequencies(theta, H),
         "these are wavelengths, in positions per turn. The frequency is 2 pi divided by that."),
        (lambda theta, H: _right_frequencies(theta, H) * 180 / math.pi,
         "these are degrees. RoPE's angles are in radians: rope_theta to the power -p/P, with no "
         "other factor."),
        (lambda theta, H: 2 * math.pi * _right_frequencies(theta, H),
         "a factor of 2 pi is too much. These are radians per position, not turns."),
        (lambda theta, H: _right_frequencies(theta, H) ** 2,
         "the exponent is twice too large. Does it contain a 2 twice, as in "
         "2 * torch.arange(0, H, 2)?"),
        (lambda theta, H: torch.ones(H // 2),
         "all frequencies are 1. Does the exponent contain a // that rounds it to 0?"),
        (lambda theta, H: 1 - torch.arange(H // 2) / (H // 2),
         "they fall in equal steps. From pair to pair it is the ratio that stays the same, not the "
         "difference."),
        (lambda theta, H: _right_frequencies(500000.0, H),
         "rope_theta is typed in: 500000 is Llama 3's. Use the argument."),
        (lambda theta, H: _right_frequencies(10000.0, H),
         "rope_theta is typed in: 10000 is from the paper and from Llama 2. Use the argument."),
    ],
    properties=[
        (of_each(lambda found, theta, H: abs(found[0] - 1) < 1e-4),
         "the first frequency is not 1. Pairs count from 0, so its exponent is 0, and there is no "
         "other factor."),
        (of_each(lambda found, theta, H: bool((found[1:] < found[:-1]).all())),
         "they do not fall from pair to pair. The exponent -p/P falls as p grows."),
        (answer_property(lambda answer, theta, H: not agree(
            answer(3 * theta, H), answer(theta, H))),
         "rope_theta has no effect on the result. Is a number typed in instead?"),
        (of_each(_ratio_is_right),
         "from one pair to the next, the frequency is not divided by rope_theta to the power 1/P. "
         "Look at the exponent."),
    ],
    but=[
        (loops,
         "it loops over the pairs. torch.arange holds every p at once, and one expression gives "
         "all frequencies."),
    ],
)  # fmt: skip


# --- The rotation of one vector, without complex numbers ------------------------------------------


def _rotation_cases():
    sizes = ((1, 2, 2, 100.0), (2, 5, 1, 50.0), (3, 3, 7, 20.0), (4, 4, 60, 10.0))
    return [(*drawn(seed, 2 * P), t, _frequencies(theta, P)) for seed, P, t, theta in sizes]


def _turned(x, angles):
    a, b = x[0::2], x[1::2]
    return angles.cos() * a - angles.sin() * b, angles.sin() * a + angles.cos() * b


def _interleaved(first, second):
    return torch.stack([first, second], dim=-1).flatten()


def _rotated(x, position, frequencies):
    return _interleaved(*_turned(x, position * frequencies))


def _halves_paired(x, position, frequencies):
    return torch.cat(_turned(_interleaved(*x.chunk(2)), position * frequencies))


def _wrong_sign(x, position, frequencies):
    a, b, angles = x[0::2], x[1::2], position * frequencies
    first = angles.cos() * a + angles.sin() * b
    return _interleaved(first, angles.sin() * a + angles.cos() * b)


def _overwritten(x, position, frequencies):
    angles = position * frequencies
    a = angles.cos() * x[0::2] - angles.sin() * x[1::2]
    return _interleaved(a, angles.sin() * a + angles.cos() * x[1::2])


def _angles_of_halves(x, position, frequencies):
    angles = (position * frequencies).repeat(2)
    return x * angles.cos() + _interleaved(-x[1::2], x[0::2]) * angles.sin()


def _lengths(x):
    return x.view(-1, 2).norm(dim=-1)


def _quarter_is_right(answer, x, position, frequencies):
    """Whether only pair 0 rotates if its angle is pi/2 and the others' is 0."""
    quarter = torch.zeros_like(frequencies)
    quarter[0] = math.pi / 2
    return agree(answer(x, 1, quarter), torch.cat([-x[1:2], x[0:1], x[2:]]))


def _uses_complex(tree):
    names = "complex", "complex64", "complex128", "cfloat", "polar", "view_as_complex"
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return uses(*names)(tree) or any(isinstance(value, complex) for value in constants)


rotate = Exercise(
    "x [H], position, frequencies [P] -> [H]: one vector rotated, neighbours as pairs.",
    right=_rotated,
    cases=_rotation_cases,
    mistakes=[
        (_halves_paired,
         "number i is paired with number i + P, as in Hugging Face's code. Meta pairs neighbours: "
         "0 and 1, 2 and 3, ..."),
        (lambda x, t, f: torch.cat(_turned(x, t * f)),
         "the numbers are right, but in the wrong places: first numbers of all pairs, then all "
         "second ones. Each pair goes back to where it was."),
        (lambda x, t, f: _rotated(x, -t, f),
         "the pairs rotate clockwise. Which of the two sines has the minus?"),
        (_wrong_sign,
         "a sine has the wrong sign, so lengths change. The minus is in the first number of a "
         "pair."),
        (_overwritten,
         "the second number of a pair is computed from the first one after its rotation. Both need "
         "the old a and b: give the new numbers other names."),
        (lambda x, t, f: _interleaved(*_turned(x, math.pi / 2 - t * f)),
         "sine and cosine are swapped."),
        (_angles_of_halves,
         "the angles are in another order than the pairs: f0, f1, ... and then the same again. The "
         "two numbers of a pair share one angle: repeat_interleave(2)."),
        (lambda x, t, f: _rotated(x, t - 1, f),
         "it rotates by one position too little. Positions count from 0: use the argument as it "
         "is."),
        (lambda x, t, f: _rotated(x, t + 1, f),
         "it rotates by one position too many. Positions count from 0: use the argument as it is."),
        (lambda x, t, f: _rotated(x, t, f * math.pi / 180),
         "the angle is taken as degrees. Position times frequency is in radians already."),
        (lambda x, t, f: _rotated(x, t, torch.ones_like(f)),
         "every pair rotates by the position alone. Its own frequency is missing."),
        (lambda x, t, f: _rotated(x, 1, f),
         "the position is left out: this is the rotation of position 1."),
        (lambda x, t, f: torch.complex(*_turned(x, t * f)),
         "the result is complex, one number for each pair. view_as_real and flatten make H real "
         "ones of them."),
        (lambda x, t, f: _rotated(x, t, f).view(-1, 2),
         "the result is [P, 2]. A flatten() is missing."),
    ],
    properties=[
        (of_each(lambda found, x, t, f: agree(found.norm(), x.norm())),
         "the length of the vector changes, and a rotation keeps it. Look at the signs, and "
         "whether both new numbers of a pair come from the old a and b."),
        (of_each(lambda found, x, t, f: agree(_lengths(found), _lengths(x))),
         "the length of a pair changes. Numbers 0 and 1 form a pair, then 2 and 3; both of its "
         "numbers have the same angle, and the pair goes back to where it was."),
        (answer_property(lambda answer, x, t, f: agree(answer(x, 0, f), x)),
         "position 0 is rotated. There all angles are 0, so the vector stays as it is."),
        (answer_property(_quarter_is_right),
         "with an angle of pi/2 for pair 0 and 0 for the others, (a, b) of pair 0 should become "
         "(-b, a) and the rest should stay. Look at the minus, at the order of the pairs, and "
         "whether the angles are in radians."),
        (answer_property(lambda answer, x, t, f: agree(answer(x, t, f), answer(x, 1, t * f))),
         "the angle of a pair is not its position times its own frequency. Are both used?"),
    ],
    but=[
        (_uses_complex,
         "it uses complex numbers. Do it with the sines and cosines of real ones."),
        (loops,
         "it loops over the pairs. x[0::2] and x[1::2] take all of them at once."),
    ],
)  # fmt: skip


# --- The product from the distance ----------------------------------------------------------------


def _product_cases():
    sizes = ((1, 2, 2, 100.0), (2, 5, -3, 50.0), (3, 4, 6, 20.0), (4, 3, 0, 20.0))
    return [(*drawn(seed, 2 * P, 2 * P), d, _frequencies(theta, P)) for seed, P, d, theta in sizes]


def _product(q, k, distance, frequencies):
    return _rotated(q, distance, frequencies) @ k


def _by_pair(q, k, distance, frequencies, conjugated=True):
    angles = distance * frequencies
    q, k = (torch.view_as_complex(x.view(-1, 2)) for x in (q, k))
    return q * (k.conj() if conjugated else k) * torch.polar(torch.ones_like(angles), angles)


def _direction_is_right(answer, q, k, distance, frequencies):
    one, none = torch.ones_like(frequencies), torch.zeros_like(frequencies)
    return answer(_interleaved(one, none), _interleaved(none, one), 1, frequencies) > 0


relative_product = Exercise(
    "q [H], k [H], not rotated, distance (position of the query minus that of the key), "
    "frequencies [P] -> q.k after RoPE, a tensor without dimensions.",
    right=_product,
    cases=_product_cases,
    mistakes=[
        (lambda q, k, d, f: _product(q, k, -d, f),
         "this is the product at minus the distance. Rotate the query by +distance, or the key by "
         "-distance."),
        (lambda q, k, d, f: q @ k,
         "this is q.k without any rotation. Are both rotated by the distance? That changes "
         "nothing: rotate one of them."),
        (lambda q, k, d, f: _product(q, k, abs(d), f),
         "the sign of the distance is lost. A query 3 positions before the key is not the same as "
         "one 3 positions after it."),
        (lambda *case: _by_pair(*case, conjugated=False).real.sum(),
         "the key is not conjugated, so the angles of query and key are added. The angle between "
         "them is a difference: q * k.conj()."),
        (lambda *case: _by_pair(*case).sum().abs(),
         "this is the absolute value of the complex sum. q.k is its real part."),
        (lambda *case: _by_pair(*case).sum(),
         "the sum is complex. q.k is its real part."),
        (lambda *case: _by_pair(*case).real,
         "these are P numbers, one for each pair. q.k is their sum."),
        (lambda q, k, d, f: _rotated(q, d, f) * k,
         "these are H numbers, each a product of two. q.k is their sum."),
        (lambda q, k, d, f: _product(q, k, d, f) / math.sqrt(len(q)),
         "the product is divided by sqrt(H). That is right for a score (notebook 04); here q.k "
         "itself is asked for."),
        (lambda q, k, d, f: _product(q, k, d, torch.ones_like(f)),
         "every pair rotates by the distance alone. Its own frequency is missing."),
        (lambda q, k, d, f: _product(*(_interleaved(*x.chunk(2)) for x in (q, k)), d, f),
         "number i is paired with number i + P. Meta pairs neighbours: 0 and 1, 2 and 3, ..."),
    ],
    properties=[
        (answer_property(lambda answer, q, k, d, f: agree(answer(q, k, 0, f), q @ k)),
         "at distance 0 the result is not q.k. There the two rotations cancel, so it is the "
         "product of the vectors as they are."),
        (answer_property(lambda answer, q, k, d, f: not agree(
            answer(q, k, 2, f), answer(q, k, -2, f))),
         "distance 2 gives the same as -2. A query before the key is not the same as one after it; "
         "rotate one of the two by the distance, with its sign."),
        (answer_property(lambda answer, q, k, d, f: abs(answer(
            torch.eye(len(q))[0], torch.eye(len(q))[len(f)], 1, f)) < 1e-6),
         "numbers 0 and P are paired. Meta pairs neighbours: 0 and 1, 2 and 3, ..."),
        (answer_property(_direction_is_right),
         "it rotates the wrong way: the query goes by +distance, or the key by -distance."),
    ],
)  # fmt: skip


# --- From Meta's rows to Hugging Face's -----------------------------------------------------------


def _row_cases():
    numbered = 10 * torch.arange(12.0)[:, None] + torch.arange(2)  # row r: 10 r, 10 r + 1
    sizes = ((2, 3, 5, 8), (3, 5, 4, 6), (4, 1, 2, 3))
    return [(numbered, 2), *((*drawn(seed, (N * 2 * P, D)), N) for seed, N, P, D in sizes)]


def _split(weight, N):
    return weight.unflatten(0, (N, -1, 2)).transpose(1, 2).flatten(0, 2)


def _sorted_rows(rows):
    return torch.tensor(sorted(rows.tolist()))


def _same_rows(found, weight, N):
    return agree(_sorted_rows(found), _sorted_rows(weight))


def _same_rows_in_each_head(found, weight, N):
    pairs = zip(found.chunk(N), weight.chunk(N), strict=True)
    return all(agree(_sorted_rows(a), _sorted_rows(b)) for a, b in pairs)


def _starts_stay(found, weight, N):
    return agree(found.unflatten(0, (N, -1))[:, 0], weight.unflatten(0, (N, -1))[:, 0])


half_split = Exercise(
    "wq [N*H, D] in Meta's order of rows, N -> [N*H, D] in Hugging Face's.",
    right=_split,
    cases=_row_cases,
    mistakes=[
        (lambda w, N: torch.cat([w[0::2], w[1::2]]),
         "the heads are mixed: all even rows of the matrix, then all odd ones. Reorder the rows "
         "within each head."),
        (lambda w, N: w.unflatten(0, (N, 2, -1)).transpose(1, 2).flatten(0, 2),
         "this is the way back, from Hugging Face's order to Meta's. The new row 1 of a head is "
         "its old row 2."),
        (lambda w, N: w.unflatten(0, (N, -1, 2)).flip(2).transpose(1, 2).flatten(0, 2),
         "the two halves are exchanged: the even rows come first."),
        (lambda w, N: torch.cat([w[:, 0::2], w[:, 1::2]], dim=1),
         "the columns are reordered. The numbers of a head come from the rows of wq."),
        (lambda w, N: w.unflatten(0, (N, -1, 2)).permute(2, 1, 0, 3).flatten(0, 2),
         "heads and rows are exchanged as well: row 0 of every head comes first. Head 0 keeps the "
         "first H rows."),
        (lambda w, N: w,
         "the rows are in their old order."),
        (lambda w, N: torch.cat([_split(w[: len(w) // N], 1), w[len(w) // N :]]),
         "only head 0 is reordered. Do the same in every head."),
        (lambda w, N: _split(w, N).unflatten(0, (N, -1)),
         "the result has three or more dimensions. Flatten the first ones: [N*H, D]."),
    ],
    properties=[
        (of_each(_same_rows),
         "the result has rows that wq does not have, or lacks some. Its rows are only reordered; "
         "columns and numbers stay."),
        (of_each(_same_rows_in_each_head),
         "a row moved to another head. Each head keeps its H rows, and only their order changes."),
        (of_each(_starts_stay),
         "the first row of a head is not its first row any more. The even rows come first, "
         "beginning with row 0."),
    ],
)  # fmt: skip


# --- The scaling of Llama 3.1 ---------------------------------------------------------------------


def _turns(frequencies, length):
    return frequencies * length / (2 * math.pi)


def _ramp(frequencies, low, high, length):
    return (_turns(frequencies, length) - low) / (high - low)


def _mixed(kept, frequencies, factor):
    return kept * frequencies + (1 - kept) * frequencies / factor


def _scaled(frequencies, factor, low, high, length):
    return _mixed(_ramp(frequencies, low, high, length).clamp(0, 1), frequencies, factor)


def _border(at):
    def hard(frequencies, factor, low, high, length):
        is_slow = _turns(frequencies, length) < (low, high)[at]
        return torch.where(is_slow, frequencies / factor, frequencies)

    return hard


def _over_wavelengths(frequencies, factor, low, high, length):
    wavelengths = 2 * math.pi / frequencies
    kept = (length / low - wavelengths) / (length / low - length / high)
    return _mixed(kept.clamp(0, 1), frequencies, factor)


def _has_effect(i):
    """Whether argument number i of `rope_scaling` has any effect on its result."""

    def holds(answer, *case):
        changed = [1.5 * x if j == i else x for j, x in enumerate(case)]
        return not agree(answer(*changed), answer(*case))

    return answer_property(holds)


def _high_are_kept(found, frequencies, factor, low, high, length):
    there = _turns(frequencies, length) > high
    return agree(found[there], frequencies[there])


def _low_are_divided(found, frequencies, factor, low, high, length):
    there = _turns(frequencies, length) < low
    return agree(found[there], frequencies[there] / factor)


def _branches(tree):
    return any(isinstance(node, ast.If | ast.IfExp) for node in ast.walk(tree))


rope_scaling = Exercise(
    "Frequencies [P], factor, low, high, original_length -> [P]: for longer texts, as from Llama "
    "3.1 on.",
    right=_scaled,
    cases=lambda: [
        (_frequencies(100.0, 8), 4.0, 1.0, 4.0, 64),
        (_frequencies(200.0, 11)[3:], 32.0, 2.0, 5.0, 200),
        (_frequencies(20000.0, 12)[6:], 3.0, 1.5, 3.0, 4096),
    ],
    mistakes=[
        (lambda f, *rest: f,
         "nothing has changed: these are the frequencies of Llama 3 itself. s comes from the turns "
         "in the old context, frequency * original_length / (2 pi); what do you compare with low "
         "and high?"),
        (lambda f, factor, *rest: f / factor,
         "every frequency is divided by the factor. The high ones, with more than `high` turns in "
         "the old context, stay as they are."),
        (_border(0),
         "there is no ramp: a frequency is either divided or kept. Between `low` and `high` turns "
         "it is mixed."),
        (_border(1),
         "there is no ramp, and the border is at `high`. Between `low` and `high` turns a "
         "frequency is mixed."),
        (_over_wavelengths,
         "the ramp is linear in the wavelength. It is linear in the number of turns in the old "
         "context."),
        (lambda f, factor, low, high, n: _mixed(1 - _ramp(f, low, high, n).clamp(0, 1), f, factor),
         "the high frequencies are divided and the low ones kept. It is the other way round; are "
         "low and high swapped, or s and 1 - s?"),
        (lambda f, factor, low, high, n: _mixed(_ramp(f, low, high, n), f, factor),
         "the ramp goes on below 0 and above 1. It needs a clamp(0, 1)."),
        (lambda f, factor, low, high, n: _mixed(_ramp(f, low, high, n).clamp(max=1), f, factor),
         "s has no lower bound: for pairs with fewer than `low` turns, s = 0."),
        (lambda f, factor, low, high, n: _mixed(_ramp(f, low, high, n).clamp(min=0), f, factor),
         "s has no upper bound: for pairs with more than `high` turns, s = 1."),
        (lambda f, factor, low, high, n: _scaled(f, factor, 1, 4, n),
         "1 and 4 are typed in. Use the arguments low and high."),
        (lambda f, factor, low, high, n:
            1 / _mixed(_ramp(f, low, high, n).clamp(0, 1), 1 / f, 1 / factor),
         "wavelengths are mixed. Mix the frequencies: s * frequency + (1 - s) * frequency / "
         "factor."),
        (lambda f, factor, *rest: _scaled(f, 1 / factor, *rest),
         "the low frequencies have grown. A longer wave has a lower frequency: divide by the "
         "factor."),
        (lambda f, factor, *rest: _scaled(f, 8.0, *rest),
         "the factor 8 is typed in, as in Meta's reference code. Llama 3.2 has 32: use the "
         "argument."),
        (lambda f, factor, low, high, n: _scaled(f, factor, low, high, 8192),
         "the old context of 8192 is typed in. Use the argument."),
        (lambda f, factor, low, high, n: _scaled(f, factor, low, high, n * 2 * math.pi),
         "2 pi is missing: in n positions a pair makes n * frequency / (2 pi) turns."),
    ],
    properties=[
        *((_has_effect(i), f"`{name}` has no effect on the result. Is a number typed in instead?")
          for i, name in enumerate(("factor", "low", "high", "original_length"), 1)),
        (of_each(_high_are_kept),
         "a frequency with more than `high` turns in the old context has changed. It is kept: "
         "s = 1."),
        (of_each(_low_are_divided),
         "a frequency with fewer than `low` turns in the old context is not divided by the factor. "
         "There s = 0."),
    ],
    but=[
        (loops,
         "it loops over the pairs. Use one formula for the whole tensor."),
        (lambda tree: _branches(tree) or uses("where")(tree),
         "it distinguishes the three kinds of pairs with `if` or `where`. One formula with a clamp "
         "covers all three."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
