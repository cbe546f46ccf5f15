"""The exercises of notebook 19: a shared exponent, bits for each weight, whole words, Q4_0."""

import math

import torch

from llama3_scratch.exercises.frame import Exercise, desk, drawn, of_each
from llama3_scratch.formats import BLOCK, SCALAR
from llama3_scratch.formats.block import exponent_of

# --- Blocks that share an exponent ----------------------------------------------------------------


def _floor(largest_size):
    return exponent_of(largest_size)


def _nearest(x, values):
    return values[(x[..., None] - values).abs().argmin(-1)]


def _shared(x, values, power=_floor, size=lambda x: x.abs().amax(-1, keepdim=True), top=None):
    """x [..., block] rounded; power: of the largest size, before the table's own is taken off."""
    table = values.to(x.device, x.dtype)
    top = exponent_of(table[-1]) if top is None else top
    scale = torch.exp2((power(size(x)) - top).to(x.dtype))
    return _nearest(x / scale, table) * scale


def _blocks():
    e2m1, e3m2 = (SCALAR[name].values.float() for name in ("e2m1", "e3m2"))
    x, y, z = drawn(19, (32,), (3, 32), (2, 3, 16))
    zero = torch.cat([y[:2] * 1e-6, torch.zeros(1, 32)])
    return {
        "four numbers": (torch.tensor([0.3, -1.0, 5.2, 0.1]), e2m1),
        "a largest one of 7.8": (torch.tensor([7.8, -0.6, 2.4, -6.7]), e2m1),
        "a block of 32": (x, e2m1),
        "three blocks of different sizes": (y * torch.tensor([[1.0], [100.0], [0.01]]), e2m1),
        "a block whose largest is negative": (-x.abs() * 3, e2m1),
        "small blocks and one of zeros": (zero, e2m1),
        "leading dimensions, another table": (z * 50, e3m2),
    }


shared = Exercise(
    "Blocks [..., block] and a table of the elements' values [n], sorted -> the numbers that MX "
    "keeps of them, [..., block]. A block shares the scale 2^(E - e_max), where 2^E is the largest "
    "power of two that is no larger than the block's largest magnitude, and 2^e_max the same for "
    "the table. A block of zeros stays zero.",
    right=_shared,
    cases=_blocks,
    hints=(
        "The largest magnitude of each block, with `keepdim=True`; then its logarithm to base 2, "
        "rounded down. The same two steps for the table.",
        "The logarithm of 0 is minus infinity: give a block of zeros any other scale. After the "
        "division by the scale each number takes the nearest entry of the table, and the largest "
        "entry takes what lies beyond it.",
    ),
    mistakes=[
        (lambda x, v: _shared(x, v, lambda s: torch.frexp(s).exponent),
         "the scale is rounded up. MX rounds the exponent down: then the largest number of a block "
         "can lie beyond the table's end, and is cut to it."),
        (lambda x, v: _shared(x, v, lambda s: torch.log2(s.clamp(min=1e-30)).round()),
         "the exponent is rounded to the nearest one. MX rounds it down."),
        (lambda x, v: _shared(x, v, top=0),
         "the table's own exponent is missing: 2^(E - e_max), so that the largest number meets the "
         "table's largest power of two."),
        (lambda x, v: _shared(x, v, top=2),
         "the exponent of E2M1's largest number, 2, serves for every table. Take it from `values`: "
         "it is 4 for E3M2."),
        (lambda x, v: _shared(x, v, lambda s: torch.log2(s.clamp(min=1e-30) / v[-1]), top=0),
         "the scale is the largest magnitude over the table's largest value. In MX the scale is a "
         "power of two."),
        (lambda x, v: _shared(x, v, size=lambda x: x.abs().amax()),
         "all blocks share one scale. Each block, the last dimension, has its own."),
        (lambda x, v: _shared(x, v, size=lambda x: x.amax(-1, keepdim=True).clamp(min=0)),
         "the scale comes from the largest number; it has to come from the largest magnitude, "
         "which may belong to a negative number."),
        (lambda x, v: _shared(x, v) / torch.exp2((_floor(x.abs().amax(-1, keepdim=True))
                                                  - exponent_of(v[-1])).to(x.dtype)),
         "these are the elements. Multiply them by their block's scale again."),
    ],
    properties=[
        (of_each(lambda found, x, v: found.shape == x.shape),
         "the result must have the shape of x."),
    ],
)  # fmt: skip


