"""A key/value cache of 8 or 4 bits a number."""

import torch

from llama3_scratch.errors import InputError, require
from llama3_scratch.quantize.packed import absmax, one_to_a_byte, two_to_a_byte


class QuantizedCache:
    """A `Cache` that keeps keys and values as whole numbers, with a scale per position and head.

    codes: [2, L, ..., K, C, H] in int8, or [..., H/2] in uint8, two of 4 bits to a byte; scales:
    [2, L, ..., K, C] in the weights' type; first the keys, then the values. With that type of 16
    bits, a number takes 8 + 16/H bits or 4 + 16/H. A position is rounded once, when it is appended,
    by its own scales, so nothing depends on how many are appended together. Each use makes numbers
    of the weights' type from one layer's codes.
    """

    def __init__(self, config, capacity, batch=(), dtype=torch.float32, device="cpu", bits=8):
        """As for `Cache`; bits: 8 or 4. Raises `InputError`."""
        limit = config.context_length
        require(
            0 < capacity <= limit,
            f"capacity is {capacity}: expected 1 to {limit}, the model's context length.",
        )
        require(bits in (4, 8), f"bits is {bits}: expected 4 or 8.")
        shape = (2, config.n_layers, *batch, config.n_kv_heads, capacity)
        kind, width = torch.int8 if bits == 8 else torch.uint8, config.head_dim * bits // 8
        self.codes = torch.zeros(*shape, width, dtype=kind, device=device)
        self.scales = torch.zeros(shape, dtype=dtype, device=device)
        self.bits, self.length = bits, 0

    @property
    def nbytes(self):
        return self.codes.nbytes + self.scales.nbytes

    def copy(self, config, length, capacity):
        """Return a new cache with room for `capacity`, which holds this one's first positions."""
        batch, scales = self.scales.shape[2:-2], self.scales
        new = QuantizedCache(config, capacity, batch, scales.dtype, scales.device, self.bits)
        new.codes[..., :length, :] = self.codes[..., :length, :]
        new.scales[..., :length] = scales[..., :length]
        new.length = length
        return new

    def layer(self, i):
        """Return the cache of layer i, as `attention` takes it."""
        return QuantizedLayerCache(self.codes[:, i], self.scales[:, i], self.bits, self.length)


class QuantizedLayerCache:
    """One layer's part of a `QuantizedCache`: views of its codes and scales."""

    def __init__(self, codes, scales, bits, length):
        self.codes, self.scales, self.bits, self.length = codes, scales, bits, length

    def append(self, key, value):
        """[..., T, K, H] twice -> [..., S, K, H] twice: round the new ones, return all."""
        stop, capacity = self.length + key.shape[-3], self.scales.shape[-1]
        if stop > capacity:  # no `require`: to write `stop` would make it a constant for compilers
            raise InputError(f"the cache has {capacity} positions: expected at least {stop}.")
        new = torch.stack([key, value]).transpose(-3, -2)  # [2, ..., K, T, H]
        codes, scales = absmax(new, self.bits)
        if self.bits == 4:
            codes = two_to_a_byte((codes + 8).to(torch.uint8))
        self.codes[..., self.length : stop, :] = codes
        self.scales[..., self.length : stop] = scales[..., 0]
        held = self.codes[..., :stop, :]  # [2, ..., K, S, H]
        if self.bits == 4:
            held = one_to_a_byte(held, key.shape[-1]).to(torch.int8) - 8
        both = (held * self.scales[..., :stop, None]).transpose(-3, -2)  # [2, ..., S, K, H]
        return both[0], both[1]
