"""Meta's files -> weights and config: `params.json`, `consolidated.00.pth`.

Large models come as several `consolidated.NN.pth`, each with a slice of every matrix.
"""

from collections import Counter

import torch

from llama3_scratch.checkpoint import pth
from llama3_scratch.checkpoint.lazy import DTYPES, LazyWeights
from llama3_scratch.config import Config, weight_shapes
from llama3_scratch.errors import InputError, by_layer, first_line, require, require_file

SETTINGS, WEIGHTS = "params.json", "consolidated.*.pth"
TOKENIZERS = "tokenizer.model", "tokenizer.json"  # the first one that is there is read
# Each model-parallel file has some columns of these matrices, and some rows of the others; the
# norms are whole in every file (`reshard_mp` in llama-models' checkpoint.py).
SPLIT_BY_COLUMNS = ("attention.wo.weight", "feed_forward.w2.weight")


def read_config(folder):
    """A folder with `params.json` -> Config. Raises `InputError`."""
    return Config.from_params(folder / SETTINGS)


def read_weights(folder, config):
    """A folder with `consolidated.*.pth` -> LazyWeights as stored, checked against the config.

    The files are memory-mapped. Raises `InputError`.
    """
    found = sorted(path.name for path in folder.glob(WEIGHTS))
    require(
        found and found == [f"consolidated.{i:02d}.pth" for i in range(len(found))],
        f"{folder}: expected the weights in consolidated.00.pth (large models: also .01.pth and so "
        f"on, none left out), found {', '.join(found) or 'none'}.",
    )
    files = [_read_file(folder / name) for name in found]
    check_layers(folder, SETTINGS, len(files[0]), config)
    for name, tensors in zip(found, files, strict=True):
        check(folder / name, SETTINGS, tensors, config, len(files))

    for name, tensors in zip(found[1:], files[1:], strict=True):
        differ = [(key, f"differs from that in {found[0]}") for key, tensor in tensors.items()
                  if not _agree(tensor, files[0][key])]  # fmt: skip
        require(
            not differ,
            f"{folder / name} belongs to another model than {found[0]}, or is damaged:\n"
            f"{by_layer(differ)}",
        )

    def read_part(name, rank, ranks):
        slices = [file[stored_name(name, config)] for file in files]
        if slices[0].dim() == 1:
            return slices[0]
        dim = split_dim(name)
        size = slices[0].shape[dim]
        start, stop = (len(files) * size * r // ranks for r in (rank, rank + 1))
        parts = []
        for i, part in enumerate(slices):
            first, last = max(start - i * size, 0), min(stop - i * size, size)
            parts += [part.narrow(dim, first, last - first)] if first < last else []
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)

    return LazyWeights(
        weight_shapes(config), lambda name: read_part(name, 0, 1), read_part=read_part
    )


def cut(tensor, name, rank, ranks):
    """A tensor -> the slice of it that file `rank` of `ranks` has, a view; norms stay whole."""
    if tensor.dim() == 1:
        return tensor
    size = tensor.shape[split_dim(name)] // ranks
    return tensor.narrow(split_dim(name), rank * size, size)


def stored_name(name, config):
    """The name under which a tensor is stored: a tied output matrix is the embedding table."""
    tied = config.tied_output and name == "output.weight"
    return "tok_embeddings.weight" if tied else name


def _agree(one, other):
    """Whether two files' tensors of a name have one type and, being norms, the same bits."""
    if one.dtype != other.dtype or one.dim() > 1:
        return one.dtype == other.dtype
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def split_dim(name):
    """The dimension along which files split a matrix: 1 by columns, 0 by rows."""
    return 1 if name.endswith(SPLIT_BY_COLUMNS) else 0


def _read_file(path):
    """One .pth -> {name: tensor}, memory-mapped; nothing but tensors is ever unpickled."""
    try:
        require_file(path)
        with open(path, "rb") as file:
            start = file.read(8)
        require(
            start.startswith(b"PK\x03\x04"),
            f"{path} is not a file of weights: it starts with {start!r}, expected b'PK\\x03\\x04' "
            "(torch.save's zip format). Is it a Git LFS pointer, or an unfinished download?",
        )
        pth.check(path)
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    except Exception as error:  # torch.load raises many kinds for a bad file
        raise InputError(not_readable(path, first_line(error))) from None
    return {name: tensor.detach() for name, tensor in content.items()}  # also of a Parameter


def not_readable(path, reason):
    """Return the message about a file that its library refuses for this reason."""
    size = path.stat().st_size
    if "Cannot allocate memory" in reason:
        return (
            f"{path} has {size:,} bytes, more than this machine's memory and swap, so Linux does "
            "not map it. Add swap, or allow it: sysctl vm.overcommit_memory=1."
        )
    return (
        f"{path} is damaged or cut short at {size:,} bytes ({reason}). Is it a Git LFS pointer, or "
        "an unfinished download? Download it again."
    )


def check_layers(folder, settings, n_tensors, config):
    """Raise `InputError` if there are fewer tensors than layers, before all names are listed."""
    require(
        config.n_layers <= n_tensors,
        f"{folder} has {n_tensors} tensors: expected those of the {config.n_layers} layers that "
        f"{settings} names; the two may belong to different models.",
    )


def check(path, settings, tensors, config, n_files=1):
    """Raise `InputError` that lists how tensors (by Meta's names) do not fit the config, if so."""
    faults = _faults(tensors, config, n_files)
    require(
        not faults,
        f"{path} does not fit {settings}; the two may belong to different models:\n"
        f"{by_layer(faults)}",
    )


def _faults(tensors, config, n_files):
    """Return [(name, what is wrong)] of one file, which holds 1/n_files of every matrix."""
    faults, expected = [], weight_shapes(config)
    types = Counter(tensor.dtype for tensor in tensors.values())
    usual = max(DTYPES.values(), key=types.__getitem__)
    for name, tensor in tensors.items():
        found, right = (str(dtype).split(".")[1] for dtype in (tensor.dtype, usual))
        if name not in expected:
            faults.append((name, "is not expected"))
        elif found != right:
            faults.append((name, f"is {found}, expected {right}"))
    for name, shape in expected.items():
        if config.tied_output and name == "output.weight" and name not in tensors:
            continue
        if len(shape) == 2:
            split = split_dim(name)
            if shape[split] % n_files:
                faults.append((name, f"is {list(shape)}: cannot be split over {n_files} files"))
            shape = tuple(n // n_files if dim == split else n for dim, n in enumerate(shape))
        if name not in tensors:
            faults.append((name, f"is missing, expected {list(shape)}"))
        elif tuple(tensors[name].shape) != shape:
            faults.append((name, f"is {list(tensors[name].shape)}, expected {list(shape)}"))
    if config.tied_output and not faults and "output.weight" in tensors:
        output, table = tensors["output.weight"], tensors["tok_embeddings.weight"]
        if output.data_ptr() != table.data_ptr() and not torch.equal(output, table):
            fault = "differs from tok_embeddings.weight: expected a tie, by tie_word_embeddings "
            fault += "(tied_output) in the settings; if both are right, set that to false"
            faults.append(("output.weight", fault))
    return faults