# --- Bits for each weight -------------------------------------------------------------------------


def _bits(rows, n, block, bits, scale_bits, whole=0, up=math.ceil, bytes=8, joined=False):
    scales = up(n / block) * scale_bits
    parts = (n * bits + scales,) if joined else (n * bits, scales)
    row = sum(bytes * math.ceil(part / bytes) for part in parts)
    return (rows * row + whole) / (rows * n)


bits = Exercise(
    "(rows, n, block, bits, scale_bits, whole) -> bits for each weight of a matrix [rows, n]: n "
    "codes of so many bits in each row, a scale for each block of the row (the last block may be "
    "shorter), and `whole` bits for the matrix. In each row the codes are packed to whole bytes, "
    "and so are the scales.",
    right=lambda rows, n, block, bits, scale_bits, whole: _bits(
        rows, n, block, bits, scale_bits, whole),
    cases=lambda: [
        (1, 32, 32, 4, 8, 0), (4096, 4096, 32, 4, 8, 0), (672, 192, 128, 4, 16, 0),
        (84, 190, 32, 6, 8, 0), (48, 192, 16, 4, 8, 32), (5, 7, 16, 3, 4, 32),
        (3, 33, 16, 5, 4, 0), (7, 11, 16, 3, 4, 0),
    ],
    hints=(
        "How many blocks has a row of n numbers? The last one may be shorter, and has a scale all "
        "the same.",
        "Count one row in bits, with both parts rounded up to whole bytes; then all rows and what "
        "the matrix has once; divide by the number of weights.",
    ),
    mistakes=[
        (lambda r, n, block, b, s, w: b + s / block,
         "this is right where blocks divide the rows and nothing else is stored. Count the shorter "
         "block, whole bytes, and what the matrix has once."),
        (lambda r, n, block, b, s, w: _bits(r, n, block, b, s, w, up=lambda x: x),
         "the last block of a row may be shorter, but its scale has all its bits: round the number "
         "of blocks up."),
        (lambda r, n, block, b, s, w: _bits(r, n, block, b, s, w, up=math.floor),
         "the shorter block at the end of a row has a scale too: round the number of blocks up."),
        (lambda r, n, block, b, s, w: _bits(r, n, block, b, s, w, bytes=1),
         "codes and scales of a row are packed to whole bytes: round each of them up to 8 bits."),
        (lambda r, n, block, b, s, w: _bits(r, n, block, b, s, w, joined=True),
         "codes and scales are rounded up to bytes together. They are packed apart: round each."),
        (lambda r, n, block, b, s, w: (sum(8 * math.ceil(r * part / 8) for part in
                                           (n * b, math.ceil(n / block) * s)) + w) / (r * n),
         "the whole matrix is rounded up to bytes once. Every row ends with a whole byte."),
        (lambda r, n, block, b, s, w: _bits(r, n, block, b, s, 0),
         "what the matrix stores once, `whole`, is missing."),
        (lambda r, n, block, b, s, w: _bits(r, n, block, b, s, 0) + w / n,
         "`whole` is stored once for the matrix, not once for each row."),
        (lambda r, n, block, b, s, w: _bits(r, n, block, b, s, w) * r * n,
         "these are the bits of the matrix. Divide by its number of weights."),
    ],
)  # fmt: skip


# --- Whole words ----------------------------------------------------------------------------------


def _together(block, bits, scale_bits, word):
    size = block * bits + scale_bits
    return block * word // math.gcd(size, word)


