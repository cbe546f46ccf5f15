"""Keys and values kept between steps: the only state."""

import torch

from llama3_scratch.config import require


class Cache:
    """The rotated keys and the values of every position so far, of every layer.

    keys, values: [L, ..., C, K, H], made at once for C positions (the capacity), of which the
    first `length` are filled; at 8B in bfloat16 a position takes 2 L K H x 2 bytes = 128 KiB.
    An interrupted `forward` leaves `length`, and so the content, as it was. Type and leading
    dimensions are those of the weights and the tokens; it is for inference, without gradients.
    """

    def __init__(self, config, capacity, batch=(), dtype=torch.float32, device="cpu"):
        """capacity: positions, at most `config.context_length`; batch: the leading dimensions."""
        limit = config.context_length
        require(
            0 < capacity <= limit,
            f"a cache for {capacity} positions: expected 1 to {limit}, the model's context length.",
        )
        shape = (config.n_layers, *batch, capacity, config.n_kv_heads, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def layer(self, i):
        """The cache of layer i, as `attention` takes it."""
        return LayerCache(self.keys[i], self.values[i], self.length)


class LayerCache:
    """One layer's part of a `Cache`: views [..., C, K, H] of its keys and values."""

    def __init__(self, keys, values, length):
        self.keys, self.values, self.length = keys, values, length

    def append(self, key, value):
        """[..., T, K, H] twice -> [..., S, K, H] twice: stores the new, gives back all so far."""
        stop, capacity = self.length + key.shape[-3], self.keys.shape[-3]
        require(stop <= capacity, f"the cache has {capacity} positions: expected at least {stop}.")
        self.keys[..., self.length : stop, :, :] = key
        self.values[..., self.length : stop, :, :] = value
        return self.keys[..., :stop, :, :], self.values[..., :stop, :, :]
