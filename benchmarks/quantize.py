"""Rounding weights: what each method costs at real sizes, and what it leaves of the tiny model.

    python benchmarks/quantize.py --shapes
    python benchmarks/quantize.py [--checkpoint tiny] [--bits 4 3 2] [--seeds 3] [--methods rtn ...]

With --shapes: seconds and memory for the 42 matrices of the tiny model, for the seven of a layer of
Llama-3.2-1B, and for w2 of an 8B's layer (4096 x 14336) by GPTQ; 4 bits, one scale a row, random
weights and inputs, each method in a process of its own. Seconds are those of the method, on the
clock and of the processor, which other work disturbs less; memory is the most that the process had,
with torch, the weights, and the inputs or their Hessian.

Without it: the matrices within the layers are rounded one layer after another, on what the rounded
layers before give (quantize.model.sequential), for each calibration seed on other documents of the
toy world. Printed are, on held-out text, the loss in nats, the Kullback-Leibler divergence from the
unrounded model times 1000 and the share of positions whose likeliest token stays; then the mean of
the skills' shares of right answers, and the skills below --below. A number is the mean over the
seeds, after ± half the distance from the least to the largest. Round to nearest needs no text, so
it has one value.
"""

import argparse
import itertools
import os
import resource
import subprocess
import sys
import time

import torch
from formats import compared, held_out

from llama3_scratch import forward, load
from llama3_scratch.quantize import adaround, awq, dequantize, gptq, hessian, quip, rtn
from llama3_scratch.quantize.model import sequential
from llama3_scratch.tiny import world
from llama3_scratch.tiny.skills import skills

FIRST_SEED = 2 * 10**15  # of calibration text: no training and no measure uses it
METHODS = {  # what a method looks at, and the method
    "rtn": ("hessian", lambda W, H, bits, **_: rtn(W, bits)),
    "awq": ("rows", lambda W, X, bits, **_: awq(W, X, bits)),
    "adaround": ("rows", lambda W, X, bits, **more: adaround(W, X, bits, **more)),
    "gptq": ("hessian", lambda W, H, bits, **_: gptq(W, H, bits)),
    "act-order": ("hessian", lambda W, H, bits, **_: gptq(W, H, bits, act_order=True)),
    "quip": ("hessian", lambda W, H, bits, **_: quip(W, H, bits)),
}
SIZES = {  # wq, wk, wv, wo, w1, w3, w2
    "tiny": [(192, 192), (48, 192), (48, 192), (192, 192), *[(672, 192)] * 2, (192, 672)] * 6,
    "1b": [(2048, 2048), (512, 2048), (512, 2048), (2048, 2048), *[(8192, 2048)] * 2, (2048, 8192)],
    "8b": [(4096, 14336)],
}
STEPS = 20  # of AdaRound's 500 that are timed with --shapes at 1B


# --- What it costs --------------------------------------------------------------------------------


def cost(name, size, n_inputs):
    """A method, a key of SIZES -> seconds, processor seconds, GiB at the most of this process."""
    more = {"steps": STEPS} if (name, size) == ("adaround", "1b") else {}
    clock = processor = 0.0
    for O, I in SIZES[size]:  # noqa: E741
        draw = torch.Generator().manual_seed(O)
        W = torch.randn(O, I, generator=draw)
        seen = torch.randn(n_inputs, I, generator=draw)
        what, method = METHODS.get(name, (None, None))
        if what == "hessian":
            seen = hessian(seen)
        begun = time.perf_counter(), time.process_time()
        if name == "hessian":
            hessian(seen)
        else:
            method(W, seen, 4, **more)
        clock += time.perf_counter() - begun[0]
        processor += time.process_time() - begun[1]
        del W, seen
    return clock, processor, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def print_costs(n_inputs):
    print(f"{n_inputs} inputs, {torch.get_num_threads()} threads, torch {torch.__version__}, load "
          f"{os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| matrices | method | seconds | processor seconds | most memory, GiB |")
    print("|---" * 5 + "|")
    rows = [("the tiny model", "tiny", name) for name in ("hessian", *METHODS)]
    rows += [("a layer of Llama-3.2-1B", "1b", name) for name in ("hessian", *METHODS)]
    rows += [("w2 of an 8B, 4096 x 14336", "8b", name) for name in ("hessian", "gptq", "act-order")]
    for label, size, name in rows:
        command = [sys.executable, __file__, "--one", size, name, "--inputs", str(n_inputs)]
        out = subprocess.check_output(command, text=True)
        clock, processor, memory = map(float, out.split())
        shown = f"{name}, {STEPS} of 500 steps" if (name, size) == ("adaround", "1b") else name
        print(f"| {label} | {shown} | {clock:.1f} | {processor:.1f} | {memory:.2f} |", flush=True)