together = Exercise(
    "(block, bits, scale_bits, word) -> the least number of elements in whole blocks, one after "
    "the other, whose bits (elements and scales) fill whole words.",
    right=_together,
    cases=lambda: [
        (32, 4, 8, 32), (32, 8, 8, 32), (32, 6, 8, 16), (64, 8, 8, 32), (64, 6, 8, 16),
        (32, 16, 0, 64), (16, 4, 8, 64), (256, 4, 128, 32), (16, 3, 8, 32),
    ],
    hints=(
        "How many bits has one block, its scale included? Then two, three, ... blocks, until the "
        "sum is a multiple of the word.",
        "`math.gcd` of the block's bits and the word's tells how many blocks it takes: word / gcd.",
    ),
    mistakes=[
        (lambda block, b, s, word: _together(block, b, s, word) // block,
         "this is the number of blocks. Wanted is the number of elements in them."),
        (lambda block, b, s, word: block * word,
         "so many elements do fill whole words, but fewer may: what do the block's bits and the "
         "word's have in common?"),
        (lambda block, b, s, word: _together(block, b, 0, word),
         "the scale is missing: a block has block x bits + scale_bits bits."),
        (lambda block, b, s, word: math.lcm(block * b + s, word),
         "these are the bits. How many elements are in them?"),
        (lambda block, b, s, word: math.lcm(block * b + s, word) // word,
         "these are the words. How many elements are in them?"),
    ],
)  # fmt: skip


# --- Q4_0 -----------------------------------------------------------------------------------------


def _q4_0(data, offset=8, halves=True, high=True, d=None, wrap=None):
    scale = data[:, :2].contiguous().view(torch.float16).float() if d is None else d(data)
    low, up = data[:, 2:] & 15, data[:, 2:] >> 4
    if not high:
        low, up = up, low
    codes = torch.cat([low, up], -1) if halves else torch.stack([low, up], -1).flatten(1)
    codes = codes.float() - offset
    return scale * (codes if wrap is None else codes % wrap)


def _swapped_bytes(data):
    return data[:, :2].flip(-1).contiguous().view(torch.float16).float()


def _packed():
    x, y = drawn(20, (1, 32), (4, 32))
    q = BLOCK["q4_0"]
    return [(q.quantize(x).codes,), (q.quantize(y * 0.02).codes,), (q.quantize(y.abs()).codes,)]


q4_0 = Exercise(
    "Blocks of Q4_0, [n, 18] bytes (uint8) -> their numbers [n, 32], float32: two bytes of d, a "
    "float16, then 16 bytes with two codes each, the low four bits for numbers 0 to 15 and the "
    "high four for 16 to 31; a number is d (code - 8).",
    right=_q4_0,
    cases=_packed,
    hints=(
        "`data[:, :2].contiguous().view(torch.float16)` reads two bytes of each row as one "
        "float16. `& 15` and `>> 4` take a byte apart.",
        "All low halves come first, then all high halves: join two [n, 16] tensors. A uint8 has no "
        "negative numbers: make it a float before you take 8 off.",
    ),
    mistakes=[
        (lambda data: _q4_0(data, halves=False),
         "the codes of a byte are not neighbours: the low halves are numbers 0 to 15, the high "
         "halves numbers 16 to 31."),
        (lambda data: _q4_0(data, high=False),
         "low and high halves are exchanged: the low four bits hold numbers 0 to 15."),
        (lambda data: _q4_0(data, offset=0),
         "codes are 0 to 15 and mean -8 to 7: take 8 off."),
        (lambda data: _q4_0(data, wrap=256),
         "8 is taken off in uint8, which has no negative numbers: 3 - 8 is 251 there. Make the "
         "codes floats first."),
        (lambda data: _q4_0(data, offset=7),
         "take 8 off a code, not 7."),
        (lambda data: _q4_0(data, d=lambda data: 1.0),
         "these are the codes less 8. Multiply each row by its d."),
        (lambda data: _q4_0(data, d=_swapped_bytes),
         "d's bytes are exchanged: the lower one comes first."),
        (lambda data: _q4_0(data, d=lambda data: data[:, :2].contiguous().view(torch.bfloat16)
                            .float()),
         "d is read as bfloat16. It is a float16."),
        (lambda data: _q4_0(data, d=lambda data: data[:, :2].contiguous().view(torch.float16)
                            .float()[:1]),
         "every block has a d of its own: here the first one serves all."),
    ],
)  # fmt: skip


case, hint, lent, progress, status = desk(globals())
