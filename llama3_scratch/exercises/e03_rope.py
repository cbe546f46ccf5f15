"""The exercises of notebook 03: rotation, relative products, row order, scaling."""

import ast
import math

import torch

from llama3_scratch import model
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


def _rotations(positions, theta, P):
    angles = torch.outer(torch.as_tensor(positions).float(), _frequencies(theta, P))
    return torch.polar(torch.ones_like(angles), angles)


# --- The rotation of all heads at all positions ---------------------------------------------------


def _rotation_case(seed, shape, first, theta, dtype=torch.float32):
    positions = torch.arange(first, first + shape[-3])
    (x,) = drawn(seed, shape)
    return x.to(dtype), _rotations(positions, theta, shape[-1] // 2)


def _rotation_cases():  # the bases are small, so no frequency is tiny
    return {
        "x [2, 1, 4]": _rotation_case(1, (2, 1, 4), 0, 100.0),
        "x [5, 3, 10]": _rotation_case(2, (5, 3, 10), 0, 50.0),
        "x [1, 2, 14], one token at position 1005": _rotation_case(3, (1, 2, 14), 1005, 20.0),
        "x [2, 4, 3, 6], a batch of 2": _rotation_case(4, (2, 4, 3, 6), 0, 20.0),
        "x [4, 2, 8] in bfloat16, at positions 1000 to 1003": _rotation_case(
            5, (4, 2, 8), 1000, 10.0, torch.bfloat16
        ),
    }


def _parts(x, rotations):
    """First and second numbers of all pairs, cosines, sines."""
    cos, sin = rotations.real[:, None, :], rotations.imag[:, None, :]
    return x[..., 0::2].float(), x[..., 1::2].float(), cos, sin


def _rotated_parts(x, rotations):
    a, b, cos, sin = _parts(x, rotations)
    return cos * a - sin * b, sin * a + cos * b


def _interleaved(first, second):
    return torch.stack([first, second], dim=-1).flatten(-2)


def _halves_paired(x, rotations):
    first, second = _rotated_parts(_interleaved(*x.chunk(2, dim=-1)), rotations)
    return torch.cat([first, second], dim=-1).type_as(x)


def _wrong_sign(x, rotations):
    a, b, cos, sin = _parts(x, rotations)
    return _interleaved(cos * a + sin * b, sin * a + cos * b).type_as(x)


def _overwritten(x, rotations):
    a, b, cos, sin = _parts(x, rotations)
    first = cos * a - sin * b
    return _interleaved(first, sin * first + cos * b).type_as(x)


def _number_by_number(x, rotations):
    a, b, cos, sin = _parts(x, rotations)
    return _interleaved(cos * a, sin * b).type_as(x)


def _cosines_only(x, rotations):
    a, b, cos, sin = _parts(x, rotations)
    return _interleaved(cos * a, cos * b).type_as(x)


def _angles_of_halves(x, rotations):
    a, b, cos, sin = _parts(x, rotations)
    quarter = _interleaved(-b, a)
    return (x * cos.repeat(1, 1, 2) + quarter * sin.repeat(1, 1, 2)).type_as(x)


def _in_the_type_of_x(x, rotations):
    a, b, cos, sin = (part.type_as(x) for part in _parts(x, rotations))
    return _interleaved(cos * a - sin * b, sin * a + cos * b)


def _in_float32(holds):
    """A property of each result (or answer), asked of float32 alone: bfloat16 rounds too much."""
    return lambda given, x, rotations: x.dtype != torch.float32 or holds(given, x, rotations)


def _pair_lengths(x):
    return x.unflatten(-1, (-1, 2)).norm(dim=-1)


def _quarter_is_right(answer, x, rotations):
    """Whether only pair 0 rotates if its angle is pi/2 and the others' is 0."""
    quarter = torch.ones_like(rotations)
    quarter[:, 0] = 1j
    return agree(answer(x, quarter), torch.cat([-x[..., 1:2], x[..., 0:1], x[..., 2:]], dim=-1))


def _last_is_alone(answer, x, rotations):
    return agree(answer(x[..., -1:, :, :], rotations[-1:]), answer(x, rotations)[..., -1:, :, :])


rotate = Exercise(
    "x [..., T, N, H], rotations [T, P] complex -> [..., T, N, H]: every pair of neighbours "
    "multiplied by its position's rotation, in float32, then cast back to the type of x.",
    right=model.rotate,
    cases=_rotation_cases,
    mistakes=[
        (_halves_paired,
         "number i is paired with number i + P, as in Hugging Face's code. Meta pairs neighbours: "
         "0 and 1, 2 and 3, ..."),
        (lambda x, r: torch.cat(_rotated_parts(x, r), dim=-1).type_as(x),
         "the numbers are right, but in the wrong places: first numbers of all pairs, then all "
         "second ones. Each pair goes back to where it was."),
        (lambda x, r: model.rotate(x, r.conj()),
         "the pairs rotate clockwise. Which of the two sines has the minus?"),
        (_wrong_sign,
         "a sine has the wrong sign, so lengths change. The minus is in the first number of a "
         "pair."),
        (_overwritten,
         "the second number of a pair is computed from the first one after its rotation. Both need "
         "the old a and b: give the new numbers other names."),
        (lambda x, r: model.rotate(x, 1j * r.conj()),
         "sine and cosine are swapped."),
        (_number_by_number,
         "a is multiplied by the cosine and b by the sine, each by itself. In a complex product "
         "both new numbers need both old ones."),
        (_cosines_only,
         "both numbers of a pair are multiplied by the cosine, and the sine is missing. Is it the "
         "real part of the rotation alone?"),
        (_angles_of_halves,
         "the angles are in another order than the pairs: 0 to P - 1, and then the same again. The "
         "two numbers of a pair share one angle: repeat_interleave(2)."),
        (lambda x, r: torch.complex(*_rotated_parts(x, r)),
         "the result is complex, one number for each pair. view_as_real and flatten make H real "
         "ones of them."),
        (lambda x, r: model.rotate(x, r).unflatten(-1, (-1, 2)),
         "the result is [..., P, 2]. Its last two dimensions are still to be made one: "
         "flatten(-2)."),
        (lambda x, r: model.rotate(x.float(), r),
         "for a bfloat16 x the result is float32. Cast it back to the type of x at the end."),
        (_in_the_type_of_x,
         "for a bfloat16 x the product is computed in bfloat16. Make x float32 first, and cast "
         "only the result."),
    ],
    properties=[
        (of_each(_in_float32(lambda found, x, r: agree(found.norm(dim=-1), x.norm(dim=-1)))),
         "the length of a vector changes, and a rotation keeps it. Look at the signs, and whether "
         "both new numbers of a pair come from the old a and b."),
        (of_each(_in_float32(lambda found, x, r: agree(_pair_lengths(found), _pair_lengths(x)))),
         "the length of a pair changes. Numbers 0 and 1 form a pair, then 2 and 3; both of its "
         "numbers have the same angle, and the pair goes back to where it was."),
        (answer_property(_in_float32(lambda answer, x, r: agree(answer(x, r**0), x))),
         "with all angles 0, x changes. There every rotation is 1, so x stays as it is."),
        (answer_property(_in_float32(_quarter_is_right)),
         "with an angle of pi/2 for pair 0 and 0 for the others, (a, b) of pair 0 should become "
         "(-b, a) and the rest should stay. Look at the minus and at the order of the pairs."),
        (answer_property(_in_float32(_last_is_alone)),
         "a position's result changes with the other positions in x. Row t of the rotations "
         "belongs to position t of x, for all heads alike."),
    ],
    but=[
        (loops,
         "it loops. Give the rotations a dimension for the heads, and one product is enough."),
    ],
    hints=(
        "Where a dimension of size 2 stands last, each two numbers are one pair; `unflatten` makes "
        "such a dimension. Then equation 3.3, or 3.4 by `torch.view_as_complex`.",
        "x has its heads between T and H, and the rotations have nothing there: `rotations[:, "
        "None, :]`. And which type has the result, if x is bfloat16?",
    ),
    dtype=True,
)  # fmt: skip


# --- The product from the distance ----------------------------------------------------------------


def _product_cases():
    sizes = ((1, 2, 2, 100.0), (2, 5, -3, 50.0), (3, 4, 1030, 20.0), (4, 3, 0, 20.0))
    return [(*drawn(seed, 2 * P, 2 * P), d, _frequencies(theta, P)) for seed, P, d, theta in sizes]


def _at(x, position, frequencies):
    """One vector [H], rotated for a position."""
    angles = position * frequencies
    rotations = torch.polar(torch.ones_like(angles), angles)
    return model.rotate(x[None, None], rotations[None])[0, 0]


def _product(q, k, distance, frequencies):
    return _at(q, distance, frequencies) @ k


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
        (lambda q, k, d, f: _at(q, d, f) * k,
         "these are H numbers, each a product of two. q.k is their sum."),
        (lambda q, k, d, f: _product(q, k, d, f) / math.sqrt(len(q)),
         "the product is divided by sqrt(H). That is right for a score (notebook 04); here q.k "
         "itself is asked for."),
        (lambda q, k, d, f: _product(q, k, d, torch.ones_like(f)),
         "every pair rotates by the distance alone. Its own frequency is missing."),
        (lambda q, k, d, f: _product(*(_interleaved(*x.chunk(2)) for x in (q, k)), d, f),
         "number i is paired with number i + P. Meta pairs neighbours: 0 and 1, 2 and 3, ..."),
        (lambda q, k, d, f: _product(q, k, torch.tensor(d).bfloat16().float(), f),
         "a distance of 1030 is rounded. bfloat16 keeps 8 bits and has no 1030: use float32."),
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
    hints=(
        "Either follow equation 3.7, or choose the two positions yourself: if the key stands at 0, "
        "where does the query stand?",
        "A vector at position 0 is not rotated. So rotate one of the two by the distance, pair by "
        "pair, and take the dot product with the other.",
    ),
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
    hints=(
        "Read the rows of one head as [P, 2]: which pair, and which of its two. In which order do "
        "the same rows stand in the other layout?",
        "With a dimension for the heads in front, [N, P, 2, D], nothing but the order of two "
        "dimensions changes.",
    ),
)  # fmt: skip


