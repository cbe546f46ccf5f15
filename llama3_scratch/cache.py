"""The key/value cache: the only state between two calls of `forward`."""

import torch

from llama3_scratch.errors import InputError, require


class Cache:
    """The rotated keys and the values of every position so far, for every layer.

    keys, values: [L, ..., K, C, H], allocated once for C positions (the capacity); the first
    `length` of them are filled. One head's keys are contiguous in memory. At 8B in bfloat16 a
    position takes 2 L K H x 2 bytes = 128 KiB. An interrupted `forward` leaves `length`, and so
    the content, as it was. The cache is for inference: gradients do not pass through it.
    """

    def __init__(self, config, capacity, batch=(), dtype=torch.float32, device="cpu"):
        """Allocate room for `capacity` positions, at most `config.context_length`.

        batch: the leading dimensions of the tokens; dtype, device: those of the weights.
        """
        limit = config.context_length
        require(
            0 < capacity <= limit,
            f"capacity is {capacity}: expected 1 to {limit}, the model's context length.",
        )
        shape = (config.n_layers, *batch, config.n_kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    def copy(self, config, length, capacity):
        """Return a new cache with room for `capacity`, which holds this one's first positions."""
        batch = self.keys.shape[1:-3]
        new = Cache(config, capacity, batch, self.keys.dtype, self.keys.device)
        new.keys[..., :length, :] = self.keys[..., :length, :]
        new.values[..., :length, :] = self.values[..., :length, :]
        new.length = length
        return new

    def layer(self, i):
        """Return the cache of layer i, as `attention` takes it."""
        return LayerCache(self.keys[i], self.values[i], self.length)


class LayerCache:
    """One layer's part of a `Cache`: views [..., K, C, H] of its keys and values."""

    def __init__(self, keys, values, length):
        self.keys, self.values, self.length = keys, values, length

    def append(self, key, value):
        """[..., T, K, H] twice -> [..., S, K, H] twice: store the new ones, return views of all."""
        stop, capacity = self.length + key.shape[-3], self.keys.shape[-2]
        if stop > capacity:  # no `require`: to write `stop` would make it a constant for compilers
            raise InputError(f"the cache has {capacity} positions: expected at least {stop}.")
        self.keys[..., self.length : stop, :] = key.transpose(-3, -2)
        self.values[..., self.length : stop, :] = value.transpose(-3, -2)
        keys, values = self.keys[..., :stop, :], self.values[..., :stop, :]
        return keys.transpose(-3, -2), values.transpose(-3, -2)
