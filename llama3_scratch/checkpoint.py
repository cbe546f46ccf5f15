"""Weights on disk <-> {name: tensor}, in the layout of Meta's releases.

A checkpoint is a folder with `params.json`, `tokenizer.model` and `consolidated.00.pth`, or, for
large models, several `consolidated.NN.pth`, each with a slice of every matrix. Or it has Hugging
Face's files, which huggingface.py reads.
"""

import base64
import contextlib
import json
import math
import mmap
import os
import re
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from llama3_scratch import huggingface, memory
from llama3_scratch.config import Config, InputError, require, weight_shapes
from llama3_scratch.memory import OnDemand
from llama3_scratch.tokenizer import Tokenizer

TINY = Path(__file__).parent / "tiny" / "checkpoint"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The matrices whose columns Meta's model-parallel files share out; of the others they share out the
# rows, and the norms stand whole in every file (`reshard_mp` in llama-models' checkpoint.py).
SPLIT_BY_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")


def load(directory=None, dtype=None, device=None):
    """A checkpoint's folder or name -> (weights, config, tokenizer).

    directory: a folder with Meta's files or Hugging Face's, a repository of Hugging Face
    ("owner/name", fetched if need be), "tiny" (ships with the package), or "random" (the sizes and
    the tokenizer of tiny, weights from seed 0). None stands for the environment's
    LLAMA3_CHECKPOINT, else "tiny".
    dtype: torch.float32, bfloat16 or float16; None leaves the tensors as they are stored.
    device: None is torch's default, the CPU unless `torch.set_default_device` said otherwise.

    weights: {Meta's name: tensor}, shapes as in `weight_shapes(config)`. On the CPU they stay on
    disk, memory-mapped: a tensor is read, and cast, whenever it is used, so that no more than a
    layer or one of the two tables need be in memory (`dict(weights)` holds all). On a GPU that is
    too small for all of them they are copied there when used (`memory.plan`). Unpickling is
    restricted to tensors (`weights_only=True`). Raises `InputError`.
    """
    device = usable(device)
    folder, config = find(directory)
    types = ", ".join(DTYPES)
    require(
        dtype in (None, *DTYPES.values()), f"dtype is {dtype}: expected one of torch's {types}."
    )
    tokenizer = read_tokenizer(folder, config)
    stored = read_weights(folder, config)
    if _name(directory) == "random":
        stored = random_weights(config, seed=0, dtype=torch.bfloat16)
    wanted = dtype or stored["norm.weight"].dtype
    way = memory.plan(config, wanted, device).way
    if way == "memory-mapped":
        cast = OnDemand(stored, lambda key: stored[key].to(dtype))
        return stored if dtype is None else cast, config, tokenizer
    if way == "streamed":
        return OnDemand(stored, lambda key: stored[key].to(device, wanted)), config, tokenizer
    moved = {key: stored[key].to(device=device, dtype=dtype) for key in stored}
    if config.tied_output:
        moved["output.weight"] = moved["tok_embeddings.weight"]
    return moved, config, tokenizer


def usable(device=None):
    """A device, None for torch's default -> the device, tried. Raises `InputError`."""
    device = torch.get_default_device() if device is None else device
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise InputError(f"device {device} cannot be used here: {_first_line(error)}") from None
    return device


def _name(directory):
    return os.environ.get("LLAMA3_CHECKPOINT") or "tiny" if directory is None else str(directory)


def find(directory=None):
    """What `load` takes -> (the folder with the files, its Config); no weights are read."""
    name = _name(directory)
    folder = TINY if name in ("tiny", "random") else Path(os.path.expanduser(name))
    if not os.path.exists(folder) and re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        folder = huggingface.fetch(name)
    require(
        name and os.path.isdir(folder) and os.access(folder, os.R_OK),
        f"{name[:99]!r} is not a checkpoint: expected a folder that may be read, with params.json, "
        "tokenizer.model and consolidated.00.pth, or with Hugging Face's config.json, safetensors "
        "and tokenizer.json; or a repository there, 'owner/name'; or 'tiny' or 'random'.",
    )
    if _settings(folder) == "config.json":
        return folder, huggingface.read_config(folder)
    return folder, Config.from_params(folder / "params.json")


def _settings(folder):
    """The file with the settings: Meta's, or Hugging Face's where only that is there."""
    there = [os.path.exists(folder / name) for name in ("params.json", "config.json")]
    return "config.json" if there == [False, True] else "params.json"


