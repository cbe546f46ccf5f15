"""Answers to the exercises of notebook 19, apart from the checkers' own."""

import math
import struct

import torch


def block_by_block(x, values):
    rows = []
    for block in x.reshape(-1, x.shape[-1]).tolist():
        size = max(abs(number) for number in block)
        top = math.frexp(float(values[-1]))[1]
        scale = 2.0 ** (math.frexp(size)[1] - top) if size else 1.0
        rows.append([min(values.tolist(), key=lambda v: abs(v - n / scale)) * scale  # noqa: B023
                     for n in block])  # fmt: skip
    return torch.tensor(rows).view(x.shape)


def with_real_scales(x, values):
    scale = (x.abs().amax(-1, keepdim=True) / values[-1]).clamp(min=1e-30)
    return values[((x / scale)[..., None] - values).abs().argmin(-1)] * scale


def of_the_largest_number(x, values):
    size = x.amax(-1, keepdim=True).clamp(min=0)
    e_max = torch.frexp(values[-1]).exponent
    scale = torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent - e_max)
    return values[((x / scale)[..., None] - values).abs().argmin(-1)] * scale


def of_e2m1_only(x, values):
    size = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    scale = 2.0 ** (size.log2().floor() - 2)
    return values[((x / scale)[..., None] - values).abs().argmin(-1)] * scale


def counted(rows, n, block, bits, scale_bits, whole):
    blocks = len(range(0, n, block))
    row = (n * bits + 7) // 8 + (blocks * scale_bits + 7) // 8
    return (8 * row * rows + whole) / (n * rows)


def without_the_tensor(rows, n, block, bits, scale_bits, whole):
    return counted(rows, n, block, bits, scale_bits, 0)


def rounded_together(rows, n, block, bits, scale_bits, whole):
    row = (n * bits + len(range(0, n, block)) * scale_bits + 7) // 8
    return (8 * row * rows + whole) / (n * rows)


def rounded_once(rows, n, block, bits, scale_bits, whole):
    codes, scales = rows * n * bits, rows * len(range(0, n, block)) * scale_bits
    return (8 * ((codes + 7) // 8 + (scales + 7) // 8) + whole) / (n * rows)


def added_up(block, bits, scale_bits, word):
    n = 1
    while n * (block * bits + scale_bits) % word:
        n += 1
    return n * block


def blocks_only(block, bits, scale_bits, word):
    return added_up(block, bits, scale_bits, word) // block


def by_struct(data):
    rows = []
    for row in data.tolist():
        (d,) = struct.unpack("<e", bytes(row[:2]))
        codes = [byte % 16 for byte in row[2:]] + [byte // 16 for byte in row[2:]]
        rows.append([d * (code - 8) for code in codes])
    return torch.tensor(rows)


def in_uint8(data):
    d = data[:, :2].contiguous().view(torch.float16).float()
    return d * (torch.cat([data[:, 2:] & 15, data[:, 2:] >> 4], -1) - 8)


def neighbours(data):
    rows = []
    for row in data.tolist():
        (d,) = struct.unpack("<e", bytes(row[:2]))
        rows.append([d * (c - 8) for byte in row[2:] for c in (byte % 16, byte // 16)])
    return torch.tensor(rows)


RIGHT = {
    "e19_scales_and_blocks.shared": [block_by_block],
    "e19_scales_and_blocks.bits": [counted],
    "e19_scales_and_blocks.together": [added_up],
    "e19_scales_and_blocks.q4_0": [by_struct],
}
OTHERS = {
    "e19_scales_and_blocks.shared": [
        (with_real_scales, "In MX the scale is a power of two"),
        (of_the_largest_number, ""),
        (of_e2m1_only, "serves for every table"),
    ],
    "e19_scales_and_blocks.bits": [
        (without_the_tensor, "`whole`, is missing"),
        (rounded_together, "rounded up to bytes together"),
        (rounded_once, "Every row ends"),
    ],
    "e19_scales_and_blocks.together": [(blocks_only, "this is the number of blocks")],
    "e19_scales_and_blocks.q4_0": [
        (neighbours, "are not neighbours"),
        (in_uint8, "no negative numbers"),
    ],
}
