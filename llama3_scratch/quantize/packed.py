"""Weights of few bits that `model.linear` multiplies by: `Int8` and `Int4`.

Codes, scales and zeros are kept in a plain order, the one of the files. On the CPU, torch has
kernels that read packed codes; they are used for a few rows. They want an order of their own, which
depends on the machine, so it is made on the first use and never stored. Otherwise the matrix is
unpacked for each product. The two ways differ by rounding only, at most by this share of the
largest output: 5e-6 in float32, 2e-3 in float16, 2e-2 in bfloat16.
"""

import contextlib

import torch
from torch.nn import functional

from llama3_scratch.errors import require, short
from llama3_scratch.quantize.rounding import Rounded, dequantize

# Rows up to which the kernels are used. Beyond, unpacking the matrix once is quicker (measured with
# AVX2 and AVX-512; in float32 torch's kernels for AVX2 are plain loops).
FEW = {torch.float32: 4, torch.bfloat16: 64, torch.float16: 64}
AT_ONCE = 2**18  # numbers that are unpacked together, so that they stay in the CPU's cache
KERNEL_GROUPS = 256, 128, 64, 32  # weights per scale that torch's kernel of 4 bits knows


def absmax(x, bits=8):
    """[..., n] -> codes [..., n], int8, scales [..., 1]: each row by its largest magnitude.

    x is about codes * scales; codes go from -(2^(bits-1) - 1) to the same with plus. The scales
    have x's type, and x is divided by them as they are stored, so that no number is off by more
    than half a scale.
    """
    most = 2 ** (bits - 1) - 1
    scales = (x.float().abs().amax(-1, keepdim=True) / most).type_as(x)
    steps = x.float() / scales.float().masked_fill(scales == 0, 1)
    return steps.round().clamp(-most, most).to(torch.int8), scales


def two_to_a_byte(codes):
    """[..., n], uint8, below 16 -> [..., ceil(n/2)]: the first of two in the low bits."""
    even = functional.pad(codes, (0, codes.shape[-1] % 2))
    return even[..., 0::2] | even[..., 1::2] << 4


def one_to_a_byte(pairs, n):
    """[..., ceil(n/2)], uint8 -> [..., n]: undo `two_to_a_byte`."""
    return torch.stack([pairs & 15, pairs >> 4], -1).flatten(-2)[..., :n]