def read_tokenizer(folder, config):
    """A checkpoint's folder -> its tokenizer, which fits the vocabulary. Raises `InputError`.

    From `tokenizer.model`, or from `tokenizer.json` where that is all there is (or where
    tokenizer.model is SentencePiece's, an older kind).
    """
    path, release = folder / "tokenizer.model", "3.1" if config.rope_scaling else "3"
    start, other = b"", os.path.exists(folder / "tokenizer.json")
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(1)
    source = path.name
    if other and (not os.path.exists(path) or start == b"\n"):
        source = "tokenizer.json"
        tokenizer = huggingface.read_tokenizer(folder)
        fits = tokenizer.vocab_size <= config.vocab_size  # some tables have rows that nobody uses
    else:
        tokenizer = Tokenizer.from_file(path, release)
        fits = tokenizer.vocab_size == config.vocab_size
    require(
        fits,
        f"{folder}: {source} has, with the special tokens, {tokenizer.vocab_size} tokens, but "
        f"vocab_size in {_settings(folder)} is {config.vocab_size}: the two belong to different "
        "models.",
    )
    return tokenizer


def save(directory, weights, config, tokenizer):
    """Write a checkpoint's three files. They get their names only when all are complete."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    params = json.dumps(config.to_params(), indent=2) + "\n"
    ranks = [(base64.b64encode(token), rank) for token, rank in tokenizer.ranks.items()]
    lines = b"".join(b"%s %d\n" % pair for pair in ranks)
    names = ("consolidated.00.pth", "tokenizer.model", "params.json")
    unfinished = [folder / f"{name}.part" for name in names]
    try:
        torch.save(dict(weights), unfinished[0])
        unfinished[1].write_bytes(lines)
        unfinished[2].write_bytes(params.encode())
        for path, name in zip(unfinished, names, strict=True):
            os.replace(path, folder / name)
    finally:
        for path in unfinished:
            path.unlink(missing_ok=True)


def random_weights(config, seed, dtype=torch.float32):
    """Config, seed -> {name: tensor}, as a model has them before training.

    Norms are 1; a matrix is normal with variance 1/(number of its inputs), so that values keep
    their size on the way through; the embedding table is normal with variance 1.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        scale = 1.0 if name == "tok_embeddings.weight" else 1 / math.sqrt(shape[-1])
        drawn = torch.ones(shape, device="cpu")  # on every machine the same numbers
        if len(shape) == 2:
            drawn = torch.randn(shape, generator=generator, device="cpu") * scale
        weights[name] = drawn.to(dtype)
    if config.tied_output:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return weights


def check_finite(weights):
    """Raise `InputError` with the names of all tensors that hold a NaN or an infinity."""
    # The least and the largest value tell, without a tensor of their own (with a NaN both are NaN).
    bad = [(name, "") for name in weights
           if not all(end.isfinite() for end in weights[name].aminmax())]  # fmt: skip
    require(
        not bad,
        "the checkpoint has values that are not finite (NaN or infinity), so what it says means "
        f"nothing. Download it again. They are in\n{_by_layer(bad)}",
    )


def _joined(files):
    """The tensors of several files, each joined from its slices."""

    def join(name):
        slices = [file[name] for file in files]
        return slices[0] if slices[0].dim() == 1 else torch.cat(slices, dim=_split_dim(name))

    return OnDemand(files[0], join)


def _split_dim(name):
    return 1 if name.endswith(SPLIT_BY_COLUMNS) else 0


def read_weights(folder, config):
    """A checkpoint's folder -> {Meta's name: tensor}, memory-mapped, checked against the config."""
    if _settings(folder) == "config.json":
        tensors = huggingface.read_weights(folder, config)
        _check(folder, "config.json", tensors, config)
        return OnDemand(tensors, huggingface.in_metas_order(tensors, config))
    found = sorted(path.name for path in folder.glob("consolidated.*.pth"))
    require(
        found and found == [f"consolidated.{i:02d}.pth" for i in range(len(found))],
        f"{folder}: expected the weights in consolidated.00.pth (large models: also .01.pth and so "
        f"on, none left out), found {', '.join(found) or 'none'}.",
    )
    files = [_read_file(folder / name) for name in found]
    for name, tensors in zip(found, files, strict=True):
        _check(folder / name, "params.json", tensors, config, len(files))
    return files[0] if len(files) == 1 else _joined(files)


def _check(path, settings, tensors, config, n_files=1):
    """Raise `InputError` with all that does not fit; a tied output matrix is filled in."""
    if config.tied_output and "tok_embeddings.weight" in tensors:
        tensors.setdefault("output.weight", tensors["tok_embeddings.weight"])
    faults = _faults(tensors, config, n_files)
    require(
        not faults,
        f"{path} does not fit {settings}; the two may belong to different models:\n"
        f"{_by_layer(faults)}",
    )
    if config.tied_output:  # one matrix in memory, also where a file has it twice
        tensors["output.weight"] = tensors["tok_embeddings.weight"]


