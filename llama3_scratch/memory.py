"""Before weights are read: what a checkpoint needs, what this machine has, how it will run."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from llama3_scratch.config import weight_shapes

GPU_SHARE = 0.95  # the rest is for what CUDA's allocator rounds up, and cuBLAS works in


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes, and the way: "on the device", "streamed" or "memory-mapped"."""

    way: str
    weights: int
    copies: int  # of weights that are cast or streamed: the most at one time
    kept: int  # of Hugging Face's query and key rows in Meta's order, in RAM from the second pass
    cache: int
    activations: int
    ram: int  # that this process may still take
    gpu: int | None  # that it may still take there; None without one

    @property
    def missing(self):
        """Bytes too few for what has to be in memory: 0 if it will run."""
        needs = self.copies + self.cache + self.activations
        if self.gpu is None:
            return max(0, needs + self.kept - self.ram)
        needs += self.weights if self.way == "on the device" else 0
        return max(0, needs - int(GPU_SHARE * self.gpu), self.kept - self.ram)

    def __str__(self):
        """A line for each."""
        needs = {
            "weights": self.weights, "copies of weights, while they are used": self.copies,
            "query and key rows in Meta's order": self.kept, "cache": self.cache,
            "activations": self.activations,
        }  # fmt: skip
        lines = [f"needs  {size / 1e9:9.3f} GB  {what}" for what, size in needs.items() if size]
        lines.append(f"has    {self.ram / 1e9:9.3f} GB  memory (RAM) to spare")
        if self.gpu is not None:
            lines.append(f"has    {self.gpu / 1e9:9.3f} GB  memory of the device to spare")
        fits = sum(needs.values()) <= self.ram
        how = {
            "on the device": "everything is copied to the device, once",
            "streamed": "layer after layer is copied to the device when it is its turn",
            "memory-mapped": "computed on the CPU from the file, which then stays in memory" if fits
            else "computed on the CPU from the file, read again for every token: it is larger than "
            "the memory",
        }  # fmt: skip
        lines.append(f"way    {self.way}: {how[self.way]}")
        lacks = f"lacks  {self.missing / 1e9:9.3f} GB  of what must be in memory: it may not run"
        return "\n".join([*lines, lacks] if self.missing else lines)


def plan(
    config, dtype=torch.bfloat16, device="cpu", tokens=17, context=256, batch=1, stored=None,
    reordered=False,
):  # fmt: skip
    """What `forward` needs and will find -> Plan. Nothing is read, nothing allocated.

    dtype: the type to compute in; stored: that of the files (None: the same). tokens, context:
    T at once, S positions in all, of each text of the batch. reordered: whether the files are
    Hugging Face's, of which the query and key rows are kept in Meta's order.
    """
    size, device, stored = dtype.itemsize, torch.device(device), stored or dtype
    L, D, V, K, H = (config.sizes[letter] for letter in "LDVKH")
    shapes = weight_shapes(config)
    layer = sum(math.prod(s) for name, s in shapes.items() if name.startswith("layers.0."))
    largest = size * max(layer, V * D)
    weights = size * config.n_parameters
    cache = 2 * batch * L * K * H * context * size
    inner = activations(config, size, tokens, context, batch)
    gpu = spare_on(device) if device.type == "cuda" else None
    way, copies = "on the device", 0
    if device.type == "cpu":
        way, copies = "memory-mapped", largest if stored != dtype else 0
    elif gpu is not None and weights + cache + inner > GPU_SHARE * gpu:
        way, copies = "streamed", largest
    kept = stored.itemsize * L * (D + K * H) * D if reordered and way != "on the device" else 0
    return Plan(way, weights, copies, kept, cache, inner, spare_ram(), gpu)


