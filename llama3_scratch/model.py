"""The whole forward pass of Llama 3, bottom up: plain functions over a dict of tensors.

The letters are those of config.py; `...` stands for any number of leading dimensions, or none.
Precision and order of every step are those of Meta's llama3/model.py, so the logits are equal in
every bit. Names are assigned once (but for the stream in `forward`), and `watch` shows them."""

import math

import torch
import torch.nn.functional as F


def rms_norm(x, weight, eps):
    """[..., D], [D], eps -> [..., D]. Zhang and Sennrich 2019, arXiv:1910.07467.

    Each row gets mean square 1 in float32; back in x's type, each column gets its weight.
    """
    wide = x.float()  # [..., D]
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)  # [..., D]
    return normed.type_as(x) * weight


def rope_frequencies(config):
    """Config -> [P], float32: radians per position. Su et al. 2021, arXiv:2104.09864."""
    H = config.head_dim
    plain = 1.0 / config.rope_theta ** (torch.arange(0, H, 2).float() / H)  # [P]
    if config.rope_scaling is None:
        return plain  # from Llama 3.1 on the long waves are slowed, as in Meta's `apply_scaling`
    by = config.rope_scaling
    turns = by.original_length / (2 * torch.pi / plain)  # [P]
    kept = ((turns - by.low_freq_factor) / (by.high_freq_factor - by.low_freq_factor)).clamp(0, 1)
    return (1 - kept) * plain / by.factor + kept * plain


def rotate(x, rotations):
    """[..., T, N, H], [T, P] -> [..., T, N, H] (for keys: K in place of N).

    Neighbours (0, 1), (2, 3), ... are a complex number; it is multiplied by its rotation.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # [..., T, N, P]
    turned = pairs * rotations[:, None, :]  # [..., T, N, P]
    return torch.view_as_real(turned).flatten(-2).type_as(x)


def attend(query, keys, values, mask):
    """[..., T, N, H], [..., S, K, H], [..., S, K, H], [T, S] -> [..., T, N, H].

    G neighbouring query heads read one key/value head (Ainslie et al. 2023, arXiv:2305.13245). It
    is laid out once for each of them, as Meta does: the last bit of a product depends on that.
    """
    G = query.shape[-2] // keys.shape[-2]
    keys_read = keys.repeat_interleave(G, dim=-2).transpose(-3, -2)  # [..., N, S, H]
    values_read = values.repeat_interleave(G, dim=-2).transpose(-3, -2)  # [..., N, S, H]
    products = query.transpose(-3, -2) @ keys_read.transpose(-2, -1)  # [..., N, T, S]
    scores = products / math.sqrt(query.shape[-1])  # [..., N, T, S]
    masked = scores + mask.type_as(scores)  # [..., N, T, S]
    probabilities = F.softmax(masked.float(), dim=-1).type_as(query)  # [..., N, T, S]
    return (probabilities @ values_read).transpose(-3, -2)


def attend_fused(query, keys, values, mask):
    """[..., T, N, H], [..., S, K, H], [..., S, K, H], [T, S] -> [..., T, N, H]: `attend`, fused."""
    # one call of PyTorch: quicker and smaller, and equal only up to rounding
    q, k, v = (x.transpose(-3, -2) for x in (query, keys, values))
    outputs = F.scaled_dot_product_attention(q, k, v, mask.type_as(q), enable_gqa=True)
    return outputs.transpose(-3, -2)


def attention(x, weights, rotations, mask, config, cache=None, attend=attend):
    """[..., T, D], a layer's weights and cache, [T, P], [T, S] -> [..., T, D]. arXiv:1706.03762."""
    H = config.head_dim
    query = (x @ weights["attention.wq.weight"].T).unflatten(-1, (-1, H))  # [..., T, N, H]
    key = (x @ weights["attention.wk.weight"].T).unflatten(-1, (-1, H))  # [..., T, K, H]
    value = (x @ weights["attention.wv.weight"].T).unflatten(-1, (-1, H))  # [..., T, K, H]
    rotated_query = rotate(query, rotations)  # [..., T, N, H]
    rotated_key = rotate(key, rotations)  # [..., T, K, H]
    keys, values = cache.append(rotated_key, value) if cache else (rotated_key, value)
    outputs = attend(rotated_query, keys, values, mask)  # [..., T, N, H]
    return outputs.flatten(-2) @ weights["attention.wo.weight"].T


def feed_forward(x, weights):
    """[..., T, D], one layer's weights -> [..., T, D]. SwiGLU: Shazeer 2020, arXiv:2002.05202."""
    gate = F.silu(x @ weights["feed_forward.w1.weight"].T)  # [..., T, F]
    up = x @ weights["feed_forward.w3.weight"].T  # [..., T, F]
    return (gate * up) @ weights["feed_forward.w2.weight"].T


def block(x, weights, rotations, mask, config, cache=None, attend=attend):
    """[..., T, D], a layer's weights and cache, [T, P], [T, S] -> [..., T, D]: one layer."""
    normed = rms_norm(x, weights["attention_norm.weight"], config.norm_eps)  # [..., T, D]
    middle = x + attention(normed, weights, rotations, mask, config, cache, attend)  # [..., T, D]
    renormed = rms_norm(middle, weights["ffn_norm.weight"], config.norm_eps)  # [..., T, D]
    return middle + feed_forward(renormed, weights)


def layer(weights, i):
    """All weights, i -> those of layer i, by their names inside a layer; no other is touched."""
    prefix = f"layers.{i}."
    return {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}


def forward(weights, tokens, config, cache=None, attend=attend):
    """Weights, [..., T], Config -> [..., T, V], float32: the next token's logits everywhere."""
    start = cache.length if cache else 0
    stop = start + tokens.shape[-1]
    positions = torch.arange(start, stop, device=tokens.device)  # [T]
    angles = torch.outer(positions.float(), rope_frequencies(config).to(tokens.device))  # [T, P]
    rotations = torch.polar(torch.ones_like(angles), angles)  # [T, P]
    ahead = torch.arange(stop, device=tokens.device) > positions[:, None]  # [T, S]
    mask = torch.where(ahead, -math.inf, 0.0)  # [T, S]
    stream = weights["tok_embeddings.weight"][tokens]  # [..., T, D]
    for i in range(config.n_layers):
        memory = cache and cache.layer(i)
        stream = block(stream, layer(weights, i), rotations, mask, config, memory, attend)
    if cache:
        cache.length = stop
    normed = rms_norm(stream, weights["norm.weight"], config.norm_eps)  # [..., T, D]
    return (normed @ weights["output.weight"].T).float()