# --- What it leaves -------------------------------------------------------------------------------


def calibration(tokenizer, seed, n_texts):
    """-> texts of the toy world, tensors of ids [T]."""
    documents = itertools.islice(world.documents(FIRST_SEED + 10**6 * seed), n_texts)
    return [torch.tensor(tokenizer.encode(document.text)) for document in documents]


@torch.inference_mode()
def rounded(model, name, bits, texts):
    """-> the model's weights, those within the layers rounded."""
    what, method = METHODS[name]
    found = sequential(
        model.weights, model.config, texts, lambda W, seen: method(W, seen, bits), what
    )
    return dict(model.weights) | {key: dequantize(each) for key, each in found.items()}


def measured(model, weights, reference, texts, n_documents):
    """-> [loss, KL x 1000, same], {skill: share of right answers}"""
    found = skills((weights, model.config, model.tokenizer), n_documents)
    right = {name: each.right for name, each in found.items()}
    return compared(weights, reference, model.config, texts), right


def line(label, bits, runs, below):
    """What `measured` returned for each seed -> a line of the table."""
    numbers = [[*first, sum(right.values()) / len(right)] for first, right in runs]
    cells = []
    for values, digits in zip(zip(*numbers, strict=True), (4, 2, 3, 3), strict=True):
        cells.append(f"{sum(values) / len(values):.{digits}f}")
        if len(runs) > 1:
            cells[-1] += f" ± {(max(values) - min(values)) / 2:.{digits}f}"
    means = {name: sum(right[name] for _, right in runs) / len(runs) for name in runs[0][1]}
    low = sorted((mean, name) for name, mean in means.items() if mean < below)
    return f"| {label} | {bits} | {' | '.join(cells)} | " + (
        ", ".join(f"{name} {mean:.2f}" for mean, name in low) + " |"
    )


def print_quality(args):
    model = load(args.checkpoint, dtype=torch.float32)
    model = model._replace(weights=dict(model.weights))
    texts = held_out(model.tokenizer, args.documents)
    with torch.inference_mode():
        reference = [
            forward(model.weights, torch.tensor(ids), model.config)[:-1].log_softmax(-1)
            for ids in texts
        ]
    print(f"| method | bits | loss | KL x 1000 | same | skills | skills below {args.below} |")
    print("|---" * 7 + "|")
    whole = measured(model, model.weights, reference, texts, args.documents)
    print(line("float32", 32, [whole], args.below), flush=True)
    for bits, name in itertools.product(args.bits, args.methods):
        runs = []
        for seed in range(1 if name == "rtn" else args.seeds):
            calibrated = calibration(model.tokenizer, seed, args.texts)
            weights = rounded(model, name, bits, calibrated)
            runs.append(measured(model, weights, reference, texts, args.documents))
        print(line(name, bits, runs, args.below), flush=True)


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--shapes", action="store_true")
    args.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args.add_argument("--inputs", type=int, default=2048, help="of --shapes, rows")
    args.add_argument("--checkpoint", default="tiny")
    args.add_argument("--bits", type=int, nargs="+", default=[4, 3, 2])
    args.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    args.add_argument("--seeds", type=int, default=3)
    args.add_argument("--texts", type=int, default=128, help="of calibration")
    args.add_argument("--documents", type=int, default=60, help="of each measure")
    args.add_argument("--below", type=float, default=0.9, help="name skills with a share below")
    args = args.parse_args()
    if args.one:
        print(*cost(args.one[1], args.one[0], args.inputs))
    elif args.shapes:
        print_costs(args.inputs)
    else:
        print_quality(args)


if __name__ == "__main__":
    main()
