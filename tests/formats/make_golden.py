"""Make golden.json, what the heavy oracles say: posits, NF4, AF4, NVFP4.

    pip install softposit==0.3.4.4 bitsandbytes==0.50.2 torchao==0.18.0
    python tests/formats/make_golden.py tests/formats/golden.json

`numbers` makes the inputs, here and in the tests, from Python's own generator.
"""

import hashlib
import json
import math
import random
import struct
import sys


def numbers(seed, n, wide=12):
    """n numbers from a seed, the same everywhere: of all magnitudes from 2^-wide to 2^wide."""
    draw = random.Random(seed)
    return [draw.uniform(-1, 1) * 2.0 ** draw.randint(-wide, wide) for _ in range(n)]


def digest(values):
    """Numbers -> the SHA-256 of their float64 bytes; what is no number counts as 0."""
    plain = [value if math.isfinite(value) else 0.0 for value in values]
    return hashlib.sha256(struct.pack(f"<{len(plain)}d", *plain)).hexdigest()


def main(path):
    import bitsandbytes.functional as bnb
    import softposit
    import torch
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    x = numbers(0, 3000)
    golden = {
        "posit8_0 codes": [float(softposit.posit8(bits=code)) for code in range(256)],
        "posit16_1 codes": digest(float(softposit.posit16(bits=code)) for code in range(65536)),
        "posit8_0 rounds": digest(float(softposit.posit8(v)) for v in x),
        "posit16_1 rounds": digest(float(softposit.posit16(v)) for v in x),
        "posit8_2 rounds": digest(float(softposit.posit_2(v, 8)) for v in x),
    }
    golden["posit8_0 codes"][128] = None  # NaR
    block = torch.tensor(numbers(1, 64 * 40, wide=3)).view(40, 64)
    for name in ("nf4", "af4"):
        table = bnb.get_4bit_type(name, device="cpu", blocksize=64)
        golden[name] = sorted(table.tolist())
    packed, state = bnb.quantize_4bit(block, blocksize=64, quant_type="nf4")
    golden["nf4_64 codes"] = bytes(packed.flatten().tolist()).hex()
    golden["nf4_64 values"] = bnb.dequantize_4bit(packed, state).flatten().tolist()[:256]
    scale = per_tensor_amax_to_scale(block.abs().max())
    nvfp4 = NVFP4Tensor.to_nvfp4(block, per_tensor_scale=scale)
    golden["nvfp4 codes"] = bytes(nvfp4.qdata.view(torch.uint8).flatten().tolist()).hex()
    golden["nvfp4 scales"] = bytes(nvfp4.scale.view(torch.uint8).flatten().tolist()).hex()
    with open(path, "w") as file:
        json.dump(golden, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
