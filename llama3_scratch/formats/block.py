"""Formats of blocks: neighbours in a row share a scale.

`BLOCK["mxfp4"].quantize(x)` gives the bytes as they would lie in memory, `dequantize` the numbers
that these stand for. Blocks run along the last dimension; the last one of a row may be shorter.
Codes are packed row by row, the first one in the lowest bits.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional

from llama3_scratch.errors import require
from llama3_scratch.formats.scalar import SCALAR, integer


class Packed(NamedTuple):
    """A quantized tensor: its shape, the bytes of its codes, the bytes of its scales (uint8)."""

    shape: tuple
    codes: torch.Tensor
    scales: tuple


@dataclass(frozen=True)
class BlockFormat:
    """A format in which `block` neighbours of a row share a scale (None: the whole row does).

    bits: of one element. scale_bits, row_bits, tensor_bits: what is stored besides for each block,
    row and tensor. to_codes: (blocks, [rows, n_blocks, block], float64) -> codes of the same
    shape, tensors of scales. to_numbers: (codes, scales) -> blocks. source: where it is defined.
    """

    name: str
    block: int | None
    bits: int
    scale_bits: int
    to_codes: Callable
    to_numbers: Callable
    source: str
    row_bits: int = 0
    tensor_bits: int = 0

    def quantize(self, x):
        """Finite numbers [..., n] -> Packed."""
        require(x.isfinite().all(), f"{self.name} takes finite numbers: there is NaN or infinity.")
        codes, scales = self.to_codes(blocks(x, self.block or x.shape[-1]))
        return Packed(tuple(x.shape), pack(codes.flatten(1)[:, : x.shape[-1]], self.bits), scales)

    def dequantize(self, packed):
        """Packed -> the numbers [..., n], float32."""
        n = packed.shape[-1]
        codes = unpack(packed.codes, n, self.bits)
        numbers = self.to_numbers(blocks(codes, self.block or n), packed.scales)
        return numbers.flatten(1)[:, :n].reshape(packed.shape).float()

    def round(self, x):
        """Numbers [..., n] -> the numbers that the format keeps of them, float32."""
        return self.dequantize(self.quantize(x))

    def bits_per_weight(self, shape):
        """A tensor's shape -> bits for each number, with scales and packing to whole bytes."""
        n, rows = shape[-1], math.prod(shape[:-1])
        scale_bits = math.ceil(n / (self.block or n)) * self.scale_bits
        row = sum(8 * math.ceil(bits / 8) for bits in (n * self.bits, scale_bits, self.row_bits))
        total = rows * row + self.tensor_bits
        return total / (rows * n)


# --- Cutting and packing --------------------------------------------------------------------------


def blocks(x, block):
    """[..., n] -> [rows, n_blocks, block]; the end of a row is filled with 0."""
    rows = x.reshape(-1, x.shape[-1])
    rows = rows.double() if x.is_floating_point() else rows
    return functional.pad(rows, (0, -x.shape[-1] % block)).unflatten(1, (-1, block))


def pack(codes, bits):
    """Codes [rows, n] -> bytes [rows, ceil(n bits / 8)], the first code in the lowest bits."""
    places = torch.arange(bits, device=codes.device)
    ones = (codes.long()[..., None] >> places & 1).flatten(1)
    ones = functional.pad(ones, (0, -ones.shape[1] % 8)).unflatten(1, (-1, 8))
    return (ones << torch.arange(8, device=codes.device)).sum(-1).to(torch.uint8)


def unpack(packed, n, bits):
    """Bytes [rows, ...] -> the first n codes of each row, [rows, n]."""
    ones = (packed.long()[..., None] >> torch.arange(8, device=packed.device) & 1).flatten(1)
    ones = ones[:, : n * bits].unflatten(1, (n, bits))
    return (ones << torch.arange(bits, device=packed.device)).sum(-1)


