"""The tiny model with its matrices in every format: bits, error, loss, KL, and its skills.

    python benchmarks/formats.py [--checkpoint tiny] [--formats mxfp4 nvfp4 ...] [--documents 60]

Every matrix inside the layers is rounded to the format; the two tables and the norms stay as they
are. A format of single numbers is given one scale for each row: the largest magnitude in the row
becomes the format's largest number, or, for posits and logarithms, which are finest near 1, the
row's root mean square becomes 1. Printed are bits for each weight; the signal-to-noise ratio of the
weights in decibels; on held-out text the loss in nats, the Kullback-Leibler divergence from the
unrounded model times 1000, and the share of positions whose likeliest token stays; then the skills'
share of right answers.
"""

import argparse

import torch

from llama3_scratch import forward, load
from llama3_scratch.formats import BLOCK, SCALAR
from llama3_scratch.tiny import world
from llama3_scratch.tiny.skills import skills

NEAR_ONE = ("posit", "elma", "lns")
SKIPPED = {"fp32", "uint8", "e8m0", "int4"}  # the others of SCALAR are what a matrix can be kept in


def rounded(matrix, name):
    """A matrix [rows, columns] and a format's name -> (what is kept of it, bits a weight)."""
    if name in BLOCK:
        return BLOCK[name].round(matrix), BLOCK[name].bits_per_weight(matrix.shape)
    format = SCALAR[name]
    if name in ("fp16", "bf16"):
        return format.round(matrix), format.bits
    if name.startswith(NEAR_ONE):
        scale = matrix.square().mean(-1, keepdim=True).sqrt()
    else:
        scale = matrix.abs().amax(-1, keepdim=True) / format.values[-1]
    scale = scale.bfloat16().double()
    return (format.round(matrix / scale) * scale).float(), format.bits + 16 / matrix.shape[-1]


def in_format(weights, name):
    """Weights -> (the same with the layers' matrices rounded, bits a weight, decibels)."""
    new, bits, numbers, signal, noise = dict(weights), 0.0, 0, 0.0, 0.0
    for key, matrix in weights.items():
        if key.startswith("layers.") and matrix.dim() == 2:
            new[key], each = rounded(matrix, name)
            bits, numbers = bits + each * matrix.numel(), numbers + matrix.numel()
            signal += float(matrix.double().square().sum())
            noise += float((new[key] - matrix).double().square().sum())
    decibels = float(10 * torch.tensor(signal / noise).log10()) if noise else float("inf")
    return new, bits / numbers, decibels


def held_out(tokenizer, n_documents):
    """-> the ids of documents that the model has not seen, one list for each."""
    found = world.documents(seed=9_000_001)
    return [tokenizer.encode(next(found).text) for _ in range(n_documents)]


@torch.inference_mode()
def compared(weights, reference, config, texts):
    """-> (loss in nats a token, KL x 1000, share of likeliest tokens that stay)."""
    loss = divergence = same = count = 0
    for ids, expected in zip(texts, reference, strict=True):
        tokens = torch.tensor(ids)
        found = forward(weights, tokens, config)[:-1].log_softmax(-1)
        loss -= float(found.gather(-1, tokens[1:, None]).sum())
        divergence += float((expected.exp() * (expected - found)).sum())
        same += int((found.argmax(-1) == expected.argmax(-1)).sum())
        count += len(ids) - 1
    return loss / count, 1000 * divergence / count, same / count


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--checkpoint", default="tiny")
    args.add_argument("--formats", nargs="+", default=[n for n in SCALAR if n not in SKIPPED])
    args.add_argument("--documents", type=int, default=60)
    args.add_argument("--no-skills", action="store_true")
    args = args.parse_args()
    if args.formats == [n for n in SCALAR if n not in SKIPPED]:
        args.formats += list(BLOCK)
    weights, config, tokenizer = load(args.checkpoint, dtype=torch.float32)
    weights = dict(weights)
    texts = held_out(tokenizer, args.documents)
    with torch.inference_mode():
        reference = [
            forward(weights, torch.tensor(ids), config)[:-1].log_softmax(-1) for ids in texts
        ]
    print("format          bits     dB    loss  KL x 1000   same  skills")
    for name in ["fp32", *args.formats]:
        new, bits, decibels = (weights, 32.0, 999) if name == "fp32" else in_format(weights, name)
        loss, divergence, same = compared(new, reference, config, texts)
        line = f"{name:14} {bits:5.2f} {decibels:6.1f}  {loss:.4f} {divergence:10.2f}  {same:.3f}"
        if not args.no_skills:
            found = skills((new, config, tokenizer), args.documents)
            line += "  " + " ".join(f"{each.right:.2f}" for each in found.values())
            if name == "fp32":
                print(" " * 48, " ".join(label[:4] for label in found))
        print(line, flush=True)


if __name__ == "__main__":
    main()
