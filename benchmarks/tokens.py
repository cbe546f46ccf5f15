"""Seconds a token at the released sizes: this package beside transformers and a plain read.

    python benchmarks/tokens.py [--presets Llama-3.2-1B Llama-3.2-3B] [--directory DIR] [--new 6]

Writes random bfloat16 weights of each size (see first_token.py), continues the book's 17 tokens by
--new tokens in fresh processes, ours and transformers' in turn, three times, and prints medians:
seconds for the prompt, seconds for a token after it, and the seconds that one read of all weights
takes, below which no token can come that reads them. Files' pages are in memory, if it holds them.
The written files are deleted, unless --directory names a folder for them.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from first_token import write_hugging_faces, write_metas


def ours(folder, new):
    """This package -> seconds of the prompt, of each later token, of one read of the weights."""
    import torch

    from llama3_scratch import PROMPT, generate, load

    weights, config, tokenizer = load(folder / "meta")
    tokens = tokenizer.encode(PROMPT)
    times = [time.perf_counter()]
    for _ in generate(weights, tokens, config, new):
        times.append(time.perf_counter())
    start = time.perf_counter()
    for tensor in {tensor.data_ptr(): tensor for tensor in weights.values()}.values():
        tensor.view(torch.int16).max()  # an integer type: as quick as memory allows
    return times[1] - times[0], (times[-1] - times[1]) / (new - 1), time.perf_counter() - start


def theirs(folder, new):
    """transformers -> seconds of the prompt and of each later token."""
    import torch
    from transformers import AutoModelForCausalLM

    from llama3_scratch import PROMPT
    from llama3_scratch.checkpoint.source import open_checkpoint

    tokens = torch.tensor([open_checkpoint(folder / "meta").tokenizer.encode(PROMPT)])
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.bfloat16)
    times, cache = [time.perf_counter()], None
    with torch.inference_mode():
        for _ in range(new):
            out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, tokens = out.past_key_values, out.logits[:, -1:].argmax(-1)
            times.append(time.perf_counter())
    return times[1] - times[0], (times[-1] - times[1]) / (new - 1)


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--presets", nargs="+", default=["Llama-3.2-1B", "Llama-3.2-3B"])
    args.add_argument("--directory", type=Path)
    args.add_argument("--new", type=int, default=6)
    args.add_argument("--repeats", type=int, default=3)
    args.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = args.parse_args()
    if args.child:
        print(*{"ours": ours, "transformers": theirs}[args.child[0]](
            Path(args.child[1]), args.new))  # fmt: skip
        return
    from llama3_scratch import PRESETS

    print("model, program: seconds of the prompt, of a token, of one read of the weights")
    for preset in args.presets:
        with tempfile.TemporaryDirectory() as temporary:
            home = (args.directory or Path(temporary)) / preset
            for kind, write in (("meta", write_metas), ("hf", write_hugging_faces)):
                if not (home / kind).exists():
                    (home / kind).mkdir(parents=True)
                    write(home / kind, home / "meta", PRESETS[preset])
            found = {"ours": [], "transformers": []}
            for _ in range(args.repeats):
                for program, results in found.items():
                    done = subprocess.run(
                        [sys.executable, __file__, "--child", program, str(home),
                         "--new", str(args.new)], capture_output=True, text=True, check=True,
                    )  # fmt: skip
                    results.append([float(word) for word in done.stdout.split()])
            for program, results in found.items():
                medians = [statistics.median(column) for column in zip(*results, strict=True)]
                print(preset, program, *(f"{seconds:.2f}" for seconds in medians), flush=True)


if __name__ == "__main__":
    main()
