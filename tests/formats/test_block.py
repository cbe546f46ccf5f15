"""Formats of blocks against gfloat, gguf, golden files, and identities where there is no oracle."""

import json
import math
from pathlib import Path

import gfloat
import gguf
import numpy as np
import pytest
import torch
from gfloat import block as gfloat_block
from gfloat import formats as gfloats
from make_golden import numbers

from llama3_scratch import InputError
from llama3_scratch.formats import BLOCK
from llama3_scratch.formats.block import pack, shared_exponent, unpack

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())
MX = {
    "mxfp8_e4m3": gfloats.format_info_mxfp8_e4m3, "mxfp8_e5m2": gfloats.format_info_mxfp8_e5m2,
    "mxfp6_e3m2": gfloats.format_info_mxfp6_e3m2, "mxfp6_e2m3": gfloats.format_info_mxfp6_e2m3,
    "mxfp4": gfloats.format_info_mxfp4_e2m1, "mxint8": gfloats.format_info_mxint8,
}  # fmt: skip
LEVELS = {"int4_g32": 15, "msfp12": 15, "msfp16": 255, "vsq4": 15, "nf4_64": 16, "q4_0": 16}
AS_STORED = {"mxint8", "vsq4"}  # rounding twice may change the scale


def kinds(n=96):
    """Rows of n: normal, heavy-tailed, tiny, huge, zero, constant, and one with an outlier."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, n, generator=generator)
    rows[1] = rows[1] ** 5
    rows[2] *= 1e-30
    rows[3] *= 1e3
    rows[4] = 0
    rows[5] = 0.75
    rows[6, n // 2] = 100
    return rows


@pytest.mark.parametrize("name", MX)
def test_mx_is_gfloats(name):
    """Floor for the scale, half to even and saturation for the elements, on 7 kinds of rows."""
    x = kinds().double()
    theirs = [
        gfloat_block.quantize_block(MX[name], part.numpy(), gfloat_block.compute_scale_amax)
        for part in x.reshape(-1, 32)
    ]
    expected = torch.tensor(np.array(theirs)).view(x.shape).float()
    assert torch.equal(BLOCK[name].round(x), expected)
    other = "mxint8" if name == "mxfp4" else "mxfp4"
    assert not torch.equal(BLOCK[other].round(x), expected)  # a control


def test_the_floor_of_a_logarithm_is_exact_just_below_a_power_of_two():
    below = np.nextafter(np.float32(8), np.float32(0)).item()
    x = torch.tensor([[below] + [1.0] * 31])
    scale = BLOCK["mxfp4"].quantize(x).scales[0]
    assert scale.item() == 127 + 2 - 2  # 2^floor(log2 7.99...) / 2^2
    assert gfloat.round_float(gfloats.format_info_ocp_e2m1, below, sat=True) == 6


@pytest.mark.parametrize("name, kind", [("q8_0", "Q8_0"), ("q4_0", "Q4_0")])
def test_the_bytes_of_a_gguf_block_are_ggufs(name, kind):
    x = kinds(224)
    x[2] *= 1e24  # float16 keeps nothing of 1e-30
    type = getattr(gguf.GGMLQuantizationType, kind)
    theirs = gguf.quants.quantize(x.numpy(), type)
    packed = BLOCK[name].quantize(x)
    assert np.array_equal(packed.codes.numpy().reshape(theirs.shape), theirs)
    assert np.array_equal(BLOCK[name].dequantize(packed), gguf.quants.dequantize(theirs, type))


@pytest.mark.parametrize("name, kind", [("q4_k", "Q4_K"), ("q6_k", "Q6_K")])
def test_any_bytes_of_a_k_quant_mean_what_gguf_says(name, kind):
    """On random bytes whose scales are finite, so on bytes that our own search would not write."""
    format = BLOCK[name]
    data = torch.randint(
        0, 256, (400, format.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    for at in {"q4_k": (1, 3), "q6_k": (209,)}[name]:
        data[:, at] &= 0b10111111  # no exponent of all ones
    theirs = gguf.quants.dequantize(data.numpy(), getattr(gguf.GGMLQuantizationType, kind))
    assert np.array_equal(format.to_numbers(data).reshape(400, -1), theirs)


@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
def test_a_k_quant_comes_back_from_gguf(name):
    """Its own quantizer is ours: each number is within its step of what went in."""
    x = torch.tensor(numbers(2, 512, wide=0)).view(2, 256)
    kind = getattr(gguf.GGMLQuantizationType, name.upper())
    theirs = gguf.quants.dequantize(BLOCK[name].quantize(x).codes.numpy(), kind)
    assert np.array_equal(theirs.reshape(2, 256), BLOCK[name].round(x))
    bound = {"q4_k": 0.6 * 2 / 15, "q6_k": 1 / 32}[
        name
    ]  # Q6_K: 31 steps on one side, 32 on the other
    assert (BLOCK[name].round(x) - x).abs().max() < bound


def test_nf4_is_that_of_bitsandbytes():
    x = torch.tensor(numbers(1, 64 * 40, wide=3)).view(40, 64)
    packed = BLOCK["nf4_64"].quantize(x)
    theirs = bytes.fromhex(GOLDEN["nf4_64 codes"])  # the first code in the high four bits
    swapped = packed.codes.flatten() >> 4 | packed.codes.flatten() << 4
    assert bytes(swapped.tolist()) == theirs
    values = BLOCK["nf4_64"].dequantize(packed).flatten()[:256].tolist()
    assert values == pytest.approx(GOLDEN["nf4_64 values"], rel=1e-6)


def test_nvfp4_is_that_of_torchao():
    x = torch.tensor(numbers(1, 64 * 40, wide=3)).view(40, 64)
    packed = BLOCK["nvfp4"].quantize(x)
    assert bytes(packed.codes.flatten().tolist()).hex() == GOLDEN["nvfp4 codes"]
    assert bytes(packed.scales[0].flatten().tolist()).hex() == GOLDEN["nvfp4 scales"]


@pytest.mark.parametrize("name, bits", [("msfp12", 4), ("msfp16", 8)])
def test_msfp_is_a_whole_number_times_a_power_of_two_for_sixteen(name, bits):
    x = kinds(80)
    found = BLOCK[name].round(x)
    for part, kept in zip(x.reshape(-1, 16), found.reshape(-1, 16), strict=True):
        largest = float(part.abs().max())
        step = 2.0 ** (math.frexp(largest)[1] - 1 - (bits - 2)) if largest else 1.0
        whole = (part.double() / step).round().clamp(1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
        assert torch.equal(kept, (whole * step).float())


def test_vsq_with_its_row_scale_is_integers_of_two_levels():
    x = kinds(80)
    packed = BLOCK["vsq4"].quantize(x)
    found = BLOCK["vsq4"].dequantize(packed).double()
    row = packed.scales[1].view(torch.bfloat16).double().view(7, 1)
    whole = torch.where(row > 0, found / torch.where(row > 0, row, 1), 0)
    assert torch.allclose(whole, whole.round(), atol=1e-5)
    assert whole.abs().max() <= 7 * 15


def test_flex16_is_one_fixed_point_for_the_tensor():
    x = kinds(80)
    x[2] = 1.0
    step = 2.0 ** (math.frexp(float(x.abs().max()))[1] - 1 - 14)
    expected = (x.double() / step).round().clamp(-(2**15), 2**15 - 1) * step
    assert torch.equal(BLOCK["flex16"].round(x), expected.float())


def test_an_asymmetric_format_is_better_for_numbers_of_one_sign():
    x = torch.tensor(numbers(5, 640, wide=0)).view(10, 64).abs()
    errors = [(BLOCK[name].round(x) - x).square().mean() for name in ("int4_g32_asym", "int4_g32")]
    assert errors[0] < errors[1] / 3


def test_integers_agree_with_torchs_fake_quantization():
    """Per row, with the scale that the format stored."""
    x = kinds(80)[[0, 1, 5, 6]]
    packed = BLOCK["int8_row"].quantize(x)
    scale = packed.scales[0].view(torch.bfloat16).float().flatten()
    zeros = torch.zeros(4, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(x, scale, zeros, 0, -127, 127)
    assert torch.allclose(BLOCK["int8_row"].dequantize(packed), expected, rtol=1e-6)


@pytest.mark.parametrize("name", BLOCK)
@pytest.mark.parametrize("n", [96, 53, 7])
def test_a_tensor_of_any_width_comes_back_and_its_size_is_the_one_promised(name, n):
    format, x = BLOCK[name], kinds(n).reshape(7, 1, n)
    packed = format.quantize(x)
    found = format.dequantize(packed)
    assert found.shape == x.shape and found.dtype == torch.float32
    size = 8 * (packed.codes.numel() + sum(scales.numel() for scales in packed.scales))
    assert format.bits_per_weight(x.shape) == pytest.approx(size / x.numel(), abs=1e-12)
    assert packed.codes.dtype == torch.uint8
    assert {scales.dtype for scales in packed.scales} <= {torch.uint8}
    assert not found[4].any() or name.startswith("q")  # zeros stay, where rows do not share blocks
    if name not in AS_STORED:
        assert torch.equal(format.round(found), found)


@pytest.mark.parametrize("name", BLOCK)
def test_a_row_does_not_depend_on_the_others(name):
    """But for the two formats that have a number for the whole tensor, and rows laid end to end."""
    x = kinds(256)
    alone = torch.cat([BLOCK[name].round(row[None]) for row in x])
    together = BLOCK[name].round(x)
    assert torch.equal(alone, together) != (name in ("nvfp4", "flex16"))


@pytest.mark.parametrize("name, levels", LEVELS.items())
def test_a_block_has_no_more_different_numbers_than_codes(name, levels):
    x = torch.tensor(numbers(6, 4096, wide=0)).view(4, 1024)
    block = BLOCK[name].block
    found = BLOCK[name].round(x).view(-1, block)
    assert max(len(part.unique()) for part in found) <= levels


@pytest.mark.parametrize("name", BLOCK)
def test_numbers_that_no_block_can_hold_are_refused(name):
    with pytest.raises(InputError, match=f"{name} takes finite numbers"):
        BLOCK[name].quantize(torch.tensor([[1.0, math.nan, 2.0]]))
    with pytest.raises(InputError, match="takes finite numbers"):
        BLOCK[name].quantize(torch.tensor([[1.0, math.inf, 2.0]]))


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_k", "q6_k"])
def test_a_scale_that_float16_cannot_hold_is_refused(name):
    with pytest.raises(InputError, match="float16"):
        BLOCK[name].quantize(torch.full((1, 256), 1e30))


@pytest.mark.parametrize("bits", [3, 4, 6, 8, 16])
def test_codes_are_packed_to_the_bit(bits):
    codes = torch.randint(0, 2**bits, (5, 13), generator=torch.Generator().manual_seed(bits))
    data = pack(codes, bits)
    assert data.shape == (5, math.ceil(13 * bits / 8)) and data.dtype == torch.uint8
    assert torch.equal(unpack(data, 13, bits), codes)
    whole = sum(int(code) << bits * i for i, code in enumerate(codes[0]))
    assert bytes(data[0].tolist()) == whole.to_bytes(data.shape[1], "little")


def test_the_block_of_mx_may_have_another_size():
    x = kinds(64)
    for block, bits in ((16, 4.5), (64, 4.125)):
        format = shared_exponent("mxfp4", "e2m1", 2, "", block=block)
        assert format.bits_per_weight((7, 64)) == bits
        assert format.round(x).shape == x.shape
