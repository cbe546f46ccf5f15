"""The exercises of notebook 17: a full adder, a float sum, the width of an exact accumulator."""

import ast
import itertools
import math

import torch

from llama3_scratch.exercises.frame import Exercise, desk


def _counts(tree):
    numeric = ast.Add, ast.Sub, ast.Mult, ast.Mod, ast.FloorDiv
    return any(isinstance(node, numeric) for node in ast.walk(tree))


full_adder = Exercise(
    "Bits a, b and carry -> (sum, carry): the two bits of a + b + carry, from ^, & and | alone.",
    right=lambda a, b, c: (a ^ b ^ c, (a & b) | ((a ^ b) & c)),
    cases=lambda: list(itertools.product((0, 1), repeat=3)),
    hints=(
        "The sum bit is 1 where an odd number of the three bits are 1.",
        "A carry arises where both a and b are 1, or where exactly one of them is and the carry.",
    ),
    mistakes=[
        (lambda a, b, c: (a ^ b, a & b), "the incoming carry is missing: this is a half adder."),
        (lambda a, b, c: (a ^ b ^ c, a & b),
         "1 + 0 with a carry of 1 gives a carry, too: a & b does not see it."),
        (lambda a, b, c: (a | b | c, (a & b) | ((a ^ b) & c)),
         "1 + 1 has the sum bit 0: that gate is not |."),
        (lambda a, b, c: ((a & b) | ((a ^ b) & c), a ^ b ^ c), "sum and carry changed places."),
    ],
    but=[(_counts, "this calculates with numbers. A circuit has only ^, & and |.")],
)  # fmt: skip


def _sum(a, b, m, hidden_first=True, swap=True, rounding=True, guard=3):
    if swap:
        a, b = torch.maximum(a, b), torch.minimum(a, b)
    d = ((a >> m) - (b >> m)).clamp(0, m + guard + 2)
    f, g = a & (2**m - 1), b & (2**m - 1)
    if hidden_first:
        f, g = (f | 2**m) << guard, (g | 2**m) << guard
        g = (g >> d) | ((g & ((1 << d) - 1)) != 0).long()
    else:
        f, g = (f | 2**m) << guard, ((g >> d) | 2**m) << guard
    total, exponent = f + g, a >> m
    carry = total >> (m + 1 + guard)
    total, exponent = (total >> carry) | (total & carry), exponent + carry
    low, kept = total & (2**guard - 1), total >> guard
    if rounding:
        kept = kept + ((2 * low > 2**guard) | ((2 * low == 2**guard) & (kept & 1 == 1))).long()
    return kept + ((exponent - 1) << m)


def _codes(m, bottom, top):
    codes = torch.arange(bottom << m, top << m)
    return codes[:, None].expand(-1, len(codes)), codes[None].expand(len(codes), -1)


float_sum = Exercise(
    "Codes a, b (int64) of positive normal floats with m fraction bits: exponent << m | fraction, "
    "and m -> the code of their sum, rounded half to even. No sum overflows.",
    right=_sum,
    cases=lambda: [(torch.tensor([56, 56]), torch.tensor([48, 24]), 3), (*_codes(3, 1, 14), 3),
                   (*_codes(2, 1, 29), 2)],  # fmt: skip
    hints=(
        "Put the hidden 1 in front of both fractions before you shift the smaller number.",
        "Shift both up by three bits first. What falls off the end of the smaller one has to leave "
        "a trace: a 1 in the last place.",
    ),
    mistakes=[
        (lambda a, b, m: _sum(a, b, m, hidden_first=False),
         "1 + 0.5 gives 2: the hidden 1 has to be in front before the shift."),
        (lambda a, b, m: _sum(a, b, m, swap=False),
         "where b is larger than a, the other number has to be shifted."),
        (lambda a, b, m: _sum(a, b, m, rounding=False),
         "the sum is cut off, not rounded."),
        (lambda a, b, m: _sum(a, b, m, rounding=False, swap=False),
         "it is right only where a is the larger number and no bit is lost: swap, and round."),
        (lambda a, b, m: _sum(a, b, m, guard=0),
         "without bits behind the last place there is nothing to round by."),
        (lambda a, b, m: a + b, "this adds the codes: the sum of exponents belongs to a product."),
    ],
)  # fmt: skip


def _width(smallest, largest, terms, sign=1, count=True, square=2):
    steps = (largest / smallest) ** square * (terms if count else 1)
    return math.floor(math.log2(steps)) + 1 + sign


accumulator_bits = Exercise(
    "smallest, largest (positive) of a format and the number of terms -> how many bits a fixed-"
    "point accumulator with a sign needs to add so many products, and to lose nothing.",
    right=_width,
    cases=lambda: [(1, 128, 12288), (2**-9, 448, 12288), (2**-16, 57344, 12288), (1, 8, 64)],
    hints=(
        "The unit is the smallest product. How many units are in the largest possible sum?",
        "The number n takes floor(log2 n) + 1 bits; the sign takes one more.",
    ),
    mistakes=[
        (lambda s, big, n: _width(s, big, n, sign=0), "the sign needs a bit, too."),
        (lambda s, big, n: _width(s, big, n, count=False),
         "this holds one product. The sum of many is larger."),
        (lambda s, big, n: math.ceil(math.log2((big / s) ** 2 * n)) + 1,
         "a power of two, 2^k, takes k + 1 bits."),
        (lambda s, big, n: _width(s, big, n, square=1),
         "these are the numbers themselves. Their products are added."),
    ],
)  # fmt: skip

case, hint, lent, progress, status = desk(globals())
