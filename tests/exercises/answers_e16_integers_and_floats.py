"""Answers to the exercises of notebook 16, apart from the checkers' own."""

import math
import struct

from llama3_scratch.exercises.e16_integers_and_floats import decode as decode_exercise


def by_string(code, bits):
    text = f"{code:0{bits}b}"
    return -int(text[0]) * 2 ** (bits - 1) + int(text[1:] or "0", 2)


def by_shift(code, bits):
    return (code ^ 1 << (bits - 1)) - (1 << (bits - 1))


def by_text(code, e, m):
    bits = f"{code:0{1 + e + m}b}"
    sign, exponent, fraction = bits[0], int(bits[1 : 1 + e], 2), int(bits[1 + e :], 2)
    one = min(exponent, 1)
    size = math.ldexp(one * 2**m + fraction, max(exponent, 1) - (2 ** (e - 1) - 1) - m)
    return -size if sign == "1" else size


def no_bias_for_zero(code, e, m):
    return by_text(code, e, m) if code >> m & (2**e - 1) else 0.0


def searched(x, e, m):
    """The nearest of all codes, tried one by one; halves to the even code."""
    top = (2**e - 1) << m
    sizes = [(abs(decode_exercise.right(code, e, m) - abs(x)), code % 2, code)
             for code in range(top)]  # fmt: skip
    code = min(sizes)[2]
    largest = decode_exercise.right(top - 1, e, m)
    step = largest - decode_exercise.right(top - 2, e, m)
    if abs(x) >= largest + step / 2:
        code = top
    return code + ((math.copysign(1, x) < 0) << (e + m))


def away(x, e, m):
    """Halves away from zero, and otherwise right."""
    code = searched(x, e, m)
    magnitude = code & (1 << (e + m)) - 1
    if magnitude < (2**e - 1) << m:
        a, b = (decode_exercise.right(magnitude + i, e, m) for i in (0, 1))
        code += abs(x) - a == b - abs(x)
    return code


def only_half_precision(x, e, m):
    return struct.unpack("<H", struct.pack("<e", x))[0]


RIGHT = {
    "e16_integers_and_floats.signed": [by_string, by_shift],
    "e16_integers_and_floats.decode": [by_text],
    "e16_integers_and_floats.encode": [searched],
}
OTHERS = {
    "e16_integers_and_floats.signed": [(lambda code, bits: -code, "the result is -11")],
    "e16_integers_and_floats.decode": [(no_bias_for_zero, "the result is 0.0")],
    "e16_integers_and_floats.encode": [
        (away, "halves are rounded up"),
        (only_half_precision, "it raised OverflowError"),
    ],
}