def stored(x, dtype):
    """Numbers [...] -> their bytes [..., size]."""
    return x.to(dtype).contiguous().unsqueeze(-1).view(torch.uint8)


def read(data, dtype):
    """Bytes [..., size] -> numbers [...], float64."""
    return data.contiguous().view(dtype).squeeze(-1).double()


def divided(x, scale):
    """x / scale; 0 where the scale is 0."""
    return torch.where(scale > 0, x / torch.where(scale > 0, scale, 1), 0)


def exponent_of(size):
    """floor(log2(size)), exactly; -127 for 0."""
    return torch.where(size > 0, torch.frexp(size).exponent - 1, -127)


# --- The formats ----------------------------------------------------------------------------------


def by_largest(name, block, element, source, scale=torch.bfloat16):
    """Elements of a scalar format, scaled so that a block's largest magnitude is the format's.

    scale: the type in which the scale is stored. Integers are symmetric: -127 to 127.
    """
    format = SCALAR[element]
    top = float(format.values[-1])

    def to_codes(x):
        scales = stored(x.abs().amax(-1, keepdim=True) / top, scale)
        return format.encode(divided(x, read(scales, scale)).clamp(-top, top)), (scales,)

    def to_numbers(codes, scales):
        return format.decode(codes).double() * read(scales[0], scale)

    size, bits = 8 * scale.itemsize, format.bits
    row = {"row_bits": size} if block is None else {}
    return BlockFormat(name, block, bits, 0 if row else size, to_codes, to_numbers, source, **row)


def asymmetric(name, block, bits, source):
    """Codes 0 to 2^bits - 1 between a block's least and largest number: w = scale code + least.

    The range takes in 0; scale and least number are stored in bfloat16.
    """
    top = 2**bits - 1

    def to_codes(x):
        low = stored(x.amin(-1, keepdim=True).clamp(max=0), torch.bfloat16)
        start = read(low, torch.bfloat16)
        scale = stored((x.amax(-1, keepdim=True).clamp(min=0) - start) / top, torch.bfloat16)
        code = divided(x - start, read(scale, torch.bfloat16)).round().clamp(0, top)
        return code.long(), (scale, low)

    def to_numbers(codes, scales):
        scale, low = (read(each, torch.bfloat16) for each in scales)
        return codes * scale + low

    return BlockFormat(name, block, bits, 32, to_codes, to_numbers, source)


def shared_exponent(name, element, largest, source, block=32):
    """OCP's MX: 2^(floor(log2 of the largest magnitude) - largest), elements saturate.

    largest: the exponent of the element format's largest number; the scale is an E8M0.
    mxint8's elements are k/64.
    """
    format, unit = SCALAR[element], 64 if element == "int8" else 1

    def to_codes(x):
        exponent = exponent_of(x.abs().amax(-1, keepdim=True))
        power = (exponent - largest).clamp(-127, 127)
        scaled = torch.ldexp(x, -power.double()) * unit
        codes = format.encode(scaled.clamp(format.values[0], format.values[-1]))
        return codes, ((power + 127).to(torch.uint8),)

    def to_numbers(codes, scales):
        elements = format.decode(codes).double() / unit
        return torch.ldexp(elements, scales[0].double() - 127)

    return BlockFormat(name, block, format.bits, 8, to_codes, to_numbers, source)


def nvfp4():
    """E2M1 in blocks of 16, whose scales are E4M3 times one float32 number for the tensor."""
    element, middle = SCALAR["e2m1"], SCALAR["e4m3"]
    top, top_scale = element.values[-1], middle.values[-1]  # 6 and 448

    def to_codes(x):
        largest = x.abs().amax(-1, keepdim=True)
        whole = stored(largest.max() / (top_scale * top), torch.float32)
        scale = middle.encode(divided(largest / top, read(whole, torch.float32)))
        step = middle.decode(scale).double() * read(whole, torch.float32)
        return element.encode(divided(x, step)), (scale, whole)

    def to_numbers(codes, scales):
        step = middle.decode(scales[0]).double() * read(scales[1], torch.float32)
        return element.decode(codes).double() * step

    source = "NVIDIA, Transformer Engine; Blackwell's FP4"
    return BlockFormat("nvfp4", 16, 4, 8, to_codes, to_numbers, source, tensor_bits=32)


