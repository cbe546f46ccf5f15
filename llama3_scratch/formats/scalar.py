"""Formats of single numbers: each is a table that gives a value to every code.

A code is a bit pattern, read as a whole number from 0 to 2^bits - 1. `SCALAR["e4m3"].round(x)` is x
as that format keeps it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from llama3_scratch.errors import require

inf, nan = float("inf"), float("nan")


@dataclass(frozen=True)
class Format:
    """A number format: how many bits, the value of each code, and how a number finds its code.

    bits: of one code. table: () -> [2^bits], float64, the value of each code; None for fp32, whose
    table would have 32 GiB. encoding: float64 numbers -> their codes. source: where it is defined.
    """

    name: str
    bits: int
    table: Callable | None
    encoding: Callable
    source: str

    def encode(self, x):
        """Numbers [...] -> codes [...], uint8 up to 8 bits, else int64.

        Raises `InputError` for NaN or infinity where the format has no code for it.
        """
        codes = self.encoding(x.double())
        require(
            not (codes < 0).any(),
            f"{self.name} has no code for NaN or infinity, and there is one among the numbers.",
        )
        return codes.to(torch.uint8) if self.bits <= 8 else codes

    def decode(self, codes):
        """Codes [...] -> numbers [...], float32."""
        if self.table is None:
            return codes.to(torch.int32).view(torch.float32)
        return self.table().to(codes.device)[codes.long()].float()

    def round(self, x):
        """Numbers [...] -> the numbers that the format keeps of them, [...], float32."""
        return self.decode(self.encode(x))

    @property
    def values(self):
        """Every finite value, sorted, [at most 2^bits], float64; 0 and -0 are one value."""
        require(self.table, f"{self.name} has too many values to list: 2^{self.bits}.")
        table = self.table()
        return table[table.isfinite()].unique()


# --- Integers -------------------------------------------------------------------------------------


def integer(name, bits, signed):
    """Whole numbers, rounded half to even and clamped; negative ones in two's complement."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)

    def table():
        codes = torch.arange(2**bits, dtype=torch.float64)
        return torch.where(codes > high, codes - 2**bits, codes)

    def encode(x):
        whole = x.round().clamp(low, high).nan_to_num(nan=0).long() % 2**bits
        return torch.where(x.isfinite(), whole, -1)

    return Format(name, bits, functools.cache(table), encode, "two's complement")


# --- Floating point -------------------------------------------------------------------------------


def minifloat(name, e, m, source, bias=None, special="ieee"):
    """A sign, e exponent bits, m mantissa bits: ±1.f 2^(exponent - bias), subnormals at exponent 0.

    special: what else there is. "ieee": the largest exponent means infinity and NaN. "fn": the
    code of all ones is NaN; what is too large becomes the largest number. "fnuz": NaN in the place
    of -0; what is too large becomes NaN. "none": numbers only; what is too large becomes the
    largest. Numbers are rounded to the nearest one, halves to the even code.
    """
    bias = 2 ** (e - 1) - 1 if bias is None else bias
    sign = 2 ** (e + m)  # the code's sign bit
    top = {"ieee": sign - 2**m - 1, "fn": sign - 2}.get(special, sign - 1)  # the largest number
    not_a_number = {"ieee": sign - 2 ** (m - 1), "fn": sign - 1, "fnuz": sign, "none": -1}[special]
    too_large = {"ieee": top + 1, "fnuz": sign}.get(special, top)

    def table():
        codes = torch.arange(sign)
        exponent, fraction = codes >> m, (codes % 2**m).double() / 2**m
        numbers = torch.ldexp(fraction + (exponent > 0), exponent.clamp(min=1) - bias)
        numbers[top + 1 :] = nan
        numbers[top + 1 : top + 2] = inf if special == "ieee" else nan
        both = torch.cat([numbers, -numbers])
        both[not_a_number if special == "fnuz" else []] = nan
        return both

    def encode(x):
        size = x.abs()
        finite = torch.where(size.isfinite(), size, 0)
        exponent = (torch.frexp(finite).exponent - 1).clamp(min=1 - bias)  # finite = 1.f 2^exponent
        steps = torch.ldexp(finite, m - exponent).round().long()  # halves to even; 1.0 is 2^m steps
        code = torch.where(steps > 0, (exponent + bias - 1) * 2**m + steps, 0)
        large = (code > top) | size.isinf()
        code = torch.where(large, too_large, code)
        negative = x.signbit() & ((code > 0) & ~large if special == "fnuz" else True)
        return torch.where(x.isnan(), not_a_number, code + negative * sign)

    return Format(name, 1 + e + m, functools.cache(table), encode, source)


