"""Quantize the tiny model as it ships in int4/: GPTQ, 4 bits, groups of 32.

    python -m llama3_scratch.tiny.int4 --out build/tiny-int4

All matrices within the layers are rounded; the embedding table, the output matrix and the norms
stay as they are. The calibration text comes from a seed that neither training nor any measure uses.
"""

import argparse
import itertools
import sys

import torch

from llama3_scratch import InputError, load, save
from llama3_scratch.quantize.model import sequential
from llama3_scratch.quantize.packed import packed
from llama3_scratch.quantize.rounding import gptq
from llama3_scratch.tiny import world
from llama3_scratch.tiny.pretrain import encode

CALIBRATION_SEED, N_TEXTS = 10**15 + 3, 128
BITS, GROUP = 4, 32


def calibration(tokenizer, n_texts=N_TEXTS):
    """A tokenizer of the toy world -> a list of texts, tensors of ids [T]."""
    documents = itertools.islice(world.documents(CALIBRATION_SEED), n_texts)
    return [torch.tensor(encode(document, tokenizer)[0]) for document in documents]


def rounded(weights, config, texts):
    """A model in float32, texts -> {name of a matrix: Rounded}."""
    return sequential(
        weights, config, texts, lambda W, H: gptq(W, H, BITS, GROUP, act_order=True)
    )  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to write")
    out = parser.parse_args(arguments).out
    weights, config, tokenizer = load("tiny")
    texts = calibration(tokenizer)
    made = rounded(weights.to(torch.float32, None), config, texts)
    try:
        save(out, packed(made, weights), config, tokenizer)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{out} is written: {len(made)} matrices of {config.n_layers} layers in {BITS} bits")
    return 0


if __name__ == "__main__":
    sys.exit(main())