def msfp(name, magnitude_bits):
    """A sign and a magnitude without hidden bit; 16 numbers share an exponent of 8 bits."""
    top = 2**magnitude_bits - 1

    def to_codes(x):
        power = exponent_of(x.abs().amax(-1, keepdim=True)).clamp(-127, 127)
        size = torch.ldexp(x.abs(), (magnitude_bits - 1 - power).double()).round().clamp(max=top)
        return size.long() + (x < 0) * (top + 1), ((power + 127).to(torch.uint8),)

    def to_numbers(codes, scales):
        size = torch.where(codes > top, top + 1 - codes, codes).double()
        return torch.ldexp(size, scales[0].double() - 127 - (magnitude_bits - 1))

    source = "Rouhani et al. 2020, NeurIPS (MSFP)"
    return BlockFormat(name, 16, 1 + magnitude_bits, 8, to_codes, to_numbers, source)


def vsq4():
    """int4 in vectors of 16, whose scales are whole numbers of 4 bits times a float for the row."""

    def to_codes(x):
        scale = x.abs().amax(-1, keepdim=True) / 7
        row = stored(scale.amax(1, keepdim=True) / 15, torch.bfloat16)
        whole = divided(scale, read(row, torch.bfloat16)).round().clamp(0, 15)
        step = whole * read(row, torch.bfloat16)
        code = divided(x, step).round().clamp(-7, 7)
        return code.long() % 16, (pack(whole.flatten(1), 4), row)

    def to_numbers(codes, scales):
        whole = unpack(scales[0], codes.shape[1], 4)[..., None]
        return SCALAR["int4"].decode(codes).double() * whole * read(scales[1], torch.bfloat16)

    source = "Dai et al. 2021, VS-Quant, arXiv:2102.04503"
    return BlockFormat("vsq4", 16, 4, 4, to_codes, to_numbers, source, row_bits=16)


def flex16():
    """16-bit integers; the whole tensor shares the exponent of their last bit, -31 to 0.

    The exponent has 5 bits (one byte here). Flexpoint predicts it from earlier steps of a training;
    here it is that of the largest magnitude.
    """

    format = integer("int16", 16, signed=True)

    def to_codes(x):
        power = (exponent_of(x.abs().max()) - 14).clamp(-31, 0)
        codes = format.encode(torch.ldexp(x, -power.double()))
        return codes, ((-power).to(torch.uint8),)

    def to_numbers(codes, scales):
        return torch.ldexp(format.decode(codes).double(), -scales[0].double())

    source = "Köster et al. 2017, Flexpoint, arXiv:1711.02213"
    return BlockFormat("flex16", None, 16, 0, to_codes, to_numbers, source, tensor_bits=8)


# --- GGUF: scales and codes of a block lie together -----------------------------------------------


@dataclass(frozen=True)
class FileFormat:
    """A block format of GGUF files: each block is a run of bytes, its scales among them.

    Rows are laid end to end, and the last block is filled with 0 (llama.cpp itself refuses rows
    that its blocks do not divide). to_bytes: blocks [n, block], float32 -> [n, size], uint8.
    """

    name: str
    block: int
    size: int  # in bytes
    to_bytes: Callable
    to_numbers: Callable
    source: str = "ggml-quants.c in llama.cpp"

    def quantize(self, x):
        """Finite numbers [..., n] -> Packed, whose codes are [n_blocks, size] bytes."""
        require(x.isfinite().all(), f"{self.name} takes finite numbers: there is NaN or infinity.")
        whole = functional.pad(x.flatten().float(), (0, -x.numel() % self.block))
        return Packed(tuple(x.shape), self.to_bytes(whole.unflatten(0, (-1, self.block))), ())

    def dequantize(self, packed):
        """Packed -> the numbers [..., n], float32."""
        numbers = self.to_numbers(packed.codes).flatten()
        return numbers[: math.prod(packed.shape)].reshape(packed.shape).float()

    def round(self, x):
        """Numbers [..., n] -> the numbers that the format keeps of them, float32."""
        return self.dequantize(self.quantize(x))

    def bits_per_weight(self, shape):
        """A tensor's shape -> bits for each number, the filled end counted."""
        n = math.prod(shape)
        return 8 * math.ceil(n / self.block) * self.size / n