def _scale_table():
    table = torch.ldexp(torch.ones(256, dtype=torch.float64), torch.arange(256) - 127)
    table[255] = nan
    return table


def _scale_code(x):
    """Round to the nearest power of two, 1.5 up; NaN for what is no power: 0 and below."""
    mantissa, exponent = torch.frexp(torch.where((x > 0) & x.isfinite(), x, 0.5))
    code = exponent - 1 + 127 + (mantissa >= 0.75)
    code = torch.where(x >= 2.0**-127, code, 0)
    return torch.where((x > 0) & (code < 255), code, 255)


def _float32_code(x):
    return x.float().view(torch.int32).long() & 0xFFFFFFFF


# --- Tables, logarithms, posits -------------------------------------------------------------------


def table_of(name, bits, numbers, source, borders=None):
    """A format that is a table: numbers [2^bits], sorted; the nearest one is taken.

    borders: () -> [2^bits - 1], between neighbours, where they are not the midpoints. A number on
    a border gets the even code.
    """

    def middle():
        return (numbers()[1:] + numbers()[:-1]) / 2

    edges = functools.cache(borders or middle)

    def encode(x):
        edge = edges().to(x.device)
        low, high = torch.searchsorted(edge, x), torch.searchsorted(edge, x, right=True)
        return torch.where(x.isnan(), -1, torch.where(low % 2 == 0, low, high))

    return Format(name, bits, functools.cache(numbers), encode, source)


def logarithmic(name, integer_bits, f, source):
    """A sign, then log2 of the magnitude with f bits after the point; its least code means 0."""
    n = 2 ** (integer_bits + f)
    middle = n // 2  # the code of 2^0

    def table():
        size = torch.exp2((torch.arange(n, dtype=torch.float64) - middle) / 2**f)
        size[0] = 0
        return torch.cat([size, -size])

    def encode(x):
        size = x.abs()
        log = torch.where(size > 0, size, 1).log2().clamp(-1e4, 1e4)
        code = ((log * 2**f).round().long() + middle).clamp(0, n - 1)
        code = torch.where(size > 0, code, 0)
        return torch.where(x.isnan(), -1, code + (x < 0) * n)

    return Format(name, 1 + integer_bits + f, functools.cache(table), encode, source)


def posit_value(code, n, es, log=False):
    """One code of a posit of n bits -> its value: ±2^(k 2^es + exponent) (1 + fraction).

    After the sign comes the regime: a run of equal bits, whose length gives k, and the bit that
    ends it. Then es bits of exponent, then the fraction; bits that are cut off are 0. A negative
    number is the two's complement of the positive one. log: the fraction is part of the exponent,
    2^(k 2^es + exponent + fraction) (ELMA).
    """
    if code in (0, 1 << (n - 1)):
        return 0.0 if code == 0 else nan  # NaR, not a real
    negative = code >> (n - 1)
    bits = f"{(1 << n) - code if negative else code:0{n}b}"[1:]
    run = len(bits) - len(bits.lstrip(bits[0]))
    k = run - 1 if bits[0] == "1" else -run
    rest = bits[run + 1 :]
    exponent = int(rest[:es].ljust(es, "0") or "0", 2)
    fraction = int(rest[es:] or "0", 2) / 2 ** len(rest[es:])
    power = k * 2**es + exponent
    size = 2.0 ** (power + fraction) if log else 2.0**power * (1 + fraction)
    return -size if negative else size


