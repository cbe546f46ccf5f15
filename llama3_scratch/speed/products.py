"""Products with a matrix, as fast as this machine reads it: for `linear`, the second seam.

For one row the time goes into reading the matrix, for many into arithmetic. PyTorch does neither
well in bfloat16 on a CPU that has no instructions for it, so `quick` takes, where it is faster: for
up to 64 rows, and for packed matrices, the functions of products.c, compiled for this machine on
the first use (a fraction of a second); for many rows float32, a part of the matrix at a time. Which
is faster is measured once in a process (see `faster`). For plain matrices the ways differ by the
order of their sums only; for packed ones products.c rounds the inputs to 16 bits, with a scale for
each 32.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from llama3_scratch.checkpoint.lazy import LazyWeights
from llama3_scratch.quantize.packed import Int4, Int8, Packed
from llama3_scratch.quantize.rounding import rtn

SMALL = 2**20  # numbers; smaller matrices are left alone: they stay in the CPU's cache
FEW = 64  # rows that products.c takes at a time; a power of two
MANY = 512  # rows: what is faster for these is taken for more, too; a power of two
AT_ONCE = 2**19  # numbers that are made float32 together, so that they stay in the CPU's cache
NARROW = torch.bfloat16, torch.float16


def quick(weights):
    """{name: tensor or packed matrix} -> the same, each matrix as `linear` multiplies by it fast.

    For inference, on the CPU; on other devices nothing changes, nor do the embedding table, vectors
    and matrices of fewer than 2^20 numbers. No weight is copied. A product agrees with the core's
    up to the rounding of bfloat16 or float16; for a packed matrix each input may be off by 2^-15 of
    the largest among 32 neighbours.
    """
    if isinstance(weights, dict):
        return {name: _quick(name, weight) for name, weight in weights.items()}
    return LazyWeights(weights, lambda name: _quick(name, weights[name]))


def _quick(name, weight):
    if name == "tok_embeddings.weight" or len(weight.shape) != 2:
        return weight
    large = weight.shape[0] * weight.shape[1] >= SMALL
    return _Quick(weight) if large and weight.device.type == "cpu" else weight


class _Quick:
    """A matrix [O, I], or one that is packed, that `linear` multiplies by."""

    def __init__(self, weight):
        self.weight, self.T = weight, self
        self.plain = torch.is_tensor(weight)
        self.kind = weight.dtype if self.plain else type(weight)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """tensor @ self: without this the tensor first makes an error message, for 30 us."""
        if function.__name__ not in ("matmul", "__matmul__") or not torch.is_tensor(args[0]):
            return NotImplemented
        return args[1].__rmatmul__(args[0])

    def __rmatmul__(self, x):
        """[..., I] -> [..., O]"""
        n_rows = x.numel() // self.weight.shape[1]
        fits = n_rows > 0 and x.is_cpu and x.shape[-1] == self.weight.shape[1]
        if fits and not (x.requires_grad and torch.is_grad_enabled()):
            way = self.way(n_rows, x.dtype)
            measured = self.plain or n_rows > FEW  # for few rows PyTorch would copy packed codes
            if way and (not measured or faster(self.kind, x.dtype, n_rows)):
                return way(x)
        return x @ self.weight.T  # and its errors

    @functools.cached_property
    def few(self):
        return read_once(self.weight)

    def many(self, x):
        rows = x.flatten(0, -2)
        if self.plain:
            return in_float32(rows, self.weight).unflatten(0, x.shape[:-1])
        return torch.cat([self.few(part) for part in rows.split(FEW)]).unflatten(0, x.shape[:-1])

    def way(self, n_rows, dtype):
        """Return the function for so many rows that is not PyTorch's, or None."""
        if self.plain and (dtype != self.kind or dtype not in NARROW):
            return None
        return self.many if n_rows > FEW and (self.plain or self.few) else self.few