def inverse(scale):
    """1 / scale in float32; 0 for 0."""
    return torch.where(scale == 0, 0, 1 / torch.where(scale == 0, 1, scale))


def half(x):
    """Numbers [n, 1] -> their bytes in float16, [n, 2]. Raises `InputError` if one is too large."""
    kept = x.half()
    require(
        kept.isfinite().all(),
        f"a block's scale is {float(x.abs().max()):.3g}: expected at most 65504, the largest "
        "number of float16, in which GGUF stores it.",
    )
    return kept.view(torch.uint8)


def from_half(data):
    """Bytes [n, 2] -> float32 [n, 1]."""
    return data.contiguous().view(torch.float16).float()


def _q8_0_bytes(x):
    d = x.abs().amax(-1, keepdim=True) / 127
    scaled = x * inverse(d)
    codes = scaled.sign() * (scaled.abs() + 0.5).floor()  # halves away from 0
    return torch.cat([half(d), codes.to(torch.int8).view(torch.uint8)], -1)


def _q8_0_numbers(data):
    return from_half(data[:, :2]) * data[:, 2:].contiguous().view(torch.int8)


def _largest(x):
    """[..., n] -> [..., 1]: the number of the largest magnitude, with its sign."""
    return x.gather(-1, x.abs().argmax(-1, keepdim=True))


def _q4_0_bytes(x):
    """The first half's codes in the bytes' low four bits, the second's in the high."""
    d = _largest(x) / -8
    codes = (x.double() * inverse(d).double() + 8.5).trunc().clamp(0, 15)
    codes = codes.to(torch.uint8)
    return torch.cat([half(d), codes[:, :16] | codes[:, 16:] << 4], -1)


def _q4_0_numbers(data):
    codes = torch.cat([data[:, 2:] & 15, data[:, 2:] >> 4], -1)
    return from_half(data[:, :2]) * (codes.float() - 8)


def _six_bits(scales, minima):
    """Two times eight 6-bit numbers [n, 8] -> [n, 12] bytes, as Q4_K packs them."""
    (s, s_late), (m, m_late) = scales.split(4, -1), minima.split(4, -1)
    return torch.cat([
        s | s_late >> 4 << 6, m | m_late >> 4 << 6, s_late & 15 | (m_late & 15) << 4,
    ], -1)  # fmt: skip


def _from_six_bits(data):
    a, b, c = data.split(4, -1)
    scales = torch.cat([a & 63, c & 15 | a >> 6 << 4], -1)
    return scales, torch.cat([b & 63, c >> 4 | b >> 6 << 4], -1)


def _q4_k_bytes(x):
    """Each 32 numbers between their least and their largest; llama.cpp searches for better ones."""
    parts = x.unflatten(-1, (8, 32))
    low = -parts.amin(-1).clamp(max=0)  # [n, 8]
    step = (parts.amax(-1).clamp(min=0) + low) / 15
    d, d_low = (half(each.amax(-1, keepdim=True) / 63) for each in (step, low))
    wholes = [
        (each * inverse(from_half(unit))).round().clamp(0, 63).to(torch.uint8)
        for each, unit in ((step, d), (low, d_low))
    ]
    step, low = (from_half(u) * w for u, w in zip((d, d_low), wholes, strict=True))
    codes = ((parts + low[..., None]) * inverse(step)[..., None]).round().clamp(0, 15)
    codes = codes.to(torch.uint8).unflatten(1, (4, 2))  # two neighbours of 32 share 32 bytes
    nibbles = (codes[:, :, 0] | codes[:, :, 1] << 4).flatten(1)
    return torch.cat([d, d_low, _six_bits(*wholes), nibbles], -1)


