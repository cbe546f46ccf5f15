"""Number formats, all codes of each, against torch, ml_dtypes, gfloat and golden files."""

import json
import math
from pathlib import Path

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import formats as gfloats
from make_golden import digest, numbers

from llama3_scratch import InputError
from llama3_scratch.formats import SCALAR
from llama3_scratch.formats.scalar import minifloat

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
TORCHS = {
    "fp16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2, "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2fnuz": torch.float8_e5m2fnuz,
}  # fmt: skip
MLS = {
    "fp16": np.float16, "bf16": ml_dtypes.bfloat16, "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2, "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz, "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn, "e2m1": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu, "int8": np.int8, "uint8": np.uint8,
}  # fmt: skip
GFLOATS = {
    "e4m3": gfloats.format_info_ocp_e4m3, "e5m2": gfloats.format_info_ocp_e5m2,
    "e3m2": gfloats.format_info_ocp_e3m2, "e2m3": gfloats.format_info_ocp_e2m3,
    "e2m1": gfloats.format_info_ocp_e2m1, "e8m0": gfloats.format_info_ocp_e8m0,
}  # fmt: skip
SMALL = [name for name, each in SCALAR.items() if each.bits <= 16]


def same(found, expected):
    """Whether two tensors are equal, the signs of zeros too; NaN is equal to NaN."""
    found, expected = (torch.as_tensor(each).double() for each in (found, expected))
    zeros = (found == 0) & (found.signbit() != expected.signbit())
    differ = (found != expected) & ~(found.isnan() & expected.isnan()) | zeros
    return not differ.any()


def in_between(name, finite=True):
    """Values of a format, midpoints, their neighbours, numbers of all sizes, and what is special.

    All are float32 numbers, so that nothing is rounded before the format rounds.
    """
    values = SCALAR[name].values.float()
    middles = (values[1:].double() + values[:-1].double()).div(2).float()
    up, down = torch.tensor(math.inf), torch.tensor(-math.inf)
    special = torch.tensor([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 464, 465, 61440, 65520, 248])
    found = [values, middles, torch.nextafter(middles, up), torch.nextafter(middles, down)]
    found += [torch.tensor(numbers(3, 20_000, wide=30)), special]
    return torch.cat(found + ([] if finite else [torch.tensor([math.inf, -math.inf, math.nan])]))


@pytest.mark.parametrize("name", MLS)
def test_every_code_has_the_value_that_ml_dtypes_gives_it(name):
    format = SCALAR[name]
    codes = np.arange(2**format.bits, dtype=np.uint16 if format.bits > 8 else np.uint8)
    with np.errstate(invalid="ignore"):  # NaN
        theirs = codes.view(MLS[name]).astype(np.float64)
        assert same(format.table(), theirs)
        assert same(format.decode(torch.arange(2**format.bits)), theirs.astype(np.float32))


@pytest.mark.parametrize("name", GFLOATS)
def test_every_code_has_the_value_that_gfloat_gives_it(name):
    format = SCALAR[name]
    theirs = [gfloat.decode_float(GFLOATS[name], code).fval for code in range(2**format.bits)]
    assert same(format.table(), torch.tensor(theirs, dtype=torch.float64))


@pytest.mark.parametrize("name", TORCHS)
def test_numbers_are_rounded_as_torch_casts_them(name):
    x = in_between(name, finite=False)
    if name == "e4m3":  # torch saturates from 2.12 on only
        x = torch.where(x.isnan(), x, x.clamp(-448, 448))
    assert same(SCALAR[name].round(x), x.to(TORCHS[name]).float())


@pytest.mark.parametrize("name", ["e3m2", "e2m3", "e2m1"])
def test_numbers_are_rounded_as_ml_dtypes_casts_them(name):
    x = in_between(name)
    theirs = x.numpy().astype(MLS[name]).astype(np.float32)
    assert same(SCALAR[name].round(x), theirs)


