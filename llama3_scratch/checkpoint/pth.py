"""A .pth, as torch.save writes it, is looked through before torch reads it.

The file is a zip of records that are stored as they are: a pickle, `data.pkl`, says which tensors
there are, and each tensor's bytes are a record `data/KEY`. torch.load believes what the pickle says
about sizes and strides, and what the zip says about places; so a file of a few kilobytes may hold
terabytes, or tensors of bytes that are other tensors. `check` allows what safetensors allows.
"""

import io
import pickletools
import re
import struct
import zipfile
from typing import NamedTuple

import torch

from llama3_scratch.errors import InputError, first_line, require, short

MOST_TENSORS, LONGEST_NAME, MOST_BYTES = 100_000, 200, 10**7  # the last: of the pickle
OF_TENSORS = r"torch(\._utils|\._tensor|\.storage)? (_rebuild_\w+|\w+Storage|[a-z]+\d+\w*)"
TIED = {"tok_embeddings.weight", "output.weight"}  # these may be one tensor


class Stored(NamedTuple):
    """What a pickle says about a tensor: the record with its bytes, and how to see them."""

    dtype: torch.dtype
    key: str
    numel: int  # of the record
    offset: int
    shape: tuple
    stride: tuple


class _Clipped(io.FileIO):
    """A file that gives at most MOST_BYTES in one read, whatever a zip's directory asks for."""

    def read(self, size=-1):
        return super().read(min(size, MOST_BYTES) if size >= 0 else MOST_BYTES)


def check(path):
    """Raise `InputError` unless a .pth holds named, dense tensors, each with bytes of its own.

    Raises other errors if it is no zip, or one that is damaged.
    """
    with _Clipped(path) as file:
        records = _records(path, file)

        def content(name):
            start, size = records[name]
            most = f"{path}: {name} has {size:,} bytes: expected {MOST_BYTES:,} at most."
            require(size <= MOST_BYTES, most)
            file.seek(start)
            return file.read(size)

        order = content("byteorder") if "byteorder" in records else b"little"  # new in torch 2.1
        require(
            order == b"little",
            f"{path} has the byte order {short(order)}: expected b'little'. Convert the file: "
            "torch.save(torch.load(path, weights_only=True), new_path).",
        )
        tensors = _described(path, content("data.pkl"))
    require(len(tensors) <= MOST_TENSORS, f"{path} has more than {MOST_TENSORS:,} tensors.")
    owners = {}
    for name, tensor in tensors.items():
        _, size = records.get(f"data/{tensor.key}", (0, -1))
        fault = _fault(name, tensor, size)
        owner = owners.setdefault(tensor.key, name)
        if not fault and owner != name and ({name, owner} != TIED or tensor != tensors[owner]):
            fault = f"has the bytes of {short(owner)}"
        require(
            not fault,
            f"{path}: {short(name)} {fault}. Expected contiguous tensors, each with bytes of its "
            "own, as torch.save({name: t.contiguous().clone() for ...}, path) writes them.",
        )


def storable(weights):
    """{name: tensor} -> the same, as plain tensors that `check` allows; others are copied."""
    kept, owners = {}, {}
    for name, tensor in weights.items():
        plain = tensor.detach()
        storage = plain.untyped_storage()
        whole = plain.is_contiguous() and storage.nbytes() == plain.nbytes
        own = {name, owners.setdefault(storage.data_ptr(), name)} in ({name}, TIED)
        kept[name] = plain if whole and own else plain.contiguous().clone()
    return kept


def _records(path, file):
    """A zip -> {name of a record, without the folder: (first byte, number of bytes)}."""
    with zipfile.ZipFile(file) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        ends = [*(entry.header_offset for entry in entries), archive.start_dir][1:]
    records, folders = {}, set()
    for entry, end in zip(entries, ends, strict=True):
        folder, _, name = entry.filename.lower().partition("/")  # torch finds data/A as data/a
        size, packed = entry.file_size, entry.compress_size
        require(
            entry.compress_type == zipfile.ZIP_STORED and size == packed,
            f"{path}: the record {short(name)} is compressed. Expected the zip that torch.save "
            "writes, in which records are stored as they are.",
        )
        file.seek(entry.header_offset + 26)  # the lengths of its name and of what is added to it
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        if start + size > end or name in records:
            raise ValueError(f"the record {short(name)} overlaps another, or is there twice")
        records[name] = start, size
        folders.add(folder)
    if len(folders) != 1 or "data.pkl" not in records:
        raise ValueError("it is a zip, but not of one folder with data.pkl")
    return records