class Packed:
    """A matrix [O, I] of few bits, which stands in a dictionary of weights in place of a tensor.

    codes: uint8, [O, I], or two to a byte; scales, zeros: [O, n_groups], columns: [I] or None, and
    bits, group, as in `Rounded`. dtype: the type of the model's tensors. Gradients pass to what it
    is multiplied with, not to the codes.
    """

    def __init__(self, rounded, dtype=torch.float32):
        """rounded: a `Rounded` of few enough bits. Raises `InputError`."""
        name = type(self).__name__
        require(isinstance(rounded, Rounded), f"{name} packs a Rounded, not {short(type(rounded))}")
        require(
            rounded.turns is None,
            f"{name} does not hold QuIP's turns: pack what rtn, gptq, awq or adaround returned, or "
            "put dequantize(rounded) among the weights.",
        )
        require(
            rounded.bits <= self.most_bits,
            f"the matrix has {rounded.bits} bits a weight: {name} has at most {self.most_bits}.",
        )
        narrow = rounded.zeros.to(torch.uint8)
        whole = torch.equal(narrow.type_as(rounded.zeros), rounded.zeros)
        self.codes, self.scales = self.pack(rounded.codes), rounded.scales
        self.zeros, self.columns = narrow if whole else rounded.zeros, rounded.columns
        self.bits, self.group, self.shape = rounded.bits, rounded.group, rounded.codes.shape
        self.dtype, self.kernels = dtype, {}

    @classmethod
    def of(cls, **parts):
        """Return the matrix with these attributes."""
        made = cls.__new__(cls)
        vars(made).update({"columns": None, "kernels": {}} | parts)
        return made

    def tensors(self):
        """Return {attribute: tensor}, all that has to be stored besides bits, group and shape."""
        found = {name: vars(self)[name] for name in ("codes", "scales", "zeros", "columns")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @property
    def device(self):
        return self.codes.device

    @property
    def nbytes(self):
        """The bytes of its tensors. A kernel, once used, has another copy of them."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @property
    def T(self):
        """What `linear` multiplies by, `x @ weight.T`: itself."""
        return self

    def to(self, device, dtype):
        """Return the same on a device, in a model of type dtype. Scales keep their own type."""
        if torch.device(device) == self.device:
            return self if dtype == self.dtype else self.of(**vars(self) | {"dtype": dtype})
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return self.of(**vars(self) | moved | {"dtype": dtype, "kernels": {}})

    def rounded(self, rows=slice(None)):
        """Return it, or some of its rows, as a `Rounded` with a byte for each code."""
        codes, zeros = self.unpack(self.codes[rows]), self.zeros[rows].float()
        return Rounded(codes, self.scales[rows], zeros, self.bits, self.group, self.columns)

    def dequantize(self, dtype=torch.float32):
        """Return the matrix [O, I] that it stands for."""
        matrix = torch.empty(self.shape, dtype=dtype, device=self.device)
        step = max(1, AT_ONCE // self.shape[1])
        for rows in (slice(start, start + step) for start in range(0, len(matrix), step)):
            matrix[rows] = dequantize(self.rounded(rows))
        return matrix

    def __rmatmul__(self, x):
        """[..., I] -> [..., O]: x times the transposed matrix, in the type of x."""
        rows = x.reshape(-1, self.shape[1])
        kernel = self._kernel(rows)
        if kernel is None:
            return x @ self.dequantize(x.dtype).T
        if self.columns is not None:
            rows = (rows / self.columns).type_as(rows)
        if not rows.is_contiguous() or rows.data_ptr() % 32:  # kernels load whole vectors
            rows = rows.clone(memory_format=torch.contiguous_format)
        return kernel(rows).reshape(*x.shape[:-1], self.shape[0])

    def _kernel(self, rows):
        """Return a kernel for these rows, or None. On the first use it is tried out."""
        tracked = rows.requires_grad and torch.is_grad_enabled()  # the kernels have no derivative
        if rows.device.type != "cpu" or tracked or not 0 < len(rows) <= FEW.get(rows.dtype, 0):
            return None
        if rows.dtype not in self.kernels:
            self.kernels[rows.dtype] = None
            with contextlib.suppress(AttributeError, RuntimeError):  # this torch or CPU lacks it
                kernel = self.kernel(rows.dtype)
                if kernel and kernel(rows.new_zeros(1, rows.shape[1])) is not None:
                    self.kernels[rows.dtype] = kernel
        return self.kernels[rows.dtype]


class Int8(Packed):
    """A matrix in 8 bits a weight, or fewer that take a byte each. See `Packed`."""

    most_bits = 8

    def __init__(self, source, dtype=None):
        """source: a matrix, of which each row gets a scale by `absmax`; or a `Rounded`."""
        if isinstance(source, torch.Tensor):
            codes, scales = absmax(source.float())
            dtype = dtype or source.dtype
            codes = (codes.short() + 128).to(torch.uint8)
            source = Rounded(codes, scales, torch.full_like(scales, 128), 8, None)
        super().__init__(source, dtype or torch.float32)

    def pack(self, codes):
        return codes

    def unpack(self, codes):
        return codes

    def kernel(self, dtype):
        """Return torch's product for rows of a type, or None: it needs one scale a row, zero 128.

        Its vector code loads 32 bytes of inputs, and on ARM four scales, whether they are there or
        not: with other sizes the process may end.
        """
        fits = self.shape[0] % 4 == self.shape[1] % 16 == 0
        if not fits or self.zeros.shape[1] > 1 or (self.zeros != 128).any():
            return None
        codes, scales = (self.codes ^ 128).view(torch.int8), self.scales[:, 0].to(dtype)
        return lambda rows: torch._weight_int8pack_mm(rows, codes, scales)


class Int4(Packed):
    """A matrix in 4 bits a weight, or fewer that take 4 each: two to a byte. See `Packed`."""

    most_bits = 4

    def pack(self, codes):
        return two_to_a_byte(codes)

    def unpack(self, codes):
        return one_to_a_byte(codes, self.shape[1])

    def kernel(self, dtype):
        """Return torch's product for rows of a type, or None: groups and O have to fit it."""
        size = self.group or self.shape[1]
        n = next((n for n in KERNEL_GROUPS if size % n == 0), None)
        if n is None or self.shape[1] % size:
            return None
        more = 8 - 2 ** (self.bits - 1)  # the kernel subtracts 8: so the middle code becomes 8
        codes, zeros = self.unpack(self.codes).int() + more, self.zeros.float() + more
        order = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        steps = torch.stack([self.scales, (8 - zeros) * self.scales], -1)
        steps = steps.repeat_interleave(size // n, 1).transpose(0, 1).contiguous().to(dtype)
        return lambda rows: torch.ops.aten._weight_int4pack_mm_for_cpu(rows, order, n, steps)


def packed(rounded, weights):
    """{name: Rounded}, a model's weights -> the weights of the model in few bits, a dictionary.

    It goes through `forward` and `generate`. Matrices of at most 4 bits become `Int4`, of more
    `Int8`; what is not a `Rounded` (a tensor, or packed already) is taken as it is. Raises
    `InputError`.
    """
    for name, matrix in rounded.items():
        require(
            name in weights and (name != "tok_embeddings.weight" or torch.is_tensor(matrix)),
            f"{name} cannot be packed: expected a matrix that the model multiplies by.",
        )
    dtype = weights["norm.weight"].dtype
    made = {}
    for name, matrix in rounded.items():
        if isinstance(matrix, Rounded):
            matrix = (Int4 if matrix.bits <= 4 else Int8)(matrix, dtype)
        made[name] = matrix
    return {name: made[name] if name in made else weights[name] for name in weights}