def test_a_cast_to_a_power_of_two_is_ml_dtypes():
    """But between the two least powers, where ml_dtypes and torch take the upper one always."""
    x = torch.cat([in_between("e8m0"), torch.tensor([1.5, 3.0, 2.0**-127, 2.0**-126])])
    x = x[(x <= 2.0**-127) | (x >= 2.0**-126)]
    theirs = x.numpy().astype(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    assert same(SCALAR["e8m0"].round(x), theirs)


def test_float32_is_itself():
    x = in_between("e5m2", finite=False)
    assert same(SCALAR["fp32"].round(x), x)
    assert SCALAR["fp32"].encode(torch.tensor([-0.0])).item() == 1 << 31
    with pytest.raises(InputError, match="too many values"):
        SCALAR["fp32"].values  # noqa: B018


@pytest.mark.parametrize("name", ["posit8_0", "posit16_1"])
def test_every_posit_has_the_value_that_softposit_gives_it(name):
    found = SCALAR[name].table().tolist()
    expected = GOLDEN[f"{name} codes"]
    if isinstance(expected, str):
        assert digest(found) == expected
    else:
        assert [None if math.isnan(value) else value for value in found] == expected


@pytest.mark.parametrize("name", ["posit8_0", "posit8_2", "posit16_1"])
def test_posits_are_rounded_as_softposit_rounds_them(name):
    x = torch.tensor(numbers(0, 3000), dtype=torch.float64)
    assert digest(SCALAR[name].round(x).tolist()) == GOLDEN[f"{name} rounds"]


@pytest.mark.parametrize("name", [n for n in SMALL if n.startswith(("posit", "elma"))])
def test_a_posit_is_never_rounded_to_zero_or_to_no_number(name):
    format = SCALAR[name]
    least, largest = format.values[format.values > 0][0].item(), format.values[-1].item()
    tiny = torch.tensor([1e-300, -1e-300], dtype=torch.float64)
    huge = torch.tensor([1e300, -1e300], dtype=torch.float64)
    assert format.round(tiny).tolist() == pytest.approx([least, -least])
    assert format.round(huge).tolist() == [largest, -largest]
    assert format.round(torch.tensor([0.0, math.nan]))[0] == 0
    assert format.round(torch.tensor([math.nan, math.inf])).isnan().all()


@pytest.mark.parametrize("n, es", [(6, 0), (8, 2), (11, 1)])
def test_a_border_between_posits_is_the_posit_with_one_more_bit(n, es):
    """The even one of two neighbours takes the border itself: rounding on the bit string."""
    from llama3_scratch.formats.scalar import posit

    format, wider = posit("", n, es, ""), posit("", n + 1, es, "")
    odd = wider.table()[1 : 2**n : 2]
    found = format.encode(odd)[1:-1].long()
    below = torch.arange(1, len(odd) - 1)
    assert torch.equal(found, below + below % 2)
    assert torch.equal(format.encode(odd * (1 + 1e-12))[1:-1].long(), below + 1)
    assert torch.equal(format.encode(odd * (1 - 1e-12))[1:-1].long(), below)


def test_elma_has_as_many_numbers_as_a_posit_and_products_are_sums():
    """254 finite numbers besides 0, from 2^-12 to 2^12; log2 of each is a multiple of 1/16."""
    values = SCALAR["elma8"].values
    assert len(values) == 255 and values[-1] == 2.0**12 and values[128] == 2.0**-12
    logs = 16 * values[values > 0].log2()
    assert torch.allclose(logs, logs.round(), atol=1e-9)


def test_a_product_of_logarithmic_numbers_is_a_sum_of_codes():
    """On all pairs whose product is in range; a control: in E4M3 it is not."""

    def right(name):
        format = SCALAR[name]
        a, b = torch.meshgrid(*[torch.arange(1, 128)] * 2, indexing="ij")
        total = a + b - 64
        inside = (total > 0) & (total < 128)
        table = format.table()
        products = table[a[inside]] * table[b[inside]]
        return torch.allclose(table[total[inside]], products, rtol=1e-12, atol=0)

    assert right("lns8") and not right("e4m3")
    step = SCALAR["lns8"].values[-1] / SCALAR["lns8"].values[-2]
    assert step == pytest.approx(2 ** (1 / 8))


def test_nf4_is_the_table_of_bitsandbytes_and_af4_too():
    assert SCALAR["nf4"].values.tolist() == pytest.approx(GOLDEN["nf4"], abs=2e-7)
    assert SCALAR["af4"].values.tolist() == pytest.approx(GOLDEN["af4"], abs=1e-8)
    assert SCALAR["nf4"].values.tolist() != pytest.approx(GOLDEN["af4"], abs=1e-2)  # a control


@pytest.mark.parametrize("name", SMALL)
def test_every_value_is_its_own_rounding_and_codes_come_back(name):
    format = SCALAR[name]
    codes = torch.arange(2**format.bits)
    table = format.table()
    kept = table.isfinite()
    again = format.encode(table[kept]).long()
    assert torch.equal(table[again], table[kept])
    twice = len(table[kept]) - len(format.values)  # codes that are another one's value: -0
    assert (again != codes[kept]).sum() <= twice


@pytest.mark.parametrize("name", SMALL)
def test_the_nearest_value_is_taken(name):
    """By trying all of them; posits, which round on the bit string, and logarithms aside."""
    format = SCALAR[name]
    if name.startswith(("posit", "elma", "lns", "e8m0")) or format.bits > 8:
        return
    values = format.values
    x = torch.tensor(numbers(4, 500, wide=4), dtype=torch.float64).clamp(values[0], values[-1])
    nearest = (x[:, None] - values).abs().amin(1)
    assert torch.equal((format.table()[format.encode(x).long()] - x).abs(), nearest)


@pytest.mark.parametrize("name", ["int8", "uint8", "int4", "e3m2", "e2m3", "e2m1", "nf4", "lns8"])
def test_what_a_format_has_no_code_for_is_refused(name):
    with pytest.raises(InputError, match=f"{name} has no code for NaN"):
        SCALAR[name].encode(torch.tensor([1.0, math.nan]))


def test_integers_are_clamped_and_halves_go_to_the_even_one():
    x = torch.tensor([127.6, -129.0, 0.5, 1.5, -0.5, -1.5, 2.5])
    assert SCALAR["int8"].round(x).tolist() == [127, -128, 0, 2, 0, -2, 2]
    assert SCALAR["uint8"].round(torch.tensor([255.6, -1.0])).tolist() == [255, 0]
    assert SCALAR["int8"].encode(torch.tensor([-1.0])).item() == 255  # two's complement


def test_a_minifloat_of_another_bias_is_another_format():
    """The comparison with the oracles notices a bias of one more, and an exponent of one less."""
    assert not same(minifloat("", 4, 3, "", bias=8, special="fn").table(), SCALAR["e4m3"].table())
    assert not same(minifloat("", 3, 4, "", special="fn").table(), SCALAR["e4m3"].table())
