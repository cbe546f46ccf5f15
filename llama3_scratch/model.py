"""The whole forward pass of Llama 3, bottom up: plain functions over a dict of tensors.

The letters are those of config.py; `...` stands for any number of leading dimensions, or none.
Precision and order of every step are those of Meta's llama3/model.py, so the logits are equal in
every bit. Each name is assigned once per function (except `stream`), so `watch` can show them all.
"""

import math

import torch
from torch.nn import functional


def linear(x, weight):
    """[..., I], [O, I] -> [..., O]: x times the transposed weight.

    The weight is a matrix, or any object whose `.T` can be multiplied from the left.
    """
    return x @ weight.T


def rms_norm(x, weight, eps):
    """[..., D], [D], eps -> [..., D]. Zhang and Sennrich 2019, arXiv:1910.07467.

    Each row is scaled to mean square 1 in float32, cast back, and multiplied by the weight.
    """
    wide = x.float()  # [..., D]
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)  # [..., D]
    return normed.type_as(x) * weight


def rope_frequencies(config):
    """Config -> [P], float32: radians per position. Su et al. 2021, arXiv:2104.09864.

    From Llama 3.1 on, low frequencies are divided by a factor (Meta's `apply_scaling`).
    """
    H = config.head_dim
    frequencies = 1.0 / config.rope_theta ** (torch.arange(0, H, 2).float() / H)  # [P]
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_length / (2 * torch.pi / frequencies)  # [P]
    unscaled = ((turns - low) / (high - low)).clamp(0, 1)  # [P]
    return (1 - unscaled) * frequencies / scaling.factor + unscaled * frequencies


def rotations_at(positions, config):
    """[T], Config -> [T, P]: each position's rotations, complex numbers of size 1."""
    frequencies = rope_frequencies(config).to(positions.device)  # [P]
    angles = torch.outer(positions.float(), frequencies)  # [T, P]
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x, rotations):
    """[..., T, N, H], [T, P] -> [..., T, N, H] (for keys: K in place of N).

    Neighbours (0, 1), (2, 3), ... form complex numbers; each is multiplied by its rotation.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # [..., T, N, P]
    turned = pairs * rotations[:, None, :]  # [..., T, N, P]
    return torch.view_as_real(turned).flatten(-2).type_as(x)


def causal_mask(positions, stop):
    """[T], S -> [T, S]: 0 where a query may attend, minus infinity on the keys after it.

    positions: those of the queries; the keys are at positions 0 to stop - 1.
    """
    ahead = torch.arange(stop, device=positions.device) > positions[:, None]  # [T, S]
    return torch.where(ahead, -math.inf, 0.0)


def attend(query, keys, values, mask):
    """[..., T, N, H], [..., S, K, H], [..., S, K, H], [T, S] -> [..., T, N, H].

    G neighbouring query heads share one key/value head (Ainslie et al. 2023, arXiv:2305.13245).
    Keys and values are repeated for each query head, as in Meta's code: the last bit of a product
    depends on the memory layout.
    """
    G = query.shape[-2] // keys.shape[-2]
    keys_read = keys.repeat_interleave(G, dim=-2).transpose(-3, -2)  # [..., N, S, H]
    values_read = values.repeat_interleave(G, dim=-2).transpose(-3, -2)  # [..., N, S, H]
    products = query.transpose(-3, -2) @ keys_read.transpose(-2, -1)  # [..., N, T, S]
    scores = products / math.sqrt(query.shape[-1])  # [..., N, T, S]
    masked = scores + mask.type_as(scores)  # [..., N, T, S]
    probabilities = functional.softmax(masked.float(), dim=-1).type_as(query)  # [..., N, T, S]
    return (probabilities @ values_read).transpose(-3, -2)


def attention(x, weights, rotations, mask, config, cache=None, attend=attend):
    """[..., T, D], a layer's weights and cache, [T, P], [T, S] -> [..., T, D]. arXiv:1706.03762."""
    H = config.head_dim
    query = linear(x, weights["attention.wq.weight"]).unflatten(-1, (-1, H))  # [..., T, N, H]
    key = linear(x, weights["attention.wk.weight"]).unflatten(-1, (-1, H))  # [..., T, K, H]
    value = linear(x, weights["attention.wv.weight"]).unflatten(-1, (-1, H))  # [..., T, K, H]
    rotated_query = rotate(query, rotations)  # [..., T, N, H]
    rotated_key = rotate(key, rotations)  # [..., T, K, H]
    keys, values = (rotated_key, value) if cache is None else cache.append(rotated_key, value)
    outputs = attend(rotated_query, keys, values, mask)  # [..., T, N, H]
    return linear(outputs.flatten(-2), weights["attention.wo.weight"])


def feed_forward(x, weights):
    """[..., T, D], one layer's weights -> [..., T, D]. SwiGLU: Shazeer 2020, arXiv:2002.05202."""
    gate = functional.silu(linear(x, weights["feed_forward.w1.weight"]))  # [..., T, F]
    up = linear(x, weights["feed_forward.w3.weight"])  # [..., T, F]
    return linear(gate * up, weights["feed_forward.w2.weight"])


def block(x, weights, rotations, mask, config, cache=None, attend=attend):
    """[..., T, D], a layer's weights and cache, [T, P], [T, S] -> [..., T, D]: one layer."""
    normed = rms_norm(x, weights["attention_norm.weight"], config.norm_eps)  # [..., T, D]
    middle = x + attention(normed, weights, rotations, mask, config, cache, attend)  # [..., T, D]
    renormed = rms_norm(middle, weights["ffn_norm.weight"], config.norm_eps)  # [..., T, D]
    return middle + feed_forward(renormed, weights)


def layer(weights, i):
    """All weights, i -> those of layer i, by their names within it; no others are read."""
    prefix = f"layers.{i}."
    return {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}


def forward(weights, tokens, config, cache=None, attend=attend):
    """Weights, [..., T], Config -> [..., T, V], float32: next-token logits at each position."""
    start = 0 if cache is None else cache.length
    stop = start + tokens.shape[-1]
    positions = torch.arange(start, stop, device=tokens.device)  # [T]
    rotations = rotations_at(positions, config)  # [T, P]
    mask = causal_mask(positions, stop)  # [T, S]
    stream = weights["tok_embeddings.weight"][tokens]  # [..., T, D]
    for i in range(config.n_layers):
        layer_cache = None if cache is None else cache.layer(i)
        stream = block(stream, layer(weights, i), rotations, mask, config, layer_cache, attend)
    if cache is not None:
        cache.length = stop
    normed = rms_norm(stream, weights["norm.weight"], config.norm_eps)  # [..., T, D]
    return linear(normed, weights["output.weight"]).float()
