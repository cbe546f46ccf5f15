"""Answers to the exercises of notebook 17, apart from the checkers' own."""

import torch


def adder_by_majority(a, b, carry):
    return a ^ b ^ carry, (a & b) | (a & carry) | (b & carry)


def adder_without_b_and_carry(a, b, carry):
    return a ^ b ^ carry, (a & b) | (a & carry)


def adder_by_counting(a, b, carry):
    return (a + b + carry) % 2, (a + b + carry) // 2


def _value(code, m):
    return (1 + (code & (2**m - 1)).double() / 2**m) * 2.0 ** (code >> m)


def _code(x, m, rounded):
    fraction, exponent = torch.frexp(x)
    return rounded(fraction * 2 ** (m + 1)).long() + ((exponent.long() - 2) << m)


def sum_by_values(a, b, m):
    return _code(_value(a, m) + _value(b, m), m, torch.round)


def sum_half_up(a, b, m):
    return _code(_value(a, m) + _value(b, m), m, lambda x: (x + 0.5).floor())


def width_by_counting(smallest, largest, terms):
    units, bits = int(largest**2 * terms / smallest**2), 1
    while units:
        units, bits = units // 2, bits + 1
    return bits


def width_of_doubled_sum(smallest, largest, terms):
    return width_by_counting(smallest, largest, terms) + 1


RIGHT = {
    "e17_circuits.full_adder": [adder_by_majority],
    "e17_circuits.float_sum": [sum_by_values],
    "e17_circuits.accumulator_bits": [width_by_counting],
}
OTHERS = {
    "e17_circuits.full_adder": [
        (adder_without_b_and_carry, "the result is 0"),
        (adder_by_counting, "only ^, & and |"),
    ],
    "e17_circuits.float_sum": [(sum_half_up, "the value is")],
    "e17_circuits.accumulator_bits": [(width_of_doubled_sum, "30")],
}
