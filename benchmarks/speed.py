"""The steps of notebook 23 at 1B shapes: prompts and tokens, this package beside transformers.

    python benchmarks/speed.py [--preset Llama-3.2-1B] [--layers L] [--prompts 17 128 512]
        [--positions 32 1024 4096 16384] [--repeats 5] [--json FILE]

Random bfloat16 weights in memory, the same for all. A token is one forward pass of one token after
so many positions, which are random keys and values; a prompt is one pass of so many tokens without
a cache, logits of the last one only. The contestants take turns; printed are medians, as tokens a
second. `limit` is a sum of all bytes that a token needs, weights and cached positions, each read
once: no token can be faster. int8 and int4 (groups of 32) are packed in this package's own form.
--json writes the numbers with the machine's name and versions, as benchmarks/results/ holds them.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections import ChainMap
from pathlib import Path

import torch

from llama3_scratch import PRESETS, Cache, forward
from llama3_scratch.checkpoint.huggingface import hugging_faces_name
from llama3_scratch.config import weight_shapes
from llama3_scratch.generate import _LastRow
from llama3_scratch.model import attend
from llama3_scratch.quantize.packed import Int4, Int8
from llama3_scratch.quantize.rounding import rtn
from llama3_scratch.speed import attend_fused, quick


def drawn(config):
    """Config -> {name: random bfloat16 tensor}; tied tables are one tensor."""
    weights = {}
    for name, shape in weight_shapes(config).items():
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        weights[name] = tensor.fill_(1) if len(shape) == 1 else tensor.normal_(0, 0.02)
    if config.dim <= 3072:  # the smaller models of 3.2 share the table
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return weights


def is_matrix(name, tensor):
    return tensor.dim() == 2 and name != "tok_embeddings.weight"


class Ours:
    def __init__(self, weights, config, attend):
        self.weights, self.config, self.attend = weights, config, attend
        self.last = ChainMap({"output.weight": _LastRow(weights)}, weights)

    def prompt(self, tokens):
        forward(self.last, tokens, self.config, attend=self.attend)

    def fill(self, positions):
        self.cache = Cache(self.config, positions + 1, dtype=torch.bfloat16)
        self.cache.keys.normal_()
        self.cache.values.normal_()

    def token(self, positions):
        self.cache.length = positions
        forward(self.weights, torch.tensor([1]), self.config, self.cache, self.attend)


class Theirs:
    """transformers with PyTorch's fused attention, on the same tensors."""

    def __init__(self, weights, config):
        from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

        self.cache_class, self.settings = DynamicCache, config
        shape = LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.dim, num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads,
            intermediate_size=config.ffn_dim, max_position_embeddings=131072,
            attn_implementation="sdpa", dtype=torch.bfloat16, tie_word_embeddings=False,
        )  # fmt: skip
        with torch.device("meta"):
            self.model = LlamaForCausalLM(shape)
        state = {hugging_faces_name(name): tensor for name, tensor in weights.items()}
        self.model.load_state_dict(state, assign=True)
        self.model.model.rotary_emb = type(self.model.model.rotary_emb)(shape)
        self.model.eval()

    def prompt(self, tokens):
        self.model(tokens[None], use_cache=False, logits_to_keep=1)

    def fill(self, positions):
        size = 1, self.settings.n_kv_heads, positions, self.settings.head_dim
        self.cache = self.cache_class()
        for i in range(self.settings.n_layers):
            self.cache.update(*torch.randn(2, *size).bfloat16(), i)

    def token(self, positions):
        self.model(torch.tensor([[1]]), past_key_values=self.cache, use_cache=True)
        self.cache.crop(-1)


class Limit:
    """Sums of the same bytes: as fast as this machine reads."""

    def __init__(self, weights, config):
        matrices = {id(t): t for name, t in weights.items() if is_matrix(name, t)}
        self.tensors, self.config = list(matrices.values()), config

    def fill(self, positions):
        self.cache = Cache(self.config, positions, dtype=torch.bfloat16)

    def token(self, positions):
        for tensor in (*self.tensors, self.cache.keys, self.cache.values):
            tensor.view(torch.int64).sum()


def contestants(config, names):
    """-> {name: an object with `prompt`, `fill` and `token`}, of those that are named."""
    weights = drawn(config)

    def packed(make):
        made = {id(t): make(t) for name, t in weights.items() if is_matrix(name, t)}
        few = {n: made[id(t)] if is_matrix(n, t) else t for n, t in weights.items()}
        return Ours(quick(few), config, attend_fused)

    makers = {
        "limit": lambda: Limit(weights, config),
        "transformers": lambda: Theirs(weights, config),
        "readable": lambda: Ours(weights, config, attend),
        "attend_fused": lambda: Ours(weights, config, attend_fused),
        "quick": lambda: Ours(quick(weights), config, attend_fused),
        "int8": lambda: packed(Int8),
        "int4": lambda: packed(lambda W: Int4(rtn(W.float(), 4, 32), W.dtype)),
    }
    return {name: make() for name, make in makers.items() if not names or name in names}


def turns(jobs, repeats):
    """{name: function} -> {name: median seconds}; they take turns, the first one is not counted."""
    times = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            if turn:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def machine():
    """-> what a measurement is named by: processor, threads, versions, load."""
    model = platform.processor()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = cpu.read_text().splitlines()
        model = next((x.split(": ")[1] for x in lines if x.startswith("model name")), model)
    import transformers

    return {
        "processor": f"{model}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(), "torch": torch.__version__,
        "transformers": transformers.__version__, "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


@torch.inference_mode()
def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--preset", default="Llama-3.2-1B")
    args.add_argument("--layers", type=int)
    args.add_argument("--prompts", type=int, nargs="*", default=[17, 128, 512])
    args.add_argument("--positions", type=int, nargs="*", default=[32, 1024, 4096, 16384])
    args.add_argument("--only", nargs="+", help="these contestants")
    args.add_argument("--repeats", type=int, default=5)
    args.add_argument("--json", type=Path)
    args = args.parse_args()
    torch.manual_seed(0)
    config = PRESETS[args.preset]
    if args.layers:
        config = dataclasses.replace(config, n_layers=args.layers)
    found = contestants(config, args.only)
    results = {"machine": machine(), "preset": args.preset, "layers": config.n_layers}
    print(*(f"{key} {value}" for key, value in results["machine"].items()), sep=", ")
    print(f"{args.preset}, {config.n_layers} layers: tokens a second\n")
    print("| | " + " | ".join(found) + " |\n|---|" + "---|" * len(found))
    for T in args.prompts:
        tokens = torch.randint(1000, 100_000, (T,))
        jobs = {n: lambda c=c: c.prompt(tokens) for n, c in found.items() if n != "limit"}  # noqa: B023
        took = turns(jobs, args.repeats if T < 500 else 1)
        show(results, f"prompt of {T}", {name: T / s for name, s in took.items()}, found)
    for S in args.positions:
        for one in found.values():
            one.fill(S)
        took = turns({n: lambda c=c: c.token(S) for n, c in found.items()}, args.repeats)  # noqa: B023
        show(results, f"token after {S}", {name: 1 / s for name, s in took.items()}, found)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


def show(results, what, rates, found):
    """Print a line of the table, and keep it."""
    results[what] = {name: round(rate, 3) for name, rate in rates.items()}
    cells = (f"{rates[name]:.2f}" if name in rates else "" for name in found)
    print(f"| {what} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
