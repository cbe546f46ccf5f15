"""Files of weights in few bits: `packed.safetensors`, beside Meta's params.json and tokenizer.

A matrix NAME of few bits is stored as tensors: NAME.codes (uint8, [O, I], or [O, ceil(I/2)] with
two codes of 4 bits to a byte, the first in the low bits), NAME.scales (float32, [O, n_groups]),
NAME.zeros (the same shape, uint8, or float32 if they are not whole) and, for AWQ, NAME.columns
(float32, [I]). Their row o, column i is (code - zero) scale / column. Other tensors have their own
names. The file's metadata has one entry, a JSON object: NAME: [kind, bits, group].
"""

import json

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llama3_scratch.checkpoint import pth
from llama3_scratch.checkpoint.huggingface import BAD_FILE
from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.checkpoint.meta import (
    SETTINGS,
    TOKENIZERS,
    check,
    check_layers,
    not_readable,
    read_config,
    stored_name,
)
from llama3_scratch.config import weight_shapes
from llama3_scratch.errors import InputError, first_line, require, require_file, short
from llama3_scratch.quantize.packed import Int4, Int8, Packed

__all__ = ["SETTINGS", "TOKENIZERS", "WEIGHTS", "read_config", "read_weights", "write"]
WEIGHTS = "packed.safetensors"
ENTRY = "llama3_scratch.packed"
KINDS = {"Int4": Int4, "Int8": Int8}


def write(path, weights, config):
    """Write a dictionary with packed weights as one file; the same weights give the same bytes."""
    tensors, settings = {}, {}
    for name, weight in weights.items():
        if isinstance(weight, Packed):
            settings[name] = [type(weight).__name__, weight.bits, weight.group]
            tensors |= {f"{name}.{part}": tensor for part, tensor in weight.tensors().items()}
        elif stored_name(name, config) == name:
            tensors[name] = weight
    tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
    path.touch()
    mode = path.stat().st_mode  # safetensors would let only the file's owner read it
    save_file(pth.storable(tensors), path, {ENTRY: json.dumps(settings)})
    path.chmod(mode)


def read_weights(folder, config):
    """A folder with `packed.safetensors` -> LazyWeights, in which matrices are `Int4` or `Int8`.

    The file is memory-mapped; everything is checked against the config. Raises `InputError`.
    """
    path = folder / WEIGHTS
    try:
        require_file(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            settings = json.loads((file.metadata() or {}).get(ENTRY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}).") from None
    except InputError:
        raise
    except BAD_FILE as error:
        raise InputError(not_readable(path, first_line(error))) from None
    require(
        isinstance(settings, dict) and "norm.weight" in tensors,
        f"{path} is not a file that `save` wrote: its metadata has no {ENTRY}, or it has no "
        "norm.weight. Quantized weights of other programs are not supported.",
    )
    check_layers(folder, SETTINGS, len(tensors), config)
    n_bytes = sum(tensor.nbytes for tensor in tensors.values())
    dtype, shapes = tensors["norm.weight"].dtype, weight_shapes(config)
    for name, entry in settings.items():
        parts = {part: tensors.pop(f"{name}.{part}", None)
                 for part in ("codes", "scales", "zeros", "columns")}  # fmt: skip
        fault = _fault(entry, parts, shapes.get(name, ()))
        require(not fault, f"{path} does not fit {SETTINGS}: {short(name)} {fault}.")
        kind, bits, group = entry
        tensors[name] = KINDS[kind].of(
            **parts, bits=bits, group=group, shape=torch.Size(shapes[name]), dtype=dtype
        )
    check(path, SETTINGS, tensors, config)

    def read(name):
        return tensors[stored_name(name, config)]

    return LazyWeights(shapes, read, packed=n_bytes)


def _fault(entry, parts, shape):
    """Say what is wrong with a matrix's entry and tensors for its shape, or return None."""
    kind, bits, group = entry if isinstance(entry, list) and len(entry) == 3 else (None,) * 3
    if kind not in KINDS or type(bits) is not int or not 1 <= bits <= KINDS[kind].most_bits:
        return f"has the settings {short(entry)}: expected [Int4 or Int8, bits, group]"
    if len(shape) != 2:
        return "is not a matrix of the model"
    if group is not None and (type(group) is not int or group < 1):
        return f"has groups of {short(group)}"
    rows, columns = shape
    groups = rows, -(-columns // (group or columns))
    expected = {
        "codes": (rows, -(-columns // 2) if kind == "Int4" else columns), "scales": groups,
        "zeros": groups, "columns": (columns,),
    }  # fmt: skip
    types = {"codes": (torch.uint8,), "zeros": (torch.uint8, torch.float32)}
    for part, right in expected.items():
        tensor = parts[part]
        if tensor is None:
            if part != "columns":
                return f"has no {part}"
        elif tuple(tensor.shape) != right or tensor.dtype not in types.get(part, (torch.float32,)):
            return f"has {part} of {list(tensor.shape)}, {tensor.dtype}: expected {list(right)}"
    return None


def holds(weights):
    """Whether a dictionary has weights of few bits."""
    return any(isinstance(weight, Packed) for weight in weights.values())


def unpacked(weights):
    """Weights -> the same as tensors; those of few bits are unpacked, in float32, on each use."""

    def read(name):
        weight = weights[name]
        return weight.dequantize() if isinstance(weight, Packed) else weight

    return LazyWeights(weights, read)
