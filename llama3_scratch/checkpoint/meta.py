"""Meta's files -> weights and config: `params.json`, `consolidated.00.pth`.

Large models come as several `consolidated.NN.pth`, each with a slice of every matrix.
"""

import torch

from llama3_scratch.checkpoint.lazy import DTYPES, LazyWeights
from llama3_scratch.config import Config, weight_shapes
from llama3_scratch.errors import InputError, by_layer, first_line, require

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

    def joined(name):
        slices = [file[stored_name(name, config)] for file in files]
        whole = len(files) == 1 or slices[0].dim() == 1
        return slices[0] if whole else torch.cat(slices, dim=_split_dim(name))

    return LazyWeights(weight_shapes(config), joined)


def stored_name(name, config):
    """The name under which a tensor is stored: a tied output matrix is the embedding table."""
    tied = config.tied_output and name == "output.weight"
    return "tok_embeddings.weight" if tied else name


def _split_dim(name):
    return 1 if name.endswith(SPLIT_BY_COLUMNS) else 0


def _read_file(path):
    """One .pth -> {name: tensor}, memory-mapped; nothing but tensors is ever unpickled."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
        require(
            start.startswith(b"PK\x03\x04"),
            f"{path} is not a file of weights: it starts with {start!r}, expected b'PK\\x03\\x04' "
            "(torch.save's zip format). Is it a Git LFS pointer, or an unfinished download?",
        )
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    except Exception as error:  # torch.load raises many kinds for a bad file
        reason = first_line(error)
        if "Weights only load failed" in reason:
            raise InputError(
                f"{path} is refused: it holds more than tensors, and loading that could run a "
                "stranger's code. Nothing was run. Get the file from its publisher."
            ) from None
        raise InputError(not_readable(path, reason)) from None
    require(
        isinstance(content, dict)
        and all(isinstance(name, str) for name in content)
        and all(map(_is_plain, content.values())),
        f"{path} does not hold a dictionary of named, dense tensors. Is it a Llama checkpoint?",
    )
    return content


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


def _is_plain(tensor):
    """Whether the tensor is dense and in the file: not sparse, nested or on the meta device."""
    right_kind = isinstance(tensor, torch.Tensor) and not tensor.is_nested
    return right_kind and tensor.layout == torch.strided and tensor.device.type == "cpu"


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
    types = [tensor.dtype for tensor in tensors.values() if tensor.dtype in DTYPES.values()]
    usual = max(types, key=types.count, default=torch.bfloat16)
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
            split = _split_dim(name)
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
