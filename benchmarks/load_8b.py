"""Load a checkpoint of the real 8B's names, shapes and size, and compute the prompt's logits.

    python benchmarks/load_8b.py [--preset Llama-3-8B] [--directory DIR]

Writes random bfloat16 values into a file of Meta's layout (16 GB for the 8B), and in a fresh
process loads it as any checkpoint and runs the book's 17 tokens twice. Prints the seconds of each
step and the largest memory so far, split into anonymous memory (which the machine must have) and
file-backed (pages of the file, which it may drop and read again). Deletes what it wrote. For Linux.
"""

import argparse
import json
import math
import mmap
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from llama3_scratch import PRESETS, PROMPT, forward, load, weight_shapes


def write_checkpoint(folder, config):
    """Random weights, written through the page cache: never more than a tensor in memory."""
    import llama_models

    metas = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    shutil.copy(metas, folder / "tokenizer.model")
    (folder / "params.json").write_text(json.dumps(config.to_params()))
    path = folder / "consolidated.00.pth"
    untouched = {
        name: torch.empty(shape, dtype=torch.bfloat16)
        for name, shape in weight_shapes(config).items()
    }
    if config.tied_output:
        del untouched["output.weight"]
    with torch.serialization.skip_data():  # writes the names and leaves room for the values
        torch.save(untouched, path)
    torch.serialization.set_default_mmap_options(mmap.MAP_SHARED)
    generator = torch.Generator().manual_seed(0)
    for tensor in torch.load(path, mmap=True, weights_only=True).values():
        if tensor.dim() == 1:
            tensor.fill_(1)
        else:
            tensor.normal_(0, 1 / math.sqrt(tensor.shape[1]), generator=generator)


def memory():
    """(anonymous, file-backed) resident memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return int(kib["RssAnon"]) * 1024, int(kib["RssFile"]) * 1024


class Peak(threading.Thread):
    """Samples the memory every 20 ms until it is stopped."""

    def __init__(self):
        super().__init__(daemon=True)
        self.anonymous = self.file_backed = 0
        self.done = threading.Event()
        self.start()

    def run(self):
        while not self.done.wait(0.02):
            anonymous, file_backed = memory()
            self.anonymous = max(self.anonymous, anonymous)
            self.file_backed = max(self.file_backed, file_backed)


def measure(folder):
    """Load and run; prints one line a step."""
    before, peak, began = memory()[0], Peak(), time.perf_counter()

    def report(what):
        nonlocal began
        seconds, began = time.perf_counter() - began, time.perf_counter()
        gib = [n / 2**30 for n in (peak.anonymous - before, peak.file_backed)]
        print(
            f"{what:42} {seconds:7.1f} s   anonymous {gib[0]:5.2f} GiB, file-backed {gib[1]:5.2f}"
        )

    weights, config, tokenizer = load(folder)
    report("load")
    tokens = torch.tensor(tokenizer.encode(PROMPT))
    with torch.inference_mode():
        logits = forward(weights, tokens, config)
        report(f"logits {list(logits.shape)}, first time")
        again = forward(weights, tokens, config)
        report("logits, second time")
    assert logits.isfinite().all() and torch.equal(logits, again)
    peak.done.set()
    n_bytes = sum(tensor.nbytes for tensor in weights.values())
    print(
        f"weights {n_bytes:,} bytes; torch {torch.__version__}, {torch.get_num_threads()} threads; "
        f"anonymous memory is what came on top of the {before / 2**30:.2f} GiB at the start"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="Llama-3-8B")
    parser.add_argument("--directory", help="where to write (default: the temporary directory)")
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        return measure(Path(args.measure))
    with tempfile.TemporaryDirectory(dir=args.directory) as folder:
        began = time.perf_counter()
        write_checkpoint(Path(folder), PRESETS[args.preset])
        print(f"{'write':42} {time.perf_counter() - began:7.1f} s", flush=True)
        subprocess.run([sys.executable, __file__, "--measure", folder], check=True)


if __name__ == "__main__":
    main()