def _fault(name, tensor, size):
    """Return what is wrong with a tensor of which `size` bytes are stored, or ""."""
    shape, expected = tensor.shape, tensor.dtype.itemsize
    if len(name) > LONGEST_NAME:
        return f"has a name of {len(name):,} characters"
    if not (_is_shape(shape) and _is_shape(tensor.stride) and len(shape) == len(tensor.stride)):
        return "has a shape or strides that no tensor has"
    for n, step in zip(reversed(shape), reversed(tensor.stride), strict=True):
        if n > 1 and step * tensor.dtype.itemsize != expected:
            return f"has the strides {tensor.stride} for the shape {shape}"
        expected *= n
    if (tensor.offset, tensor.numel * tensor.dtype.itemsize) != (0, expected):
        return "is not the whole of its record"
    return "" if size == expected else f"has {max(size, 0):,} bytes, expected {expected:,}"


def _is_shape(sizes):
    counts = isinstance(sizes, tuple) and len(sizes) <= 8 and all(type(n) is int for n in sizes)
    return counts and all(0 <= n < 2**63 for n in sizes)


def _described(path, pickled):
    """The bytes of a data.pkl -> {name: Stored}. Nothing that they name is run."""
    try:
        content = _walk(path, pickled)
        if not isinstance(content, dict):
            raise ValueError(f"it holds the type {type(content).__name__}")
        for name, tensor in content.items():
            if not isinstance(tensor, Stored):
                raise ValueError(f"{short(name)} is of type {type(tensor).__name__}")
    except InputError:
        raise
    except Exception as error:  # a pickle that is not well formed fails in many ways
        raise InputError(
            f"{path} does not hold a dictionary of named, dense tensors of float32, bfloat16 or "
            f"float16 ({first_line(error)}). Is it a Llama checkpoint, not quantized, and complete?"
        ) from None
    return content


def _walk(path, pickled):
    """Follow a pickle's opcodes, as far as dictionaries and tensors need them -> what it holds.

    Values are neither printed nor hashed: those of a few bytes can have 2^40 parts.
    """
    stack, below, memo = [], [], {}  # below: the stacks that wait under a mark
    for opcode, value, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE":
                items, stack = tuple(stack), below.pop()
                stack.append(items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                n = int(opcode.name[-1])
                stack[-n:] = [tuple(stack[-n:])]
            case "SETITEMS":
                items, stack = stack, below.pop()
                _set(stack[-1], items)
            case "SETITEM":
                items, stack = stack[-2:], stack[:-2]
                _set(stack[-1], items)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_TUPLE":
                stack.append(())
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(value)
            case "GLOBAL":
                require(
                    value in KNOWN or re.fullmatch(OF_TENSORS, value),
                    f"{path} is refused: it holds more than tensors, and loading that could run a "
                    "stranger's code. Nothing was run. Get the file from its publisher.",
                )
                if value not in KNOWN:
                    raise ValueError(f"it asks for {value.replace(' ', '.')[:99]}")
                stack.append(KNOWN[value])
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "BINPERSID":
                _, dtype, key, _, numel = stack.pop()
                right = isinstance(dtype, torch.dtype) and isinstance(key, str)
                if not right or type(numel) is not int:
                    raise ValueError("a tensor's record is not named")
                stack.append((dtype, key, numel))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(function(*arguments))
            case "BUILD":  # what nn.Module.state_dict() adds to it, about versions
                if stack.pop().keys() != {"_metadata"} or not isinstance(stack[-1], dict):
                    raise ValueError("a dictionary has attributes")
            case _:
                raise ValueError(f"the pickle has the opcode {opcode.name}")
    return stack.pop()


def _set(content, items):
    for name, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(name, str) or name in content:
            raise ValueError("a name is no text, or is there twice")
        content[name] = value


def _tensor(storage, offset, shape, stride, requires_grad, hooks):
    return None if hooks else Stored(*storage, offset, shape, stride)


def _parameter(tensor, requires_grad, hooks):
    return None if hooks else tensor


# What a pickle of tensors may name, and what stands for it here.
KNOWN = {
    "torch FloatStorage": torch.float32, "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16, "collections OrderedDict": lambda: {},
    "torch._utils _rebuild_tensor_v2": _tensor, "torch._utils _rebuild_parameter": _parameter,
}  # fmt: skip