def in_float32(rows, weight):
    """[R, I], [O, I] -> [R, O], in the type of the rows; all arithmetic is in float32."""
    wide, outputs = rows.float(), rows.new_empty(len(rows), len(weight))
    step = max(1, AT_ONCE // weight.shape[1])
    for start in range(0, len(weight), step):
        part = weight[start : start + step].float()
        outputs[:, start : start + step] = wide @ part.T
    return outputs


def read_once(weight):
    """A matrix [O, I], or one that is packed -> a function [..., I] -> [..., O], or None.

    It reads the matrix once for all rows, as it is stored. Rows are of the matrix's type, or, for a
    packed one, of any. None if products.c cannot be compiled, or does not know the matrix: it takes
    bfloat16 with I a multiple of 32, and codes with I a multiple of 128, no `columns`, zeros that
    are whole numbers, and one scale a row or one for 32, 64, 128, ... codes.
    """
    n_in = weight.shape[1]
    if isinstance(weight, Packed):
        return _packed_read_once(weight)
    fits = weight.dtype == torch.bfloat16 and n_in % 32 == 0 and _readable(weight)
    if not fits or library() is None:
        return None
    return lambda x: _call(library().bfloat16, x, weight.shape, [weight])


def _packed_read_once(weight):
    n_in, groups = weight.shape[1], weight.zeros.shape[1]
    stored = [weight.codes, weight.scales, weight.zeros]
    size = weight.group or n_in
    fits = n_in % 128 == n_in % size == 0
    fits = fits and (groups == 1 or (size >= 32 and size.bit_count() == 1))
    fits = fits and (weight.scales.dtype, weight.zeros.dtype) == (torch.float32, torch.uint8)
    fits = fits and all(map(_readable, stored)) and weight.columns is None
    if not fits or library() is None:
        return None
    bits = 8 if isinstance(weight, Int8) else 4

    def product(x):
        if x.dtype not in (torch.float32, torch.bfloat16):  # which products.c knows
            return product(x.float()).type_as(x)
        room = x.numel() // n_in * (n_in // 2 + n_in // 4 + groups)
        scratch = torch.empty(room, dtype=torch.float32, device="cpu")  # steps, scales, sums
        more = x.dtype == torch.float32, groups, bits
        return _call(library().codes, x, weight.shape, stored, [scratch], more)

    return product


def _call(function, x, shape, stored, scratch=(), more=()):
    """Call a function of products.c for x [..., I] -> [..., O], in the type of x."""
    x, (n_out, n_in) = x.contiguous(), shape
    outputs = x.new_empty((*x.shape[:-1], n_out))
    pointers = [tensor.data_ptr() for tensor in (*stored, x, *scratch, outputs)]
    function(*pointers, x.numel() // n_in, n_out, n_in, torch.get_num_threads(), *more)
    return outputs


def _readable(tensor):
    return tensor.is_contiguous() and tensor.data_ptr() % 4 == 0


@functools.cache
def library():
    """Compile products.c for this machine and load it; None where no C compiler can.

    The compiler is the one that the environment variable CC names, or cc.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if sys.byteorder != "little" or not shutil.which(compiler[0]):
        return None
    source = Path(__file__).with_name("products.c")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "products.so"
        fixed = ["-O3", "-march=native", "-shared", "-fPIC", str(source), "-o", str(made)]
        for threads in (["-fopenmp"], []):  # Apple's compiler has no OpenMP
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                subprocess.run([*compiler, *threads, *fixed], capture_output=True, check=True)
                loaded = ctypes.CDLL(str(made))
                pointer, size = ctypes.c_void_p, ctypes.c_long
                loaded.bfloat16.argtypes = [pointer] * 3 + [size] * 3 + [ctypes.c_int]
                loaded.codes.argtypes = [pointer] * 6 + [size] * 3 + [ctypes.c_int] * 4
                return loaded
    return None


def faster(kind, dtype, n_rows):
    """Return whether our way is faster than PyTorch's for so many rows.

    kind: the type of a plain matrix, or the class of a packed one; dtype: that of the rows. It is
    measured once for each power of two up to 512 rows.
    """
    return _faster(kind, dtype, 2 ** min(n_rows - 1, MANY - 1).bit_length())


@functools.cache
def _faster(kind, dtype, n_rows):
    zeros = torch.zeros(2048, 2048, device="cpu")
    made = {Int8: Int8, Int4: lambda W: Int4(rtn(W, 4, 32))}.get(kind, lambda W: W.to(kind))(zeros)
    x = torch.ones(n_rows, 2048, dtype=dtype, device="cpu")
    way = _Quick(made).way(n_rows, dtype)
    ours, torchs = seconds(lambda: way(x), lambda: x @ made.T)
    return ours < torchs


def seconds(*functions, repeats=3):
    """Return the least seconds of each function; they take turns, the first one is not counted."""
    times = []
    for _ in range(repeats + 1):
        began = [time.perf_counter()]
        for function in functions:
            function()
            began.append(time.perf_counter())
        times.append([end - start for start, end in itertools.pairwise(began)])
    return [min(each) for each in zip(*times[1:], strict=True)]