def posit(name, n, es, source, log=False):
    """A posit of n bits with es exponent bits, rounded on the bit string, halves to the even code.

    The border between two neighbours is the posit between them that has one more bit. No number
    but 0 becomes 0, and none becomes NaR but NaN and infinity.
    """
    half = 2 ** (n - 1)

    def positive(bits):
        return torch.tensor(
            [posit_value(code, bits, es, log) for code in range(2 ** (bits - 1))],
            dtype=torch.float64,
        )

    def table():
        numbers = positive(n)
        return torch.cat([numbers, torch.tensor([nan]), -numbers[1:].flip(0)])

    @functools.cache
    def borders():
        return positive(n + 1)[
            1::2
        ].contiguous()  # [2^(n-1)]: the first is between 0 and the least posit

    def encode(x):
        edge, size = borders().to(x.device), x.abs()
        low, high = torch.searchsorted(edge, size), torch.searchsorted(edge, size, right=True)
        code = torch.where(low % 2 == 0, low, high).clamp(1, half - 1)
        code = torch.where(size > 0, code, 0)
        code = torch.where(x < 0, (2 * half - code) % (2 * half), code)
        return torch.where(x.isfinite(), code, half)

    return Format(name, n, functools.cache(table), encode, source)


def _nf4():
    """16 quantiles of the normal distribution, scaled to [-1, 1], with an exact 0.

    8 above 0 and 7 below. The outermost probability is 0.9677083: the mean of 1 - 1/30 and
    1 - 1/32, the middles of the last of 15 and of the last of 16 equal parts.
    """
    last = 1 - (1 / 30 + 1 / 32) / 2

    def quantiles(n):
        return torch.special.ndtri(torch.linspace(last, 0.5, n, dtype=torch.float64))[:-1]

    numbers = torch.cat([-quantiles(8), torch.zeros(1, dtype=torch.float64), quantiles(9).flip(0)])
    return numbers / numbers.max()


def _af4():
    """The 16 numbers for blocks of 64, as the package bitsandbytes has them."""
    return torch.tensor([
        -1.0, -0.694410086, -0.512437403, -0.373695105, -0.256075531, -0.149824783, -0.04934812,
        0.0, 0.042731639, 0.129344836, 0.219612747, 0.316756666, 0.425638825, 0.554962337,
        0.724248648, 1.0,
    ], dtype=torch.float64)  # fmt: skip


OCP = "OCP Microscaling Formats (MX) v1.0, 2023"
FP8 = "Micikevicius et al. 2022, arXiv:2209.05433"
FNUZ = "Noune et al. 2022, arXiv:2206.02915"
POSIT = "Gustafson and Yonemoto 2017; Posit Standard 2022, which has es = 2"
FORMATS = [
    integer("int8", 8, signed=True), integer("uint8", 8, signed=False),
    integer("int4", 4, signed=True),
    Format("fp32", 32, None, _float32_code, "IEEE 754-2019"),
    minifloat("fp16", 5, 10, "IEEE 754-2019"),
    minifloat("bf16", 8, 7, "Kalamkar et al. 2019, arXiv:1905.12322"),
    minifloat("e4m3", 4, 3, FP8, special="fn"), minifloat("e5m2", 5, 2, FP8),
    minifloat("e4m3fnuz", 4, 3, FNUZ, bias=8, special="fnuz"),
    minifloat("e5m2fnuz", 5, 2, FNUZ, bias=16, special="fnuz"),
    minifloat("e3m2", 3, 2, OCP, special="none"), minifloat("e2m3", 2, 3, OCP, special="none"),
    minifloat("e2m1", 2, 1, OCP, special="none"),
    Format("e8m0", 8, functools.cache(_scale_table), _scale_code, OCP),
    logarithmic("lns8", 4, 3, "Swartzlander and Alexopoulos 1975"),
    *(posit(f"posit8_{es}", 8, es, POSIT) for es in (0, 1, 2)),
    posit("posit16_1", 16, 1, POSIT),
    posit("elma8", 8, 1, "Johnson 2018, arXiv:1811.01721", log=True),
    table_of("nf4", 4, _nf4, "Dettmers et al. 2023, QLoRA, arXiv:2305.14314"),
    table_of("af4", 4, _af4, "Yoshida 2023, arXiv:2306.06965: for blocks of 64"),
]  # fmt: skip
SCALAR = {each.name: each for each in FORMATS}