def _q4_k_numbers(data):
    scales, minima = _from_six_bits(data[:, 4:16])
    nibbles = data[:, 16:].unflatten(1, (4, 32))
    codes = torch.stack([nibbles & 15, nibbles >> 4], 2).flatten(1, 2)  # [n, 8, 32]
    step, low = from_half(data[:, :2]) * scales, from_half(data[:, 2:4]) * minima
    return step[..., None] * codes - low[..., None]


def _q6_k_bytes(x):
    parts = x.unflatten(-1, (16, 16))
    step = _largest(parts)[..., 0] / -32  # [n, 16]
    d = half(_largest(step) / -128)
    wholes = (step * inverse(from_half(d))).round().clamp(-128, 127)
    step = from_half(d) * wholes
    codes = (parts * inverse(step)[..., None]).round().clamp(-32, 31) + 32
    codes = codes.to(torch.uint8).reshape(-1, 2, 4, 32)  # two halves of four runs of 32
    low, high = codes & 15, codes >> 4
    low = torch.cat([low[:, :, :2] | low[:, :, 2:] << 4], 2)
    high = sum(high[:, :, i] << 2 * i for i in range(4))
    return torch.cat(
        [low.flatten(1), high.flatten(1), wholes.to(torch.int8).view(torch.uint8), d], -1
    )


def _q6_k_numbers(data):
    low, high = data[:, :128].unflatten(1, (2, 2, 32)), data[:, 128:192].unflatten(1, (2, 32))
    low = torch.cat([low & 15, low >> 4], 2)  # [n, 2, 4, 32]
    high = torch.stack([high >> 2 * i & 3 for i in range(4)], 2)
    codes = (low | high << 4).reshape(-1, 16, 16).float() - 32
    scales = data[:, 192:208].contiguous().view(torch.int8)
    return (from_half(data[:, 208:]) * scales)[..., None] * codes


def _formats():
    ocp, ints = "OCP Microscaling Formats (MX) v1.0, 2023", "round to nearest"
    yield by_largest("int8_row", None, "int8", ints)
    for block in (32, 128):
        yield by_largest(f"int4_g{block}", block, "int4", ints)
        yield asymmetric(f"int4_g{block}_asym", block, 4, ints)
    for element, largest in (("e4m3", 8), ("e5m2", 15), ("e3m2", 4), ("e2m3", 2), ("e2m1", 2)):
        bits = SCALAR[element].bits
        name = f"mxfp{bits}" if bits == 4 else f"mxfp{bits}_{element}"
        yield shared_exponent(name, element, largest, ocp)
    yield shared_exponent("mxint8", "int8", 0, ocp)
    yield from (nvfp4(), msfp("msfp12", 3), msfp("msfp16", 7), vsq4(), flex16())
    for table in ("nf4", "af4"):
        source = SCALAR[table].source
        yield by_largest(f"{table}_64", 64, table, source, scale=torch.float32)
    yield FileFormat("q8_0", 32, 34, _q8_0_bytes, _q8_0_numbers)
    yield FileFormat("q4_0", 32, 18, _q4_0_bytes, _q4_0_numbers)
    yield FileFormat("q4_k", 256, 144, _q4_k_bytes, _q4_k_numbers)
    yield FileFormat("q6_k", 256, 210, _q6_k_bytes, _q6_k_numbers)


BLOCK = {each.name: each for each in _formats()}