def activations(config, size, T, S, batch=1):
    """Bytes of the tensors that live at once inside `forward`, at its widest place.

    size: of one number, in bytes. Three places compete: the scores of all heads (`attend` holds
    them three times in the weights' type and once more in float32, twice if that is another type,
    beside the repeated keys and values, of which a batch needs one copy more to multiply), the
    feed-forward's F columns, the logits.
    """
    D, F, N, H, V = config.dim, config.ffn_dim, config.n_heads, config.head_dim, config.vocab_size
    cast = size != 4
    scores = N * T * S * (3 * size + 4 + 4 * cast) + (2 + (batch > 1)) * N * S * H * size
    widest = max(scores, 4 * T * F * size, T * V * (4 + size * cast))
    return batch * (8 * T * D * size + widest) + T * S * (5 + size)  # and the mask


def spare_on(device):
    """Bytes that this process may still take on a CUDA device, within a set fraction of it."""
    free, total = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    spare = free + torch.cuda.memory_reserved(device) - used  # it is reused before more is taken
    if hasattr(torch.cuda, "get_per_process_memory_fraction"):
        limit = int(total * torch.cuda.get_per_process_memory_fraction(device))
        spare = min(spare, limit - used)
    return max(0, spare)


def spare_ram(root=Path("/sys/fs/cgroup"), mine=Path("/proc/self/cgroup")):
    """Bytes of RAM that this process may still take, within the limits of its control groups."""
    spare = psutil.virtual_memory().available
    for folder in _groups(root, mine):
        for limit, used in (("memory.max", "memory.current"),
                            ("memory.limit_in_bytes", "memory.usage_in_bytes")):  # fmt: skip
            try:
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                stat = dict(map(str.split, (folder / "memory.stat").read_text().splitlines()))
            except (OSError, ValueError):  # no such file, or the word max: no limit
                continue
            total = "total_" if "total_inactive_file" in stat else ""  # version 1: with subgroups
            pages = sum(int(stat[f"{total}{kind}_file"]) for kind in ("active", "inactive"))
            spare = min(spare, left + pages)  # pages of files are given back when needed
    return max(0, spare)


def _groups(root, mine):
    """The folders of a process's control group and those around it (Linux, versions 1 and 2)."""
    try:
        lines = mine.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if kinds in ("", "memory"):
            parts = [part for part in path.split("/") if part]
            found += [root.joinpath(kinds, *parts[:n]) for n in range(len(parts) + 1)]
    return found


class OnDemand(Mapping):
    """{name: tensor}, where each tensor is made by `make(name)` whenever it is asked for."""

    def __init__(self, names, make):
        self.names, self.make = dict.fromkeys(names), make

    def __getitem__(self, name):
        if name not in self:
            raise KeyError(name)
        return self.make(name)

    def __contains__(self, name):
        return name in self.names

    def __iter__(self):
        return iter(self.names)

    def __len__(self):
        return len(self.names)


def with_progress(weights, n_layers, after=0.5, stream=None):
    """{name: tensor} -> the same, which shows on a terminal how far a pass through them is.

    after: seconds that a pass has to take first. The bar stands where the cursor is, which does not
    move, so a text goes on as if there were none; it goes when the pass does. On anything but a
    terminal the weights come back as they are. stream: sys.stderr.
    """
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        return weights
    began, shown = time.monotonic(), None

    def make(name):
        nonlocal began, shown
        if name.startswith("layers."):
            i = int(name.split(".")[1])
            if i != shown and time.monotonic() - began > after:
                done, shown = 20 * i // n_layers, i
                bar = f" [{'#' * done}{'.' * (20 - done)}] layer {i + 1} of {n_layers}"
                # ANSI: keep the cursor, do not wrap, write, wrap again, cursor back
                stream.write(f"\x1b7\x1b[?7l{bar}\x1b[K\x1b[?7h\x1b8")
                stream.flush()
        elif name == "tok_embeddings.weight":
            began = time.monotonic()
        elif shown is not None:
            shown = None
            stream.write("\x1b[K")
            stream.flush()
        return weights[name]

    return OnDemand(weights, make)
