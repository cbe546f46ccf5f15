"""Make golden.json: the codes of GPTQ and QuIP, from their definitions in `by_definition`.

    python tests/quantize/make_golden.py tests/quantize/golden.json

QuIP's two random maps are drawn as `quip` draws them, and stored.
"""

import json
import sys

import torch
from by_definition import CASES, case, gptq, kronecker, quip

from llama3_scratch.quantize.rounding import random_turn


def main(path):
    golden = {}
    for seed, (name, settings) in enumerate(CASES.items()):
        codes, scales, zeros = gptq(*case(10 * seed), **settings)
        golden[name] = {"codes": codes, "scales": scales, "zeros": zeros}
    W, X = case(0)
    draw = torch.Generator().manual_seed(5)
    turns = [random_turn(n, draw) for n in (len(W[0]), len(W))]
    dense = [kronecker(*(part.tolist() for part in turn)) for turn in turns]
    for bits in (4, 2):
        codes, scale = quip(W, X, bits, *dense)
        golden[f"QuIP, {bits} bits"] = {"codes": codes, "scale": scale}
    golden["QuIP's turns"] = [[part.tolist() for part in turn] for turn in turns]
    with open(path, "w") as file:
        json.dump(golden, file)
        file.write("\n")


if __name__ == "__main__":
    main(sys.argv[1])