def _read_file(path):
    """One .pth -> {name: tensor}, memory-mapped; nothing but tensors is ever unpickled."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        require(
            start.startswith(b"PK\x03\x04"),
            f"{path} is no file of weights: it starts with {start!r}, expected b'PK\\x03\\x04' "
            "(torch.save's zip format). Is it the pointer to a download, or an unfinished one?",
        )
        try:
            content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError as error:
            if "Cannot allocate memory" not in str(error):
                raise
            content = _load_unreserved(path)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    except Exception as error:  # torch.load raises many kinds for a bad file
        reason = _first_line(error)
        if "Weights only load failed" in reason:
            raise InputError(
                f"{path} is refused: it holds more than tensors, and loading that could run a "
                "stranger's code. Nothing was run. Get the file from its maker."
            ) from None
        size = path.stat().st_size
        raise InputError(
            f"{path} is damaged or cut short at {size:,} bytes ({reason}). Download it again."
        ) from None
    require(
        isinstance(content, dict)
        and all(isinstance(name, str) for name in content)
        and all(map(_is_plain, content.values())),
        f"{path} holds no dictionary of named, dense tensors. Is it a Llama checkpoint?",
    )
    return content


def _load_unreserved(path):
    """`torch.load`, mapped, of a file larger than this machine's memory and swap.

    Linux refuses the usual mapping then, because whoever holds it might write everywhere, in memory
    of his own. This one is the same without a claim to so much.
    """
    with FakeTensorMode():  # names, shapes, types, and where the numbers stand; these are not read
        described = torch.load(path, map_location="cpu", weights_only=True)
    with open(path, "rb") as file:
        flags = mmap.MAP_PRIVATE | getattr(mmap, "MAP_NORESERVE", 0x4000)  # named in Python 3.13
        buffer = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)

    def tensor(fake):
        start = fake.untyped_storage()._checkpoint_offset
        n = fake.untyped_storage().nbytes() // fake.itemsize
        flat = torch.frombuffer(buffer, dtype=fake.dtype, count=n, offset=start)
        return flat.as_strided(fake.shape, fake.stride(), fake.storage_offset())

    return {name: tensor(fake) for name, fake in described.items()}


def _is_plain(tensor):
    """Whether its numbers lie in a file, one beside the other: not sparse, nested or on meta."""
    right_kind = isinstance(tensor, torch.Tensor) and not tensor.is_nested
    return right_kind and tensor.layout == torch.strided and tensor.device.type == "cpu"


def _faults(tensors, config, n_files):
    """[(name, what is wrong)] of one file that holds the n-th part of every matrix."""
    faults, expected = [], weight_shapes(config)
    types = [tensor.dtype for tensor in tensors.values() if tensor.dtype in DTYPES.values()]
    usual = max(types, key=types.count, default=torch.bfloat16)
    for name, tensor in tensors.items():
        found, right = (str(dtype).split(".")[1] for dtype in (tensor.dtype, usual))
        if name not in expected:
            faults.append((name, "is not expected"))
        elif found != right:
            faults.append((name, f"is {found}, expected {right}"))
    for name, shape in expected.items():
        if len(shape) == 2:
            split = _split_dim(name)
            if shape[split] % n_files:
                faults.append(
                    (name, f"is {list(shape)}: cannot be shared out among {n_files} files")
                )
            shape = tuple(n // n_files if dim == split else n for dim, n in enumerate(shape))
        if name not in tensors:
            faults.append((name, f"is missing, expected {list(shape)}"))
        elif tuple(tensors[name].shape) != shape:
            faults.append((name, f"is {list(tensors[name].shape)}, expected {list(shape)}"))
    if config.tied_output and not faults:
        output, table = tensors["output.weight"], tensors["tok_embeddings.weight"]
        if output.data_ptr() != table.data_ptr() and not torch.equal(output, table):
            faults.append(("output.weight", "differs from tok_embeddings.weight: expected a tie"))
    return faults


def _by_layer(faults, most=12):
    """[(tensor, what is wrong)] -> a line for each fault, the same one of many layers in one."""
    layers = {}
    for name, fault in faults:
        key = re.sub(r"\blayers\.\d+", "layers.*", name, count=1), fault
        layers.setdefault(key, []).extend(map(int, re.findall(r"\blayers\.(\d+)", name)[:1]))
    lines = []
    for (name, fault), numbers in layers.items():
        runs = (
            [n for n in numbers if n - 1 not in numbers],
            [n for n in numbers if n + 1 not in numbers],
        )
        spans = [str(a) if a == b else f"{a}-{b}" for a, b in zip(*runs, strict=True)]
        lines.append(f"  {name.replace('*', ','.join(spans), 1)[:200]} {fault}")
    more = [f"  and {len(lines) - most} more such lines"] if len(lines) > most else []
    return "\n".join(lines[:most] + more)


def _first_line(error):
    return str(error).strip().split("\n")[0][:200]
