"""Time a product with a matrix of fewer bits against the whole matrix, by the number of rows.

    python benchmarks/packed.py [--shape 14336 4096] [--rows 1 2 4 8 16 32 64 128 256]
                                [--megabytes 400] [--repeats 9] [--seconds 90] [--processor-time]

The shape [O, I] is that of w1 in Llama-3-8B. The contestants, all of them on bfloat16 inputs but
the first:
    float32    x @ W.T
    bfloat16   x @ W.T, the baseline
    int8       torch._weight_int8pack_mm: weights in 8 bits, one scale a row, inputs not rounded
    int4_g128  torch.ops.aten._weight_int4pack_mm_for_cpu: 4 bits, scale and zero for 128 weights
    int4_g32   the same for 32 weights
    w8a8       torch._int_mm: inputs rounded to 8 bits, a scale for each row, on the way
    unpacked   the 8 bits made bfloat16 again before each product

Each contestant has as many copies of its matrix as fill --megabytes, and takes the next one for
each product, so that no weight is still in the processor's cache: give more than its size. The
contestants take turns, so that other work on the machine slows all of them. Printed are medians in
milliseconds and how many times as quick as bfloat16 each is (below 1: slower). One that has taken
its --seconds for a number of rows is not asked for more of them. --processor-time computes with one
thread and counts its own time only: for a machine that has other work.
"""

import argparse
import os
import statistics
import time

import torch

from llama3_scratch.quantize.packed import Int4, Int8
from llama3_scratch.quantize.rounding import Rounded

BASELINE = "bfloat16"


def drawn(shape, bits, group):
    """A matrix of random codes, bits a weight -> Rounded. The zero is in the middle."""
    n_groups = 1 if group is None else shape[1] // group
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    scales = torch.full((shape[0], n_groups), 0.02 / 2 ** (bits - 1))
    return Rounded(codes, scales, torch.full_like(scales, 2.0 ** (bits - 1)), bits, group)


def copies(tensor, megabytes):
    """As many copies of a tensor as fill so many megabytes, at least 2."""
    return [tensor.clone() for _ in range(max(2, -(-megabytes * 10**6 // tensor.nbytes)))]


def contestants(shape, megabytes):
    """-> {name: (copies of the weights, function of (x in float32, x in bfloat16, one copy))}"""
    W = torch.randn(shape) * 0.02
    eight = Int8(drawn(shape, 8, None), torch.bfloat16)
    scales = eight.scales[:, 0].bfloat16()
    codes = copies((eight.codes ^ 128).view(torch.int8), megabytes)
    found = {
        "float32": (copies(W, megabytes), lambda x, half, w: x @ w.T),
        BASELINE: (copies(W.bfloat16(), megabytes), lambda x, half, w: half @ w.T),
        "int8": (codes, lambda x, half, w: torch._weight_int8pack_mm(half, w, scales)),
    }
    for group in (128, 32):
        four = Int4(drawn(shape, 4, group), torch.bfloat16)
        order = torch.ops.aten._convert_weight_to_int4pack_for_cpu(four.unpack(four.codes).int(), 1)
        steps = torch.stack([four.scales, (8 - four.zeros.float()) * four.scales], -1)
        steps = steps.transpose(0, 1).contiguous().bfloat16()

        def product(x, half, w, group=group, steps=steps):
            return torch.ops.aten._weight_int4pack_mm_for_cpu(half, w, group, steps)

        found[f"int4_g{group}"] = copies(order, megabytes), product

    def w8a8(x, half, w):
        sizes = half.float().abs().amax(-1, keepdim=True) / 127
        sums = torch._int_mm((half / sizes).round().to(torch.int8), w.T)
        return (sums * sizes * scales).bfloat16()

    found["w8a8"] = codes, w8a8
    found["unpacked"] = codes, lambda x, half, w: half @ (w.bfloat16() * scales[:, None]).T
    return found


def timed(found, rows, n_inputs, repeats, seconds, clock):
    """-> {name: median milliseconds}, of those that were not stopped by their seconds."""
    x = torch.randn(rows, n_inputs)
    half, times = x.bfloat16(), {name: [] for name in found}
    for turn in range(repeats + 1):  # the first one is not counted
        for name, (weights, product) in found.items():
            if sum(times[name]) < seconds:
                began = clock()
                product(x, half, weights[turn % len(weights)])
                times[name].append(clock() - began)
    return {name: 1000 * statistics.median(each[1:] or each) for name, each in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=int, nargs=2, default=[14336, 4096])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--processor-time", action="store_true")
    args = parser.parse_args()
    clock = time.perf_counter
    if args.processor_time:
        torch.set_num_threads(1)
        clock = time.thread_time
    torch.manual_seed(0)
    found = contestants(tuple(args.shape), args.megabytes)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}", end=", ")
    print(f"{torch.get_num_threads()} threads, matrix {args.shape}")
    print("milliseconds, and how many times as quick as bfloat16")
    print("rows  " + "".join(f"{name:>16}" for name in found) + "    load")
    for rows in args.rows:
        took = timed(found, rows, args.shape[1], args.repeats, args.seconds, clock)
        line = (f"{took[n]:9.2f} {took[BASELINE] / took[n]:5.2f}x" for n in took)
        print(f"{rows:4}  " + "".join(line) + f"    {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
