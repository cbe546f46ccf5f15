"""The exercises of notebook 16: two's complement, a small float read and written."""

import math

import torch

from llama3_scratch.exercises.frame import Exercise, desk
from llama3_scratch.formats.scalar import minifloat

# --- Two's complement -----------------------------------------------------------------------------


def _signed(code, bits):
    return code - 2**bits if code >= 2 ** (bits - 1) else code


signed = Exercise(
    "(code, bits) -> the whole number that a pattern of so many bits, given as a code from 0 to "
    "2^bits - 1, stands for in two's complement.",
    right=_signed,
    cases=lambda: [
        (0b1011, 4), (0b0011, 4), (0b1000, 4), (0, 4), (255, 8), (128, 8), (127, 8), (1, 1),
        (0x8000, 16), (0x7FFF, 16), (200, 16),
    ],  # fmt: skip
    hints=(
        "The wheel of four bits has 0 to 7 on one side. Which number stands just before 0?",
        "The upper half of the codes is 2^bits too large. How do you recognise that half?",
    ),
    mistakes=[
        (lambda code, bits: code,
         "this is the unsigned number. The upper half of the codes stands for negative ones."),
        (lambda code, bits: -(code % 2 ** (bits - 1)) if code >> (bits - 1) else code,
         "this is sign and magnitude. In two's complement the codes go on counting through 0: all "
         "ones is -1."),
        (lambda code, bits: code - 2**bits + 1 if code >> (bits - 1) else code,
         "this is one's complement, which has two zeros: all ones should be -1, not 0."),
        (lambda code, bits: code - 2**bits if code > 2 ** (bits - 1) else code,
         "a one followed by zeros is the lowest number, -2^(bits - 1)."),
        (lambda code, bits: _signed(code, 8),
         "this is right for 8 bits alone."),
        (lambda code, bits: code - 2 ** (bits - 1),
         "this moves every code down by half of them (an offset). Codes of the lower half stand "
         "for themselves."),
    ],
)  # fmt: skip


# --- A small float, read --------------------------------------------------------------------------


def _fields(code, e, m):
    return code >> (e + m), code >> m & 2**e - 1, code & 2**m - 1


def _decoded(code, e, m, hidden=1.0, low=True, bias=0, signs=True, lowest=1, cells=1):
    sign, exponent, fraction = _fields(code, e, m)
    bias += 2 ** (e - 1) - 1
    f = fraction / 2**m if cells else fraction
    if exponent == 0 and low:
        size = f * 2.0 ** (lowest - bias)
    else:
        size = (hidden + f) * 2.0 ** (exponent - bias)
    return -size if sign and signs else size


def _swapped(code, e, m):
    """Exponent and fraction taken from the wrong sides."""
    sign, exponent, fraction = code >> (e + m), code & 2**e - 1, code >> e & 2**m - 1
    return (-1) ** sign * (1 + fraction / 2**m) * 2.0 ** (exponent - 2 ** (e - 1) + 1)


decode = Exercise(
    "(code, e, m) -> the finite number that the code of a float of 1 sign bit, e exponent bits and "
    "m fraction bits stands for (equations 16.2 and 16.3).",
    right=_decoded,
    cases=lambda: [
        (0b0_011_10, 3, 2), (0b1_011_10, 3, 2), (0b0_110_11, 3, 2), (0b0_000_01, 3, 2),
        (0b1_000_11, 3, 2), (0, 3, 2), (0b0_001_00, 3, 2), (0x3C00, 5, 10), (0x0001, 5, 10),
        (0xC248, 5, 10), (0x4049, 8, 7), (0x0080, 8, 7), (0x7B, 5, 2), (0x38, 4, 3),
    ],  # fmt: skip
    hints=(
        "Cut the code in three with shifts (`>>`) and masks (`&`): m bits from the right are the "
        "fraction, the next e bits the exponent.",
        "Two kinds of numbers: exponent field 0 has no hidden 1 and the exponent of field 1; all "
        "others have 1 + fraction / 2^m.",
    ),
    mistakes=[
        (lambda code, e, m: _decoded(code, e, m, signs=False),
         "the sign is lost."),
        (lambda code, e, m: _decoded(code, e, m, hidden=0.0),
         "the hidden 1 is missing: the fraction bits are the m of 1.m."),
        (lambda code, e, m: _decoded(code, e, m, low=False),
         "with an exponent field of 0 there is no hidden 1 (equation 16.3): otherwise there would "
         "be no zero."),
        (lambda code, e, m: _decoded(code, e, m, lowest=0),
         "numbers with exponent field 0 have the same exponent as those with field 1: 1 - bias. "
         "With 0 - bias there is a gap between the two."),
        (lambda code, e, m: _decoded(code, e, m, bias=1),
         "the bias is 2^(e - 1) - 1, one less than this."),
        (lambda code, e, m: _decoded(code, e, m, bias=-(2 ** (e - 1) - 1)),
         "the bias is missing: take 2^(e - 1) - 1 off the exponent field."),
        (lambda code, e, m: _decoded(code, e, m, cells=0),
         "the fraction bits are a whole number here. Divide it by 2^m."),
        (lambda code, e, m: (_decoded(code, e, m) if code < 1 << (e + m)
                             else -_decoded(code, e + 1, m, bias=-(2 ** (e - 1)))),
         "the sign bit is still in the exponent. Mask the exponent with 2^e - 1."),
        (lambda code, e, m: _decoded(code, e, m, bias=127 - (2 ** (e - 1) - 1)),
         "127 is the bias of 8 exponent bits. With e of them it is 2^(e - 1) - 1."),
        (_swapped,
         "exponent and fraction have changed places: the exponent stands next to the sign."),
    ],
)  # fmt: skip


