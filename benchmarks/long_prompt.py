"""A prompt of 4096 tokens: seconds and memory, this package beside transformers.

    python benchmarks/long_prompt.py [--preset Llama-3.2-1B] [--layers L] [--peers PEER ...]
        [--directory DIR]

Writes random bfloat16 weights of a released size (see first_token.py; --layers writes fewer layers)
and answers a prompt of random ids with two tokens, in fresh processes, one after the other, three
times: this package with each of its two `attend`, and transformers with PyTorch's fused attention
and a cache. Prints medians: seconds of the prompt, seconds of the second token, the most memory
that was resident, and how much of it was not pages of files (the system may drop those). The files'
pages are in memory before each run. The written files are deleted, unless --directory names a
folder for them. For Linux.
"""

import argparse
import dataclasses
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from first_token import fill, write_hugging_faces, write_metas
from limited import peaks


def ours(folder, tokens, fused=False):
    """This package -> seconds of the prompt and of the second token, and the two tokens."""
    from llama3_scratch import generate, load, model, speed

    weights, config, _ = load(folder / "meta")
    attend = speed.attend_fused if fused else model.attend
    times, new = [time.perf_counter()], []
    for token in generate(weights, tokens, config, 2, attend=attend):
        times.append(time.perf_counter())
        new.append(token)
    return times[1] - times[0], times[2] - times[1], *new


def theirs(folder, tokens):
    """transformers -> the same, as its `generate` does it: logits of the last position only."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder / "hf", dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    times, new, given, cache = [time.perf_counter()], [], torch.tensor([tokens]), None
    with torch.inference_mode():
        for _ in range(2):
            out = model(given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, given = out.past_key_values, out.logits[:, -1:].argmax(-1)
            times.append(time.perf_counter())
            new.append(int(given))
    return times[1] - times[0], times[2] - times[1], *new


PEERS = {
    "this package": ours,
    "this package, attend_fused": lambda *given: ours(*given, fused=True),
    "transformers": theirs,
}


def child(peer, folder, n_tokens):
    """Run one peer, and print its numbers and the most memory that this process has had."""
    import torch

    tokens = torch.randint(1000, 100_000, (n_tokens,), generator=torch.Generator().manual_seed(0))
    numbers = PEERS[peer](folder, tokens.tolist())
    status = Path("/proc/self/status").read_text()  # resource's count begins with the parent's
    print(*numbers, 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]))


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--preset", default="Llama-3.2-1B")
    args.add_argument("--layers", type=int, help="write only so many layers")
    args.add_argument("--tokens", type=int, default=4096)
    args.add_argument("--repeats", type=int, default=3)
    args.add_argument("--peers", nargs="+", default=[*PEERS], choices=PEERS, metavar="PEER")
    args.add_argument("--directory", type=Path)
    args.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = args.parse_args()
    if args.child:
        return child(args.child[0], Path(args.child[1]), args.tokens)

    import torch

    from llama3_scratch import PRESETS

    config = PRESETS[args.preset]
    config = dataclasses.replace(config, n_layers=args.layers or config.n_layers)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.directory or Path(temporary)
        for kind, write in (("meta", write_metas), ("hf", write_hugging_faces)):
            if not (folder / kind).exists():
                (folder / kind).mkdir(parents=True)
                write(folder / kind, folder / "meta", config)
        found = {peer: [] for peer in args.peers}
        for _ in range(args.repeats):
            for peer, results in found.items():
                fill(folder / ("hf" if peer == "transformers" else "meta"))
                process = subprocess.Popen(
                    [sys.executable, __file__, "--child", peer, str(folder),
                     "--tokens", str(args.tokens)],
                    stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                anonymous = peaks(process)["anonymous"]
                results.append([*map(float, process.stdout.read().split()), anonymous])
    print(f"{args.preset}, {config.n_layers} layers, {args.tokens} tokens, {args.repeats} runs")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| | prompt, s | second token, s | resident, GiB | not in files, GiB | answer |")
    print("|---|---|---|---|---|---|")
    for peer, results in found.items():
        prompt, later, *new, most, anonymous = map(statistics.median, zip(*results, strict=True))
        print(f"| {peer} | {prompt:.1f} | {later:.2f} | {most / 2**30:.2f} | "
              f"{anonymous / 2**30:.2f} | {new[0]:.0f} {new[1]:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
