"""The steps of notebook 23 at 1B shapes: prompts and tokens, this package beside its peers.

    python benchmarks/speed.py [--preset Llama-3.2-1B] [--layers L] [--prompts 17 128 512]
        [--positions 32 1024 4096 16384] [--batches 1 2 4 ... 128] [--only WAY ...] [--repeats 7]
        [--directory DIR] [--json FILE] [--add] [--show FILE]

Random bfloat16 weights, the same for all. A "token" is one forward pass of one token after so many
positions of random keys and values; a "prompt" is so many tokens with a new cache, in chunks as
`generate` takes them, up to the first new token; a "batch" is one token for each of so many texts
after 32 positions. All are tokens a second. A token is timed after another one of the same way, as
in decoding. The ways take turns, so that other work on the machine slows all of them; medians, the
first turn not counted. A way that has taken --seconds for a line is not asked again. Beside: the
most anonymous memory above what the weights take (see `watched`).

    limit         a sum of all bytes that a token needs, each read once: no token can be faster
    walkthrough   one head after another, and no cache: a token is a prompt of all positions
    readable      this package's `attend` and plain matrices: Meta's bits
    attend_fused  PyTorch's fused attention
    quick         attend_fused and `speed.quick` weights; int8, int4: packed, groups of 32 for int4
    transformers, transformers_compiled; llama.cpp BF16, Q8_0, Q4_0 (see peers.py)

Printed are the table, ratios, and fits of the cost; --json writes them with the machine's name, as
benchmarks/results/ holds them, --add into a file that is there; --show prints such a file.
llama.cpp's files and its longest cache are kept in --directory.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as a mapped file's: pages of 2 MiB

import torch
from limited import anonymous
from peers import Compiled, LlamaCpp, Transformers

from llama3_scratch import PRESETS, Cache, forward, generate
from llama3_scratch.config import weight_shapes
from llama3_scratch.model import (
    attend,
    causal_mask,
    feed_forward,
    layer,
    linear,
    rms_norm,
    rotate,
    rotations_at,
)
from llama3_scratch.quantize.packed import Int4, Int8
from llama3_scratch.quantize.rounding import rtn
from llama3_scratch.speed import attend_fused, quick

LONGEST = {  # tokens or positions that a slow way is timed up to
    ("prompt", "walkthrough"): 128, ("token", "walkthrough"): 32,
    ("prompt", "readable"): 512, ("token", "readable"): 4096,
}  # fmt: skip
WAYS = (
    "limit", "walkthrough", "readable", "attend_fused", "quick", "int8", "int4", "transformers",
    "transformers_compiled", "llama.cpp BF16", "llama.cpp Q8_0", "llama.cpp Q4_0",
)  # fmt: skip
BATCHED = "limit", "attend_fused", "quick", "int8", "int4", "transformers"


def drawn(config):
    """Config -> {name: random bfloat16 tensor}; tied tables are one tensor."""
    weights = {}
    for name, shape in weight_shapes(config).items():
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        weights[name] = tensor.fill_(1) if len(shape) == 1 else tensor.normal_(0, 0.02)
    if config.tied_output:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return weights


def is_matrix(name, tensor):
    return tensor.dim() == 2 and name != "tok_embeddings.weight"


@functools.lru_cache(maxsize=1)
def filled(config, positions, batch):
    """A cache of random keys and values, with room for one more."""
    cache = Cache(config, positions + 1, (batch,), torch.bfloat16)
    cache.keys.normal_()
    cache.values.normal_()
    return cache


class Ours:
    def __init__(self, weights, config, attend):
        self.weights, self.config, self.attend = weights, config, attend

    def prompt(self, tokens):
        next(generate(self.weights, tokens.tolist(), self.config, 1, attend=self.attend))

    def fill(self, positions, batch):
        self.cached = filled(self.config, positions, batch)
        self.tokens = torch.ones(batch, 1, dtype=torch.long)

    def token(self, positions):
        self.cached.length = positions
        forward(self.weights, self.tokens, self.config, self.cached, self.attend)


class Walkthrough:
    """A loop over the heads, without a cache, as walkthroughs of the model have it."""

    def __init__(self, weights, config):
        self.weights, self.config = weights, config

    def prompt(self, tokens):
        self.logits(tokens)

    def logits(self, tokens):
        """[T] -> [V]: next-token logits after the last of them."""
        config, H = self.config, self.config.head_dim
        positions = torch.arange(len(tokens))
        rotations, mask = rotations_at(positions, config), causal_mask(positions, len(tokens))
        stream = self.weights["tok_embeddings.weight"][tokens]
        for i in range(config.n_layers):
            its = layer(self.weights, i)
            normed, outputs = rms_norm(stream, its["attention_norm.weight"], config.norm_eps), []
            for head in range(config.n_heads):
                shared = head * config.n_kv_heads // config.n_heads
                q, k, v = (
                    linear(normed, its[f"attention.{name}.weight"][n * H : (n + 1) * H])[:, None]
                    for name, n in (("wq", head), ("wk", shared), ("wv", shared))
                )
                outputs.append(attend(rotate(q, rotations), rotate(k, rotations), v, mask)[:, 0])
            stream = stream + linear(torch.cat(outputs, -1), its["attention.wo.weight"])
            normed = rms_norm(stream, its["ffn_norm.weight"], config.norm_eps)
            stream = stream + feed_forward(normed, its)
        normed = rms_norm(stream[-1], self.weights["norm.weight"], config.norm_eps)
        return linear(normed, self.weights["output.weight"]).float()

    def fill(self, positions, batch):
        self.tokens = torch.randint(self.config.vocab_size, (positions + 1,))

    def token(self, positions):
        self.prompt(self.tokens)


class Limit:
    """Sums of the same bytes: as fast as this machine reads."""

    prompt = None

    def __init__(self, weights, config):
        matrices = {id(t): t for name, t in weights.items() if is_matrix(name, t)}
        self.tensors, self.config = list(matrices.values()), config

    def fill(self, positions, batch):
        cache = filled(self.config, positions, batch)
        self.cached = [x[..., :-1, :] for x in (cache.keys, cache.values)]

    def token(self, positions):
        for tensor in (*self.tensors, *self.cached):
            tensor.view(torch.int64).sum()


def ways(config, names, folder, longest):
    """-> {name: an object with `prompt`, `fill` and `token`}, of those that are named."""
    weights = drawn(config)

    def packed(make):
        made = {id(t): make(t) for name, t in weights.items() if is_matrix(name, t)}
        few = {n: made[id(t)] if is_matrix(n, t) else t for n, t in weights.items()}
        return Ours(quick(few), config, attend_fused)

    makers = {
        "limit": lambda: Limit(weights, config),
        "walkthrough": lambda: Walkthrough(weights, config),
        "readable": lambda: Ours(weights, config, attend),
        "attend_fused": lambda: Ours(weights, config, attend_fused),
        "quick": lambda: Ours(quick(weights), config, attend_fused),
        "int8": lambda: packed(Int8),
        "int4": lambda: packed(lambda W: Int4(rtn(W.float(), 4, 32), W.dtype)),
        "transformers": lambda: Transformers(weights, config),
        "transformers_compiled": lambda: Compiled(weights, config),
    }
    for kind in ("BF16", "Q8_0", "Q4_0"):
        makers[f"llama.cpp {kind}"] = functools.partial(
            LlamaCpp, weights, config, kind, folder, longest
        )
    return {name: makers[name]() for name in WAYS if name in names}


# What is measured


def turns(jobs, repeats, seconds):
    """{name: function} -> {name: median seconds}, {name: bytes, see `watched`}; they take turns.

    The first turn is not counted, unless it is the only one: a way that has taken so many seconds
    is not asked again. What a function returns are its seconds, if it returns any.
    """
    times, memory = {name: [] for name in jobs}, {}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            if sum(times[name]) < seconds:
                if turn == 0:
                    took, memory[name] = watched(job)
                else:
                    took = timed(job)
                times[name].append(took)
    return {name: statistics.median(each[1:] or each) for name, each in times.items()}, memory


def timed(job):
    began = time.perf_counter()
    said = job()
    return said or time.perf_counter() - began


def steady(way, n):
    """Seconds of a token that comes after another one of the same way, as in decoding."""
    way.token(n)
    return timed(functools.partial(way.token, n))


def watched(job):
    """Call a function -> its seconds, and the most anonymous memory above that before it."""
    with contextlib.suppress(AttributeError):  # glibc keeps what is freed; others do not
        ctypes.CDLL(None).malloc_trim(0)
    before, seen, ended = anonymous(os.getpid()), [0], threading.Event()

    def look():
        while not ended.wait(0.005):
            seen.append(anonymous(os.getpid()))

    thread = threading.Thread(target=look)
    thread.start()
    took = timed(job)
    ended.set()
    thread.join()
    return took, max(0, max(seen) - before)


def machine():
    """-> what a measurement is named by: processor, threads, versions, load."""
    model, cpu = platform.processor(), Path("/proc/cpuinfo")
    if cpu.exists():
        lines = cpu.read_text().splitlines()
        model = next((x.split(": ")[1] for x in lines if x.startswith("model name")), model)
    versions = {}
    for name in ("torch", "transformers", "xllamacpp"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "processor": f"{model}, {torch.backends.cpu.get_cpu_capability()}",
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), **versions,
        "python": platform.python_version(), "system": platform.system(),
        "load": round(os.getloadavg()[0], 1), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def measured(found, config, args):
    """Yield the lines of the results: {"what", "n", "batch", "layers", "rates", "memory"}."""
    plan = [("prompt", T, 1, [n for n in found if found[n].prompt]) for T in args.prompts]
    plan += [("token", S, 1, list(found)) for S in args.positions]
    plan += [("batch", 32, batch, BATCHED) for batch in args.batches]
    for what, n, batch, names in plan:
        names = [name for name in names if n <= LONGEST.get((what, name), n)]
        ones = {name: found[name] for name in names if name in found}
        tokens, jobs = torch.randint(config.vocab_size, (n,)), {}
        filled.cache_clear()
        for name, way in ones.items():
            if what == "prompt":
                jobs[name] = functools.partial(way.prompt, tokens)
            else:
                way.fill(n, batch)
                jobs[name] = functools.partial(steady, way, n)
        took, memory = turns(jobs, args.repeats, args.seconds)
        work = n if what == "prompt" else batch
        yield {
            "what": what, "n": n, "batch": batch, "layers": config.n_layers,
            "rates": {name: float(f"{work / s:.4g}") for name, s in took.items()},
            "memory": {n: b for n, b in memory.items() if not isinstance(ones[n], LlamaCpp)},
        }  # fmt: skip
        for way in ones.values():
            way.cached = None  # its memory is free again


# What is said about it


def fit(points, powers):
    """{n: seconds}, two powers of n -> (a, b, largest relative error) of a n^p + b n^q.

    Least squares of the relative errors, so that the short ones count as much as the long ones.
    """
    n, seconds = (torch.tensor(list(x), dtype=torch.float64) for x in (points, points.values()))
    parts = torch.stack([n**power / seconds for power in powers], -1)
    ones = torch.ones(len(n), 1, dtype=torch.float64)
    ab = torch.linalg.lstsq(parts, ones, driver="gelsd").solution
    return (*ab[:, 0].tolist(), float((parts @ ab - 1).abs().max()))


FORMS = {"token": ("a + b S", 0, 1), "prompt": ("a T + b T^2", 1, 2)}


def fits(lines):
    """-> {"token" or "prompt": {"form", "layers", "ways": {way: [a, b, largest error]}}}, seconds.

    Of lines of several numbers of layers, those that go furthest.
    """
    found = {}
    for what, (form, *powers) in FORMS.items():
        of = [line for line in lines if line["what"] == what]
        if not of:
            continue
        layers, points = max(of, key=lambda line: line["n"])["layers"], {}
        for line in of:
            for name, rate in line["rates"].items() if line["layers"] == layers else ():
                work = line["n"] if what == "prompt" else 1
                points.setdefault(name, {})[line["n"]] = work / rate
        found[what] = {"form": form, "layers": layers, "ways": {
            name: [float(f"{x:.3g}") for x in fit(its, powers)]
            for name, its in points.items() if len(its) > 2
        }}  # fmt: skip
    return found


def table(heads, rows):
    """Print rows of cells as a table, without the rows and columns that are empty."""
    rows = [row for row in rows if any(row[1:])]
    columns = [0, *(k for k in range(1, len(heads)) if any(row[k] for row in rows))]
    for row in (heads, ["---"] * len(heads), *rows) if rows else ():
        print("| " + " | ".join(row[k] for k in columns) + " |")
    print()


def named(line, layers):
    n, batch = f"{line['n']:,}", line["batch"]
    text = {"token": f"token after {n}", "prompt": f"prompt of {n}",
            "batch": f"{batch} texts after {n}"}[line["what"]]  # fmt: skip
    return text + (f", {line['layers']} layers" if line["layers"] != layers else "")


RATIOS = (  # ours, the others: the best of them counts
    ("quick", ["transformers", "transformers_compiled"]), ("quick", ["limit"]),
    ("int8", ["quick"]), ("int4", ["quick"]), ("quick", ["llama.cpp BF16"]),
    ("int8", ["llama.cpp Q8_0"]), ("int4", ["llama.cpp Q4_0"]),
)  # fmt: skip


def show(results):
    """Print the tables of a file of results."""
    lines, layers = results["measured"], results["layers"]
    print(*(f"{key} {value}" for key, value in results["machine"].items()), sep=", ")
    print(f"{results['preset']}, {layers} layers\n")
    for what in FORMS | {"batch": ()}:
        some = [line for line in lines if line["what"] == what]
        heads = [named(line, layers) for line in some]
        table(["tokens a second", *heads], (
            [n, *(f"{x['rates'][n]:.3g}" if n in x["rates"] else "" for x in some)] for n in WAYS
        ))  # fmt: skip
        table(["ratios", *heads], (
            [f"{ours} / {min(others, key=len)}", *(ratio(x["rates"], ours, others) for x in some)]
            for ours, others in RATIOS
        ))  # fmt: skip
        table(["MiB", *heads], (
            [n, *(f"{x['memory'][n] / 2**20:.0f}" if n in x["memory"] else "" for x in some)]
            for n in WAYS
        ))  # fmt: skip
    for what, its in results["fits"].items():
        head = f"seconds of a {what}, {its['layers']} layers: {its['form']}"
        table([head, "a", "b", "largest error"], (
            [name, f"{a:.3g}", f"{b:.3g}", f"{off:.0%}"]
            for name, (a, b, off) in its["ways"].items()
        ))  # fmt: skip


def ratio(rates, ours, others):
    best = max((rates[name] for name in others if name in rates), default=None)
    return f"{rates[ours] / best:.2f}" if best and ours in rates else ""


def joined(old, new):
    """Lines of results, and later ones: a later rate replaces an earlier one."""
    keys, merged = ("what", "n", "batch", "layers"), {}
    for line in (*old, *new):
        kept = merged.setdefault(tuple(line[key] for key in keys), line)
        for part in ("rates", "memory"):
            kept[part] = kept[part] | line[part]
    order = {"prompt": 0, "token": 1, "batch": 2}
    return sorted(merged.values(), key=lambda x: (order[x["what"]], *(x[k] for k in keys[1:])))


@torch.inference_mode()
def main(words=None):
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--preset", default="Llama-3.2-1B", choices=PRESETS)
    args.add_argument("--layers", type=int)
    args.add_argument("--prompts", type=int, nargs="*", default=[17, 128, 512])
    args.add_argument("--positions", type=int, nargs="*", default=[32, 1024, 4096, 16384])
    args.add_argument("--batches", type=int, nargs="*", default=[2**k for k in range(8)])
    args.add_argument("--only", nargs="+", default=WAYS, choices=WAYS, metavar="WAY")
    args.add_argument("--repeats", type=int, default=7)
    args.add_argument("--seconds", type=float, default=20)
    args.add_argument("--directory", help="where llama.cpp's files are, or are written and left")
    args.add_argument("--json", type=Path)
    args.add_argument("--add", action="store_true")
    args.add_argument("--show", type=Path)
    args = args.parse_args(words)
    if args.show:
        return show(json.loads(args.show.read_text()))
    torch.manual_seed(0)
    config = PRESETS[args.preset]
    results = {"machine": machine(), "preset": args.preset, "layers": config.n_layers}
    if args.layers:
        config = dataclasses.replace(config, n_layers=args.layers)
    old = json.loads(args.json.read_text())["measured"] if args.add else []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.directory or temporary) / f"{args.preset}, {config.n_layers} layers"
        folder.mkdir(parents=True, exist_ok=True)
        longest = max([*args.positions, *args.prompts], default=0)
        found, new = ways(config, args.only, folder, longest), []
        for line in measured(found, config, args):
            new.append(line)
            print(named(line, results["layers"]), line["rates"], flush=True)
            lines = joined(old, new)
            results |= {"measured": lines, "fits": fits(lines)}
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(results, indent=1) + "\n")
    print()
    show(results)


if __name__ == "__main__":
    main()
