"""Make golden_int8.json: what bitsandbytes' LLM.int8 says on the CPU about the matrices made here.

pip install bitsandbytes==0.50.2
python tests/quantize/make_golden_int8.py tests/quantize/golden_int8.json
"""

import json
import random
import sys


def inputs():
    """x [6, 32], in which columns 3, 9 and 17 have outliers, and W [10, 32], exact in float16."""
    draw = random.Random(0)
    x = [[draw.randint(-90, 90) / 32 for _ in range(32)] for _ in range(6)]
    W = [[draw.randint(-255, 255) / 256 for _ in range(32)] for _ in range(10)]
    for row in x:
        row[3], row[9], row[17] = draw.choice([-9.5, 8.25]), draw.randint(-9, 9) / 32, 40.0
    x[2][9] = -6.0  # the only outlier of its column: the threshold itself is one
    return x, W


def main(path):
    import bitsandbytes
    import torch

    x, W = (torch.tensor(matrix, dtype=torch.float16) for matrix in inputs())
    ops, vectorwise = torch.ops.bitsandbytes, bitsandbytes.functional.int8_vectorwise_quant
    W_codes, W_largest, _ = vectorwise(W)
    codes, largest, _ = vectorwise(x)
    others, others_largest, columns = vectorwise(x, threshold=6.0)
    operands = W_codes, others_largest, W_largest, columns
    mixed, _ = ops.int8_mixed_scaled_mm(x, others, *operands)
    layer = bitsandbytes.nn.Linear8bitLt(32, 10, bias=False, has_fp16_weights=False)
    layer.weight = bitsandbytes.nn.Int8Params(W, requires_grad=False, has_fp16_weights=False)
    found = {
        "W codes": W_codes, "W largest": W_largest, "codes": codes, "largest": largest,
        "other codes": others, "other largest": others_largest, "columns": columns,
        "mixed": mixed, "W8A8": ops.int8_scaled_mm(codes, W_codes, largest, W_largest),
        "Linear8bitLt": layer.to("cpu")(x),  # on the CPU, x stays in float16 there
    }  # fmt: skip
    golden = {name: tensor.float().tolist() for name, tensor in found.items()}
    with open(path, "w") as file:
        file.write(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