# --- A small float, written -----------------------------------------------------------------------


def _encoded(x, e, m):
    return int(minifloat("", e, m, "").encode(torch.tensor(x, dtype=torch.float64)))


def _with(rounding, x, e, m, subnormal=True, carry=True, beyond=0, sign=math.copysign):
    """An encoder longhand, with the mistakes that can be made in it.

    beyond: added to the code of infinity, which is the largest code allowed.
    """
    bias, size = 2 ** (e - 1) - 1, abs(x)
    negative = sign(1.0, x) < 0 if sign else x < 0
    exponent = max(math.frexp(size)[1] - 1, 1 - bias) if size else 1 - bias
    if size < 2.0 ** (1 - bias) and not subnormal:
        return negative << (e + m)
    steps = rounding(size / 2.0 ** (exponent - m))
    if not carry and steps == 2 ** (m + 1):
        steps = 2**m
    code = (exponent + bias - 1) * 2**m + steps
    return (negative << (e + m)) + min(code, (2**e - 1) * 2**m + beyond)


def _hasty(x, e, m):
    """Infinity for all that is larger than the largest number, before rounding."""
    largest = (2 - 2.0**-m) * 2.0 ** (2 ** (e - 1) - 1)
    return _with(round, x if abs(x) <= largest else math.copysign(4 * largest, x), e, m)


encode = Exercise(
    "(x, e, m) -> the code of the nearest float of 1 sign bit, e exponent and m fraction bits; "
    "halfway between two, the even code; what would be rounded beyond the largest finite number "
    "becomes infinity, exponent field all ones, fraction 0.",
    right=_encoded,
    cases=lambda: [
        (1.5, 3, 2), (1.0, 3, 2), (-1.5, 3, 2), (0.0, 3, 2), (1.6, 3, 2), (1.125, 3, 2),
        (1.375, 3, 2), (1.9, 3, 2), (0.3, 3, 2), (0.0625, 3, 2), (0.1, 3, 2), (0.03125, 3, 2),
        (14.0, 3, 2), (14.9, 3, 2), (15.0, 3, 2), (-99.0, 3, 2), (-0.0, 3, 2), (3.14159, 5, 10),
        (6e-8, 5, 10), (65519.0, 5, 10), (65520.0, 5, 10), (1 / 3, 8, 7), (-0.011, 4, 3),
    ],  # fmt: skip
    hints=(
        "Find the step first. `math.frexp(x)` gives x as f times 2^k with f from 0.5 to 1, so x is "
        "1.something times 2^(k - 1), and neighbours there are 2^(k - 1 - m) apart.",
        "`round` takes the even one of two equally near whole numbers. Count the steps in |x|, and "
        "let the count carry into the exponent: (exponent field - 1) * 2^m + steps.",
    ),
    mistakes=[
        (lambda *case: _with(math.floor, *case),
         "this cuts off. Take the nearest number, and the even code of two."),
        (lambda *case: _with(lambda s: math.floor(s + 0.5), *case),
         "halves are rounded up here. Halfway between two numbers the even code is taken."),
        (lambda *case: _with(lambda s: math.ceil(s - 0.5), *case),
         "halves are rounded down here. Halfway between two numbers the even code is taken."),
        (lambda *case: _with(math.ceil, *case),
         "this rounds up always. Take the nearest number, and the even code of two."),
        (lambda *case: _with(round, *case, subnormal=False),
         "small numbers become 0 too early: below 2^(1 - bias) there are the subnormal ones, all a "
         "step of 2^(1 - bias - m) apart."),
        (lambda *case: _with(round, *case, carry=False),
         "where rounding carries (1.9 becomes 2.0), the exponent has to grow by one."),
        (lambda *case: _with(round, *case, beyond=-1),
         "what is too large becomes the largest finite number here. It should become infinity: "
         "all ones in the exponent field, zeros in the fraction."),
        (lambda *case: _with(round, *case, beyond=2**60),
         "what is too large runs on past the codes of infinity and NaN. It should become infinity: "
         "all ones in the exponent field, zeros in the fraction."),
        (_hasty,
         "a number a little larger than the largest one is nearer to it than to the next step, so "
         "it becomes the largest one. Round first, then look for overflow."),
        (lambda *case: _with(round, *case, sign=None),
         "-0.0 has a sign: `x < 0` does not see it, `math.copysign(1.0, x) < 0` does."),
        (lambda x, e, m: _with(round, abs(x), e, m),
         "the sign is lost."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