# --- The scaling of Llama 3.1 ---------------------------------------------------------------------


def _full_rotations(frequencies, length):
    return frequencies * length / (2 * math.pi)


def _ramp(frequencies, low, high, length):
    return (_full_rotations(frequencies, length) - low) / (high - low)


def _mixed(kept, frequencies, factor):
    return kept * frequencies + (1 - kept) * frequencies / factor


def _scaled(frequencies, factor, low, high, length):
    return _mixed(_ramp(frequencies, low, high, length).clamp(0, 1), frequencies, factor)


def _border(at):
    def hard(frequencies, factor, low, high, length):
        is_slow = _full_rotations(frequencies, length) < (low, high)[at]
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
    there = _full_rotations(frequencies, length) > high
    return agree(found[there], frequencies[there])


def _low_are_divided(found, frequencies, factor, low, high, length):
    there = _full_rotations(frequencies, length) < low
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
         "nothing has changed: these are the frequencies of Llama 3 itself. s comes from r, the "
         "full rotations in the old context, frequency * original_length / (2 pi). Which number do "
         "you compare with low and high?"),
        (lambda f, factor, *rest: f / factor,
         "every frequency is divided by the factor. The high ones, with more than `high` full "
         "rotations in the old context, stay as they are."),
        (_border(0),
         "there is no ramp: a frequency is either divided or kept. Between `low` and `high` full "
         "rotations it is mixed."),
        (_border(1),
         "there is no ramp, and the border is at `high`. Between `low` and `high` full "
         "rotations a frequency is mixed."),
        (_over_wavelengths,
         "the ramp is linear in the wavelength. It is linear in r, the number of full rotations in "
         "the old context."),
        (lambda f, factor, low, high, n: _mixed(1 - _ramp(f, low, high, n).clamp(0, 1), f, factor),
         "the high frequencies are divided and the low ones kept. It is the other way round; are "
         "low and high swapped, or s and 1 - s?"),
        (lambda f, factor, low, high, n: _mixed(_ramp(f, low, high, n), f, factor),
         "the ramp goes on below 0 and above 1. It needs a clamp(0, 1)."),
        (lambda f, factor, low, high, n: _mixed(_ramp(f, low, high, n).clamp(max=1), f, factor),
         "s has no lower bound: for pairs with fewer than `low` full rotations, s = 0."),
        (lambda f, factor, low, high, n: _mixed(_ramp(f, low, high, n).clamp(min=0), f, factor),
         "s has no upper bound: for pairs with more than `high` full rotations, s = 1."),
        (lambda f, factor, low, high, n: _scaled(f, factor, 1, 4, n),
         "1 and 4 are typed in. Use the arguments low and high."),
        (lambda f, factor, low, high, n:
            1 / _mixed(_ramp(f, low, high, n).clamp(0, 1), 1 / f, 1 / factor),
         "wavelengths are mixed. Mix the frequencies: s * frequency + (1 - s) * frequency / "
         "factor."),
        (lambda f, factor, *rest: _scaled(f, 1 / factor, *rest),
         "the low frequencies have grown. Longer texts need lower ones: divide by the "
         "factor."),
        (lambda f, factor, *rest: _scaled(f, 8.0, *rest),
         "the factor 8 is typed in, as in Meta's reference code. Llama 3.2 has 32: use the "
         "argument."),
        (lambda f, factor, low, high, n: _scaled(f, factor, low, high, 8192),
         "the old context of 8192 is typed in. Use the argument."),
        (lambda f, factor, low, high, n: _scaled(f, factor, low, high, n * 2 * math.pi),
         "2 pi is missing: in n positions a pair makes n * frequency / (2 pi) full rotations."),
    ],
    properties=[
        *((_has_effect(i), f"`{name}` has no effect on the result. Is a number typed in instead?")
          for i, name in enumerate(("factor", "low", "high", "original_length"), 1)),
        (of_each(_high_are_kept),
         "a frequency with more than `high` full rotations in the old context has changed. It is "
         "kept: s = 1."),
        (of_each(_low_are_divided),
         "a frequency with fewer than `low` full rotations in the old context is not divided by "
         "the factor. There s = 0."),
    ],
    but=[
        (loops,
         "it loops over the pairs. Use one formula for the whole tensor."),
        (lambda tree: _branches(tree) or uses("where")(tree),
         "it distinguishes the three kinds of pairs with `if` or `where`. One formula with a clamp "
         "covers all three."),
    ],
    hints=(
        "The third line of equation 3.8 can say it all. With which s is it the first line, and "
        "with which the second?",
        "What does the formula for s give above `high`, and below `low`? Keep it between 0 and 1.",
    ),
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
