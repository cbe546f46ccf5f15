"""The memory plan: what a checkpoint needs, what this machine has, how it will run."""

import math
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from llama3_scratch.config import weight_shapes
from llama3_scratch.errors import InputError, first_line

GPU_SHARE = 0.95  # the rest is for the CUDA allocator's rounding and cuBLAS's workspace


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes, and the way: "on the device", "streamed" or "memory-mapped"."""

    way: str
    weights: int
    copies: int  # of weights that are cast, unpacked or streamed, at most at one time
    reordered: int  # Hugging Face's query and key rows in Meta's order, in RAM from the second pass
    cache: int
    activations: int
    ram: int  # that this process may still take
    gpu: int | None  # that it may still take on a CUDA device; None without one

    @property
    def missing(self):
        """The bytes that are missing for what must be in memory; 0 if the model will run."""
        needs = self.copies + self.cache + self.activations
        needs += self.weights if self.way == "on the device" else 0
        if self.gpu is None:  # the CPU, or a device whose memory is the RAM (Apple's MPS)
            return max(0, needs + self.reordered - self.ram)
        return max(0, needs - int(GPU_SHARE * self.gpu), self.reordered - self.ram)

    def __str__(self):
        """Return the plan as text, one line per item."""
        needs = {
            "weights": self.weights, "copies of weights, while they are used": self.copies,
            "query and key rows in Meta's order": self.reordered, "cache": self.cache,
            "activations": self.activations,
        }  # fmt: skip
        lines = [f"needs  {size / 1e9:9.3f} GB  {what}" for what, size in needs.items() if size]
        lines.append(f"has    {self.ram / 1e9:9.3f} GB  memory (RAM) to spare")
        if self.gpu is not None:
            lines.append(f"has    {self.gpu / 1e9:9.3f} GB  memory of the device to spare")
        fits = sum(needs.values()) <= self.ram
        how = {
            "on the device": "everything is copied to the device, once",
            "streamed": "each layer is copied to the device when it is used",
            "memory-mapped": "computed on the CPU from the file, which then stays in memory" if fits
            else "computed on the CPU from the file, all of which is read again for every token: "
            "with the rest it is larger than the memory to spare",
        }  # fmt: skip
        lines.append(f"way    {self.way}: {how[self.way]}")
        lacks = f"lacks  {self.missing / 1e9:9.3f} GB  of what must be in memory: the run may fail"
        return "\n".join([*lines, lacks] if self.missing else lines)


def plan(config, dtype=torch.bfloat16, device="cpu", tokens=17, context=256, weights=None):
    """Plan the memory of `forward` -> Plan. No weights are read, nothing is allocated.

    dtype: the type to compute in. tokens, context: T at once, S positions in all.
    weights: those of `open_checkpoint`, whose stored type and row order count too; None stands for
    weights that are stored in dtype and in Meta's row order.
    """
    device, size = torch.device(device), dtype.itemsize
    stored = dtype if weights is None else weights["norm.weight"].dtype
    L, D, K, H = (config.sizes[letter] for letter in "LDKH")
    layer = sum(math.prod(s) for n, s in weight_shapes(config).items() if n.startswith("layers.0."))
    tables = config.n_parameters - L * layer - D  # those that this process holds
    table = tables // (1 if config.tied_output else 2)
    largest = size * max(layer, table)
    packed = getattr(weights, "packed", None)
    total = size * config.n_parameters
    cache = 2 * L * K * H * context * size
    inner = activations(config, size, tokens, context)
    gpu = spare_on(device) if device.type == "cuda" else None
    way, copies = "on the device", 0
    if device.type == "cpu":
        way, copies = "memory-mapped", largest if stored != dtype or packed else 0
        if packed:
            total, copies = packed, copies + (stored != dtype) * stored.itemsize * table
    elif gpu is not None and total + cache + inner > GPU_SHARE * gpu:
        way, copies = "streamed", largest
    reordered = 0
    if way != "on the device" and getattr(weights, "costly", None):
        reordered = stored.itemsize * L * (D + K * H) * D
    return Plan(way, total, copies, reordered, cache, inner, spare_ram(), gpu)


def activations(config, size, T, S):
    """Return the bytes of the tensors inside `forward` at the moment when they take the most.

    size: bytes per number. Three places compete: the scores of all heads (`attend` holds them
    three times in the weights' type and once in float32, twice if that is another type, besides
    the repeated keys and values), the feed-forward's F columns, and the logits.
    """
    D, F, N, H, V = config.dim, config.ffn_dim, config.n_heads, config.head_dim, config.vocab_size
    cast = size != 4
    scores = N * T * S * (3 * size + 4 + 4 * cast) + 2 * N * S * H * size
    widest = max(scores, 4 * T * F * size, T * V * (4 + size * cast))
    return 8 * T * D * size + widest + T * S * (5 + size)  # the last term is the mask


def usable(device=None):
    """A device, None for torch's default -> the device, once tried out. Raises `InputError`."""
    device = torch.get_default_device() if device is None else device
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"device {device} cannot be used here: {first_line(error)}") from None
    return device


def spare_on(device):
    """Return the bytes that this process may still take on a CUDA device, within its fraction."""
    free, total = torch.cuda.mem_get_info(device)
    used = torch.cuda.memory_allocated(device)
    spare = free + torch.cuda.memory_reserved(device) - used  # what it has reserved is used first
    if hasattr(torch.cuda, "get_per_process_memory_fraction"):
        limit = int(total * torch.cuda.get_per_process_memory_fraction(device))
        spare = min(spare, limit - used)
    return max(0, spare)


def spare_ram(root=Path("/sys/fs/cgroup"), mine=Path("/proc/self/cgroup")):
    """Return the bytes of RAM that this process may still take, within its control groups."""
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
            spare = min(spare, left + pages)  # the kernel frees file pages when needed
    return max(0, spare)


def _groups(root, mine):
    """Return the folders of a process's control group and its parents (Linux, versions 1 and 2)."""
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
