"""Time one token's attention to S cached ones: `attend`, `attend_fused`, reading the bytes once.

    python benchmarks/attention.py [--positions 4096] [--repeats 15]

Sizes of Llama-3.2-1B's attention: N 32, K 8, H 64. Keys and values are in the package's `Cache`.
Prints the median of the repeats in milliseconds, one line per dtype, and the largest difference.
"""

import argparse
import statistics
import time

import torch

from llama3_scratch import Cache, Config
from llama3_scratch.model import attend, causal_mask
from llama3_scratch.speed import attend_fused

N, K, H = 32, 8, 64


def median(function, repeats):
    """Return the median milliseconds of one call."""
    times = []
    for _ in range(repeats + 1):  # the first one is not counted
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    S = args.positions
    config = Config(N * H, 1, N, K, 2, 256, 1e-5, 500000.0)
    mask = causal_mask(torch.tensor([S - 1]), S)
    print(f"S {S}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print("dtype             attend  attend_fused  reading   ratio  largest difference")
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        cache = Cache(config, S, dtype=dtype)
        query, rest = torch.randn(1, N, H).to(dtype), torch.randn(2, S, K, H).to(dtype)
        keys, values = cache.layer(0).append(*rest)
        slow, quick = attend(query, keys, values, mask), attend_fused(query, keys, values, mask)
        times = [
            median(lambda: attend(query, keys, values, mask), args.repeats),  # noqa: B023
            median(lambda: attend_fused(query, keys, values, mask), args.repeats),  # noqa: B023
            median(lambda: [x.sum() for x in (cache.keys, cache.values)], args.repeats),  # noqa: B023
        ]
        off = (slow - quick).abs().max().item()
        print(f"{str(dtype):15} {times[0]:8.2f} {times[1]:13.2f} {times[2]:8.2f}", end="")
        print(f" {times[0] / times[1]:7.1f}  {off:.1e}")


if __name__ == "__main__":
    main()
